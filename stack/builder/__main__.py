"""The builder's process, `python -m stack.builder STATE`; in the machine's network: builds need the package index."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import uvicorn

from stack.api import Api
from stack.builder.queue import Queue
from stack.builder.web import application
from stack.state import KEEP_ALIVE, State


def main(root: str) -> None:
    """Serve and build until SIGTERM."""
    state = State(Path(root))
    api = Api(state.server, state.tokens.admin, state.ca)
    if state.kind == "compose":
        from stack import cluster
        from stack.compose import images

        queue = Queue(state, api, images.EngineRun, images.Registries(state, cluster.imported()).digest_of)
    else:
        queue = Queue(state, api)
    stop = threading.Event()

    def follow(watch: Callable[[threading.Event], None]) -> None:
        try:
            watch(stop)
        except BaseException:  # noqa: BLE001 - whatever it is: the supervisor starts a builder that works
            traceback.print_exc()
            os._exit(1)

    for watch in (queue.streams.watch_streams, queue.streams.watch_deployments, queue.watch):
        threading.Thread(target=follow, args=(watch,), name=watch.__name__, daemon=True).start()
    state.builder_socket.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    state.builder_socket.unlink(missing_ok=True)
    uvicorn.run(application(state, api, queue), uds=str(state.builder_socket), log_level="warning", access_log=False,
                timeout_keep_alive=KEEP_ALIVE, timeout_graceful_shutdown=1)
    stop.set()
    queue.end()
    # The watches sleep in requests of up to 50 s.
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
