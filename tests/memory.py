"""A folder in memory for all that a run of the tests writes: stacks, databases and images are made and thrown away by the dozen."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PLACE = Path("/dev/shm")
ROOM = 8 * 2**30
"""Bytes that must be free; a whole run was seen to need a third of them."""


@contextmanager
def folder(place: Path = PLACE) -> Iterator[str]:
    """Give a folder for temporary files, in memory where there is room for it, and remove it afterwards.

    Where there is not, it is the usual one, which stays.
    """
    if not fits(place):
        yield tempfile.gettempdir()
        return
    for left in place.glob("tests-*"):
        number = re.fullmatch(r"tests-(\d+)", left.name)
        if number and not Path("/proc", number[1]).exists() and left.stat().st_uid == os.geteuid():
            shutil.rmtree(left, ignore_errors=True)  # of a run that was killed
    made = place / f"tests-{os.getpid()}"  # Short: the paths of sockets may not be long.
    made.mkdir()
    made.chmod(0o1777)  # Some tests start others' processes.
    try:
        yield str(made)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def fits(place: Path) -> bool:
    """Return whether a run fits into a place: it has the room, and layers of images can lie there (Linux 6.6)."""
    try:
        with tempfile.NamedTemporaryFile(dir=place) as file:
            os.setxattr(file.name, "user.layer", b"")
        return shutil.disk_usage(place).free >= ROOM and available() >= ROOM
    except (OSError, ValueError):
        return False


def available() -> int:
    """Return the bytes of memory that this machine has to give. Raises OSError, ValueError."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
