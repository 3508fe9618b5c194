"""The parts of the platform that only talk to the API server, as threads of one process: node, storage, router.

`python -m stack.platform STATE` runs them until SIGTERM. An exception in one ends the process with an exit code other
than 0, so that the supervisor starts all of them again.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from stack import node, storage
from stack.state import State

GOODBYE = 3.0
"""Seconds that the parts have to end once one of them has, or the process was asked to."""

Part = Callable[[State, threading.Event], None]


def parts() -> dict[str, Part]:
    """Return what runs here, by name."""
    from stack import router

    return {"node": node.run, "storage": storage.run, "router": router.run}


def run(state: State, wanted: dict[str, Part]) -> int:
    """Run all parts until SIGTERM or SIGINT or an exception in one; return the exit code."""
    stop = threading.Event()
    # A signal handler may put into this queue; setting an Event there could lock the main thread for good.
    ends: queue.SimpleQueue[str] = queue.SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ends.put(""))

    def guarded(name: str, part: Part) -> None:
        try:
            part(state, stop)
        except Exception:  # noqa: BLE001 - reported, and the end of the process
            traceback.print_exc()
        ends.put(name)

    threads = [threading.Thread(target=guarded, args=each, name=each[0], daemon=True) for each in wanted.items()]
    for thread in threads:
        thread.start()
    failed = ends.get()
    if failed:
        print(f"platform: {failed} ended, and with it all parts", file=sys.stderr)
    stop.set()
    end = time.monotonic() + GOODBYE
    for thread in threads:
        thread.join(max(end - time.monotonic(), 0))
    return 1 if failed else 0


if __name__ == "__main__":
    os.umask(0o077)
    code = run(State(Path(sys.argv[1])), parts())
    sys.stderr.flush()
    # Watches may still be waiting for their server: nothing is to be waited for here.
    os._exit(code)
