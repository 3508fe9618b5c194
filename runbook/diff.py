"""Compare a plan's values with what is there, changing nothing: the question behind status, plan and *unchanged*.

For an object of the cluster the server itself answers: a dry-run apply that differs from the live object in nothing
that matters means that the step is done.
"""

from __future__ import annotations

import base64
import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import singledispatch
from typing import Any

from runbook import admission, adoption, pods
from runbook.clients.cluster import Cluster, Refused
from runbook.connections import Connections
from runbook.errors import Conflict, GuideError, Unknown, Unreachable
from runbook.plan import (
    Accepts,
    Action,
    Admitted,
    Answers,
    Apply,
    Ask,
    Confirm,
    Credential,
    Execute,
    Inside,
    Log,
    LoggedIn,
    LogIn,
    Look,
    Manifest,
    Object,
    Patch,
    Proof,
    Require,
    Revision,
    Scale,
    Shell,
    Show,
    StartBuild,
    WaitFor,
    Write,
    marked,
)


class State(StrEnum):
    """How a value of a plan, or a whole step, stands."""

    DONE = "done"
    MISSING = "missing"
    DRIFTED = "drifted"
    WAITING = "waiting"
    UNKNOWN = "unknown"
    NOT_WANTED = "not wanted"
    ORPHAN = "orphan"
    """The guide made it once, and no step names it any more."""
    NEW = "new"
    """Missing, and so much else is missing that the server cannot check it yet."""


@dataclass(frozen=True)
class Field:
    """One field that differs; secrets are masked before they come here."""

    path: str
    found: object
    wanted: object
    manager: str = ""
    """Who manages the field, when it is not the step."""


@dataclass(frozen=True)
class Difference:
    """What carrying out a value would change."""

    state: State
    what: str
    fields: tuple[Field, ...] = ()
    note: str = ""
    cure: str = ""
    taken: bool = False
    """Whether somebody else manages fields that the step set before: drift, which a run takes back."""
    made: bool = False
    """Whether it is there because the step makes such things: an object, a role, a database."""
    looks: bool = False
    """Whether it only looks at the running app: what is seen may be what a later step repairs."""
    foreign: bool = False
    """Whether somebody else manages fields of an object that this step never touched: only `--force` takes them."""


@singledispatch
def compare(action: Action, _connections: Connections, _manager: str) -> Difference:
    """Return what carrying out a value would change; nothing is changed by asking."""
    raise TypeError(f"no comparison for {type(action).__name__}")


@compare.register
def _(action: Apply, connections: Connections, manager: str) -> Difference:
    wanted, cluster = action.object, connections.cluster
    live = connections.observed.object(wanted.kind, wanted.name, wanted.namespace)
    if live is None:
        state = State.NEW if action.part else State.MISSING
        return Difference(state, str(wanted), note="is not there")
    manifest, unknown = wire(action, connections, manager, make=False)
    ours = any(entry.get("manager") == manager for entry in live["metadata"].get("managedFields", []))
    conflicts: list[tuple[str, str]] = []
    excluded = False
    try:
        after = cluster.apply(manifest, manager, dry=True)
    except Conflict as error:
        conflicts = list(getattr(error, "conflicts", []))
        after = _forced(live, manifest, cluster, manager)
    except Refused as error:
        # A probe of another kind, say: the server takes it only once the other's is given up.
        if error.status != 422 or ours or not adoption.choices(live, manifest):
            raise
        excluded, after = True, merged(live, manifest)
    managers = {f".{path}": who for path, who in adoption.owners(live).items()} | dict(conflicts)
    fields = [Field(f.path, f.found, f.wanted, _whose(f.path, managers)) for f in differing(live, after)]
    fields += [Field(f"stringData.{key}", "(none)", "(secret)") for key in unknown]
    fields += [Field(path.lstrip("."), "(as wanted)", "(as wanted)", who) for path, who in conflicts
               if not any(_about(f".{f.path}", path) for f in fields)]
    if not fields:
        return Difference(State.DONE, str(wanted), made=not action.part)
    theirs = [] if ours else adoption.people(live)
    note = f"{', '.join(theirs)} set it; {matching(live, manifest)} of the step's fields are as wanted" if theirs else ""
    return Difference(State.DRIFTED if ours else State.MISSING, str(wanted), tuple(fields), note,
                      taken=bool(conflicts) and ours, foreign=(bool(conflicts) or excluded) and not ours)


def _forced(live: Manifest, manifest: Manifest, cluster: Cluster, manager: str) -> Manifest:
    """Return the object as a forced apply would leave it."""
    try:
        return cluster.apply(manifest, manager, dry=True, force=True)
    except Refused as error:
        if error.status != 422 or not adoption.choices(live, manifest):
            raise
        return merged(live, manifest)


