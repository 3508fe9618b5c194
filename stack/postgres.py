"""Database instances as CERN's Database on Demand gives them: PostgreSQL, TLS only, one port each, a DBA role `admin`.

Each instance is one folder below `State.databases` with the server's data, its `pg_hba.conf` and its log. The inner
supervisor runs a server for every folder that has a `server.json`. Where it differs from DBoD: no backups, no web
pages (the portal plays the request and the file editor), and `fsync` is off.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import ipaddress
import json
import re
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stack import binaries, certificates
from stack.api import wait_until
from stack.errors import StackError
from stack.services import Service
from stack.state import DATABASE_SLOTS, OUTSIDE_ADDRESS, State, cache_root

PREFIX = "database-"
"""What the names of the servers begin with, as services."""

UID = 26
"""The user that a server believes to be: it refuses to run as root, and an ordinary user is root in our namespaces."""

HBA = """# Who may connect, from where, how: as in DBoD's file editor. Nobody comes in without TLS.
# TYPE  DATABASE  USER      ADDRESS         METHOD
local   all       postgres                  peer
hostssl all       all       127.0.0.1/32    scram-sha-256
"""


@dataclass(frozen=True)
class Database:
    """One instance: where it is reached, from the host and from pods alike, and its DBA's first password."""

    name: str
    host: str
    port: int
    admin_password: str


def create(state: State, name: str, port: int = 0) -> Database:
    """Create an instance and return it; one that exists is returned as it is.

    `admin` may make databases and roles, and is no superuser. `port` is one of the stack's database ports, 0 for any
    that is free. Raises StackError for a name that cannot be one, for a port that is taken or none of them, when all
    are given away, and when its server does not come up.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,30}", name):
        raise StackError(f"{name!r} cannot be the name of a database instance: a small letter, then at most 30 small "
                         "letters, digits, hyphens and underscores")
    folder = state.databases / name
    with _alone(state):
        if not (folder / "server.json").exists():
            if state.kind == "compose":
                from stack.compose import database as contained

                contained.initialise(state, name, _host(name), port)
            else:
                shutil.rmtree(folder, ignore_errors=True)
                _initialise(state, name, folder, port)
    about = _about(folder)
    database = Database(name, _host(name), about["port"], (folder / "first-password").read_text().strip())
    if state.kind == "embedded":
        _make_admin(state, folder, database)
    _tell(state, database)
    return database


def admit(state: State, name: str, cidr: str) -> None:
    """Let a network in, by a line at the end of `pg_hba.conf`, and have the server read it; repeatable.

    Raises StackError for what is no network and for an instance that is not there.
    """
    try:
        network = ipaddress.ip_network(cidr)
    except ValueError as error:
        raise StackError(f"{cidr!r} is not a network: {error}; write it as 10.244.0.0/24") from error
    folder = _existing(state, name)
    hba = folder / "pg_hba.conf"
    line = f"hostssl all       all       {network}  scram-sha-256"
    if line not in hba.read_text().splitlines():
        state.write(str(hba.relative_to(state.root)), hba.read_text() + line + "\n")
    if state.kind == "compose":
        from stack.compose import database as contained

        contained.reload(state)
        return
    with _superuser(state, folder) as cursor:
        cursor.execute("SELECT pg_reload_conf()")


def drop(state: State, name: str) -> None:
    """Stop an instance's server and remove everything of it; one that is not there is fine."""
    folder = state.databases / name
    if not (folder / "server.json").exists():
        return
    about = _about(folder)
    with _alone(state):
        if state.kind == "compose":
            from stack.compose import database as contained

            contained.clean(state)
        (folder / "server.json").unlink()
        # The container's server goes on; HAProxy stops leading to it. One of ours removes this file last of all.
        own = folder / "data" / "postmaster.pid"
        here = functools.partial(_leads_on, about["port"]) if state.kind == "compose" else own.exists
        wait_until(lambda: not here() or not _listening(state), f"the end of the server of {name}", 20)
        shutil.rmtree(folder)
        (state.mail / f"dbod-{name}.txt").unlink(missing_ok=True)
        start = f"{_host(name)}:{about['port']}:"
        if state.pgpass.exists():
            lines = [line for line in state.pgpass.read_text().splitlines() if not line.startswith(start)]
            state.write("pgpass", "".join(line + "\n" for line in lines))


def names(state: State) -> set[str]:
    """Return the names of the instances' servers as services."""
    return {PREFIX + each.parent.name for each in state.databases.glob("*/server.json")}


