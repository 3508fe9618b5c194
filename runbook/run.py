"""Run steps: ask a step for its plan, compare each value, carry out what differs, and say how it went."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from runbook import backup  # noqa: F401  registers how a dump is made and put back
from runbook.admission import admitted
from runbook.apply import Tell, carry_out, take_over, undo
from runbook.connections import Connections, Flags
from runbook.diff import Difference, Standing, State, compare, refusal, summed
from runbook.errors import Conflict, GuideError, Unknown, Unmet
from runbook.plan import (
    MANAGED_BY,
    Action,
    Admitted,
    Apply,
    Ask,
    Confirm,
    Execute,
    Inside,
    Log,
    Look,
    Object,
    Patch,
    Scale,
    Shell,
    Show,
    StartBuild,
    WaitFor,
)
from runbook.step import Runbook, Step


@dataclass
class Outcome:
    """How one step went: `changed`, `unchanged`, `skipped`, or an error that ended the run."""

    name: str
    state: str
    seconds: float
    detail: list[str] = field(default_factory=list)
    answered: bool = False
    """Whether the step only printed what was asked for, so that nothing is left to say."""


@dataclass
class Run:
    """One run over steps; waits for roll-outs are put off until something needs the running app, and done once."""

    connections: Connections
    put_off: list[tuple[WaitFor, str]] = field(default_factory=list)
    deferring: bool = False
    applied: dict[Object, None] = field(default_factory=dict)
    """What a forced run of the whole guide takes over from others, in order, once every step has set its part."""

    def step(self, wanted: Step, options: Mapping[str, Any], tell: Tell) -> Outcome:
        """Bring about what a step wants."""
        started, detail, changed, answered = time.monotonic(), list[str](), False, False
        plan = wanted.plan(self.connections.instance, self.connections.observed, **options)
        try:
            action = next(plan)
            while True:
                did, result = self._value(action, wanted, tell, detail)
                changed |= did
                answered |= isinstance(action, Show | Log | Shell)
                # At once: a pod carries its Secrets' revisions, and who manages one is part of that. Nothing of its data goes.
                if isinstance(action, Apply) and action.object.kind == "Secret" and action.object in self.applied:
                    del self.applied[action.object]
                    self._taken(action.object)
                action = plan.send(result)
        except StopIteration:
            pass
        except GuideError as error:
            error.cure = error.cure or known_cure(wanted, error.found) \
                or f"`invoke guide.doctor --build={self.connections.instance.name}` looks for the cause"
            error.add_note(wanted.name)
            raise
        return Outcome(wanted.name, "changed" if changed else "unchanged", time.monotonic() - started, detail,
                       answered and not changed)

    def finish(self, tell: Tell) -> None:
        """Take over what others made, then wait for what was put off."""
        taken, self.applied = list(self.applied), {}
        for wanted in taken:
            self._taken(wanted)
        waits, self.put_off = self.put_off, []
        for wait, name in {(w.object, w.condition.name): (w, name) for w, name in waits}.values():
            try:
                self._wait(wait, tell)
            except GuideError as error:
                error.add_note(name)
                raise
        if waits and self.connections.moved:  # Other pods run now than were known.
            self.connections.changed()

    def _taken(self, wanted: Object) -> None:
        if said := take_over(wanted, self.connections):
            self.connections.changed()
            self.connections.say(said)

    def _value(self, action: Action, wanted: Step, tell: Tell, detail: list[str]) -> tuple[bool, Any]:
        connections = self.connections
        if isinstance(action, WaitFor) and self.deferring:
            self.put_off.append((action, wanted.name))
            return False, None
        if isinstance(action, Apply) and self.deferring and connections.flags.force:
            self.applied[action.object] = None
        if isinstance(action, Look | Inside) or (isinstance(action, StartBuild) and action.because):
            self.finish(tell)
        if isinstance(action, Show | Log | Shell | Confirm):  # They change nothing, so there is nothing to compare.
            return False, carry_out(action, Difference(State.DONE, ""), connections, wanted.manager, tell)
        difference = compare(action, connections, wanted.manager)
        if difference.state is State.DONE:
            detail += [difference.note] if difference.note else []
            return False, None
        if difference.state is State.UNKNOWN:
            raise Unknown(difference.note, difference.cure)
        if difference.foreign and not connections.flags.force:
            shown = "\n".join(f"  {f.path}: {f.manager} set {f.found!r}, the guide wants {f.wanted!r}"
                              for f in difference.fields if f.manager)
            raise Conflict(f"{difference.what} has fields that somebody else manages:\n{shown}",
                           "`--force` takes them over")
        if isinstance(action, Execute) and action.after:
            self.finish(tell)
            self._wait(action.after, tell)
        tell(difference.what.partition("\n")[0])
        if isinstance(action, Ask) and isinstance(action.until, Admitted) and admitted(action.until, connections):
            return False, None
        result = carry_out(action, difference, connections, wanted.manager, tell)
        connections.changed()
        if isinstance(action, WaitFor | Look) or (isinstance(action, Inside) and not action.unless and not action.input):
            return False, result
        detail.append(described(difference))
        return True, result

    def _wait(self, wait: WaitFor, tell: Tell) -> None:
        carry_out(wait, Difference(State.WAITING, ""), self.connections, "", tell)


def known_cure(wanted: Step, found: str) -> str:
    """Return the cure that the step's page gives for a symptom whose quoted words stand in the message, else ""."""
    best = max(wanted.symptoms, key=lambda symptom: symptom.matched(found), default=None)
    return best.cause.replace("`", "") if best and best.matched(found) else ""


