"""One at a time: who changes an instance holds the Lease `guide` in its project, from the first write to the end.

A run that finds nothing to do writes nothing and so takes none. The Lease is renewed by a thread while the run lasts and
deleted at its end. When a holder is gone without a word, it may be taken over: as soon as the time is up that it gave
itself, or at once when it was a process of this machine that is no more.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import getpass
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runbook.clients.cluster import Cluster, Refused
from runbook.errors import GuideError, Unknown
from runbook.plan import MANAGED_BY, Manifest, Object

NAME = Object("Lease", "guide")
MANAGER = "guide/lease"
SECONDS = 30
"""How long a holder counts as alive after its last sign of life; it gives one every third of that."""
MACHINE, COMMAND = "guide/machine", "guide/command"
"""Annotations: where the holder runs, and what."""


class Held(GuideError):
    """Another run is changing the same instance."""


class Lease:
    """This run's hold on its instance: taken before the first write, released at the end."""

    def __init__(self, cluster: Callable[[], Cluster], instance: str, command: str, say: Callable[[str], None]) -> None:
        self._cluster, self._instance, self._command, self._say = cluster, instance, command, say
        self._lock, self._ended = threading.RLock(), threading.Event()
        self._live: Manifest | None = None
        self._taking, self._lost = False, ""

    def take(self) -> None:
        """Take the Lease unless this run holds it; a project that is not there yet has none.

        Raises Held with who holds it and since when, also when somebody took it over from this run.
        """
        with self._lock:
            if self._lost:
                raise Held(self._lost, "look at what the other run did (`invoke guide.status`), then run the command again")
            if self._taking or self._live:
                return
            self._taking = True
            try:
                self._live = self._taken()
            except KeyboardInterrupt:
                self._live = self._arrived()
                raise
            finally:
                self._taking = False
            if self._live:
                threading.Thread(target=self._renew, name="lease", daemon=True).start()

    def release(self) -> None:
        """Give the Lease back. One that cannot be given back ends by itself."""
        self._ended.set()
        with self._lock:
            live, self._live = self._live, None
            if not live or self._lost:
                return
            self._taking = True
            meta = live["metadata"]
            body = {"preconditions": {"uid": meta["uid"], "resourceVersion": meta["resourceVersion"]}}
            with contextlib.suppress(GuideError):
                self._cluster().request("DELETE", self._cluster().path(NAME), body, timeout=5)

    def _taken(self) -> Manifest | None:
        cluster = self._cluster()
        try:
            found = cluster.get(NAME)
            if found is None:
                return self._request("POST", cluster.collection("Lease"), self._manifest())
        except (Unknown, Refused) as error:
            if isinstance(error, Refused) and error.status == 409:
                return self._taken()  # Somebody was faster: say who.
            if (isinstance(error, Refused) and error.status == 404) or not _project(cluster):
                return None
            raise
        if alive := self._alive(found):
            raise Held(f"{self._instance} is held by {_who(found)} since {_clock(found['spec'].get('acquireTime'))}: {alive}",
                       "wait until that run has ended, or ask; a holder that is gone is followed without a question")
        self._say(f"taking over from {_who(found)}, who is gone")
        return self._request("PATCH", cluster.path(NAME), self._manifest(found["metadata"]["resourceVersion"]))

    def _arrived(self) -> Manifest | None:
        """Return the Lease when it is this run's, although nobody heard the answer: it is to be given back."""
        with contextlib.suppress(GuideError):
            found = self._cluster().get(NAME)
            if found and found["spec"].get("holderIdentity") == _own_name():
                return found
        return None

    def _request(self, method: str, path: str, body: Manifest) -> Manifest:
        content = "application/merge-patch+json" if method == "PATCH" else "application/json"
        try:
            answer: Manifest = self._cluster().request(method, path, body, content=content, query={"fieldManager": MANAGER})
        except Refused as error:
            if method == "PATCH" and error.status in (404, 409):
                raise Held(f"{self._instance} was taken by another run at this moment", "run the command again") from error
            raise
        return answer

    def _manifest(self, version: str = "") -> Manifest:
        now = _now()
        meta: dict[str, Any] = {"name": NAME.name, "labels": MANAGED_BY,
                                "annotations": {MACHINE: machine(), COMMAND: self._command}}
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": meta | ({"resourceVersion": version} if version else {}),
                "spec": {"holderIdentity": _own_name(),
                         "leaseDurationSeconds": SECONDS, "acquireTime": now, "renewTime": now}}

    def _alive(self, found: Manifest) -> str:
        """Return the sign that a holder is still there, "" when it is gone."""
        spec, notes = found["spec"], found["metadata"].get("annotations") or {}
        process = str(spec.get("holderIdentity", "")).rpartition(":")[2]
        if notes.get(MACHINE) == machine() and process.isdigit() and not _runs(int(process)):
            return ""
        last = _time(spec.get("renewTime"))
        seconds = (dt.datetime.now(dt.UTC) - last).total_seconds() if last else float("inf")
        if seconds > spec.get("leaseDurationSeconds", SECONDS):
            return ""
        return f"{notes.get(COMMAND, 'a run')}, last seen {max(seconds, 0):.0f} s ago"

    def _renew(self) -> None:
        while not self._ended.wait(SECONDS / 3):
            with self._lock:
                if not self._live or self._ended.is_set():
                    return
                patch = {"metadata": {"resourceVersion": self._live["metadata"]["resourceVersion"]}, "spec": {"renewTime": _now()}}
                try:
                    self._live = self._request("PATCH", self._cluster().path(NAME), patch)
                except Held:
                    self._lost = f"another run took {self._instance} over while this one gave no sign of life"
                    return
                except GuideError:
                    continue  # A server that does not answer now may answer before the time is up.


def machine() -> str:
    """Return what tells this machine's processes from another's: its name, its start, and the process namespace."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), str(Path("/proc/self/ns/pid").readlink())]
    return " ".join(parts)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _project(cluster: Cluster) -> bool:
    try:
        return cluster.get(Object("Namespace", cluster.project)) is not None
    except Unknown:
        return False


def _own_name() -> str:
    return f"{getpass.getuser()}@{socket.gethostname()}:{os.getpid()}"


def _who(found: Manifest) -> str:
    return str(found["spec"].get("holderIdentity") or "somebody")


def _now() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _time(text: str | None) -> dt.datetime | None:
    return dt.datetime.fromisoformat(text) if text else None


def _clock(text: str | None) -> str:
    """Return a time as the reader's clock shows it."""
    found = _time(text)
    return f"{found.astimezone():%Y-%m-%d %H:%M:%S}" if found else "some time"