def service(state: State, name: str) -> Service:
    """Return an instance's server by its name as a service."""
    folder = state.databases / name.removeprefix(PREFIX)
    about = _about(folder)
    sockets = _socket_folder(state, about["slot"])
    settings = {
        "port": about["port"], "listen_addresses": f"127.0.0.1,{OUTSIDE_ADDRESS}",
        "unix_socket_directories": sockets, "hba_file": folder / "pg_hba.conf",
        "ssl": "on", "ssl_min_protocol_version": "TLSv1.2",
        "ssl_cert_file": state.path("pki", f"dbod-{folder.name}.crt"),
        "ssl_key_file": state.path("pki", f"dbod-{folder.name}.key"), "ssl_ca_file": state.ca,
        "password_encryption": "scram-sha-256",
        # Who changes what can be read in the log, by people and by tests.
        "log_statement": "mod", "log_line_prefix": "%m %u@%d ", "log_connections": "off", "logging_collector": "off",
        # A killed server keeps what it committed; a crash of the machine may end a stack. Idle servers stay idle.
        "fsync": "off", "full_page_writes": "off", "shared_buffers": "16MB",
        "wal_level": "minimal", "max_wal_senders": 0, "max_wal_size": "96MB", "min_wal_size": "32MB",
        "max_logical_replication_workers": 0, "autovacuum_naptime": "5min", "checkpoint_timeout": "30min",
        "bgwriter_delay": "5s", "wal_writer_delay": "5s", "jit": "off",
        # The host's /dev/shm would keep what a killed server leaves.
        "dynamic_shared_memory_type": "mmap",
    }
    flags = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
    server = str(binaries.find("postgres").path)
    return Service(name, [*_as_postgres(state), server, "-D", str(folder / "data"), *flags],
                   _ready(state, folder), environment=_environment(), stop=signal.SIGINT, grace=5,
                   pid_file=folder / "data" / "postmaster.pid", log=folder / "log")


def _ready(state: State, folder: Path) -> Callable[[], str]:
    def check() -> str:
        import psycopg2

        try:
            with _superuser(state, folder):
                return ""
        except psycopg2.Error as error:
            return str(error).strip()
        except OSError as error:  # dropped in between
            return str(error)
    return check


def _initialise(state: State, name: str, folder: Path, port: int) -> None:
    """Make an instance's folder; `server.json` comes last and makes the supervisor start its server."""
    taken = {_about(each.parent)["slot"] for each in state.databases.glob("*/server.json")}
    free = [slot for slot in range(DATABASE_SLOTS) if slot not in taken]
    if not free:
        raise StackError(f"all {DATABASE_SLOTS} database instances of this stack are taken; "
                         "wipe one with the undo of database.request, or all with stack.down --wipe")
    ports = state.ports.databases
    if port and port not in [ports[slot] for slot in free]:
        raise StackError(f"no database instance can have the port {port}; free are "
                         f"{', '.join(str(ports[slot]) for slot in free)}")
    slot = ports.index(port) if port else free[0]
    port = ports[slot]
    certificates.issue(state, f"dbod-{name}", [_host(name), "127.0.0.1", OUTSIDE_ADDRESS])
    folder.mkdir(parents=True, mode=0o700)
    copied = subprocess.run(["cp", "-a", str(_fresh(state)), str(folder / "data")], capture_output=True, text=True, check=False)
    if copied.returncode:
        raise StackError(f"the database instance {name} cannot be made: {copied.stderr.partition(chr(10))[0]}")
    where = folder.relative_to(state.root)
    # Every setting is given at the start; a second opinion in a file would be reported at each reload.
    state.write(f"{where}/data/postgresql.conf", "")
    state.write(f"{where}/pg_hba.conf", HBA)
    state.write(f"{where}/first-password", secrets.token_urlsafe(18) + "\n")
    state.write_json(f"{where}/server.json", {"name": name, "slot": slot, "port": port})


