"""Starts a stack in the background: chooses and opens its ports on the host, then leaves the outer supervisor behind.

The sockets are opened here, in the host's network, and handed down: a socket keeps the network it was made in, so
HAProxy answers on the host's loopback although it runs in the stack's own network. The outer supervisor holds
`run/lock` as long as it lives; whoever can take that lock knows that no stack runs.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from stack import binaries, services
from stack.errors import StackError
from stack.state import DATABASE_SLOTS, Ports, State

LONGEST_ROOT = 75
"""Bytes of a state folder's path: a Unix socket's path has at most 107, and the folders below need some."""

ROOM = 400
"""Free megabytes below which no stack is started: etcd alone sets 64 aside for each of its logs and dies without them,
and a database, an image and its build take the rest."""

NEEDED = {"embedded": ("etcd", "kube-apiserver", "kube-controller-manager", "haproxy", "bwrap", "postgres", "initdb", "pg_dump",
                       "redis-server", "redis-cli", "git"),
          "compose": ("haproxy", "bwrap", "git", "pg_dump")}
"""The programs that a stack of a kind cannot do without."""
SUPERVISORS = {"embedded": "stack.supervisor", "compose": "stack.compose"}


def running(state: State) -> bool:
    """Tell whether an outer supervisor of this state folder lives."""
    lock = state.path("run", "lock")
    if not lock.exists():
        return False
    with lock.open("r") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def launch(state: State, progress: binaries.Progress) -> bool:
    """Start a stack's supervisors unless they run; return whether this call started them.

    Raises StackError for everything that can be known beforehand: a state folder that cannot be used, programs that
    are missing, namespaces that are forbidden, ports that are taken.
    """
    make_folders(state)
    with ExitStack() as opened:
        lock = opened.enter_context(state.path("run", "lock").open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        for name in NEEDED[state.kind]:
            binaries.find(name, progress)
        check_namespaces()
        _clean(state)
        sockets = open_ports(state)
        for each in sockets.values():
            opened.enter_context(each)
        services.prepare_files(state)
        if state.kind == "compose":
            from stack.compose import project

            project.bring_up(state, progress)
        numbers = {name: each.fileno() for name, each in sockets.items()}
        log = opened.enter_context((state.logs / "supervisor.log").open("ab"))
        subprocess.Popen(
            [sys.executable, "-P", "-m", SUPERVISORS[state.kind], "outer", str(state.root)], cwd=state.root,
            env=services.outer_environment(state) | {"RUNBOOK_SOCKETS": json.dumps(numbers)},
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            pass_fds=(lock.fileno(), *numbers.values()))
    return True


@contextmanager
def sentences(state: State) -> Iterator[None]:
    """Turn an OSError of the state folder into a message that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StackError(f"{state.full}; make room there") from error
        raise StackError(f"the state folder {state.root} cannot be used: {error.strerror or error}"
                         f"{f' ({error.filename})' if error.filename else ''}; make it writable for you, or name another folder "
                         "in RUNBOOK_STATE") from error


