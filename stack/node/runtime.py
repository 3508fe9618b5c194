"""One run of a container: a sandboxed process with its log, its end, and commands run beside it."""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import io
import json
import os
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from stack.node.network import Namespace, Network

LOG_LIMIT = 10 << 20
"""Bytes after which a log is put aside as NAME.log.1 and begun again, as the kubelet does."""
_LINE_LIMIT = 16 << 10
_UNLOCK, _PEER = 0x40045431, 0x5441
"""TIOCSPTLCK and TIOCGPTPEER, which the standard library does not name."""


def now() -> str:
    """Return the time as the API writes it."""
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Run:
    """A container's process from its start to its end.

    The log has one line per line of output (both streams), each after its time in UTC.
    """

    def __init__(self, network: Network, namespace: Namespace, command: Callable[[int], Sequence[str]],
                 *, environment: Mapping[str, str], log: Path, changed: Callable[[], None],
                 late: Callable[[list[str]], float] = lambda _: 0) -> None:
        """Start it: `command` gets the descriptor for bubblewrap's --info-fd; `changed` is called after the end.

        `late` tells by how many seconds a command that is to run inside starts late.

        Raises OSError when the sandbox cannot be started at all.
        """
        self.log, self.environment, self.started_at = log, dict(environment), now()
        self.finished_at, self.exit_code, self.message = "", 0, ""
        self.pid = 0
        self.finished = threading.Event()
        self.started_up, self.ready = False, False
        """What the probes say; set at once by the pod for a container without them."""
        self.live_failure = threading.Event()
        """Set when it is ended because of a probe: it is then restarted."""
        self._changed, self._late = changed, late
        self._deadline: float | None = None
        self._network, self._namespace = network, namespace
        log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        log.unlink(missing_ok=True)
        output, inside = os.pipe()
        told, tell = os.pipe()
        try:
            self._process = network.start(namespace, command(tell), env=self.environment, stdin=subprocess.DEVNULL,
                                          stdout=inside, stderr=inside, pass_fds=(tell,), start_new_session=True,
                                          cwd="/")
        except BaseException:
            os.close(output)
            os.close(told)
            raise
        finally:
            os.close(inside)
            os.close(tell)
        threading.Thread(target=self._follow, args=(output,), name="log", daemon=True).start()
        with os.fdopen(told, "rb") as info:
            said = info.read()  # arrives in several writes
        with contextlib.suppress(ValueError):
            self.pid = json.loads(said)["child-pid"]

    def stop(self, grace: float, hook: Callable[[float], None] | None = None) -> None:
        """Ask for the end: the hook (preStop), SIGTERM, and SIGKILL after `grace` seconds. Returns at once.

        A later call with less grace shortens what is left.
        """
        deadline = time.monotonic() + grace
        first, self._deadline = self._deadline is None, min(deadline, self._deadline or deadline)
        if first:
            threading.Thread(target=self._end, args=(hook,), name="stop", daemon=True).start()

    @property
    def stopping(self) -> bool:
        """Whether its end was asked for."""
        return self._deadline is not None

    def enter(self, argv: Sequence[str], working_dir: str = "/", *, terminal: bool = False) -> list[str]:
        """Return the command line that runs `argv` inside the running container."""
        self._await_program()
        if seconds := self._late(list(argv)):
            argv = ["sh", "-c", 'sleep "$0"; exec "$@"', f"{seconds:g}", *argv]
        # With a terminal the program needs a session whose terminal it is.
        return [*(["setsid", "--ctty"] if terminal else []), "nsenter", "--target", str(self.pid), "--user",
                "--preserve-credentials", "--mount", "--pid", "--net", "--ipc", "--uts", f"--wdns={working_dir}",
                "--", *argv]

    def terminal(self) -> tuple[int, int]:
        """Return both ends of a new terminal of the container's own /dev, so that it has a name inside."""
        self._await_program()
        own = os.open(f"/proc/{self.pid}/root/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(own, _UNLOCK, struct.pack("i", 0))
            return own, fcntl.ioctl(own, _PEER, os.O_RDWR | os.O_NOCTTY)
        except OSError:
            os.close(own)
            raise

    def execute(self, argv: Sequence[str], working_dir: str, seconds: float) -> tuple[int | None, str]:
        """Run a command inside and return its exit code and output; None when it took longer than `seconds`."""
        with self._network.start(None, self.enter(argv, working_dir), env=self.environment, start_new_session=True,
                                 stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            try:
                output, _ = process.communicate(timeout=seconds)
                return process.returncode, output.decode(errors="replace")[:10000]
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                return None, ""

    def _await_program(self) -> None:
        """Wait until the sandbox is built: its process id is known before that."""
        deadline = time.monotonic() + 5
        while not self.finished.is_set() and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if Path(f"/proc/{self.pid}/exe").readlink().name != "bwrap":
                    return
            time.sleep(0.01)

    def _end(self, hook: Callable[[float], None] | None) -> None:
        if hook:
            hook(max((self._deadline or 0) - time.monotonic(), 0))
        self._signal(signal.SIGTERM)
        while not self.finished.wait(min(0.2, max((self._deadline or 0) - time.monotonic(), 0))):
            if time.monotonic() >= (self._deadline or 0):
                self._signal(signal.SIGKILL)
                self.finished.wait(1)

    def _signal(self, number: signal.Signals) -> None:
        # The program itself: bubblewrap hands no signals on. As long as bubblewrap runs, the number is the program's.
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                if self.pid:
                    os.kill(self.pid, number)
                else:
                    self._process.kill()

    def _follow(self, output: int) -> None:
        """Write the log until the last process inside has ended, then note how the first one did."""
        file = self._open_log()
        rest = b""
        try:
            while chunk := os.read(output, 65536):
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > _LINE_LIMIT:
                    lines, rest = [*lines, rest], b""
                stamp = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ").encode()
                file.write(b"".join(stamp + b" " + line + b"\n" for line in lines))
                file.flush()
                if file.tell() > LOG_LIMIT:
                    file.close()
                    self.log.replace(self.log.with_suffix(".log.1"))
                    file = self._open_log()
            if rest:
                file.write(now().encode() + b" " + rest + b"\n")
        finally:
            file.close()
            os.close(output)
        code = self._process.wait()
        self.exit_code = 128 - code if code < 0 else code
        self.message = self._failed_start()
        if self.message:
            self.exit_code = 128
        self.finished_at = now()
        self.finished.set()
        self._changed()

    def _failed_start(self) -> str:
        """Return what bubblewrap said when it could not start the program, else nothing."""
        if self.exit_code != 1:
            return ""
        with contextlib.suppress(OSError), self.log.open("rb") as file:
            first = file.read(1000).decode(errors="replace").partition("\n")[0].partition(" ")[2]
            if first.startswith("bwrap: "):
                return first.removeprefix("bwrap: ")
        return ""

    def _open_log(self) -> io.BufferedWriter:
        return io.BufferedWriter(io.FileIO(os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab"))
