"""A real browser in the tests' hands: the first Chromium of a chain, driven by Playwright.

The chain: `RUNBOOK_BROWSER` (a path), PATH, what `playwright install` left, its download, and for root on Debian its
package. Where none of them gives one, tests with a browser are skipped with the reason; where `CI` is true they fail.
"""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, sync_playwright

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
"""The first is the same browser without a window to draw: a page takes it a quarter less."""
VARIABLE = "RUNBOOK_BROWSER"
# Without them it looks for hosts of its maker at every start.
FLAGS = ["--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


def installed() -> str:
    """Return the path of a browser that is there, "" when there is none."""
    named = os.environ.get(VARIABLE, "")
    if named:
        return named
    for name in NAMES:
        if found := shutil.which(name):
            return found
    cache = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or Path.home() / ".cache" / "ms-playwright")
    return next((str(path) for path in sorted(cache.glob("chromium*/chrome-*linux*/*"), reverse=True)
                 if path.name in {"chrome", "headless_shell", "chrome-headless-shell"}), "")


def runs(path: str) -> str:
    """Return why a browser does not start (it lacks a library of the system, say), "" when it does."""
    done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60, check=False)
    return done.stderr.strip() if done.returncode else ""


@functools.cache
def find(tell: Callable[[str], object] = sys.stderr.write) -> tuple[str, str]:
    """Return the path of a browser and "", or "" and why there is none; installs one where there is none yet, and says so."""
    with (Path(tempfile.gettempdir()) / f"browser-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the other worker's turn finds what the first one fetched
        said = []
        for words in ([], *_ways()):
            if words:
                tell(f"the browser tests need Chromium: {' '.join(words)}\n")
                done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=600,
                                      env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"})
                said += [f"{' '.join(words)}: {(done.stderr.strip().splitlines() or ['ended with ' + str(done.returncode)])[-1]}"] \
                    if done.returncode else []
            if path := installed():
                if not (wrong := runs(path)):
                    return path, ""
                said.append(f"{path}: {wrong}")
        return "", "no browser: " + "; ".join(said)


def _ways() -> list[list[str]]:
    """Return the commands that fetch a browser here."""
    ways = []
    if os.geteuid() == 0 and shutil.which("apt-get"):
        install = "apt-get -qq install -y --no-install-recommends"
        ways += [[*install.split(), NAMES[0]], ["sh", "-c", f"apt-get -qq update && ({install} {NAMES[0]} || {install} chromium)"]]
    return [*ways, [sys.executable, "-m", "playwright", "install", "--only-shell", "chromium"]]


@contextmanager
def launched() -> Iterator[Browser]:
    """Give a running browser; skips the test where there is none."""
    path, why = find()
    if not path:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(why)
        pytest.skip(why)
    with sync_playwright() as playwright:
        # Its own sandbox wants a user that is not root, and namespaces that not every machine gives.
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS, chromium_sandbox=False)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def visitor(browser: Browser) -> Iterator[BrowserContext]:
    """Give a browser's window without anybody's cookies."""
    # The local CA is checked by every other client of the tests; Chromium takes none from a file.
    context = browser.new_context(ignore_https_errors=True)
    context.set_default_timeout(20_000)
    try:
        yield context
    finally:
        context.close()
