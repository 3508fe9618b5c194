"""What `stack.up`, `stack.down`, `stack.status`, `stack.logs` and `stack.env` do."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stack import binaries, launch
from stack.api import Api, ApiError
from stack.errors import StackError
from stack.state import State

__all__ = ["StackError", "down", "env", "logs", "status", "up"]

HOPELESS = 6
"""Failed starts of one part after which `up` no longer waits for it."""
START = 240.0
"""Seconds that a start may take, programs in place, before it is given up."""
FULL = 16
"""Free megabytes below which a disk counts as full: a database or an image no longer fits."""

KINDS = ("embedded", "compose")
"""Kinds of stacks: all of it on this machine, or PostgreSQL, Redis and MicroShift in containers (`stack/compose`)."""


def up(state: State, progress: binaries.Progress = print, kind: str = "") -> dict[str, Any]:
    """Start the stack unless it runs, wait until every part is ready, and return how to use it (`connection.json`).

    `kind` is one of KINDS; without one, the kind that the state folder is of, embedded at first.
    Raises StackError with what is in the way, where it was seen and what to do.
    """
    _choose(state, kind)
    if launch.running(state) and _answers(state):
        return connection(state)
    with launch.sentences(state):
        started = launch.launch(state, progress)
    seen: dict[str, str] = {}
    begun = time.monotonic()
    deadline = begun + START
    while not (state.connection.exists() and _answers(state)):
        if not launch.running(state):
            if not started:  # the one that was there has just been stopped
                started = launch.launch(state, progress)
                continue
            launch.check_room(state, FULL)
            raise StackError(f"the stack ended while it started: {_last_lines(state, 'supervisor')}")
        _report(state, seen, progress)
        if time.monotonic() > deadline or _hopeless(state):
            launch.check_room(state, FULL)
            raise StackError(_not_ready(state, time.monotonic() - begun))
        time.sleep(0.03)
    _report(state, seen, progress)
    return connection(state)


def _choose(state: State, kind: str) -> None:
    """Make the state folder one of this kind; a folder that holds the other kind is refused."""
    if kind and kind not in KINDS:
        raise StackError(f"there is no stack {kind!r}; there are {' and '.join(KINDS)}")
    if not kind or kind == state.kind:
        return
    if state.path("ports.json").exists():
        raise StackError(f"the state folder {state.root} is that of the {state.kind} stack; remove that one (stack.down --wipe), "
                         "or name another folder in RUNBOOK_STATE")
    launch.make_folders(state)
    state.write("kind", kind + "\n")


def connection(state: State) -> dict[str, Any]:
    """Return how to use a running stack. Raises StackError when none is ready."""
    try:
        found: dict[str, Any] = json.loads(state.connection.read_text())
    except OSError as error:
        raise StackError(f"no stack runs in {state.root}; start it with stack.up") from error
    return found


def ailing(state: State) -> str:
    """Return what is wrong with a stack that does not answer: a full disk, a part that is not ready; "" when nothing is."""
    if shutil.disk_usage(state.root).free >> 20 < FULL:
        return f"{state.full}; make room there"
    if not launch.running(state):
        return "the local stack has stopped; the next command starts it again"
    rows = (row for row in status(state)["parts"] if row["state"] not in ("ready", "done"))
    return next((f"{row['part']} of the local stack is not ready ({row['detail'] or row['state']}); "
                 f"stack.logs {row['part']} says why" for row in rows), "")


def down(state: State, *, wipe: bool = False, progress: binaries.Progress = print) -> None:
    """Stop the stack, and with `wipe` remove its state folder; one that does not run is fine."""
    if launch.running(state):
        number = state.path("run", "outer.pid")
        _until(number.exists, 10)  # it has just been started
        pid = int(number.read_text())
        state.connection.unlink(missing_ok=True)
        os.kill(pid, signal.SIGTERM)
        if not _until(lambda: not launch.running(state), 25):
            # Nothing outlives the outer supervisor: the kernel ends the rest.
            os.kill(pid, signal.SIGKILL)
            _until(lambda: not launch.running(state), 5)
        progress("stack: stopped")
    elif not state.path("compose", "env").exists():  # of containers their own line tells
        progress(f"no stack runs in {state.root}")
    if state.kind == "compose" and state.path("compose", "env").exists():
        _end_containers(state, wipe, progress)
    if wipe and state.root.exists():
        with launch.sentences(state):
            if not _ours(state) and any(state.root.iterdir()):
                raise StackError(f"{state.root} does not look like the state folder of a stack; remove it yourself")
            _remove(state.root)
        progress(f"stack: {state.root} removed")


def _ours(state: State) -> bool:
    """Tell whether a start made this folder; one of an earlier version has its ports only."""
    return state.path("ports.json").exists() or (state.path("kind").is_file() and state.kind in KINDS)


def _end_containers(state: State, wipe: bool, progress: binaries.Progress) -> None:
    from stack.compose import engine

    try:
        here = engine.find(state)
    except engine.NoEngineError as error:
        if not wipe:
            raise
        # Who has removed the engine must still get rid of the folder.
        progress(f"containers: left as they are, because {error}; where it is back: docker compose -p {engine.project_of(state)} "
                 "down --volumes")
        return
    if wipe:
        here.remove()
    else:
        here.stop()
    progress(f"containers: {'removed, with their volumes' if wipe else 'stopped'}")


def status(state: State) -> dict[str, Any]:
    """Return what runs: `running`, `ready`, `server`, and `parts` as rows.

    A row has part, state, detail, pid (on the host), restarts, version, link, path, address and memory (bytes, shared
    pages counted by share). Programs that run inside pods are listed with their link and version too.
    """
    running = launch.running(state)
    rows = []
    for role in ("outer", "inner"):
        known = _read(state.path("run", f"{role}.json")) if running else {}
        for name, about in known.items():
            rows.append({"part": name, "state": about["state"], "detail": about["detail"],
                         "pid": about["pid"], "restarts": about["restarts"], "role": role})
    if running:
        _add_processes(state, rows)
    for row in rows:
        row.pop("role")
        row.update(_program(PROGRAM_OF.get(row["part"], "postgres" if row["part"].startswith("database-") else "")))
        row["address"] = _address(state, row["part"])
    if state.kind == "compose":
        rows += _containers(state)
    used = {row["program"] for row in rows}
    programs = [_program(name) for name in launch.NEEDED[state.kind] if name not in used]
    return {"kind": state.kind, "running": running, "ready": running and state.connection.exists(), "state": str(state.root),
            "server": state.server if state.path("ports.json").exists() else "",
            "memory": sum(row.get("memory") or 0 for row in rows), "parts": rows, "programs": programs}


def _containers(state: State) -> list[dict[str, Any]]:
    """Return a row for each container, and one that says why there is none when the engine cannot be asked."""
    from stack.compose import engine

    empty = {"pid": 0, "restarts": 0, "program": "", "version": "", "path": "", "address": ""}
    try:
        here = engine.find(state)
        return [{"part": name, "state": "ready" if found.ready else found.health or found.state, "detail": found.state,
                 "link": here.name} | empty for name, found in sorted(here.containers().items())]
    except StackError as error:
        return [{"part": "containers", "state": "unknown", "detail": str(error), "link": ""} | empty]


PROGRAM_OF = {"etcd": "etcd", "kube-apiserver": "kube-apiserver", "haproxy": "haproxy",
              "kube-controller-manager": "kube-controller-manager"}


def logs(state: State, name: str, *, follow: bool = False) -> Iterator[str]:
    """Yield the lines of a part's log, with `follow` also those to come. Raises StackError for an unknown part."""
    path = _log(state, name)
    if not path.exists() and state.kind == "compose":
        from stack.compose import engine, project

        if name in project.SERVICES:
            yield from engine.find(state).logs(name, 1000)
            return
    if not path.exists():
        names = sorted({each.stem for each in state.logs.glob("*.log")}
                       | {f"database-{each.parent.name}" for each in state.databases.glob("*/log")})
        known = f"there are logs of {', '.join(names)}" if names else "the stack has not run yet (stack.up)"
        raise StackError(f"there is no log of a part {name!r}; {known}" if name else f"which part? {known}")
    with path.open(errors="replace") as file:
        while True:
            yield from (line.rstrip("\n") for line in file)
            if not follow:
                return
            time.sleep(0.2)


