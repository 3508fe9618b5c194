"""Dumps of the app's database: written outside the cluster, complete or not at all, and put back all or nothing.

PostgreSQL's own programs do the work; they get the log-in through their environment, never through their arguments.
"""

from __future__ import annotations

import datetime as dt
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runbook import pods
from runbook.apply import Tell, carry_out
from runbook.connections import Connections
from runbook.diff import Difference, State, compare
from runbook.errors import GuideError, Unknown
from runbook.plan import Dump, Object, Restore, Scale, WaitFor, rolled_out

GET = ("install PostgreSQL's client programs (`dnf install postgresql` or `apt install postgresql-client`, of the server's version "
       "or a later one), or name a folder that has them: RUNBOOK_POSTGRESQL_PROGRAMS=FOLDER")
LOCKED = "-c lock_timeout=60s"
"""A session of somebody else that holds a table is waited for no longer than this."""


def program(name: str, connections: Connections) -> str:
    """Return the path of one of PostgreSQL's programs: of the named folder, the stack's, or PATH's.

    Raises GuideError with how to get it when there is none.
    """
    folder = os.environ.get("RUNBOOK_POSTGRESQL_PROGRAMS") or connections.target.facts.get("postgresql_programs", "")
    found = shutil.which(name, path=str(folder)) if folder else shutil.which(name)
    if not found:
        raise GuideError(f"there is no {name} " + (f"in {folder}" if folder else "on PATH"), GET)
    return found


def folder(connections: Connections) -> Path:
    """Return where the dumps of an instance lie: those of the local stack apart from the real ones."""
    instance = connections.instance
    if instance.database.backups:
        return Path(instance.database.backups).expanduser()
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share")
    return data / "certhelper-guide/backups" / (instance.name + (".local" if instance.at == "local" else ""))


def dumps(connections: Connections) -> list[Path]:
    """Return the complete dumps of an instance, the newest first."""
    stamped = re.compile(re.escape(connections.instance.database.name) + r"-\d{8}-\d{6}Z\.dump")
    try:
        return sorted((p for p in folder(connections).iterdir() if stamped.fullmatch(p.name)), reverse=True)
    except FileNotFoundError:
        return []


def unfit(path: Path, connections: Connections) -> str:
    """Return why a file cannot be restored, "" when it is a dump; an empty path is answered with what there is."""
    if path == Path():
        return "which one? there are " + (", ".join(map(str, dumps(connections)[:5])) or f"none in {folder(connections)}")
    path = path.expanduser()
    if not path.is_file():
        return f"there is no file {path}"
    done = _run([program("pg_restore", connections), "--list", str(path.absolute())], {})
    return "" if done.returncode == 0 else f"{path}: {_said(done)}"


@compare.register
def _(action: Dump, _connections: Connections, _manager: str) -> Difference:
    return Difference(State.MISSING, f"a dump of the database {action.database}, {action.because}")


@compare.register
def _(action: Restore, _connections: Connections, _manager: str) -> Difference:
    return Difference(State.MISSING, f"the database {action.database} as it is in {action.file}")


@carry_out.register
def _(action: Dump, _difference: Difference, connections: Connections, _manager: str, tell: Tell) -> Path:
    access = _access(action, connections)
    command = [program("pg_dump", connections), "--format=custom", "--no-password"]
    _not_older(command[0], action, connections)
    where = folder(connections)
    target = where / f"{action.database}-{dt.datetime.now(dt.UTC):%Y%m%d-%H%M%S}Z.dump"
    part = target.with_name(f".{target.name}.part")
    try:
        where.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in where.glob(".*.part"):  # Of a run that was killed; one that goes on has written just now.
            if time.time() - left.stat().st_mtime > 3600:
                left.unlink(missing_ok=True)
        tell(f"writing {target}")
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            done = subprocess.run(command, env=access, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.PIPE, check=False)
            if done.returncode:
                raise GuideError(f"no dump was made: {_said(done)}", _cure(_said(done), where))
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
        size = target.stat().st_size
        if connections.instance.database.keep > 0:
            for old in dumps(connections)[connections.instance.database.keep:]:
                old.unlink(missing_ok=True)
    except OSError as error:
        raise GuideError(f"{where}: {error.strerror}", _cure(str(error.strerror), where)) from error
    finally:
        part.unlink(missing_ok=True)
    connections.say(f"dump: {target} ({_shown(size)})")
    return target


