"""The guide's command line in the tests' hands, and sites of their own for tests that need a running app."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import threading
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2

from procedures import RUNBOOK
from runbook.clients.web import Web
from runbook.doctor import recognized
from runbook.errors import Unreachable
from runbook.instance import Instance, load
from stack import binaries, commands, gives, postgres
from stack.api import Manifest, wait_until
from tests import ready

ROOT = Path(__file__).parent.parent
KINDS = ("Secret", "ConfigMap", "Service", "Deployment", "ReplicaSet", "Pod", "PersistentVolumeClaim", "ServiceAccount", "Role",
         "RoleBinding", "CronJob", "Job", "BuildConfig", "Build", "ImageStream", "Route", "OidcReturnURI", "Lease", "ResourceQuota",
         "LimitRange")
"""The kinds of what a project can hold."""
EVERYTHING = {"volume": {"mount": "/shared"}, "schedule": {"cron": "0 0 1 1 *"}, "nginx": {"wanted": True}, "expose": {"internet": True}}
"""Settings laid over an instance file that make an instance want each optional part."""


@dataclass
class Guide:
    """The command line, and ways to look at what it did without it."""

    stack: Any
    folder: Path = ROOT / "instances"
    """Where its instance files are."""

    def __call__(self, *words: str, code: int | None = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the guide and see its exit code."""
        done = ready.run(words, self.environment | environment, 600)
        assert code is None or done.returncode == code, f"{' '.join(words)} ended with {done.returncode}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        # Whatever a test provokes, the reader is told what to do next, and the doctor knows it.
        assert done.returncode not in {1, 75} or ("\n  next: " in done.stderr and recognized(RUNBOOK, done.stderr)), done.stderr
        return done

    def outcomes(self, *words: str, code: int | None = 0) -> dict[str, dict[str, Any]]:
        """Run a command with --json and return what it says of each step."""
        done = self(*words, "--json", code=code)
        return {found["step"]: found for found in map(json.loads, done.stdout.splitlines())}

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"RUNBOOK_STATE": str(self.stack.state.root), "RUNBOOK_JOURNAL": str(self.stack.state.path("journal")),
                             "XDG_DATA_HOME": str(self.stack.state.path("data")), "RUNBOOK_INSTANCES": str(self.folder)}

    @property
    def facts(self) -> dict[str, Any]:
        """What the stack fills into `[local]`."""
        known, ports = commands.connection(self.stack.state), self.stack.state.ports
        return known | {f"database_port_{place}": port for place, port in enumerate(ports.databases, 1)}

    def instance(self, build: str) -> Instance:
        return load(self.folder / f"{build}.toml", "local", self.facts)

    def web(self) -> Web:
        return Web(self.stack.state.ca)

    def writes(self, since: int) -> list[str]:
        """Return the requests of the member since a place of the audit log that stored something."""
        events = [json.loads(line) for line in self._audit()[since:].splitlines()]
        return [f"{e['verb']} {e['requestURI']}" for e in events
                if e["user"]["username"] == "shifter" and e["verb"] in {"create", "update", "patch", "delete", "deletecollection"}
                and "dryRun=All" not in e["requestURI"] and "/exec" not in e["requestURI"]
                and "/selfsubject" not in e["requestURI"]]

    def audit_end(self) -> int:
        return len(self._audit())

    def _audit(self) -> bytes:
        """Return the audit log, once the API server is not in the middle of a line."""
        def whole() -> bytes:
            text: bytes = self.stack.state.path("logs", "audit.log").read_bytes()
            return text if text.endswith(b"\n") else b""

        return bytes(wait_until(whole, "the end of the audit log's last line"))

    def database(self, build: str, database: str = "postgres") -> Any:
        """Return a connection as the administrator, with the password that the reader's file holds."""
        db = self.instance(build).database
        connection = psycopg2.connect(host=db.host, hostaddr="127.0.0.1", port=db.port, user=db.administrator, dbname=database,
                                      passfile=str(self.stack.state.pgpass), sslmode="verify-full",
                                      sslrootcert=str(self.stack.state.ca))
        connection.autocommit = True
        return connection

    def sql(self, build: str, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        connection = self.database(build, database)
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return list(cursor.fetchall()) if cursor.description else []
        finally:
            connection.close()

    def seen(self, build: str, of: Callable[[Manifest], Any] = lambda found: found["metadata"]["resourceVersion"]) -> dict[str, Any]:
        """Return all that an instance is made of; `of` says what is told of each object: its version shows every write."""
        instance, api = self.instance(build), self.stack.api
        found = [(kind, item) for kind in KINDS for item in api.list(kind, instance.project)]
        found += [("PersistentVolume", item) for item in api.list("PersistentVolume")
                  if item["spec"].get("claimRef", {}).get("namespace") == instance.project]
        token = {"Authorization": f"Bearer {self.stack.state.tokens.member}"}
        return {"objects": {f"{kind} {item['metadata']['name']}": of(item) for kind, item in found},
                "project": of(api.get("Namespace", instance.project)),
                "registration": self.web().request("GET", f"{self.facts['portal']}/registrations/{instance.sso.identifier}", headers=token),
                "roles": self.sql(build, "SELECT rolname, rolconfig::text, rolcanlogin FROM pg_roles ORDER BY 1"),
                "members": self.sql(build, "SELECT roleid::regrole::text, member::regrole::text FROM pg_auth_members ORDER BY 1, 2"),
                "databases": self.sql(build, "SELECT datname, pg_get_userbyid(datdba) FROM pg_database ORDER BY 1")}

    def snapshot(self, build: str) -> dict[str, Any]:
        """Return what an instance is made of by what it says, and the files of volumes and EOS by their contents."""
        state = self.stack.state
        files = {str(path.relative_to(state.root)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
                 for folder in (state.volumes, state.eos) for path in folder.rglob("*")}
        return self.seen(build, said) | {"files": files}


def said(found: Manifest) -> Manifest:
    """Return what an object says, without what the server adds at each writing and without its status."""
    added = ("resourceVersion", "uid", "creationTimestamp", "generation", "managedFields")
    meta = {key: value for key, value in found["metadata"].items() if key not in added}
    return {key: value for key, value in found.items() if key not in ("metadata", "status")} | {"metadata": meta}


@dataclass
class Site:
    """One instance with a file, project, host and database server of its own; calling it runs a step for it."""

    guide: Guide
    name: str
    folder: Path

    @classmethod
    def written(cls, guide: Guide, name: str, port: int, changes: Mapping[str, Any] | None = None) -> Site:
        """Write the instance file: dev's, with names of its own; `port` is the place of its database server (4 to 6).

        `changes` are tables and keys laid over it, such as `{"eos": {"path": "/eos/x"}, "local": {…}}`.
        """
        site = cls(guide, name, Path(tempfile.mkdtemp(prefix=f"instance-{name}-")))
        table = tomllib.loads((guide.folder / "dev.toml").read_text())
        host = f"{name}-certhelper"
        own = {"project": host, "host": f"{host}.web.cern.ch", "database": {"instance": f"{name}db", "host": f"dbod-{name}db.cern.ch"},
               "sso": {"identifier": f"certhelper-{name}"},
               "local": {"host": f"{host}.localhost", "database": {"host": f"dbod-{name}db.localhost",
                                                                  "port": f"{{database_port_{port}}}"}}}
        site.write(laid_over(laid_over(table, own), changes or {}))
        return site

    def write(self, table: Mapping[str, Any]) -> None:
        """Write the instance file anew."""
        (self.folder / f"{self.name}.toml").write_text("\n".join(toml(table)) + "\n")

    def change(self, changes: Mapping[str, Any]) -> None:
        """Lay settings over those of the instance file."""
        self.write(laid_over(tomllib.loads((self.folder / f"{self.name}.toml").read_text()), changes))

    @property
    def instance(self) -> Instance:
        """The instance as it is on the stack."""
        return load(self.folder / f"{self.name}.toml", "local", self.guide.facts)

    @property
    def environment(self) -> dict[str, str]:
        return {"RUNBOOK_INSTANCES": str(self.folder)}

    def __call__(self, command: str, *words: str, code: int | None = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the guide for this site and see its exit code."""
        return self.guide(command, f"--build={self.name}", *words, code=code, **self.environment | environment)

    def outcomes(self, command: str, *words: str, code: int | None = 0) -> dict[str, dict[str, Any]]:
        """Run a command with --json and return what it says of each step."""
        done = self(command, "--json", *words, code=code)
        return {found["step"]: found for found in map(json.loads, done.stdout.splitlines())}

    def inside(self, pod: str, *command: str, text: str | None = None) -> str:
        """Run a command in a pod (`deployment/NAME` will do) and return what it said."""
        found = str(binaries.find("kubectl").path)
        done = self.guide.stack.run(found, "exec", "-i", "-n", self.instance.project, pod, "--", *command, text=text)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    @contextmanager
    def settings(self, lines: str) -> Iterator[None]:
        """Add lines to the app's settings in its running pod: a process that starts there reads them, the one that serves does not."""
        pod, file = f"deployment/{self.instance.app}", "shiftbook/settings.py"
        self.inside(pod, "cp", file, f"{file}.kept")
        self.inside(pod, "sh", "-c", f"cat >> {file}", text=f"\n{lines}\n")
        try:
            yield
        finally:
            self.inside(pod, "mv", f"{file}.kept", file)

    @contextmanager
    def visited(self, path: str = "/") -> Iterator[list[int]]:
        """Visit a page of the site again and again meanwhile; gives the list of what it answered, 0 for a lost connection.

        The first answer is there before anything else is done, and the last is to somebody who came after it.
        """
        answers: list[int] = []
        over = threading.Event()

        def visit() -> None:
            web = self.guide.web()
            while True:
                last = over.is_set()
                try:
                    answers.append(web.request("GET", f"{self.instance.url}{path}")[0])
                except Unreachable:
                    answers.append(0)
                if last:
                    return
                over.wait(0.2)

        visitor = threading.Thread(target=visit)
        visitor.start()
        try:
            wait_until(lambda: answers, "the visitor's first answer")
            yield answers
        finally:
            over.set()
            visitor.join()

    def remove(self) -> None:
        """Remove the project and the database server as their administrators would, and the instance file."""
        self.guide.stack.api.delete("Namespace", self.instance.project)
        postgres.drop(self.guide.stack.state, self.instance.database.instance)  # Another site may have its port.
        shutil.rmtree(self.folder)


def instances(kind: str, folder: Path) -> Path:
    """Return a folder of the instance files without what this kind of stack does not give; `folder` is one to fill."""
    if not gives.missing(kind, "eos"):
        return ROOT / "instances"
    for file in (ROOT / "instances").glob("*.toml"):
        table = laid_over(tomllib.loads(file.read_text()), {"eos": None, "local": {"eos": None}})
        (folder / file.name).write_text("\n".join(toml(table)) + "\n")
    return folder


def laid_over(table: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table with another laid over it, key by key; None takes a key out."""
    merged = dict(table)
    for key, value in over.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            merged[key] = laid_over(merged.get(key, {}), value)
        else:
            merged[key] = value
    return merged


def toml(table: Mapping[str, Any], name: str = "") -> list[str]:
    """Return a table as lines of TOML."""
    lines = [f"[{name}]"] if name else []
    lines += [f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, Mapping)]
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += toml(value, f"{name}.{key}" if name else key)
    return lines