def env(state: State) -> str:
    """Return shell exports with which kubectl, oc, psql and curl use the stack as the project member."""
    known = connection(state)
    values = {"KUBECONFIG": known["kubeconfig"], "PGPASSFILE": known["pgpass"], "PGSSLROOTCERT": known["ca"],
              "PGSSLMODE": "verify-full", "RUNBOOK_CA": known["ca"], "RUNBOOK_SERVER": known["server"],
              "RUNBOOK_STATE": str(state.root), "CURL_CA_BUNDLE": known["ca"], "GIT_SSL_CAINFO": known["ca"],
              "RUNBOOK_PORTAL": known["portal"], "RUNBOOK_GIT_SERVER": known["git"]}  # RUNBOOK_GIT would be the program
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items())


def _answers(state: State) -> bool:
    """Tell whether the API answers for everybody, through HAProxy."""
    try:
        if not state.connection.exists():
            return False
        return bool(Api(state.server, state.tokens.member, state.ca).request("GET", "/readyz", timeout=2) == "ok")
    except (ApiError, OSError):
        return False


def _report(state: State, seen: dict[str, str], progress: binaries.Progress) -> None:
    for role in ("outer", "inner"):
        for name, about in _read(state.path("run", f"{role}.json")).items():
            line = f"{about['state']} {about['detail']}".strip()
            if about["state"] in ("ready", "done", "restarting") and seen.get(name) != line and name != "inner":
                seen[name] = line
                progress(f"{name}: {line}")