def merged(live: Manifest, manifest: Manifest) -> Manifest:
    """Return what an object becomes when a manifest is laid over it; fields that exclude each other are replaced whole."""
    return {**live, **{key: _laid_over(live.get(key), value, key) for key, value in manifest.items()}}


def _laid_over(live: Any, wanted: Any, name: str = "") -> Any:
    if isinstance(wanted, dict) and isinstance(live, dict) and name not in adoption.CHOICES:
        return live | {key: _laid_over(live.get(key), value, key) for key, value in wanted.items()}
    if isinstance(wanted, list) and isinstance(live, list) and (key := _list_key([*live, *wanted])):
        items = {item[key]: item for item in live}
        whole = name in ("env", "volumes")
        return list((items | {item[key]: item if whole else _laid_over(items.get(item[key]), item) for item in wanted}).values())
    return wanted


def matching(live: Any, wanted: Any) -> str:
    """Return how many of a manifest's fields an object has already: `12 of 15`."""
    def leaves(found: Any, asked: Any) -> Iterator[bool]:
        if isinstance(asked, dict) and asked:
            for key, value in asked.items():
                yield from leaves(found.get(key) if isinstance(found, dict) else None, value)
        elif isinstance(asked, list) and (key := _list_key(asked)):
            there = {item.get(key): item for item in found or [] if isinstance(item, dict)}
            for item in asked:
                yield from leaves(there.get(item[key]), item)
        else:
            yield found == asked

    seen = list(leaves(live, wanted))
    return f"{sum(seen)} of {len(seen)}"


def _whose(path: str, managers: Mapping[str, str]) -> str:
    """Return who manages a field, what it is inside, or what is inside it."""
    return next((who for known, who in managers.items() if _about(f".{path}", known)), "")


def _about(one: str, other: str) -> bool:
    """Return whether one path is the other, or inside it, or around it."""
    short, long = sorted((one, other), key=len)
    return long == short or long.startswith((f"{short}.", f"{short}["))


@compare.register
def _(action: Execute, connections: Connections, _manager: str) -> Difference:
    what = action.statement.replace("{verifier}", "(secret)")
    if connections.flags.rotate and action.credential and isinstance(action.unless, str):
        return Difference(State.MISSING, what, note="a new one is asked for")
    try:
        if isinstance(action.unless, LogIn):
            return _logged_in(action.unless, connections, what)
        done = connections.database.query(connections.administrator(action.database), action.unless)
    except Unreachable as error:
        return Difference(State.NEW, what, note=error.found, cure=error.cure)
    except Unknown as error:
        if f'database "{action.database}" does not exist' in error.found:
            return Difference(State.NEW, what, note=error.found)
        return Difference(State.UNKNOWN, what, note=error.found, cure=error.cure)
    return Difference(State.DONE if done else State.MISSING, what, made=bool(done and action.undo))


def _logged_in(wanted: LogIn, connections: Connections, what: str) -> Difference:
    """A password is done when a log-in with it works; every role may connect to the database postgres."""
    value = connections.known(wanted.credential)
    if value is None:
        return Difference(State.MISSING, what, note=f"{wanted.credential.label} is not known yet")
    try:
        connections.database.log_in(wanted.role, value.reveal())
    except Unknown as error:
        if any(words in error.found for words in ("password authentication failed", "does not exist", "not permitted to log in")):
            return Difference(State.MISSING, what, note=error.found)
        raise
    return Difference(State.DONE, what)


@compare.register
def _(action: WaitFor, connections: Connections, _manager: str) -> Difference:
    # Looked at anew, unless nothing can be there: it may have changed by itself since a step asked.
    found = connections.cluster.get(action.object) if connections.observed.project(connections.instance.project) else None
    seen = action.condition.test(found)
    state = State.DONE if not seen else State.NEW if found is None else State.WAITING
    return Difference(state, f"{action.object} {action.condition.name}", note=seen)


@compare.register
def _(action: Ask, connections: Connections, _manager: str) -> Difference:
    return proved(action.until, action.deed, connections)


def proved(proof: Proof, deed: str, connections: Connections) -> Difference:
    """Return whether the effect of a person's deed is seen."""
    if isinstance(proof, Object):
        try:
            found = connections.observed.object(proof.kind, proof.name, proof.namespace)
        except Unknown:
            found = None  # A project that does not exist answers "forbidden" to an ordinary user.
        note = "" if found else f"{proof} is not there"
    elif isinstance(proof, Answers):
        note = connections.database.answers()
    elif isinstance(proof, Admitted):
        return admission.seen(proof, deed, connections)
    elif isinstance(proof, LoggedIn):
        note = connections.login()
    elif isinstance(proof, Accepts):
        note = _refused(proof, connections)
    else:
        note = "" if connections.known(proof) else f"{proof.label} is not known"
    return Difference(State.DONE if not note else State.WAITING, deed, note=note)


