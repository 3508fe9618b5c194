"""Carry out a plan's values, one after the other, each safe to repeat."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from functools import singledispatch
from pathlib import Path
from typing import Any

from runbook import admission, adoption, claims, pods
from runbook.connections import Connections
from runbook.diff import Difference, State, compare, look, proved, wire
from runbook.errors import Conflict, GuideError, Unknown, WaitingForPerson, WrongUse
from runbook.plan import (
    Action,
    Admitted,
    Apply,
    Ask,
    Condition,
    Confirm,
    Execute,
    Inside,
    Log,
    Look,
    Manifest,
    Object,
    Patch,
    Require,
    Scale,
    Shell,
    Show,
    StartBuild,
    WaitFor,
    Write,
)

Tell = Callable[[str], None]
"""Told what is going on while something takes long; one short line at a time."""


@singledispatch
def carry_out(action: Action, _difference: Difference, _connections: Connections, _manager: str, _tell: Tell) -> Any:
    """Carry out a value whose difference says that it is not done; return its result, if it has one."""
    raise TypeError(f"no way to carry out {type(action).__name__}")


@carry_out.register
def _(action: Apply, difference: Difference, connections: Connections, manager: str, _tell: Tell) -> Manifest:
    manifest, _ = wire(action, connections, manager, make=True)
    force = connections.flags.force or difference.taken
    live = connections.cluster.get(action.object) if connections.flags.force else None
    if live and (excluding := adoption.choices(live, manifest)):
        _hand_over(live, adoption.moved(live, excluding, manager), action.object, connections)
    try:
        return connections.cluster.apply(manifest, manager, force=force)
    except Conflict as error:
        shown = "\n".join(f"  {f.path}: {f.manager} set {f.found!r}, the guide wants {f.wanted!r}"
                          for f in difference.fields if f.manager)
        raise Conflict(f"{action.object}: {error.found}" + (f"\n{shown}" if shown else ""),
                       "`--force` takes these fields over") from error


def _hand_over(live: Manifest, entries: list[Manifest], wanted: Object, connections: Connections) -> None:
    """Write down who manages the fields of an object; nothing else of it changes, and nothing if it changed meanwhile."""
    patch = [{"op": "test", "path": "/metadata/resourceVersion", "value": live["metadata"]["resourceVersion"]},
             {"op": "replace", "path": "/metadata/managedFields", "value": entries}]
    connections.cluster.request("PATCH", connections.cluster.path(wanted), patch, content="application/json-patch+json",
                                query={"fieldManager": adoption.MANAGER})


def take_over(wanted: Object, connections: Connections) -> str:
    """Take out of an object what people's tools set and no step names; return what was taken out, "" when nothing was theirs."""
    live = connections.cluster.get(wanted)
    theirs = adoption.people(live)
    if live is None or not theirs:
        return ""
    entries, left = adoption.released(live)
    _hand_over(live, entries, wanted, connections)
    if left:
        bare = {"apiVersion": live["apiVersion"], "kind": live["kind"], "metadata": {"name": wanted.name}}
        try:
            connections.cluster.apply(bare, adoption.MANAGER)
        except GuideError as error:
            left = [f"{len(left)} fields stay, the server wants them: {error.found}"]
    return f"{wanted} taken over from {', '.join(theirs)}" + (f"; taken out: {', '.join(left)}" if left else "")


@carry_out.register
def _(action: Execute, _difference: Difference, connections: Connections, _manager: str, _tell: Tell) -> None:
    connection = connections.administrator(action.database)
    if action.credential is None:
        connections.database.execute(connection, action.statement)
    else:
        _set_password(action, connections, connection)
    after = compare(action, connections, "")
    if after.state is not State.DONE and not (connections.flags.rotate and action.credential):
        raise GuideError(f"the statement had no effect: {after.what}: {after.note or 'the check finds nothing'}", after.cure)


def _set_password(action: Execute, connections: Connections, connection: Any) -> None:
    """Set a password by its verifier; the administrator's own is kept beside his file until the server has it."""
    credential, db = action.credential, connections.instance.database
    if credential is None:
        return
    value = connections.resolve(credential).reveal()
    role = action.statement.split('"')[1]
    statement = action.statement.replace("{verifier}", connections.database.verifier(connection, role, value))
    own = action.keep == "administrator"
    if own:
        connections.passwords.prepare(db.host, db.port, role, value)
    connections.database.execute(connection, statement)
    if own:
        connections.passwords.put(db.host, db.port, role, value)
        connections.passwords.settled()


