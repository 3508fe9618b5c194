"""The start: what it leaves out is there for whoever asks for it."""

import re
import subprocess
import sys

from tasks import ns


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_the_command_line_starts_without_what_it_does_not_use():
    loaded = set(run("import sys, runbook.__main__; print(*sys.modules)"))
    assert "invoke" in loaded
    assert not loaded & {"unittest.mock", "asyncio", "importlib.metadata", "kubernetes", "psycopg2", "rich", "runbook.run"}


def test_whoever_needs_the_real_modules_gets_them():
    said = run("import runbook.start; from unittest.mock import patch; from importlib.metadata import version; "
               "print(patch.__module__, version('invoke'))")
    assert said[0] == "unittest.mock"
    assert said[1].startswith("3.")


def started(*words):
    return subprocess.run([sys.executable, "-m", "runbook", *words], capture_output=True, text=True, check=True).stdout


def test_without_a_task_it_lists_the_tasks_after_two_to_begin_with():
    first, _, rest = started().partition("\n\n")
    assert rest == started("--list")
    begun = re.findall(r"`invoke ([\w.]+)", first)
    assert len(begun) == 2
    assert set(begun) <= set(ns.task_names)


def test_whoever_reads_only_the_beginning_sees_no_traceback():
    with subprocess.Popen([sys.executable, "-m", "runbook", "--list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as listing:
        listing.stdout.close()
        assert listing.stderr.read() == b""
    assert listing.returncode == 1
