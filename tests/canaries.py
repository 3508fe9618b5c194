"""Every secret value of a deployment is a canary: here is where it may be, and here is how it is looked for elsewhere."""

from __future__ import annotations

import base64
import contextlib
import fnmatch
import itertools
import os
import re
import subprocess
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stack.state import State
from tests.guide import Guide

SECRET = re.compile("PASS|PWD|SECRET|TOKEN", re.IGNORECASE)
"""What the key of a secret value says; a Secret also holds names and addresses, which are none."""

MEANT = ("accounts.json", "*kubeconfig", "etcd/*", "git/deploy-token.json", "mail/*", "pgpass", "signon/registrations.json", "tokens.json", "users.csv")
"""Where in the state folder secrets belong: with who was told them, and with the servers that keep or check them."""


def of(guide: Guide, build: str) -> set[str]:
    """Return the secret values that there are now: the project's, the administrators', and the stack's own."""
    found = {base64.b64decode(value).decode() for secret in guide.stack.api.list("Secret", guide.instance(build).project)
             for key, value in (secret.get("data") or {}).items() if SECRET.search(key)}
    found |= {line.rsplit(":", 1)[1] for line in guide.stack.state.pgpass.read_text().splitlines()}
    return {value for value in found | set(vars(guide.stack.state.tokens).values()) if len(value) >= 16}


def forms(canaries: Iterable[str]) -> set[bytes]:
    """Return how a value looks when it is written: plain, and as the data of a Secret."""
    return {form for value in canaries for form in (value.encode(), base64.b64encode(value.encode()).rstrip(b"="))}


def inside(text: bytes, canaries: Iterable[str]) -> bool:
    """Return whether one of them is in a text."""
    return any(form in text for form in forms(canaries))


def files(canaries: Iterable[str], *places: Path) -> set[Path]:
    """Return the files of some folders in which one of them is."""
    # Through standard input: what is looked for must not show in the process list either.
    done = subprocess.run(["grep", "-rlaF", "-f", "-", *places], input=b"\n".join(forms(canaries)), capture_output=True, check=False)
    return {Path(line) for line in done.stdout.decode().splitlines()}


def strays(canaries: Iterable[str], state: State) -> set[str]:
    """Return the files of a state folder that hold one and are not meant to, or that others than their owner may read."""
    found = {str(path.relative_to(state.root)): path for path in files(canaries, state.root)}
    return {name for name, path in found.items()
            if not any(fnmatch.fnmatch(name, pattern) for pattern in MEANT) or path.stat().st_mode & 0o077}


@contextmanager
def watched() -> Iterator[set[bytes]]:
    """Look at the process list again and again meanwhile; gives every command line that was there."""
    seen: set[bytes] = set()
    looks: Counter[str] = Counter()
    over = threading.Event()

    def look() -> None:
        for turn in itertools.count():
            if over.wait(0.005):
                return
            for process in (entry.name for entry in os.scandir("/proc") if entry.name.isdigit()):
                # A process becomes another program soon after its start or hardly ever.
                if looks[process] < 20 or turn % 40 == 0:
                    looks[process] += 1
                    with contextlib.suppress(OSError):  # it ended
                        seen.add(Path(f"/proc/{process}/cmdline").read_bytes())

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield seen
    finally:
        over.set()
        looking.join()