def make_folders(state: State) -> None:
    """Make the state folder and those below it, readable by their owner only."""
    if len(os.fsencode(state.root)) > LONGEST_ROOT:
        raise StackError(f"the path of the state folder {state.root} is longer than {LONGEST_ROOT} bytes, too long "
                         "for the sockets in it; name a shorter one in RUNBOOK_STATE")
    with sentences(state):
        state.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        if state.root.stat().st_uid != os.geteuid():
            raise StackError(f"the state folder {state.root} belongs to another user; remove it, or name another in "
                             "RUNBOOK_STATE")
        state.root.chmod(0o700)
        if not any(state.root.iterdir()):  # before all else: a start that fails halfway leaves what --wipe may remove
            state.write("kind", state.kind + "\n")
        for folder in (state.pki, state.logs, state.logs / "pods", state.images, state.volumes, state.eos,
                       state.databases, state.git, state.mail, state.path("run", "tmp")):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        state.write(".space", "x" * (1 << 20))  # said now, in one sentence, and not by five services in their logs
        state.path(".space").unlink()
    check_room(state, ROOM if not state.path("etcd").exists() else ROOM // 4)


def check_room(state: State, megabytes: int) -> None:
    """Raise StackError when less than this many megabytes are free below the state folder."""
    free = shutil.disk_usage(state.root).free >> 20
    if free < megabytes:
        raise StackError(f"{state.full} ({free} MB are free, a stack needs {ROOM} MB); make room there, or name another folder "
                         "in RUNBOOK_STATE")


def check_namespaces() -> None:
    """Try the namespaces that the stack needs; raises StackError with the cure where they are forbidden."""
    bwrap = str(binaries.find("bwrap").path)
    trial = [*services.namespaces(), bwrap, "--dev-bind", "/", "/", "--unshare-user", "--uid", "26", "--", "/bin/true"]
    try:
        done = subprocess.run(trial, capture_output=True, text=True, timeout=20, check=False, stdin=subprocess.DEVNULL)
        said = done.stderr.strip()
    except (OSError, subprocess.SubprocessError) as error:
        done, said = None, str(error)
    if done and done.returncode == 0:
        return
    raise StackError(
        f"this machine does not let {'root' if os.geteuid() == 0 else 'an ordinary user'} make the private namespaces "
        f"that the stack runs in ({said.splitlines()[-1] if said else 'no reason given'}); allow them (sysctl "
        "kernel.unprivileged_userns_clone=1, on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0), or run as "
        "root on a machine of your own")


def open_ports(state: State) -> dict[str, socket.socket]:
    """Open the stack's ports on 127.0.0.1, chosen once and kept; raises StackError naming one that is taken."""
    if not state.path("ports.json").exists():
        return _choose_ports(state)
    ports, sockets = state.ports, {}
    if not ports.outside:  # The folder is of a stack that had no such port yet.
        with _listen(0) as free:
            ports.outside = free.getsockname()[1]
        state.write_json("ports.json", asdict(ports))
    try:
        for name, port in _named(ports):
            sockets[name] = _listen(port)
    except OSError as error:
        for each in sockets.values():
            each.close()
        raise StackError(
            f"port {port} on 127.0.0.1, which this stack uses for {name}, cannot be opened: {error.strerror}; stop "
            f"what uses it (ss -ltnp 'sport = :{port}' shows it), or have new ports chosen: stack.down --wipe"
        ) from error
    return sockets


def _choose_ports(state: State) -> dict[str, socket.socket]:
    """Choose free ports below those that the system gives to outgoing connections, and open them."""
    sockets: list[socket.socket] = []
    candidates = random.SystemRandom().sample(range(20000, 30000), 2000)
    while candidates and len(sockets) < 4 + DATABASE_SLOTS:
        try:
            sockets.append(_listen(candidates.pop()))
        except OSError:
            continue
    numbers = [each.getsockname()[1] for each in sockets]
    if len(numbers) < 4 + DATABASE_SLOTS:
        raise StackError("no free ports were found on 127.0.0.1 between 20000 and 30000; is the loopback interface up?")
    ports = Ports(api=numbers[0], http=numbers[1], https=numbers[2], outside=numbers[3], databases=numbers[4:])
    state.write_json("ports.json", asdict(ports))
    return {name: each for (name, _), each in zip(_named(ports), sockets, strict=True)}


def _named(ports: Ports) -> list[tuple[str, int]]:
    return [("api", ports.api), ("http", ports.http), ("https", ports.https), ("outside", ports.outside),
            *((f"database-{slot}", port) for slot, port in enumerate(ports.databases))]


def _listen(port: int) -> socket.socket:
    opened = socket.socket()
    try:
        # Connections of an earlier run that are still closing must not keep the port; a listener does.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(("127.0.0.1", port))
        opened.listen(512)
    except OSError:
        opened.close()
        raise
    return opened


def _clean(state: State) -> None:
    """Remove what a stack that was killed has left and nobody may take for true."""
    state.connection.unlink(missing_ok=True)
    for left in state.path("run").iterdir():
        if left.name == "lock":
            continue
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink()
    state.path("run", "tmp").mkdir(mode=0o700)
    for log in state.logs.glob("*.log"):
        # One earlier run is kept: it may say why that one ended.
        if log.stat().st_size > 20 << 20:
            log.replace(log.with_suffix(".log.1"))


def checkout() -> Path:
    """Return the folder of the checkout that this stack runs from."""
    return Path(__file__).parent.parent
