"""The kubelet's own API: logs of containers and commands inside them, for the API server and nobody else."""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import json
import os
import signal
import ssl
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol as WebSocket
from websockets.protocol import Side
from websockets.protocol import State as Connection
from websockets.utils import accept_key

from stack import certificates
from stack.node.network import Network
from stack.node.pods import Container, Pod
from stack.services import KUBELET_PORT
from stack.state import NODE_ADDRESS, State

CLIENT = "kubelet-client"
"""The name in the certificate that the API server shows; pods can reach this port and have none."""

STDIN, STDOUT, STDERR, STATUS, RESIZE = range(5)
_CLOSE = 255


class Find(Protocol):
    """Returns the pod of a namespace and name that runs here."""

    def __call__(self, namespace: str, name: str) -> Pod | None: ...  # noqa: D102


class RefusedError(Exception):
    """A request that cannot be served: HTTP status and text for the person who asked."""


class Server(ThreadingHTTPServer):
    """Listens on the node's address with TLS; whoever connects must show the API server's certificate."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, state: State, network: Network, find: Find) -> None:
        certificate, key = certificates.issue(state, "kubelet", [NODE_ADDRESS, "local"])
        self.find, self.network = find, network
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(certificate, key)
        self._tls.load_verify_locations(state.ca)
        self._tls.verify_mode = ssl.CERT_REQUIRED
        super().__init__((NODE_ADDRESS, KUBELET_PORT), Requests)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Shake hands in the request's own thread, so that a slow client stops nobody."""
        request.settimeout(30)
        try:
            connection = self._tls.wrap_socket(request, server_side=True)
        except OSError:
            return  # a look whether the port is open, or a stranger
        with connection:
            peer: Any = connection.getpeercert() or {}
            if (("commonName", CLIENT),) in peer.get("subject", ()):
                connection.settimeout(None)
                super().finish_request(connection, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing about clients that went away."""


class Requests(BaseHTTPRequestHandler):
    """One connection of the API server."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        """Serve /containerLogs/NAMESPACE/POD/CONTAINER and /exec/NAMESPACE/POD/CONTAINER."""
        address = urlsplit(self.path)
        query = parse_qs(address.query)
        try:
            what, *names = [unquote(part) for part in address.path.strip("/").split("/")]
            pod, container = self._find(names)
            if what == "containerLogs":
                self._logs(pod, container, query)
            elif what == "exec":
                self._exec(container, query)
            else:
                self._refuse(404, "the node serves logs and exec only")
        except RefusedError as error:
            self._refuse(*error.args)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Keep no access log: API requests are in the API server's audit log."""

    def _refuse(self, number: int, text: str) -> None:
        content = text.encode()
        self.send_response(number)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _find(self, names: list[str]) -> tuple[Pod, Container]:
        pod = self.server.find(names[0], names[1]) if len(names) == 3 else None
        container = next((each for each in pod.containers if each.name == names[2]), None) if pod else None
        if not pod or not container:
            raise RefusedError(404, f"the node does not know the container {'/'.join(names)}")
        return pod, container

    def _logs(self, pod: Pod, container: Container, query: dict[str, list[str]]) -> None:
        option = {name: found[0] for name, found in query.items()}
        previous = option.get("previous") == "true"
        number = container.restarts - previous
        log = pod.logs / container.name / f"{number}.log"
        if number < 0 or not log.exists():
            if previous:
                raise RefusedError(400, f'previous terminated container "{container.name}" in pod '
                                   f'"{pod.manifest["metadata"]["name"]}" not found')
            reason = container.state.get("waiting", {}).get("reason", "ContainerCreating")
            raise RefusedError(400, f'container "{container.name}" in pod "{pod.manifest["metadata"]["name"]}" is waiting '
                               f"to start: {reason}")
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        follow = option.get("follow") == "true" and not previous
        left = int(option.get("limitBytes", 1 << 62))
        for line in _lines(log, option, pod if follow else None, container):
            piece = line[:left]
            left -= len(piece)
            if piece:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                self.wfile.flush()
            if not left:
                break
        self.wfile.write(b"0\r\n\r\n")

    def _exec(self, container: Container, query: dict[str, list[str]]) -> None:
        offered = [each.strip() for each in self.headers.get("Sec-WebSocket-Protocol", "").split(",")]
        spoken = next((each for each in ("v5.channel.k8s.io", "v4.channel.k8s.io") if each in offered), None)
        if not spoken or self.headers.get("Upgrade", "").lower() != "websocket":
            raise RefusedError(400, "exec is spoken over WebSockets only (v5.channel.k8s.io, v4.channel.k8s.io)")
        if not container.running or not container.run:
            raise RefusedError(400, f'container "{container.name}" is not running')
        wanted = {name for name in ("input", "output", "error", "tty", "stdin", "stdout", "stderr")
                  if query.get(name, [""])[0] in ("1", "true")}
        self.send_response(101)
        for name, value in (("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Protocol", spoken),
                            ("Sec-WebSocket-Accept", accept_key(self.headers["Sec-WebSocket-Key"]))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.flush()
        self.close_connection = True
        Session(self, self.server.network, container, query["command"], terminal="tty" in wanted,
                reads=bool(wanted & {"input", "stdin"})).serve()


class Session:
    """One command inside a container, its streams carried as channels of a WebSocket."""

    def __init__(self, request: Requests, network: Network, container: Container, argv: list[str], *,
                 terminal: bool, reads: bool) -> None:
        self._request, self._lock = request, threading.Lock()
        self._socket = WebSocket(Side.SERVER, state=Connection.OPEN, max_size=None)
        self._network, self._container, self._argv = network, container, argv
        self._terminal, self._reads = terminal, reads
        self._input = -1

    def serve(self) -> None:
        """Run the command to its end and say how it ended."""
        run = self._container.run
        if run is None:
            return
        argv = run.enter(self._argv, self._container.working_dir, terminal=self._terminal)
        outputs: dict[int, int] = {}
        if self._terminal:
            own, theirs = run.terminal()
            self._input, outputs[STDOUT] = own, own
            streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
        else:
            outputs[STDOUT], out = os.pipe()
            outputs[STDERR], err = os.pipe()
            theirs, self._input = os.pipe()
            streams = {"stdin": theirs, "stdout": out, "stderr": err}
        options: dict[str, Any] = {} if self._terminal else {"start_new_session": True}
        try:
            environment = run.environment | ({"TERM": "xterm"} if self._terminal else {})
            process = self._network.start(None, argv, env=environment, **streams, **options)
        finally:
            for descriptor in set(streams.values()):
                os.close(descriptor)
        if not self._terminal and not self._reads:
            self._close_input()
        threading.Thread(target=self._receive, args=(process,), name="exec", daemon=True).start()
        writers = [threading.Thread(target=self._copy, args=pair, name="exec", daemon=True) for pair in outputs.items()]
        for writer in writers:
            writer.start()
        code = process.wait()
        for writer in writers:
            writer.join(2)
        self._send(STATUS, json.dumps(_ended(code)).encode())
        with self._lock, contextlib.suppress(OSError):
            self._socket.send_close(1000)
            self._flush()

    def _copy(self, channel: int, descriptor: int) -> None:
        try:
            # Reading from a terminal whose other side has closed is an error, not an end.
            while chunk := os.read(descriptor, 32768):
                self._send(channel, chunk)
        except OSError:
            return
        finally:
            if not self._terminal:
                os.close(descriptor)

    def _send(self, channel: int, content: bytes) -> None:
        with self._lock, contextlib.suppress(OSError):
            self._socket.send_binary(bytes([channel]) + content)
            self._flush()

    def _flush(self) -> None:
        for piece in self._socket.data_to_send():
            if piece:
                self._request.wfile.write(piece)
        self._request.wfile.flush()

    def _receive(self, process: subprocess.Popen[bytes]) -> None:
        """Take what the client sends until it leaves; a command whose client has left is ended."""
        with contextlib.suppress(OSError, ValueError):
            while content := self._request.rfile.read1(65536):
                self._socket.receive_data(content)
                for frame in self._socket.events_received():
                    if isinstance(frame, Frame) and frame.opcode in (Opcode.BINARY, Opcode.TEXT) and frame.data:
                        self._take(bytes(frame.data))
                with self._lock:
                    self._flush()
                if self._socket.close_expected():
                    break
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        self._close_input()

    def _take(self, content: bytes) -> None:
        channel, content = content[0], content[1:]
        if channel == STDIN:
            with contextlib.suppress(OSError):
                while content and self._input >= 0:
                    content = content[os.write(self._input, content):]
        elif channel == _CLOSE and content[:1] == bytes([STDIN]):
            self._close_input()
        elif channel == RESIZE and self._terminal:
            size = json.loads(content)
            fcntl.ioctl(self._input, termios.TIOCSWINSZ, struct.pack("HHHH", size["Height"], size["Width"], 0, 0))

    def _close_input(self) -> None:
        descriptor, self._input = self._input, -1
        if descriptor >= 0:
            os.close(descriptor)


def _ended(code: int) -> dict[str, Any]:
    """Return the Status that tells the client a command's exit code."""
    if code == 0:
        return {"metadata": {}, "status": "Success"}
    code = 128 - code if code < 0 else code
    return {"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode", "message":
            f"command terminated with non-zero exit code: exit status {code}",
            "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]}}


def _lines(log: Path, option: dict[str, str], followed: Pod | None, container: Container) -> Iterator[bytes]:
    """Yield a log's lines as asked for; with `followed`, new ones as well until the run has ended."""
    run, since = container.run, _since(option)
    with log.open("rb") as file:
        lines = [line for line in file if not since or line[:len(since)] >= since]
        if "tailLines" in option:
            lines = lines[len(lines) - min(int(option["tailLines"]), len(lines)):]
        rest = b""
        while True:
            for line in lines:
                yield line if option.get("timestamps") == "true" else line.partition(b" ")[2]
            if not followed:
                return
            over = run is None or run.finished.wait(0.2) or followed.over.is_set()
            *whole, rest = (rest + file.read()).split(b"\n")
            lines = [line + b"\n" for line in whole]
            if over and not lines:
                return


def _since(option: dict[str, str]) -> bytes:
    if "sinceSeconds" in option:
        moment = time.time() - int(option["sinceSeconds"])
    elif "sinceTime" in option:
        moment = dt.datetime.fromisoformat(option["sinceTime"]).timestamp()
    else:
        return b""
    return dt.datetime.fromtimestamp(moment, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S").encode()