def _hopeless(state: State) -> bool:
    """Tell whether a part has died at each of many attempts to start it."""
    return any(about["restarts"] >= HOPELESS for role in ("outer", "inner")
               for about in _read(state.path("run", f"{role}.json")).values()
               if about["state"] in ("starting", "restarting"))


def _not_ready(state: State, seconds: float) -> str:
    late = {name: about for role in ("outer", "inner") for name, about in _read(
        state.path("run", f"{role}.json")).items() if about["state"] not in ("ready", "done") and name != "inner"}
    if not late:
        return f"the stack is not ready after {seconds:.0f} s; see stack.logs inner"
    name, about = max(late.items(), key=lambda item: item[1]["restarts"])
    seen = about["detail"] or "no answer"
    return (f"the stack is not ready after {seconds:.0f} s: {name} is {about['state']} ({seen}); "
            f"its last words: {_last_lines(state, name)}; all of them: stack.logs {name}")


def _last_lines(state: State, name: str) -> str:
    try:
        lines = _log(state, name).read_text(errors="replace").strip().splitlines()[-3:]
    except OSError:
        lines = []
    return " / ".join(line.strip()[-300:] for line in lines) or "none"


def _log(state: State, name: str) -> Path:
    if name.startswith("database-"):
        return state.databases / Path(name.removeprefix("database-")).name / "log"
    return state.logs / f"{Path(name).name}.log"


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found


def _until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _remove(root: Path) -> None:
    """Remove a folder; overlays leave folders behind that nobody may enter, not even their owner."""
    for folder, names, _ in os.walk(root):
        for name in names:
            path = Path(folder, name)
            if not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) & 0o700 != 0o700:
                path.chmod(0o700)
    shutil.rmtree(root)


def _program(name: str) -> dict[str, Any]:
    if not name:
        return {"program": "", "version": "", "link": "this checkout", "path": ""}
    try:
        found = binaries.found(name)
    except StackError as error:
        return {"program": name, "version": "", "link": str(error), "path": ""}
    if not found:
        return {"program": name, "version": "", "link": "not found yet", "path": ""}
    return {"program": name, "version": found.version, "link": found.link, "path": str(found.path)}


def _address(state: State, part: str) -> str:
    if part.startswith("database-"):
        about = _read(state.databases / part.removeprefix("database-") / "server.json")
        return f"127.0.0.1:{about.get('port', '?')}"
    return {"haproxy": f"{state.server}, {state.url('*.localhost')}", "kube-apiserver": state.server,
            "portal": state.url("portal.localhost"), "builder": str(state.builder_socket)}.get(part, "")


def _add_processes(state: State, rows: list[dict[str, Any]]) -> None:
    """Add each part's number on the host and the memory of it and of all that it started."""
    parents: dict[int, list[int]] = {}
    inside: dict[int, int] = {}
    top = int(state.path("run", "outer.pid").read_text())
    for process in Path("/proc").glob("[0-9]*/status"):
        try:
            about = dict(line.split(":\t", 1) for line in process.read_text().splitlines() if ":\t" in line)
        except OSError:
            continue
        pid = int(about["Pid"])
        parents.setdefault(int(about["PPid"]), []).append(pid)
        inside[pid] = int(about.get("NSpid", str(pid)).split()[1 if len(about.get("NSpid", "").split()) > 1 else 0])
    below = _tree(top, parents)
    counted: set[int] = set()
    for row in sorted(rows, key=lambda row: row["part"] == "inner"):
        if row["role"] == "inner" and row["pid"]:
            row["pid"] = next((pid for pid in below if inside[pid] == row["pid"] and pid != inside[pid]), 0)
        family = _tree(row["pid"], parents) - counted if row["pid"] else set()
        counted |= family
        row["memory"] = sum(_memory(pid) for pid in family)
    rows.append({"part": "supervisor", "state": "ready", "detail": "", "pid": top, "restarts": 0, "role": "outer",
                 "memory": _memory(top)})


def _tree(top: int, parents: dict[int, list[int]]) -> set[int]:
    found, left = set(), [top]
    while left:
        pid = left.pop()
        found.add(pid)
        left.extend(parents.get(pid, []))
    return found


def _memory(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return 0
