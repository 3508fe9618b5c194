"""One run's connections to the outside: opened when first used, and the answers to a step's questions."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import getpass
import os
import secrets
import string
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from runbook.clients.cluster import Cluster
from runbook.clients.database import PasswordFile, Server
from runbook.clients.git import Git
from runbook.clients.web import Portal, Web
from runbook.errors import GuideError, Unknown, WaitingForPerson, WrongUse
from runbook.instance import Instance, find, load
from runbook.lease import Lease
from runbook.observed import Observed, Question
from runbook.plan import Credential, Manifest, Object, Show, cloning
from runbook.target import Target


class Hidden:
    """A secret value: its text is only given by `reveal`, and no printing, JSON or traceback shows it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the value itself, for a request's body or a log-in."""
        return self._value

    def __str__(self) -> str:
        return "(secret)"

    __repr__ = __str__

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hidden) and secrets.compare_digest(self._value, other._value)

    __hash__ = None  # type: ignore[assignment]


@dataclass
class Flags:
    """What the reader asked for on the command line."""

    force: bool = False
    rotate: bool = False
    data: bool = False
    yes: bool = False


@dataclass
class Connections:
    """The clients of one run, for one instance at one target."""

    instance: Instance
    target: Target
    flags: Flags = field(default_factory=Flags)
    cache: Path = Path()
    say: Callable[[str], None] = print
    """Prints a line for the reader."""
    show: Callable[[Show], None] = lambda _: None
    """Prints a table for the reader."""
    command: str = "a command"
    """What is run, for others who find the instance held."""
    moved: bool = False
    """Whether this run has changed or waited for something, so that the platform may still be at it."""
    _values: dict[str, Hidden] = field(default_factory=dict, repr=False)

    @cached_property
    def cluster(self) -> Cluster:
        """The API server and the instance's project."""
        return Cluster(self.instance.project, self.target.kubeconfig, self.lease.take)

    @cached_property
    def lease(self) -> Lease:
        """What keeps two runs from changing the same instance at once; taken before the first write."""
        return Lease(lambda: self.cluster, self.instance.name, self.command, self.say)

    @cached_property
    def database(self) -> Server:
        """The instance's database server."""
        db = self.instance.database
        return Server(db.host, db.port, {}, self.target.ca, self.lease.take)

    @cached_property
    def web(self) -> Web:
        """The web as a browser sees it."""
        return Web(self.target.ca)

    @cached_property
    def outside(self) -> Web:
        """The web as seen from outside CERN: on the local stack through the listener that plays that."""
        return Web(self.target.ca, int(self.target.facts.get("outside_port", 0)))

    @cached_property
    def portal(self) -> Portal | None:
        """The stand-in that plays the person, on the local stack only."""
        return Portal(self.web, self.target.portal, self.target.token) if self.target.portal else None

    @cached_property
    def git(self) -> Git:
        """The app's repository; a private one is read with the credentials that the cluster clones with."""
        source = self.instance.source
        return Git(self.cache, self.target.ca, self._cloning() if source.private else {})

    def _cloning(self) -> dict[str, str]:
        """Return the variables with which git logs in to the private repository; none while user and token are not known."""
        source, asking = self.instance.source, sys.stdin.isatty()
        pair = [self.resolve(each) if asking else self.known(each) for each in cloning(self.instance.app, source.repository)]
        known = [each.reveal() for each in pair if each]
        if len(known) < len(pair):
            return {}
        # In the environment, and for this host alone: an argument or an address would show in the process list.
        host = "://".join(urlsplit(source.repository)[:2])
        return {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"http.{host}/.extraHeader",
                "GIT_CONFIG_VALUE_0": f"Authorization: Basic {base64.b64encode(':'.join(known).encode()).decode()}"}

    @cached_property
    def passwords(self) -> PasswordFile:
        """The reader's own password file."""
        return PasswordFile(self.target.password_file or PasswordFile.default())

    @cached_property
    def observed(self) -> Observed:
        """What is there now."""
        return Observed(self._answer)

    @property
    def resume(self) -> str:
        """The command that goes on where this one stops."""
        force = " --force" if self.flags.force else ""
        return f"invoke {self.command} --build={self.instance.name} --target={self.target.name}{force}"

    def changed(self) -> None:
        """Say that something was changed: what was observed is asked again."""
        self.moved = True
        self.observed.forget()

    def administrator(self, database: str = "postgres") -> Any:
        """Return a connection to the database server as its administrator, whose password the reader's file holds.

        Raises Unknown when there is no password or it is refused: the state of database steps is then unknown.
        """
        db = self.instance.database
        found = self.passwords.prepared(db.host, db.port, db.administrator)
        if found:  # An interrupted change of the password: one of the two is right.
            try:
                connection = self.database.log_in(db.administrator, found, database)
            except Unknown:
                self.passwords.settled()
            else:
                self.passwords.put(db.host, db.port, db.administrator, found)
                self.passwords.settled()
                return connection
        found = self.passwords.get(db.host, db.port, db.administrator)
        if found is None:
            raise Unknown(f"no password of {db.administrator} at {db.host}:{db.port} in {self.passwords.path}",
                          f"add the line {db.host}:{db.port}:*:{db.administrator}:PASSWORD to it, mode 0600")
        return self.database.log_in(db.administrator, found, database)

    def login(self) -> str:
        """Return why nobody is logged in where the instance lives, "" when somebody is; the kubeconfig is read anew."""
        self.__dict__.pop("cluster", None)
        try:
            server = self.cluster.server
            if self.target.name == "cern" and not same(server, self.instance.api):
                return f"you are logged in to {server}, and {self.instance.name} lives at {self.instance.api}"
            self.cluster.user()
        except GuideError as error:
            return error.found
        return ""

    def known(self, wanted: Credential) -> Hidden | None:
        """Return a credential's value without asking anybody and without making one up; None when there is none yet."""
        if wanted.name in self._values:
            return self._values[wanted.name]
        given = _from_environment(wanted)
        if given is not None:
            self._values[wanted.name] = given
            if (named := os.environ.get(wanted.variable + "_FILE")) and Path(named).stat().st_mode & 0o077:
                # Said and not refused: what a CI or a pod mounts as a file can often be read by its group.
                self.say(f"others on this machine can read {named}: `chmod 600 {named}`")
            return given
        if not wanted.secret or self.flags.rotate:
            return None
        found = self.observed.object("Secret", wanted.secret) or {}
        encoded = (found.get("data") or {}).get(wanted.key)
        return self._former(wanted) if encoded is None else Hidden(base64.b64decode(encoded).decode())

    def _former(self, wanted: Credential) -> Hidden | None:
        """Return the value that a set-up made by hand has: what works already is kept."""
        if not wanted.former:
            return None
        variables = self.observed.former(self.instance.app)
        beside, value = wanted.former.beside
        if beside and self._entry(variables.get(beside, {})) != Hidden(value):
            return None
        return self._entry(variables.get(wanted.former.variable, {}))

    def _entry(self, entry: Manifest) -> Hidden | None:
        """Return the value of a variable: its own, or that of the Secret which it refers to."""
        reference = (entry.get("valueFrom") or {}).get("secretKeyRef")
        if not reference:
            return Hidden(entry["value"]) if entry.get("value") else None
        data = (self.observed.object("Secret", reference["name"]) or {}).get("data") or {}
        return Hidden(base64.b64decode(data[reference["key"]]).decode()) if reference["key"] in data else None

    def resolve(self, wanted: Credential) -> Hidden:
        """Return a credential's value: given, kept, asked for, or made.

        Raises WaitingForPerson when somebody has to give it and nobody is at a terminal.
        """
        value = self.known(wanted)
        if value is None and wanted.generated:
            alphabet = string.ascii_letters + string.digits
            value = Hidden("".join(secrets.choice(alphabet) for _ in range(32)))
        if value is None and wanted.optional:
            value = Hidden("")
        if value is None:
            if not sys.stdin.isatty():
                raise WaitingForPerson(f"{wanted.label} is not known and nobody is at a terminal to ask",
                                       f"put it into a file and name it: {wanted.variable}_FILE=FILE")
            value = Hidden(getpass.getpass(f"{wanted.label}: "))
        if wanted.must and value.reveal() != wanted.must:
            raise GuideError(f"the {wanted.label} is {value.reveal()!r}, and the instance file says {wanted.must!r}",
                             f"give the one that belongs to {self.instance.path.name or 'the instance file'}, or mend the file")
        self._values[wanted.name] = value
        return value

    def _other_instances(self) -> list[Instance]:
        """Return the other instances; a file that cannot be read is that instance's own trouble."""
        found = []
        for path in sorted(self.instance.path.parent.glob("*.toml")):
            if path.name != self.instance.path.name:
                with contextlib.suppress(WrongUse):
                    found.append(load(path, self.target.name, self.target.facts))
        return found

    def learn(self, wanted: Credential, value: str) -> None:
        """Keep a value that a person gave."""
        if _from_environment(wanted) is None:
            self._values[wanted.name] = Hidden(value)

    def close(self) -> None:
        """Close what was opened, and let others change the instance."""
        if "lease" in self.__dict__:
            self.lease.release()
        if "database" in self.__dict__:
            self.database.close()

    def _answer(self, question: Question) -> Any:
        if isinstance(question, Object):
            try:
                if question.name.startswith("*"):
                    return self.cluster.list(question.kind, question.name[1:])
                return self.cluster.get(question)
            except Unknown:
                # A project that is not there answers "forbidden" to an ordinary user: then nothing of it is there.
                if question.namespace or question.kind == "Namespace" or self.observed.project(self.instance.project):
                    raise
                return None
        word, _, about = question.partition(":")
        source = self.instance.source
        match word:
            case "source" if about:
                return self.git.at(source.repository, about, source.folder)
            case "source":
                return self.git.remote(source.repository, source.branch, source.folder)
            case "instance":
                path = find(self.instance.path.parent, about)
                return load(path, self.target.name, self.target.facts)
            case "other instances":
                return self._other_instances()
            case "storage classes":
                try:
                    return sorted(found["metadata"]["name"] for found in self.cluster.list("StorageClass"))
                except Unknown:
                    return None
            case "dump":
                from runbook import backup

                return backup.unfit(Path(about), self)
            case "machine":
                from runbook import machine

                return machine.looked_at(self)
            case "rotate":
                return self.flags.rotate
            case "user":
                return self.cluster.user()
            case "now":
                return dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
        return self.git.checkout(Path(about))


def same(one: str, other: str) -> bool:
    """Return whether two addresses are of one server: 443 need not be said."""
    return (urlsplit(one).hostname, urlsplit(one).port or 443) == (urlsplit(other).hostname, urlsplit(other).port or 443)


def _from_environment(wanted: Credential) -> Hidden | None:
    """Return the value that a file or a variable gives; a file's last line break does not belong to it."""
    named = os.environ.get(wanted.variable + "_FILE")
    if named:
        try:
            return Hidden(Path(named).read_text().removesuffix("\n"))
        except (OSError, UnicodeDecodeError) as error:
            raise GuideError(f"{wanted.variable}_FILE names {named}: {error}", "name a readable text file") from error
    given = os.environ.get(wanted.variable)
    return None if given is None else Hidden(given)
