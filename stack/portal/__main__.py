"""`python -m stack.portal STATE`: serve portal, Git and sign-on until the process is ended."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import uvicorn
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from stack.portal import authz, forms, repositories, signon
from stack.state import KEEP_ALIVE, State


def application(state: State) -> ASGIApp:
    """Return the application of one stack; publishes the example app's repository on the way."""
    provider = signon.Provider(state)
    authz.Operator(state, provider).start()
    repositories.publish_example(state)

    async def nothing_here(scope: Scope, receive: Receive, send: Send) -> None:
        text = "There are portal.localhost, git.localhost and auth.localhost here.\n"
        await PlainTextResponse(text, 404)(scope, receive, send)

    return Router([
        Host("portal.localhost", forms.application(state, provider)),
        Host("git.localhost", repositories.application(state)),
        Host("auth.localhost", provider),
    ], default=nothing_here)


def main() -> None:
    """Serve on the stack's socket; the router's X-Forwarded-Proto is believed, nobody else reaches the socket."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stdout)
    state = State(Path(sys.argv[1]).absolute())
    socket = state.portal_socket
    socket.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    socket.unlink(missing_ok=True)
    uvicorn.run(application(state), uds=str(socket), proxy_headers=True, forwarded_allow_ips="*", lifespan="off",
                ws="none", access_log=False, log_config=None, timeout_keep_alive=KEEP_ALIVE, timeout_graceful_shutdown=2)


if __name__ == "__main__":
    main()