@carry_out.register
def _(action: Restore, _difference: Difference, connections: Connections, _manager: str, tell: Tell) -> None:
    access = _access(action, connections) | {"PGOPTIONS": LOCKED}
    restoring, sending = program("pg_restore", connections), program("psql", connections)
    with tempfile.TemporaryDirectory(prefix="restore-") as private:
        # A script first: a dump that is broken somewhere inside is seen before the app is stopped or anything dropped.
        script = str(Path(private) / "script.sql")
        path = str(Path(action.file).expanduser().absolute())
        made = _run([restoring, "--no-owner", "--no-privileges", "--exit-on-error", f"--file={script}", path], {})
        if made.returncode:
            raise GuideError(f"{action.file} cannot be restored, nothing was changed: {_said(made)}",
                             _cure(_said(made), Path(private)))
        connections.lease.take()
        with _stopped(action.deployment, connections, tell):
            tell(f"restoring {action.database}")
            # Not `pg_restore --clean`: a table that came after the dump may refer to one in it, and would be in its way.
            done = _run([sending, "--no-psqlrc", "--quiet", "--no-password", "--single-transaction", "--set=ON_ERROR_STOP=1",
                         "--output=/dev/null", "--command=DROP OWNED BY CURRENT_USER", f"--file={script}"], access)
            if done.returncode:
                raise GuideError(f"{action.database} is as it was, the restore was taken back whole: {_said(done)}",
                                 "the dump does not fit this server or this role; `pg_restore --list FILE` shows what is in it")
    connections.say(f"restored: {action.database} from {action.file}")


@contextmanager
def _stopped(deployment: str, connections: Connections, tell: Tell) -> Iterator[None]:
    """Take a Deployment's pods away meanwhile and give them back, however it ends."""
    live = connections.cluster.get(Object("Deployment", deployment))
    before = live["spec"].get("replicas", 1) if live else 0
    if live is None or not before:
        yield
        return
    nothing = Difference(State.MISSING, "")
    try:
        carry_out(Scale(deployment, 0), nothing, connections, "guide/database.restore", tell)
        pods.wait_ended(live, connections, tell, lambda _: True)  # One that ends still writes.
        yield
    finally:
        carry_out(Scale(deployment, before), nothing, connections, "guide/database.restore", tell)
    carry_out(WaitFor(Object("Deployment", deployment), rolled_out), nothing, connections, "guide/database.restore", tell)


def _access(action: Dump | Restore, connections: Connections) -> dict[str, str]:
    """Return the environment in which PostgreSQL's programs log in as the app's role, which was tried."""
    password = connections.known(action.credential)
    if password is None:
        raise Unknown(f"the {action.credential.label} is not known",
                      f"`invoke database.role --build={connections.instance.name}` makes role and password")
    try:
        connections.database.log_in(action.role, password.reveal(), action.database)
    except Unknown as error:
        raise GuideError(f"{action.role} cannot log in to {action.database}: {error.found}",
                         f"`invoke guide.run --build={connections.instance.name} --to=database.create` puts it right") from error
    return _bare() | connections.database.environment(action.role, password.reveal(), action.database)


def _not_older(dumping: str, action: Dump, connections: Connections) -> None:
    """Raise GuideError when pg_dump is older than the server: it would refuse with other words."""
    password = connections.known(action.credential)
    found = re.search(r"(\d+)", _run([dumping, "--version"], {}).stdout)
    ours, server = int(found[1]) if found else 0, \
        connections.database.log_in(action.role, password.reveal() if password else "", action.database).server_version // 10000
    if ours < server:
        raise GuideError(f"{dumping} is of version {ours}, and the server of {server}: it cannot read a newer one", GET)


def _bare() -> dict[str, str]:
    """Return this process's environment without what would lead PostgreSQL's programs elsewhere; messages in English."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PG")} | {"LC_ALL": "C"}


def _run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environment or _bare(), stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          check=False)


def _said(done: subprocess.CompletedProcess[str] | subprocess.CompletedProcess[bytes]) -> str:
    """Return the first error that a program printed, else how it ended."""
    text = done.stderr if isinstance(done.stderr, str) else done.stderr.decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    chosen = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "")
    if done.returncode < 0:
        return f"it was killed by signal {-done.returncode}"
    return chosen or f"exit status {done.returncode}"


def _cure(said: str, where: Path) -> str:
    if "No space left" in said or "Disk quota" in said:
        return f"make room at {where}, or name another folder as `backups` below [database]"
    return "run the same command again; the database was only read, and no half file is left" if "killed" in said \
        else f"is {where} yours, and is the file whole?"


def _shown(size: int) -> str:
    amount = float(size)
    for unit in ("bytes", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"
