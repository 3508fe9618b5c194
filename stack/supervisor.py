"""Keeps the stack's processes running: starts them in order, sees that they are ready, restarts what died, stops them.

Two of them run: the outer one in the host's network, and under it the inner one as the first process of the stack's
private namespaces. Nothing outlives them: the outer one's processes get SIGKILL from the kernel when it dies, and with
the first process of a namespace everything in it dies. Each writes what it knows to `run/ROLE.json`.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from stack import binaries, services
from stack.services import Service
from stack.state import POD_NETWORK, State

POLL = 0.05
"""Seconds between two looks at a service that is starting."""
LOOK = 15.0
"""Seconds between two looks at a service that was ready; after `MISSED` failed ones it is restarted."""
MISSED = 4
TICK = 0.25
"""Seconds after which new and dropped database instances are noticed."""
LONGEST_PAUSE = 10.0
"""Seconds of the longest back-off between restarts."""


class Process(threading.Thread):
    """Keeps one service running until told to stop.

    The thread that starts a process must outlive it: the kernel ties "signal me when my parent dies" to the thread.
    """

    def __init__(self, service: Service, supervisor: Supervisor) -> None:
        super().__init__(name=service.name, daemon=True)
        self.service, self.supervisor = service, supervisor
        self.ready, self.ended, self.told = threading.Event(), threading.Event(), threading.Event()
        self.condition, self.detail, self.pid, self.restarts, self.since = "waiting", "", 0, 0, time.time()
        self._wake = os.eventfd(0)

    def tell_to_stop(self) -> None:
        """Ask for the end of the process; `ended` is set when it is over."""
        self.told.set()
        os.eventfd_write(self._wake, 1)

    def run(self) -> None:
        """Start the service when those it needs are ready, and again whenever it dies."""
        pause = 0.2
        try:
            while not self.told.is_set() and self._await_needed():
                begun = time.monotonic()
                if self._once():
                    return
                if time.monotonic() - begun > 30:
                    pause = 0.2
                if self.told.is_set():
                    return
                self.restarts += 1
                self._say("restarting", self.detail)
                self._sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
        finally:
            if self.condition != "done":
                self.ready.clear()
                self._say("stopped")
            self.ended.set()

    def _await_needed(self) -> bool:
        for name in self.service.after:
            needed = self.supervisor.processes[name]
            while not needed.ready.wait(0.2):
                if self.told.is_set():
                    return False
        return True

    def _once(self) -> bool:
        """Run the process to its end; return whether it was a task that ended well."""
        service = self.service
        try:
            where = service.log or self.supervisor.state.logs / f"{service.name}.log"
            with where.open("ab") as log, self.supervisor.starting:
                process = subprocess.Popen(
                    [*self.supervisor.prefix, *service.argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    env=service.environment, pass_fds=service.sockets, cwd=self.supervisor.state.root,
                    process_group=0)
                self.supervisor.own.add(process.pid)
        except OSError as error:
            self.detail = f"cannot be started: {error}"
            return False
        self.pid = process.pid
        self._say("starting")
        try:
            return self._follow(process)
        finally:
            if self.condition != "done":  # A task that has ended well stays ready: others may need it later.
                self.ready.clear()
            self._end(process)
            self.supervisor.own.discard(process.pid)
            self.pid = 0

    def _follow(self, process: subprocess.Popen[bytes]) -> bool:
        """Watch the process until it ends, must end, or has answered nothing for too long."""
        service, begun, missed = self.service, time.monotonic(), 0
        end = os.pidfd_open(process.pid)
        try:
            while True:
                wait = LOOK if self.ready.is_set() else POLL
                happened = select.select([end, self._wake], [], [], wait)[0]
                if self.told.is_set():
                    return False
                if end in happened:
                    code = process.wait()
                    if service.once and code == 0:
                        self.ready.set()
                        self._say("done")
                        return True
                    self.detail = f"ended with {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
                    return False
                seen = service.ready()
                if not seen:
                    missed = 0
                    if not self.ready.is_set():
                        self.ready.set()
                        self._say("ready", f"after {time.monotonic() - begun:.1f} s")
                elif self.ready.is_set():
                    missed += 1
                    if missed >= MISSED:
                        self.detail = f"stopped answering ({seen})"
                        return False
                else:
                    self.detail = seen
                    if time.monotonic() - begun > service.deadline:
                        self.detail = f"not ready after {service.deadline:g} s ({seen})"
                        return False
        finally:
            os.close(end)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """End the process if it runs: after those that need it, politely first."""
        if process.poll() is None:
            if self.told.is_set():
                for other in list(self.supervisor.processes.values()):
                    if self.service.name in other.service.after:
                        other.ended.wait(10)
            with contextlib.suppress(ProcessLookupError):
                self._signal(process)
            try:
                process.wait(self.service.grace)
            except subprocess.TimeoutExpired:
                process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # whatever it started and left behind
        process.wait()

    def _signal(self, process: subprocess.Popen[bytes]) -> None:
        if self.service.stop_group:
            os.killpg(process.pid, self.service.stop)
            return
        pid = process.pid
        if self.service.pid_file:
            with contextlib.suppress(OSError, ValueError, IndexError):
                pid = int(self.service.pid_file.read_text().split()[0])
        os.kill(pid, self.service.stop)

    def _say(self, condition: str, detail: str = "") -> None:
        self.condition, self.detail, self.since = condition, detail, time.time()
        self.supervisor.changed.put(None)

    def _sleep(self, seconds: float) -> None:
        select.select([self._wake], [], [], seconds)


class Supervisor:
    """All processes of one role of one stack."""

    def __init__(self, state: State, role: str, prefix: Iterable[str] = ()) -> None:
        self.state, self.role, self.prefix = state, role, list(prefix)
        self.processes: dict[str, Process] = {}
        self.own: set[int] = set()
        self.starting = threading.Lock()
        # Not an Event: a signal handler that sets the Event its own thread is waiting for locks that thread for good.
        self.changed: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.stopping = False

    def start(self, service: Service) -> None:
        """Start to keep a service running."""
        process = Process(service, self)
        self.processes[service.name] = process

    def run(self, wanted: Iterable[Service]) -> None:
        """Keep the services running until SIGTERM or SIGINT, then stop them."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGCHLD, lambda *_: self.changed.put(None))
        for service in wanted:
            self.start(service)
        for process in list(self.processes.values()):
            process.start()
        while not self.stopping:
            with contextlib.suppress(queue.Empty):
                self.changed.get(timeout=TICK)
                while True:
                    self.changed.get_nowait()
            self.tick()
        self.state.connection.unlink(missing_ok=True)
        for process in list(self.processes.values()):
            process.tell_to_stop()
        for process in list(self.processes.values()):
            process.ended.wait(15)
        self._write()

    def tick(self) -> None:
        """Do what is due: called after every change and at least every `TICK`."""
        self._reap()
        self._write()

    def _stop(self, *_: object) -> None:
        self.stopping = True
        self.changed.put(None)

    def _reap(self) -> None:
        """Collect ended processes that nobody waits for: the first process of a namespace inherits them."""
        with self.starting:
            while True:
                try:
                    ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                except ChildProcessError:
                    return
                if ended is None or ended.si_pid in self.own:
                    return
                os.waitpid(ended.si_pid, 0)

    def _write(self) -> None:
        about = {name: {"state": process.condition, "detail": process.detail, "pid": process.pid,
                        "restarts": process.restarts, "since": process.since}
                 for name, process in list(self.processes.items())}
        if about != getattr(self, "_written", None):
            self.state.write_json(f"run/{self.role}.json", about)
            self._written = about


