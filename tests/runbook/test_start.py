"""The start: what it leaves out is there for whoever asks for it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from stack.api import wait_until
from tasks import ns

ROOT = Path(__file__).parents[2]


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


def test_the_cluster_is_reached_without_what_that_does_not_need(tmp_path):
    config = {"current-context": "x", "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
              "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:9"}}], "users": [{"name": "u", "user": {"token": "t"}}]}
    (tmp_path / "config").write_text(json.dumps(config))
    said = run(f"""
import sys
from pathlib import Path
from runbook.clients.cluster import Cluster
print(Cluster("p", Path({str(tmp_path / "config")!r})).server, {{"pydantic", "oauthlib", "requests", "websocket"}} & sys.modules.keys())
from kubernetes.config import kube_config
kube_config.oauthlib.oauth2.rfc6749.errors.InvalidClientIdError
from kubernetes.dynamic import DynamicClient
from kubernetes.stream import ws_client
from pydantic import BaseModel
print(*(each.__module__ for each in (kube_config.OAuth2Session(client_id="x").__class__, DynamicClient, ws_client.WSClient, BaseModel)))""")
    assert said == ["https://127.0.0.1:9", "set()", "requests_oauthlib.oauth2_session", "kubernetes.dynamic.client",
                    "kubernetes.stream.ws_client", "pydantic.main"]


def started(*words):
    return subprocess.run([sys.executable, "-m", "runbook", *words], capture_output=True, text=True, check=True).stdout


def test_the_bytecode_of_our_modules_is_kept_for_the_next_command(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, "-m", "runbook", "--list"], env=environment | {"PYTHONPYCACHEPREFIX": str(tmp_path)},
                   stdout=subprocess.DEVNULL, check=True)
    assert list(tmp_path.rglob("procedures/eos.*.pyc"))


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


PYTHON = """#!/bin/sh
case "$*" in
    *"-m venv"*) echo made >> "$0.log"; mkdir -p "$RUNBOOK_VENV/bin"; cp "$0" "$RUNBOOK_VENV/bin/python"
                 until [ -e "$0.go" ]; do sleep 0.05; done ;;
    *"pip config get"*) echo "https://index.of.pip/simple" ;;
    *locks/uv.txt) [ "$UV" ] || exit 1
                   printf '#!/bin/sh\n%s\n' "$UV" > "$RUNBOOK_VENV/bin/uv"; chmod +x "$RUNBOOK_VENV/bin/uv" ;;
    *"-m pip"*) echo "pip $*" >> "$RUNBOOK_VENV/asked" ;;
    *__main__.py*) echo ran "$@" ;;
esac
"""


def with_python(folder):
    """Return an environment whose Python makes a .venv as soon as there is `python.go`, and tells what it is asked."""
    python = folder / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    return os.environ | {"PYTHON": str(python), "RUNBOOK_VENV": str(folder / "venv"), "RUNBOOK_LOCK": "guide"}


def test_two_at_once_make_one_environment_and_one_that_was_killed_is_made_again(tmp_path):
    environment = with_python(tmp_path)

    def start():
        return subprocess.Popen([ROOT / "inv", "--list"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def made():
        log = tmp_path / "python.log"
        return log.read_text().count("made") if log.exists() else 0

    try:
        killed = start()
        wait_until(lambda: made() == 1, "the first to begin")
        killed.kill()
        killed.wait()
        first = start()
        wait_until(lambda: made() == 2, "the next to begin anew")
        second = start()
        assert f"process {first.pid} is making" in second.stderr.readline()
    finally:
        (tmp_path / "python.go").touch()
    for each in (first, second):
        said, _ = each.communicate(timeout=60)
        assert (each.returncode, said.split()[0]) == (0, "ran")
    assert made() == 2
    assert not (tmp_path / "venv.making").exists()


@pytest.mark.parametrize(("uv", "asked"), [
    ('echo "uv $UV_DEFAULT_INDEX $*" >> "$VIRTUAL_ENV/asked"', ["uv https://index.of.pip/simple pip install"]),
    *((uv, ["pip -m pip --disable-pip-version-check install"]) for uv in ("exit 2", ""))], ids=["it can", "it cannot", "there is none"])
def test_the_packages_are_installed_by_uv_and_where_it_cannot_by_pip(tmp_path, uv, asked):
    (tmp_path / "python.go").touch()
    environment = {key: value for key, value in with_python(tmp_path).items() if key not in {"UV_DEFAULT_INDEX", "PIP_INDEX_URL"}}
    subprocess.run([ROOT / "inv", "--list"], env=environment | {"UV": uv}, capture_output=True, check=True)
    options = f" --quiet --require-hashes --only-binary :all: -r {ROOT}/locks/guide.txt"
    assert (tmp_path / "venv/asked").read_text().splitlines() == [words + options for words in asked]


def test_whoever_waits_for_the_environment_at_a_terminal_sees_that_it_goes_on(tmp_path):
    (tmp_path / "venv/lib/python3.11/site-packages/some.dist-info").mkdir(parents=True)
    terminal, end = os.openpty()
    with subprocess.Popen([ROOT / "inv", "--list"], env=with_python(tmp_path), stdout=subprocess.PIPE, stderr=end) as making:
        os.close(end)
        said = b""

        def sees(word):
            nonlocal said
            said += os.read(terminal, 1000)
            return word in said

        try:
            wait_until(lambda: sees(b"2 s, 1 packages"), "the seconds to be counted")
        finally:
            (tmp_path / "python.go").touch()
        assert making.stdout.read().split()[0] == b"ran"
        wait_until(lambda: sees(b"\r\x1b[K"), "the line to be cleared")
    os.close(terminal)
