"""The command line in a process that has its modules loaded already: most of a command's time is their import.

The process is real, has its own environment, folder, output and exit code, and runs the command from its first word.
What it does not show is how a Python starts; tests/runbook/test_start.py, test_newcomer.py and test_blocks.py do.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from multiprocessing import forkserver
from pathlib import Path

PROCESSES = multiprocessing.get_context("forkserver")
# runbook.start keeps out what invoke does not need. tasks.py is not here: it reads the environment when it is imported.
PROCESSES.set_forkserver_preload(["runbook.start", "kubernetes.config", "kubernetes.stream", "psycopg2", "rich.console", "urllib3",
                                  "procedures", "runbook.cli", "runbook.run", "stack.commands"])

_STARTING = threading.Lock()


def run(words: tuple[str, ...], environment: Mapping[str, str], seconds: float, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command from the root folder with nothing on its standard input, after some lines of Python.

    Raises subprocess.TimeoutExpired.
    """
    with _STARTING:
        _start()
    with tempfile.TemporaryDirectory(prefix="command-") as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = PROCESSES.Process(target=_command, args=(words, dict(environment), out, err, before))
        process.start()
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(list(words), seconds, out.read_text(), err.read_text())
        return subprocess.CompletedProcess(words, process.exitcode or 0, out.read_text(), err.read_text())


@functools.cache
def _start() -> None:
    """Start what the commands fork from, with its socket below /tmp: TMPDIR may be long, and the path of a socket may not."""
    usual, tempfile.tempdir = tempfile.tempdir, "/tmp"
    try:
        forkserver.ensure_running()
    finally:
        tempfile.tempdir = usual


def _command(words: tuple[str, ...], environment: Mapping[str, str], out: Path, err: Path, before: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir("/")
    for path, number in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), number)
    sys.argv = ["runbook", *words]
    exec(before, {})
    runpy.run_module("runbook", run_name="__main__", alter_sys=True)