class Inner(Supervisor):
    """The supervisor inside the private namespaces: also runs a server for every database instance."""

    def tick(self) -> None:
        """Also start and stop database servers, and tell everybody when all is ready."""
        super().tick()
        self._databases()
        if not self.state.connection.exists() and self.processes and all(
                process.ready.is_set() for process in self.processes.values()):
            announce(self.state)

    def _databases(self) -> None:
        from stack import postgres

        wanted = postgres.names(self.state)
        for name in wanted - self.processes.keys():
            self.start(postgres.service(self.state, name))
            self.processes[name].start()
        for name, process in list(self.processes.items()):
            if name.startswith(postgres.PREFIX) and name not in wanted:
                process.tell_to_stop()
                if process.ended.is_set():
                    del self.processes[name]


def announce(state: State, network: str = POD_NETWORK) -> None:
    """Write `connection.json`: the stack is ready, and this is how to use it; pods come from `network`."""
    ports = state.ports
    state.write_json("connection.json", {
        "server": state.server, "kubeconfig": str(state.kubeconfig), "ca": str(state.ca),
        "http_port": ports.http, "https_port": ports.https, "outside_port": ports.outside,
        "portal": state.url("portal.localhost"), "git": state.url("git.localhost"),
        "issuer": state.issuer, "pgpass": str(state.pgpass),
        "pod_network": network, "postgresql_programs": str(binaries.find("pg_dump").path.parent),
    })


def run_outer(state: State) -> None:
    """Run the outer supervisor; the launcher has opened the sockets and holds the lock for it."""
    sockets: dict[str, int] = json.loads(os.environ["RUNBOOK_SOCKETS"])
    state.write("run/outer.pid", f"{os.getpid()}\n")
    # SIGKILL from the kernel when this process dies, however it dies.
    supervisor = Supervisor(state, "outer", prefix=binaries.MORTAL)
    supervisor.run(services.outer(state, sockets))


def run_inner(state: State) -> None:
    """Run the inner supervisor as the first process of the private namespaces."""
    sockets: dict[str, int] = json.loads(os.environ["RUNBOOK_SOCKETS"])
    state.write_json("run/sockets.json", sockets)
    state.connection.unlink(missing_ok=True)
    state.portal_socket.unlink(missing_ok=True)
    # In a process of its own: the netlink library would stay in memory for good.
    subprocess.run([sys.executable, "-P", "-m", "stack.network"], check=True)
    from stack import haproxy

    state.write("run/haproxy.cfg", haproxy.initial(state, sockets))
    Inner(state, "inner").run(services.inner(state, sockets))


def run_cluster(state: State) -> None:
    """Put what makes it a small CERN into the cluster, as soon as there is one; a task of the inner supervisor."""
    from stack import cluster, seed
    from stack.api import Api, ApiError, wait_until

    file = seed.place()
    lacking = seed.sow(file)  # before the API server looks
    api = Api("https://127.0.0.1:6443", state.tokens.admin, state.ca)

    def answers() -> bool:
        try:
            return bool(api.request("GET", "/readyz") == "ok")
        except ApiError:  # 500 as long as one of its own checks fails
            return False
    wait_until(answers, "the API server", 90)
    cluster.prepare(state)
    if lacking:
        seed.gather(file)


def main(role: str, root: str) -> None:
    """Run as one of the roles outer, inner, cluster."""
    os.umask(0o077)
    state = State(Path(root))
    {"outer": run_outer, "inner": run_inner, "cluster": run_cluster}[role](state)


if __name__ == "__main__":
    main(*sys.argv[1:3])
