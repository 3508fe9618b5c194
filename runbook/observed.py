"""What is there now, as far as a step asks for it.

What a step observes is what it asks for: nothing is declared twice and nothing else is fetched. Every answer is kept,
so that a question is sent once. Without a source of answers nothing is there: so pages are made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from runbook.errors import Unknown
from runbook.instance import Instance
from runbook.plan import Manifest, Object


@dataclass(frozen=True)
class File:
    """A file of the app's repository."""

    text: str
    executable: bool = False


@dataclass(frozen=True)
class Source:
    """The app's repository as it stands: on the remote branch, or in the reader's checkout."""

    commit: str
    """The commit; "" for a checkout."""
    files: Mapping[str, File] = field(default_factory=dict)
    """Path below the app's folder, and file; binary and very large files are left out."""
    error: str = ""
    """Why it could not be read: no repository at the address, no such branch, no access."""


@dataclass(frozen=True)
class Rule:
    """Something that whoever is logged in may do; `*` stands for all."""

    groups: tuple[str, ...]
    resources: tuple[str, ...]
    verbs: tuple[str, ...]

    def allows(self, group: str, resource: str, verb: str) -> bool:
        """Return whether this rule allows a verb on a resource."""
        return all(wanted in known or "*" in known for wanted, known in
                   ((group, self.groups), (resource, self.resources), (verb, self.verbs)))


@dataclass(frozen=True)
class Machine:
    """What the reader's machine has, and what whoever sits there reaches and may do."""

    programs: Mapping[str, str]
    """Programs and their versions; "" for one that is not there."""
    network: str
    """Why the API server cannot be reached, "" when it can."""
    login: str
    """Why nobody is logged in, "" when somebody is."""
    user: str
    database: str
    """Why the database server cannot be reached, "" when it can."""
    rules: tuple[Rule, ...] | None
    """What may be done in the project; None when it is not there."""
    quota: tuple[str, ...]
    """What of the project's quota is used, a line for each resource."""
    applies: Mapping[str, str]
    """What the server said to a server-side apply that stores nothing: kind and words, "" when it took it."""


Question = Object | str
"""An object of the cluster; else a word and what it is asked about, such as `source` (the remote branch) or `checkout:PATH`."""


class Observed:
    """Answers to a step's questions, each asked once."""

    def __init__(self, answer: Callable[[Question], Any] | None = None,
                 known: Mapping[Question, Any] | None = None) -> None:
        self._answer = answer
        self._known: dict[Question, Any] = dict(known or {})
        self.empty = answer is None and not known
        """Whether this stands for a state where nothing is known: the page is being made."""

    def object(self, kind: str, name: str, namespace: str = "") -> Manifest | None:
        """Return an object of the project (or of another namespace), None when there is none."""
        found: Manifest | None = self._ask(Object(kind, name, namespace))
        return found

    def project(self, name: str) -> bool:
        """Return whether the project is there and may be looked at."""
        try:
            return self.object("Namespace", name) is not None
        except Unknown:
            return False

    def former(self, app: str) -> dict[str, Manifest]:
        """Return the variables that a set-up made by hand gave the app on its build config: name and entry."""
        strategy = (self.object("BuildConfig", app) or {}).get("spec", {}).get("strategy", {}).get("sourceStrategy") or {}
        return {entry["name"]: entry for entry in strategy.get("env") or []}

    def objects(self, kind: str, selector: str = "") -> list[Manifest]:
        """Return the project's objects of a kind that carry the labels."""
        return self._ask(Object(kind, "*" + selector)) or []

    def source(self, commit: str = "") -> Source | None:
        """Return the app's repository on the instance's branch, or at a commit, None when nothing is known of it."""
        found: Source | None = self._ask(f"source:{commit}" if commit else "source")
        return found

    def instance(self, build: str) -> Instance | None:
        """Return another instance, by the name of its file beside this one's, at the same target."""
        found: Instance | None = self._ask(f"instance:{build}")
        return found

    def other_instances(self) -> list[Instance]:
        """Return the instances whose files stand beside this one's, as far as they can be read."""
        return self._ask("other instances") or []

    def storage_classes(self) -> list[str] | None:
        """Return the names of the storage classes that the cluster offers, None when they may not be read."""
        found: list[str] | None = self._ask("storage classes")
        return found

    def user(self) -> str:
        """Return who is logged in to the cluster, "" when nobody is known."""
        return self._ask("user") or ""

    def machine(self) -> Machine | None:
        """Return what the reader's machine has and reaches, None while a page is being made."""
        found: Machine | None = self._ask("machine")
        return found

    def now(self) -> str:
        """Return the time of day in UTC, to the minute; "" while a page is being made."""
        return self._ask("now") or ""

    def rotating(self) -> bool:
        """Return whether the reader asks for other passwords."""
        return bool(self._ask("rotate"))

    def checkout(self, path: str) -> Source | None:
        """Return the reader's checkout."""
        found: Source | None = self._ask(f"checkout:{path}")
        return found

    def dump(self, path: str) -> str:
        """Return why a file is no dump that can be restored, "" when it is one or when nothing is known."""
        return self._ask(f"dump:{path}") or ""

    def forget(self) -> None:
        """Ask again from now on: something was changed."""
        self._known.clear()

    def _ask(self, question: Question) -> Any:
        if question not in self._known:
            self._known[question] = self._answer(question) if self._answer else None
        return self._known[question]
