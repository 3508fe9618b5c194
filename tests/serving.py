"""The site as `docs.serve` shows it while somebody writes: a copy of its sources that may be changed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stack.api import wait_until

ROOT = Path(__file__).parent.parent


def copied(folder: Path) -> Path:
    """Copy what the site is made of into a folder, and return it; the engine and the stack are only linked."""
    shutil.copytree(ROOT / "docs", folder / "docs")
    shutil.copytree(ROOT / "procedures", folder / "procedures", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("mkdocs.yml", "tasks.py"):
        shutil.copy(ROOT / name, folder)
    for name in ("runbook", "stack", "instances", "tests"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@dataclass
class Served:
    """A site that is being served from a folder."""

    folder: Path
    address: str

    def page(self, name: str) -> str:
        """Return a page as it is served now, "" while nothing answers."""
        try:
            with urllib.request.urlopen(f"http://{self.address}/{name}", timeout=60) as answer:
                return str(answer.read().decode())
        except (urllib.error.URLError, ConnectionError):
            return ""

    def wait(self, name: str, text: str, seconds: float = 120) -> None:
        """Wait until a page has a text."""
        wait_until(lambda: text in self.page(name), f"{text!r} on {name}", seconds)


@contextmanager
def served(folder: Path) -> Iterator[Served]:
    """Serve the site of a folder as `docs.serve` does, until it is no longer needed."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    run = f"import tasks; from invoke import Context; tasks.docs_serve.body(Context(), address={address!r})"
    with (folder / "serve.log").open("w") as log:
        server = subprocess.Popen([sys.executable, "-c", run], cwd=folder, stdout=log, stderr=log,
                                  env=os.environ | {"PYTHONPATH": str(folder)})
    try:
        found = Served(folder, address)
        found.wait("index.html", "</html>")
        yield found
    finally:
        server.terminate()
        server.wait(30)