def _fresh(state: State) -> Path:
    """Return a folder of data as initdb makes it, kept in the user's cache: it holds nothing of any instance yet."""
    program = binaries.find("initdb")
    kept = cache_root() / "databases" / f"initdb-{program.version}"
    if kept.exists():
        return kept
    try:
        kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(prefix=".made-", dir=kept.parent) as made:
            done = subprocess.run(
                [*_as_postgres(state), str(program.path), "-D", f"{made}/data", "-U", "postgres", "-E", "UTF8", "--locale=C",
                 "--auth-local=peer", "--auth-host=scram-sha-256", "--no-sync", "--no-instructions"],
                env=_environment(), capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
            if done.returncode:
                raise StackError(f"initdb cannot make a database: {done.stderr.strip()[-500:]}")
            try:
                Path(made, "data").rename(kept)
            except OSError:
                if not kept.exists():  # else another stack was quicker
                    raise
    except OSError as error:
        raise StackError(f"the cache folder {kept.parent} cannot be used: {error.strerror or error}; make it writable for you and "
                         "see that there is room, or name another in RUNBOOK_CACHE") from error
    return kept


def _make_admin(state: State, folder: Path, database: Database) -> None:
    """Make the DBA role, once its server answers; a changed password is left alone."""
    from psycopg2 import extensions

    ready = _ready(state, folder)
    try:
        wait_until(lambda: not ready(), f"the database server {database.name}", 30)
    except TimeoutError as error:
        raise StackError(f"the database server {database.name} does not answer ({ready()}); "
                         f"see stack.logs {PREFIX}{database.name}, or start the stack with stack.up") from error
    with _superuser(state, folder) as cursor:
        cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = 'admin'")
        if not cursor.fetchone():
            # A verifier: the server never sees the password, nor does its log.
            verifier = extensions.encrypt_password(database.admin_password, "admin", cursor.connection,
                                                   "scram-sha-256")
            cursor.execute("CREATE ROLE admin LOGIN CREATEDB CREATEROLE PASSWORD %s", (verifier,))


def _tell(state: State, database: Database) -> None:
    """Write the mail with the first password, and keep it for the person as a password file."""
    mail = f"mail/dbod-{database.name}.txt"
    if state.path(mail).exists():
        return
    start = f"{database.host}:{database.port}:*:admin:"
    known = state.pgpass.read_text() if state.pgpass.exists() else ""
    if start not in known:
        state.write("pgpass", known + start + database.admin_password + "\n")
    state.write(mail, f"""Your PostgreSQL instance {database.name} is ready.
host: {database.host}
port: {database.port}
user: admin
password: {database.admin_password}
Change the password first. Only connections with TLS are let in, and from 127.0.0.1 only until you admit a network.
""")


@contextlib.contextmanager
def _superuser(state: State, folder: Path) -> Iterator[Any]:
    """Yield a cursor of the server's superuser, by its socket, in autocommit."""
    import psycopg2

    about = _about(folder)
    connection = psycopg2.connect(host=str(_socket_folder(state, about["slot"])), port=about["port"], user="postgres",
                                  dbname="postgres", connect_timeout=2)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            yield cursor
    finally:
        connection.close()


def _existing(state: State, name: str) -> Path:
    folder = state.databases / name
    if not (folder / "server.json").exists():
        raise StackError(f"there is no database instance {name}; request it first (database.request)")
    return folder


def _about(folder: Path) -> dict[str, Any]:
    about: dict[str, Any] = json.loads((folder / "server.json").read_text())
    return about


def _host(name: str) -> str:
    return f"dbod-{name.replace('_', '-')}.localhost"


def _socket_folder(state: State, slot: int) -> Path:
    # By number: a Unix socket's path may have 107 bytes only.
    folder = state.path("run", f"db{slot}")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def _leads_on(port: int) -> bool:
    """Tell whether a PostgreSQL server is behind a port: it is asked whether it speaks TLS."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 2) as opened:
        opened.settimeout(2)
        opened.sendall(struct.pack("!ii", 8, 80877103))
        return bool(opened.recv(1))
    return False


def _listening(state: State) -> bool:
    """Tell whether a stack runs at all: without one nobody stops a server, and none is there."""
    from stack import launch

    return launch.running(state)


@contextlib.contextmanager
def _alone(state: State) -> Iterator[None]:
    """Let one instance be made or dropped at a time."""
    state.databases.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (state.databases / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _as_postgres(state: State) -> list[str]:
    """Return the beginning of a command that runs as another user, in whose name the same files are its own."""
    users = state.path("run", "passwd")
    if not users.exists():
        state.write("run/passwd", f"root:x:0:0:root:/:/bin/sh\npostgres:x:{UID}:{UID}:PostgreSQL:/:/bin/sh\n")
    return [str(binaries.find("bwrap").path), "--dev-bind", "/", "/", "--ro-bind", str(users), "/etc/passwd",
            "--unshare-user", "--uid", str(UID), "--gid", str(UID), "--"]


def _environment() -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}
