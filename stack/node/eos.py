"""What one pod sees of EOS: an empty folder until its log-in holds, then the folder that stands for EOS.

The part of the storage driver on the node (eosxd) and of the one who checks tickets; see `stack/eos.py`. A pod's view is
mounted when the pod runs already, so a container sees it only through a mount with HostToContainer, as at CERN; one
without sees for ever what there was when it started.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from pathlib import Path

from stack import eos
from stack.state import State


def folder(state: State) -> Path:
    """Return where views lie: apart from pods' folders, because those are removed with all that is in them."""
    return state.path("run", "eos")


def clean(state: State) -> None:
    """Take away the views that an earlier process has left."""
    for left in folder(state).iterdir() if folder(state).is_dir() else ():
        _take_away(left)


class View:
    """One pod's view of EOS."""

    def __init__(self, state: State, uid: str, store: Path) -> None:
        """Open the view; `store` is the pod's folder through which its log-in comes. Raises OSError."""
        self._state, self._store = state, store
        self.path = folder(state) / uid
        self._closed = threading.Event()
        self._snapshots: list[Path] = []
        _take_away(self.path)
        self.path.mkdir(parents=True, mode=0o700)
        # A shared mount: what is mounted below it later comes into the containers too.
        _mount("--bind", self.path, self.path)
        _mount("--make-shared", self.path)
        threading.Thread(target=self._follow, name="eos", daemon=True).start()

    def snapshot(self) -> Path:
        """Return a copy of the view to which nothing mounted later comes: for a mount without propagation."""
        copy = self.path.with_name(f"{self.path.name}.{len(self._snapshots)}")
        _take_away(copy)
        copy.mkdir(mode=0o700)
        self._snapshots.append(copy)
        _mount("--rbind", self.path, copy)
        _mount("--make-rprivate", copy)
        return copy

    def close(self) -> None:
        """Take the view away; the pod's processes must have ended."""
        self._closed.set()
        for path in (*self._snapshots, self.path):
            _take_away(path)

    def _follow(self) -> None:
        """Mount EOS when the log-in holds and EOS is there; take it away when EOS goes."""
        holds_since, mounted = 0.0, False
        while not self._closed.wait(1.0 if mounted else 0.2):
            holds_since = holds_since or self._logged_in()
            now = eos.behaviour(self._state)
            wanted = bool(holds_since) and not now.absent and time.monotonic() >= holds_since + now.late
            if wanted != mounted:
                mounted = wanted
                with contextlib.suppress(OSError):  # the view was closed meanwhile
                    self._show() if wanted else self._hide()

    def _logged_in(self) -> float:
        """Return the time when the log-in was found to hold, 0 when it does not; the pod is told what was found."""
        try:
            key = (self._store / "key").read_text()
            why = eos.refusal(self._state, key)
            (self._store / "answer").write_text((why or f"logged in as {key.split()[0]}") + "\n")
        except (OSError, IndexError):
            return 0.0
        return 0.0 if why else time.monotonic()

    def _show(self) -> None:
        for part in sorted(path for path in self._state.eos.iterdir() if path.is_dir()):
            (self.path / part.name).mkdir(exist_ok=True)
            _mount("--bind", part, self.path / part.name)

    def _hide(self) -> None:
        for part in sorted(self.path.iterdir()):
            subprocess.run(["umount", "--lazy", str(part)], check=False, capture_output=True)
            part.rmdir()


def slowed(state: State, argv: list[str]) -> float:
    """Return the seconds that a command in a pod starts late because it names a path of a slow EOS."""
    return eos.behaviour(state).slow if any(word.startswith(f"{eos.MOUNTED}/") for word in argv) else 0


def _mount(how: str, *what: Path) -> None:
    done = subprocess.run(["mount", how, *map(str, what)], check=False, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"EOS cannot be mounted: {done.stderr.strip()}")


def _take_away(path: Path) -> None:
    """Unmount what lies on and below a folder, and remove the folder. Never its content: that may be EOS itself."""
    while subprocess.run(["umount", "--recursive", "--lazy", str(path)], check=False, capture_output=True).returncode == 0:
        pass
    with contextlib.suppress(FileNotFoundError):
        for part in path.iterdir():
            part.rmdir()
        path.rmdir()
    if path.exists():
        raise OSError(f"{path} cannot be removed")