@carry_out.register
def _(action: WaitFor, _difference: Difference, connections: Connections, _manager: str, tell: Tell) -> Manifest | None:
    try:
        found = connections.cluster.wait(action.object, watched(action.condition, connections, action.object), action.seconds, tell)
    except GuideError as error:
        if action.object.kind != "Deployment":
            raise
        raise explained(error, action.object.name, connections) from error
    if found and action.alone:
        pods.wait_ended(found, connections, tell, lambda pod: "deletionTimestamp" in pod["metadata"])
    return found


ASK_AGAIN = 1.0
"""Seconds between two looks at the pods of a roll-out: its Deployment changes more often than a pod gives up."""
SETTLED = 10
"""Seconds by which the router knows of what was there before this run: OpenShift's reloads at most every five."""


def watched(condition: Condition, connections: Connections, wanted: Object) -> Condition:
    """Return the condition, given up early when a new pod of the Deployment crashes again and again."""
    if wanted.kind != "Deployment":
        return condition

    asked = 0.0

    def failed(found: Manifest | None) -> str:
        nonlocal asked
        if why := condition.failed(found):
            return why
        if time.monotonic() - asked < ASK_AGAIN:
            return ""
        asked = time.monotonic()
        return pods.hopeless(connections, wanted.name)

    return Condition(condition.name, condition.test, condition.flag, failed)


def explained(error: GuideError, deployment: str, connections: Connections) -> GuideError:
    """Return the error of a roll-out with the last lines of the pod's log, and the variable that they name."""
    import re

    for pod in pods.newest(connections, deployment):
        name = pod["metadata"]["name"]
        container = pod["spec"]["containers"][0]["name"]
        if all(status["ready"] for status in pod.get("status", {}).get("containerStatuses") or [{"ready": False}]):
            continue  # Its log tells of no failure.
        log = connections.cluster.log(name, container, previous=True) or connections.cluster.log(name, container)
        if probe := pods.unhealthy(connections, name):  # What the log does not know of.
            return error if probe in error.found else GuideError(f"{error.found}\npod {name}: {probe}")
        if not log.strip():
            continue
        last = "\n".join("  | " + line for line in log.strip().splitlines()[-8:])
        named = re.search(r"(?:UndefinedValueError: |KeyError: ')([A-Z][A-Z0-9_]+)", log)
        doctor = f"`invoke guide.doctor --build={connections.instance.name}` says what these lines mean"
        cure = f"the variable {named[1]} is missing: `invoke environment.set` and its page say where it comes from" if named \
            else f"{doctor}; the whole log: `oc logs {name} --previous`"
        return GuideError(f"{error.found}\nlast lines of pod {name}:\n{last}", cure)
    return error


@carry_out.register
def _(action: Ask, _difference: Difference, connections: Connections, _manager: str, tell: Tell) -> None:
    if connections.portal:
        connections.lease.take()
        answer = connections.portal.fill(action.form, action.values)
        for key, credential in action.gives.items():
            if key in answer:
                connections.learn(credential, str(answer[key]))
    else:
        _ask(action, connections)
    deadline = time.monotonic() + action.seconds
    while True:
        connections.changed()
        note = admission.tried(action.until, connections) if isinstance(action.until, Admitted) \
            else proved(action.until, action.deed, connections).note
        if not note:
            return
        if time.monotonic() > deadline:
            raise GuideError(f"the effect was not seen after {action.seconds:g} s: {note}", action.deed)
        if connections.portal and isinstance(action.until, Admitted):
            raise GuideError(note, f"let the pods' network {action.values.get('network')} in: {action.deed}")
        tell(note)
        time.sleep(0.3 if connections.portal else 5)


def _ask(action: Ask, connections: Connections) -> None:
    """Say to a person what to do, and go on when somebody is at the terminal to do it."""
    lines = [action.deed, f"  where: {action.where}", *(f"  {key}: {value}" for key, value in action.values.items() if value)]
    if not sys.stdin.isatty():
        raise WaitingForPerson("a person has to act:\n" + "\n".join(lines), f"when it is done: `{connections.resume}`")
    sys.stderr.write("\n".join(lines) + "\nWaiting until it is done; Ctrl-C stops, and the same command goes on later.\n")
    for credential in action.gives.values():
        connections.resolve(credential)


