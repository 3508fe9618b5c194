"""The web as a reader's browser sees it: the app behind its router, and on the local stack the portal's forms.

Hosts below `.localhost` are reached at 127.0.0.1 with their own name in Host and SNI, because Python does not resolve
them everywhere as browsers do.
"""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from runbook.errors import GuideError, Unreachable


class Web:
    """HTTPS requests that verify certificates, with the local CA where there is one."""

    def __init__(self, ca: Path | None = None, outside: int = 0) -> None:
        self._ca = ca
        self._outside = outside
        """A port of the local stack whose clients say with the PROXY protocol where they come from."""
        self._pools: dict[tuple[str, int], Any] = {}

    def request(self, method: str, url: str, body: object = None, headers: Mapping[str, str] | None = None,
                timeout: float = 20) -> tuple[int, str]:
        """Send one request, following no redirect; return status and text. Raises Unreachable."""
        import urllib3

        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 443
        if (host, port) not in self._pools:
            self._pools[host, port] = urllib3.HTTPSConnectionPool(
                address_of(host), self._outside or port, ca_certs=str(self._ca) if self._ca else None, server_hostname=host,
                assert_hostname=host, retries=False)
            if self._outside:
                self._pools[host, port].ConnectionCls = _proxied(port)
        sent = {"Host": parts.netloc} | dict(headers or {}) | ({"Content-Type": "application/json"} if body else {})
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            answer = self._pools[host, port].request(method, path, headers=sent, timeout=timeout, redirect=False,
                                                     body=json.dumps(body).encode() if body is not None else None)
        except urllib3.exceptions.HTTPError as error:
            raise Unreachable(f"{url} does not answer: {type(error).__name__}: {error}") from error
        return answer.status, answer.data.decode(errors="replace")

    def echo(self, url: str, text: str, timeout: float = 10) -> str:
        """Send a text over a websocket and return what comes back. Raises Unreachable."""
        import websocket

        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 443
        context = ssl.create_default_context(cafile=str(self._ca) if self._ca else None)
        try:
            plain = socket.create_connection((address_of(host), port), timeout=timeout)
            with context.wrap_socket(plain, server_hostname=host) as secure:
                session = websocket.create_connection(
                    f"wss://{parts.netloc}{parts.path}", timeout=timeout, socket=secure,
                    origin=f"https://{parts.netloc}")
                session.send(text)
                answer = session.recv()
                session.close()
        except (OSError, websocket.WebSocketException) as error:
            raise Unreachable(f"the websocket {url} does not answer: {error}") from error
        return answer if isinstance(answer, str) else answer.decode(errors="replace")


OUTSIDE = "192.0.2.7"
"""An address that is nobody's (RFC 5737), so it is in no list of networks."""


def _proxied(port: int) -> Any:
    """Return a connection that first says that it comes from OUTSIDE, as a load balancer before a router does."""
    from urllib3.connection import HTTPSConnection

    class Proxied(HTTPSConnection):
        """HTTPS after one line of the PROXY protocol."""

        def _new_conn(self) -> socket.socket:
            opened = super()._new_conn()
            opened.sendall(f"PROXY TCP4 {OUTSIDE} 127.0.0.1 50000 {port}\r\n".encode())
            return opened

    return Proxied


class Portal:
    """The local stack's portal, which plays the person: forms are filled as a person would fill them."""

    def __init__(self, web: Web, url: str, token: str) -> None:
        self._web, self._url = web, url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"}

    def fill(self, form: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Send a form; return what the portal made or already had. Raises GuideError with the portal's words."""
        status, text = self._web.request("POST", f"{self._url}/{form}", dict(values), self._headers, timeout=120)
        try:
            answer: dict[str, Any] = json.loads(text)
        except ValueError:
            answer = {"error": text[:300]}
        if status >= 400:
            raise GuideError(f"the portal refuses the form {form}: {answer.get('error', status)}",
                             "mend the value in the instance file")
        return answer


def address_of(host: str) -> str:
    """Return the address to connect to for a host name."""
    return "127.0.0.1" if host.endswith(".localhost") else host