def described(difference: Difference) -> str:
    """Return one line that says what was changed."""
    fields = "; ".join(f"{f.path}: {short(f.found)} → {short(f.wanted)}" + (f" (was {f.manager}'s)" if f.manager else "")
                       for f in difference.fields[:4])
    more = f" and {len(difference.fields) - 4} more" if len(difference.fields) > 4 else ""
    return difference.what.partition("\n")[0] + (f": {fields}{more}" if fields else "")


def short(value: object) -> str:
    """Return a value as a reader wants to see it in one line."""
    if value is None:
        return "(none)"
    if isinstance(value, (dict, list)) and len(str(value)) > 60:
        return f"{len(value)} entries"
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "…"


def stand(wanted: Step, connections: Connections, options: Mapping[str, Any] | None = None) -> Standing:
    """Return how a step stands, changing nothing."""
    if not wanted.wanted(connections.instance):
        return Standing(wanted.name, State.NOT_WANTED)
    differences, applied = list[Difference](), list[Object]()
    for action, difference in _compared(wanted, connections, options or {}):
        differences.append(difference)
        if isinstance(action, Apply):
            applied.append(action.object)
    since = _last(applied, wanted.manager, connections)
    return Standing(wanted.name, summed(differences), differences, since, wanted.manager if since else "")


def _compared(wanted: Step, connections: Connections, options: Mapping[str, Any]) -> Iterator[tuple[Action, Difference]]:
    plan = wanted.plan(connections.instance, connections.observed, **options)
    for action in plan:
        try:
            difference = compare(action, connections, wanted.manager)
        except GuideError as error:
            difference = refusal(error, str(getattr(action, "what", "") or getattr(action, "object", "")))
        yield action, difference
        # What comes after an effect that is not there yet cannot be looked at.
        if difference.state not in (State.DONE, State.DRIFTED, State.MISSING) and isinstance(action, WaitFor | Look | Inside):
            return


def _last(applied: list[Object], manager: str, connections: Connections) -> str:
    """Return when a field manager wrote last, "" when it never did; the cluster remembers it."""
    times = [""]
    for each in applied:
        try:
            live = connections.observed.object(each.kind, each.name, each.namespace)
        except GuideError:
            continue
        entries = (live or {}).get("metadata", {}).get("managedFields", [])
        times += [entry.get("time", "") for entry in entries if entry.get("manager") == manager]
    return max(times)


def require_needs(wanted: Step, connections: Connections) -> None:
    """Raise Unmet when a step that this one needs is not done, with the command that does them all."""
    unmet, asked = list[tuple[str, str]](), connections.flags
    connections.flags = Flags()  # What this run is asked to renew is no question to the steps before.
    for need in wanted.needs:
        # An app that does not answer is no reason to refuse what may mend it.
        differences = [each for each in stand(need, connections).differences if not each.looks]
        found = summed(differences)
        if found in (State.MISSING, State.NEW) or (found is State.WAITING and not need.person):
            lacks = next(each for each in differences if each.state is not State.DONE)
            unmet.append((need.name, ": ".join(filter(None, (lacks.what, lacks.note)))))
    connections.flags = asked
    if unmet:
        raise Unmet(f"{wanted.name} needs {', '.join(name for name, _ in unmet)} first ({'; '.join(found for _, found in unmet)})",
                    f"`invoke guide.run --build={connections.instance.name} --to={wanted.name}` does them all")


def _taken_back(action: Action) -> str:
    """Return one line that says what was taken back."""
    if isinstance(action, Execute):
        return action.undo
    if isinstance(action, Scale):
        return f"Deployment {action.deployment}: spec.replicas: 0"
    named = action.object if isinstance(action, Apply | Patch) else type(action).__name__
    return f"{named}: what this step set is taken back"


def take_back(wanted: Step, connections: Connections, called: str = "") -> Outcome:
    """Undo a step: its values in reverse order. The outcome has the name by which it was called."""
    started, detail, changed = time.monotonic(), list[str](), False
    actions = list(wanted.plan(connections.instance, connections.observed))
    for action in reversed(actions):
        try:
            did, kept = undo(action, connections, wanted.manager)
        except GuideError as error:
            error.add_note(wanted.name)
            raise
        if did:
            connections.changed()
            changed = True
            detail.append(_taken_back(action))
        if kept:
            detail.append(kept)
    return Outcome(called or wanted.name, "changed" if changed else "unchanged", time.monotonic() - started, detail)


def orphans(runbook: Runbook, connections: Connections) -> list[Standing]:
    """Return what the guide once made in the project and no step names any more: a renamed setting, an older plan."""
    named, kinds = set(), set()
    for step in runbook.standing:
        for action in step.plan(connections.instance, connections.observed):
            if isinstance(action, Apply):
                kinds.add(action.object.kind)
                if step.wanted(connections.instance):  # A part that was switched off and not undone is left over too.
                    named.add((action.object.kind, action.object.name))
    found = [(kind, live["metadata"]) for kind in sorted(kinds)
             for live in connections.cluster.list(kind, ",".join(f"{k}={v}" for k, v in MANAGED_BY.items()))]
    return [Standing((meta.get("annotations") or {}).get("guide/step", "guide"), State.ORPHAN,
                     [Difference(State.ORPHAN, f"{kind} {meta['name']}", note="no step names it any more",
                                 cure=f"`oc delete {kind.lower()} {meta['name']}` when nobody needs it")])
            for kind, meta in found if (kind, meta["name"]) not in named]


def order(runbook: Runbook, to: str) -> tuple[Step, ...]:
    """Return the steps of `guide.run`, up to one of them."""
    return tuple(runbook.before(runbook.find(to))) if to else runbook.standing