def _refused(proof: Accepts, connections: Connections) -> str:
    """Return "" when an address accepts a request, else what to say."""
    try:
        status, _ = connections.web.request("GET", proof.url)
    except Unreachable as error:
        return error.found
    return "" if status < 400 else f"{proof.otherwise} (it answers {status})"


@compare.register
def _(action: StartBuild, _connections: Connections, _manager: str) -> Difference:
    return Difference(State.MISSING if action.because else State.DONE, f"build of {action.config}", note=action.because)


@compare.register
def _(action: Scale, connections: Connections, _manager: str) -> Difference:
    live = connections.observed.object("Deployment", action.deployment)
    what = f"Deployment {action.deployment}"
    if live is None:
        return Difference(State.NEW, what, note="is not there")
    found = live["spec"].get("replicas", 1)
    if found == action.replicas:
        return Difference(State.DONE, what)
    return Difference(State.MISSING if found == 0 else State.DRIFTED, what,
                      (Field("spec.replicas", found, action.replicas),))


@compare.register
def _(action: Look, connections: Connections, _manager: str) -> Difference:
    note = look(action, connections)
    return Difference(State.DONE if not note else State.WAITING, action.what or action.url + action.path, note=note, looks=True)


def look(action: Look, connections: Connections) -> str:
    """Return "" when the app answers as wanted, else what is seen."""
    address = action.url + action.path
    try:
        if action.websocket:
            text = "are you there?"
            answer = connections.web.echo(address, text)
            return "" if text in answer else f"{address} answers {answer[:200]!r} to {text!r}"
        web = connections.outside if action.outside else connections.web
        status, text = web.request("GET", address)
    except Unreachable as error:
        return "" if action.refused else error.found
    if action.refused:
        return f"{address} answers {status}, and should not"
    if status not in action.status:
        return f"{action.unlike} (it answers {status})" if action.unlike else f"{address} answers {status}"
    if action.contains in text:
        return ""
    return f"{action.unlike} ({address})" if action.unlike else f"{address} does not contain {action.contains!r}"


@compare.register
def _(action: Patch, connections: Connections, _manager: str) -> Difference:
    wanted = action.object
    live = connections.observed.object(wanted.kind, wanted.name, wanted.namespace)
    if live is None:
        return Difference(State.NEW, action.what, note=f"{wanted} is not there")
    fields = tuple(_unlike("", live, action.fields))
    who = ", ".join(adoption.people(live)) if action.foreign else ""
    fields = tuple(Field(f.path, f.found, f.wanted, who) for f in fields)
    return Difference(State.MISSING if fields else State.DONE, action.what, fields, foreign=action.foreign and bool(fields))


def _unlike(path: str, live: Any, wanted: Any) -> Iterator[Field]:
    """Yield the fields of a merge patch that an object does not have yet."""
    if isinstance(wanted, dict):
        for key, value in wanted.items():
            inner = live.get(key) if isinstance(live, dict) else None
            yield from _unlike(f"{path}.{key}" if path else key, inner, value)
    elif live != wanted:
        yield Field(path, live, wanted)


@compare.register
def _(action: Inside, connections: Connections, _manager: str) -> Difference:
    if action.show or (action.input and not action.unless):
        return Difference(State.MISSING, action.what)  # An order, not a state: there is nothing to compare.
    if not connections.observed.project(connections.instance.project):
        note = f"there is no project {connections.instance.project}"
        return Difference(State.NEW, action.what, note=note, looks=not action.unless)
    note = pods.look_inside(action, connections, known=True)
    state = State.DONE if not note else State.MISSING if action.unless else State.WAITING
    return Difference(state, action.what, note=note, looks=not action.unless)


@compare.register
def _(_action: Show | Log | Shell | Confirm, _connections: Connections, _manager: str) -> Difference:
    return Difference(State.DONE, "")


@compare.register
def _(action: Write, _connections: Connections, _manager: str) -> Difference:
    return Difference(State.MISSING, action.path, note="is to be written")


@compare.register
def _(action: Require, _connections: Connections, _manager: str) -> Difference:
    # What must hold stands first: without these words it would read as what was found.
    if action.found:
        return Difference(State.DRIFTED, action.what, note=f"not so: {action.found}", cure=action.cure)
    return Difference(State.DONE, action.what, note=action.aside)