@carry_out.register
def _(action: StartBuild, _difference: Difference, connections: Connections, _manager: str, tell: Tell) -> str:
    cluster = connections.cluster
    config = cluster.path(Object("BuildConfig", action.config))
    running = [b for b in cluster.list("Build", f"buildconfig={action.config}") if _built(b)]
    request = {"apiVersion": "build.openshift.io/v1", "kind": "BuildRequest", "metadata": {"name": action.config},
               "triggeredBy": [{"message": f"{connections.observed.user()}, by the guide: {action.because}"}]}
    # A build that an interrupted run left behind is followed, not doubled; if it was an older commit, the next run sees that.
    made = running[-1] if running else cluster.request("POST", f"{config}/instantiate", request)
    name: str = made["metadata"]["name"]
    build, last = Object("Build", name), ""
    for line in cluster.stream(f"{cluster.path(build)}/log", 1800, follow="true"):
        if line.strip():
            last = line
            tell(f"{name}: {line}")
    ended = cluster.wait(build, BUILT, 1800, tell)
    phase, status = (ended or {}).get("status", {}).get("phase"), (ended or {}).get("status", {})
    if phase != "Complete":
        raise GuideError(f"{build} ended as {phase}: {status.get('reason', '')} {status.get('message', '')}\n"
                         f"{_indented(status.get('logSnippet', last))}",
                         f"read the whole log: `oc get --raw {cluster.path(build)}/log`")
    digest = status["output"]["to"]["imageDigest"]
    cluster.wait(Object("Deployment", action.deployment), _runs(action.container, digest), 120, tell)
    return name


def _indented(text: str) -> str:
    return "\n".join("  | " + line for line in text.strip().splitlines()[-8:])


def _built(found: Manifest | None) -> str:
    phase = (found or {}).get("status", {}).get("phase", "New")
    return "" if phase in ("Complete", "Failed", "Error", "Cancelled") else f"its phase is {phase}"


BUILT = Condition("ended", _built, "jsonpath={.status.phase}=Complete")


def _runs(container: str, digest: str) -> Condition:
    def test(found: Manifest | None) -> str:
        containers = (found or {}).get("spec", {}).get("template", {}).get("spec", {}).get("containers", [])
        image = next((c["image"] for c in containers if c["name"] == container), "none")
        return "" if digest in image else f"its image is {image}"

    return Condition(f"given the image {digest[:19]}…", test, "rollout status")


@carry_out.register
def _(action: Scale, _difference: Difference, connections: Connections, manager: str, _tell: Tell) -> None:
    path = connections.cluster.path(Object("Deployment", action.deployment)) + "/scale"
    connections.cluster.request("PATCH", path, {"spec": {"replicas": action.replicas}},
                                content="application/merge-patch+json", query={"fieldManager": manager})


@carry_out.register
def _(action: Patch, _difference: Difference, connections: Connections, manager: str, _tell: Tell) -> None:
    owner = f"guide/{action.owner}" if action.owner else manager
    connections.cluster.request("PATCH", connections.cluster.path(action.object), action.fields,
                                content="application/merge-patch+json", query={"fieldManager": owner})


@carry_out.register
def _(action: Inside, difference: Difference, connections: Connections, _manager: str, tell: Tell) -> None:
    tell(action.what)
    if not action.unless and not action.show and not action.input:
        # Where nothing was changed and nothing may be late, the look before says it.
        known = difference.note if not (action.retry or connections.moved) else ""
        if note := known or pods.wait_inside(action, connections):
            raise GuideError(f"{action.what}: not so: {note}")
        return
    said = pods.run_inside(action, connections)
    if action.show:
        connections.say(said.rstrip("\n"))
    if action.unless and (note := pods.look_inside(action, connections)):
        raise GuideError(f"the command had no effect: {action.what}: {note}",
                         f"`invoke app.logs --build={connections.instance.name}` shows the app's log")


@carry_out.register
def _(action: Show, _difference: Difference, connections: Connections, _manager: str, _tell: Tell) -> None:
    connections.show(action)


@carry_out.register
def _(action: Log, _difference: Difference, connections: Connections, _manager: str, _tell: Tell) -> None:
    pods.print_log(action, connections)


@carry_out.register
def _(action: Shell, _difference: Difference, connections: Connections, _manager: str, _tell: Tell) -> None:
    pods.open_shell(action, connections)


