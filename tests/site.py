"""The built site in the tests' hands: made as `invoke docs.build` makes it, and published as a web server does."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tasks import MKDOCS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
EDIT = "https://forge.example/some/guide/edit/main/"
"""Where the pages say that they are edited."""


def build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Build the site as `invoke docs.build` does, into a folder of its own."""
    return subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)], cwd=root,
                          env=os.environ | MKDOCS | {"RUNBOOK_EDIT": EDIT}, text=True, capture_output=True, timeout=120, check=False)


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and writes no line for each."""

    def log_message(self, *_: object) -> None:
        """A test that fails shows what the browser saw."""


@contextmanager
def published(site: Path) -> Iterator[str]:
    """Give the address at which a loopback server shows a built site."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
