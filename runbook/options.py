"""The options that every step may have, and when: the command line and the pages read this one table.

A step's own options are its keyword-only parameters; these here follow from what its plan holds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runbook import errors
from runbook.instance import Instance
from runbook.observed import Observed
from runbook.plan import Action, Apply, Credential, Execute, Patch, Scale, StartBuild
from runbook.step import Step

Applies = Callable[[Sequence[Action]], bool]


@dataclass(frozen=True)
class Option:
    """One option of a step's command."""

    name: str
    """The long form without dashes."""
    meaning: str
    """One sentence for `--help` and for the page."""
    default: str | bool
    """A text for an option that takes a value, False for a flag."""
    applies: Applies
    """Whether a step with this plan has the option."""
    value: str = ""
    """What the value is called, `""` for a flag."""

    @property
    def written(self) -> str:
        """How a reader writes it: `--target=local|cern`, `--dry`."""
        return f"--{self.name}={self.value}" if self.value else f"--{self.name}"

    @property
    def every(self) -> bool:
        """Whether every step has it, whatever its plan."""
        return self.applies is _always


def credentials(value: Any) -> Iterator[Credential]:
    """Yield every credential that a plan, a value of it or a manifest names, in order and as often as it is named."""
    if isinstance(value, Credential):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from credentials(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from credentials(inner)
    elif dataclasses.is_dataclass(value):
        for described in dataclasses.fields(value):
            yield from credentials(getattr(value, described.name))


def _always(_plan: Sequence[Action]) -> bool:
    return True


def _undone(plan: Sequence[Action]) -> bool:
    """A plan that only looks and waits leaves nothing to take back."""
    return any(isinstance(action, Apply | Execute | Scale) or getattr(action, "instead", "")
               or (isinstance(action, Patch) and action.undo is not None) for action in plan)


OPTIONS: tuple[Option, ...] = (
    Option("build", "The instance: a file in instances/ without .toml.", "", _always, "dev"),
    Option("target", "Where to: the local stack or CERN; else RUNBOOK_TARGET, else the instance file.", "", _always,
           "local|cern"),
    Option("dry", "Show what would change, and change nothing.", False, _always),
    Option("commands", "Print it as commands of oc and psql, and do nothing.", False, _always),
    Option("undo", "Take the step back.", False, _undone),
    Option("data", "When taking back, delete also what holds data; asks for the instance's name.", False,
           lambda plan: any(getattr(action, "data", False) for action in plan)),
    Option("force", "Take over fields that somebody else set, after showing them.", False,
           lambda plan: any(isinstance(action, Apply) or getattr(action, "foreign", False) for action in plan)),
    Option("rotate", "Replace the passwords of this step by new ones.", False,
           lambda plan: any(True for action in plan if isinstance(action, Apply | Execute) for _ in credentials(action))),
    Option("again", "Do it once more although it is done.", False,
           lambda plan: any(isinstance(action, StartBuild) for action in plan)),
    Option("yes", "Do not ask for confirmation.", False, _always),
    Option("json", "Print one JSON object a line instead of text.", False, _always),
    Option("debug", "Show the traceback of an error.", False, _always),
)


def options(plan: Sequence[Action]) -> tuple[Option, ...]:
    """Return the options of a step with this plan, in the order of the table."""
    return tuple(option for option in OPTIONS if option.applies(plan))


def of(step: Step, plan: Sequence[Action]) -> tuple[Option, ...]:
    """Return the options of a step; one that is another's undo has no undo and nothing to renew."""
    return tuple(option for option in options(plan) if not (step.undoes and option.name in ("undo", "rotate", "again")))


def offered(step: Step, instances: Sequence[Instance]) -> tuple[Option, ...]:
    """Return the options that a step's command takes: those that it has for any of the instances; all when there is none.

    Only what follows from the settings is seen, so a step whose plan follows from what it observes outlines it without.
    """
    taken = {option for instance in instances for option in of(step, outline(step, instance, Observed()))}
    return tuple(option for option in OPTIONS if option in taken) if instances else OPTIONS


def outline(step: Step, instance: Any, observed: Any, **given: Any) -> list[Action]:
    """Return a step's plan as a list, without carrying anything out; a value that a later one needs is None.

    An option without a default is given its own name in angle brackets.
    """
    own = {name: f"<{name}>" if p.default is p.empty else p.default for name, p in step.options.items()}
    return list(step.plan(instance, observed, **own | given))


EXIT_CODES: Mapping[int, str] = {
    errors.DONE: "Done, or nothing to do.",
    errors.FAILED: "Failed; the message says what was found and what to do next.",
    errors.WRONG_USE: "Wrong use: the command or a file that you wrote; nothing was tried.",
    errors.TO_DO: "`guide.plan` or `guide.status` found something to do.",
    errors.WAITING: "Waiting for a person, and nobody is at a terminal; the last line resumes.",
    errors.INTERRUPTED: "Interrupted; run the same command again.",
}
"""What every command's exit code means."""