@carry_out.register
def _(action: Confirm, _difference: Difference, connections: Connections, _manager: str, _tell: Tell) -> None:
    instance = connections.instance
    always = action.typed and instance.name == "production" and instance.at != "local"
    if connections.flags.yes and not always:
        return
    if not sys.stdin.isatty():
        raise WaitingForPerson(f"{action.question} Nobody is at a terminal to answer",
                               "run it in a terminal" if always else action.cure)
    connections.say("")
    if action.typed:
        if input(f"{action.question} Type the instance's name to go on: ").strip() != instance.name:
            raise WrongUse("that is not the instance's name; nothing was changed")
        return
    if input(f"{action.question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise GuideError("you said no; nothing was changed", action.cure)


@carry_out.register
def _(action: Look, _difference: Difference, connections: Connections, _manager: str, tell: Tell) -> None:
    # Rolled out is not yet known to the router: wait for the answer, not for the object.
    deadline, pause = time.monotonic() + (30 if connections.moved else SETTLED), 0.2
    while note := look(action, connections):
        if time.monotonic() > deadline:
            raise GuideError(note)
        tell(note)
        time.sleep(pause)
        pause = min(1.5 * pause, 2)


@carry_out.register
def _(action: Write, _difference: Difference, _connections: Connections, _manager: str, _tell: Tell) -> None:
    path = Path(action.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(action.text)
        part.chmod(0o755 if action.executable else 0o644)
        part.replace(path)
    except OSError as error:
        raise GuideError(f"{path}: {error.strerror}", "is the folder yours, and is there space?") from error
    finally:
        part.unlink(missing_ok=True)


@carry_out.register
def _(action: Require, difference: Difference, _connections: Connections, _manager: str, _tell: Tell) -> None:
    raise (WrongUse if action.given else GuideError)(f"{action.what}: {difference.note}", action.cure)


def undo(action: Action, connections: Connections, manager: str) -> tuple[bool, str]:
    """Take a value back; return whether something was changed, and what is kept or must be done by hand."""
    if isinstance(action, Apply):
        return _release(action, connections, manager)
    if isinstance(action, Ask) or (isinstance(action, Execute) and not action.undo):
        return False, action.instead and f"not undone: {action.instead}"
    if isinstance(action, Execute):
        if action.data and not connections.flags.data:
            return False, f"kept, it holds data: {action.statement} (`--data` takes it back too)"
        try:
            connection = connections.administrator()
        except Unknown as error:
            raise GuideError(error.found, error.cure) from error
        if action.undo_unless and connections.database.query(connection, action.undo_unless):
            return False, ""
        connections.database.execute(connection, action.undo)
        return True, ""
    if isinstance(action, Scale):
        return _scale_to_zero(action, connections, manager)
    if isinstance(action, Patch) and action.undo is not None:
        back = dataclasses.replace(action, fields=action.undo)
        if connections.observed.object(action.object.kind, action.object.name, action.object.namespace) is None \
                or compare(back, connections, manager).state is State.DONE:
            return False, ""
        carry_out(back, Difference(State.MISSING, ""), connections, manager, lambda _: None)
        return True, ""
    return False, ""


def _scale_to_zero(action: Scale, connections: Connections, manager: str) -> tuple[bool, str]:
    live = connections.observed.object("Deployment", action.deployment)
    if live is None or live["spec"].get("replicas") == 0:
        return False, ""
    carry_out(Scale(action.deployment, 0), Difference(State.MISSING, ""), connections, manager, lambda _: None)
    return True, ""


def _release(action: Apply, connections: Connections, manager: str) -> tuple[bool, str]:
    """Give the step's fields back; delete the object when the step created it and nobody else of the guide is left."""
    wanted, cluster = action.object, connections.cluster
    live = cluster.get(wanted)
    managers = {entry.get("manager") for entry in (live or {}).get("metadata", {}).get("managedFields", [])}
    going = wanted.kind == "PersistentVolumeClaim" and "deletionTimestamp" in (live or {}).get("metadata", {})
    if live is None or (manager not in managers and not going):
        return False, ""
    # Only what was applied can be given back; a field that a step moved goes with the object.
    applied = {entry["manager"] for entry in live["metadata"]["managedFields"] if entry["operation"] == "Apply"}
    if action.part:
        if manager not in applied:
            return False, ""
        meta = {"name": wanted.name} | ({"namespace": wanted.namespace} if wanted.namespace else {})
        cluster.apply({"apiVersion": live["apiVersion"], "kind": live["kind"], "metadata": meta}, manager)
        return True, ""
    if live["metadata"].get("annotations", {}).get("guide/step") != manager.removeprefix("guide/") and not going:
        return False, f"kept, another made it: {wanted}"
    others = sorted(m.removeprefix("guide/") for m in applied if m.startswith("guide/") and m != manager)
    if others:
        build = connections.instance.name
        raise GuideError(f"{wanted} still carries what other steps set: {', '.join(others)}",
                         "undo first: " + ", ".join(f"`invoke {name} --build={build} --undo`" for name in others))
    if action.data and not connections.flags.data:
        return False, f"kept, it holds data: {wanted} (`--data` deletes it too)"
    if wanted.kind == "PersistentVolumeClaim":
        return True, claims.let_go(wanted, live, connections)
    cluster.delete(wanted, live["metadata"]["uid"])
    cluster.wait(wanted, admission.GONE, 120)
    return True, ""