def wire(action: Apply, connections: Connections, manager: str, *, make: bool) -> tuple[Manifest, list[str]]:
    """Return the manifest as it is sent: credentials resolved, secrets as base64, labels of origin added.

    Without `make` nothing is asked for or made up: the keys whose values are not known are left out and returned.
    """
    manifest, unknown = copy.deepcopy(marked(action, manager)), []
    data = {}
    for key, value in manifest.pop("stringData", {}).items():
        if isinstance(value, Credential):
            found = connections.resolve(value) if make else connections.known(value)
            if value.optional and not found:
                continue  # An empty key would set what reads it to nothing; a missing one leaves its default.
            if found is None:
                unknown.append(key)
                continue
            data[key] = base64.b64encode(found.reveal().encode()).decode()
        else:
            data[key] = base64.b64encode(str(value).encode()).decode()
    if manifest["kind"] == "Secret":
        manifest["data"] = manifest.get("data", {}) | data
    manifest = _with_revisions(manifest, connections)
    wanted = action.object
    live = None if action.part else connections.observed.object(wanted.kind, wanted.name, wanted.namespace)
    return adoption.kept(manifest, live), unknown


def _with_revisions(node: Any, connections: Connections) -> Any:
    if isinstance(node, Revision):
        found = [connections.observed.object(each.kind, each.name, each.namespace) for each in node.objects]
        return ",".join(f"{live['metadata']['name']}={live['metadata'].get('resourceVersion', '')}" for live in found if live)
    if isinstance(node, dict):
        return {key: _with_revisions(value, connections) for key, value in node.items()}
    return [_with_revisions(value, connections) for value in node] if isinstance(node, list) else node


IGNORED = {"managedFields", "resourceVersion", "generation", "uid", "creationTimestamp"}


def differing(live: Manifest, after: Manifest) -> list[Field]:
    """Return the fields in which two states of an object differ, without what the server itself keeps."""
    def stripped(found: Manifest) -> Manifest:
        kept = {key: value for key, value in found.items() if key != "status"}
        return kept | {"metadata": {k: v for k, v in found["metadata"].items() if k not in IGNORED}}

    fields = list(_walk("", stripped(live), stripped(after)))
    if live.get("kind") == "Secret":
        return [Field(f.path, "(secret)" if f.found is not None else None, "(another)") if f.path.startswith("data.")
                else f for f in fields]
    referred = {f.path.removesuffix("From") for f in fields if f.path.endswith(".valueFrom")}
    return [Field(f.path, _masked(f.found, secret=f.path in referred), _masked(f.wanted, secret=f.path in referred))
            if ENV.search(f.path) else f for f in fields]


ENV = re.compile(r"\.env(\[[^]]*\](\.value)?)?$")
"""The path of a list of variables, of one variable, or of its value."""


def _masked(value: Any, *, secret: bool) -> Any:
    """Return variables without their values: what people put there may be a password."""
    if isinstance(value, list):
        return [item.get("name") if isinstance(item, dict) else item for item in value]
    if isinstance(value, dict):
        return {"name": value.get("name")}
    return "(secret)" if secret and value is not None else value


def _walk(path: str, live: Any, after: Any) -> Iterator[Field]:
    if live == after:
        return
    if isinstance(live, dict) and isinstance(after, dict):
        for key in sorted(live.keys() | after.keys()):
            yield from _walk(f"{path}.{key}" if path else key, live.get(key), after.get(key))
    elif isinstance(live, list) and isinstance(after, list) and (key := _list_key([*live, *after])):
        before, then = ({item[key]: item for item in items} for items in (live, after))
        for name in [*before, *(n for n in then if n not in before)]:
            shown = f'"{name}"' if isinstance(name, str) else name
            yield from _walk(f"{path}[{key}={shown}]", before.get(name), then.get(name))
    else:
        yield Field(path, live, after)


def _list_key(items: list[Any]) -> str:
    """Return the merge key of a list of objects, written as the API server writes it in a conflict."""
    for key in ("name", "containerPort", "port", "mountPath", "type"):
        if items and all(isinstance(item, dict) and key in item for item in items):
            return key
    return ""


@dataclass
class Standing:
    """How one step stands: the sum of its plan's differences."""

    name: str
    state: State
    differences: list[Difference] = field(default_factory=list)
    since: str = ""
    by: str = ""


def summed(differences: list[Difference]) -> State:
    """Return the state of a step from the states of its values: the worst that a reader must know of."""
    states = [d.state for d in differences]
    if all(state is State.DONE for state in states):
        return State.DONE
    for state in (State.UNKNOWN, State.DRIFTED):
        if state in states:
            return state
    if State.WAITING in states and not {State.MISSING, State.NEW} & set(states):
        return State.WAITING
    # Half of what the step makes is there: it was done once, and somebody took the rest away.
    return State.DRIFTED if any(d.made for d in differences) else State.MISSING


def refusal(error: GuideError, what: str) -> Difference:
    """Return a difference that stands for a comparison which could not be made."""
    state = State.UNKNOWN if isinstance(error, (Unknown, Unreachable, Refused)) else State.MISSING
    return Difference(state, what, note=error.found, cure=error.cure)
