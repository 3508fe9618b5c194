"""The `@step` decorator and the runbook: which steps there are, what each needs, and in which order they stand."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from types import ModuleType
from typing import Any

from runbook.errors import WrongUse
from runbook.instance import Instance
from runbook.observed import Observed
from runbook.plan import Plan

Wanted = Callable[[Instance], bool]
RUN = "invoke guide.run --build={build}"
"""What helps when the app does not run."""


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a procedure: a pure function from instance and observed state to a plan."""

    function: Callable[..., Plan]
    needs: tuple[Step, ...]
    operation: bool
    """Runs only when called; a standing step is part of `guide.run`."""
    person: bool
    """A step that at CERN a person does."""
    wanted: Wanted
    """Whether an instance asks for it at all."""
    unconfirmed: str
    """What nobody has confirmed at CERN, and the command that would; shown on the page."""
    see: str
    """What the reader should see afterwards; one sentence for the page."""
    otherwise: tuple[tuple[str, str] | tuple[str, str, str], ...]
    """What to do when it is not seen: symptom, cure, and the command that helps when it is not the step's own."""
    undoes: Step | None = None
    """The step whose undo this one is, under a name that people look for: `eos.unmount` undoes `eos.mount`."""
    before_login: bool = False
    """Whether it works without a log-in to the cluster."""
    back: str = ""
    """How it is taken back when no `--undo` does that; a sentence for the page."""
    everywhere: bool = False
    """Whether it is done for every instance when none is named: it only looks."""
    setting: str = ""
    """The setting of the instance file that asks for it, when one does: `mount` below [volume]."""

    @property
    def procedure(self) -> str:
        """The stem of the module, the page and the test."""
        return self.function.__module__.rpartition(".")[2]

    @property
    def name(self) -> str:
        """`procedure.step`, as on the command line."""
        return f"{self.procedure}.{self.function.__name__}"

    @property
    def manager(self) -> str:
        """The field manager under which the step applies."""
        return f"guide/{self.name}"

    @property
    def summary(self) -> str:
        """The docstring's first line: help text and the page's first sentence."""
        return inspect.cleandoc(self.function.__doc__ or "").partition("\n")[0]

    @cached_property
    def options(self) -> dict[str, inspect.Parameter]:
        """The step's own options: its keyword-only parameters."""
        signature = inspect.signature(self.function, eval_str=True)
        return {name: p for name, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY}

    @property
    def symptoms(self) -> tuple[Symptom, ...]:
        """What may be seen instead of what should be."""
        own = f"invoke {self.name} --build={{build}}"
        return tuple(Symptom(found[0], found[1], found[2] if len(found) == 3 else own, self) for found in self.otherwise)

    @property
    def source(self) -> tuple[str, int]:
        """File and line of the function, for the edit link and for failing tests."""
        return inspect.getsourcefile(self.function) or "", inspect.getsourcelines(self.function)[1]

    def plan(self, instance: Instance, observed: Observed, **options: Any) -> Plan:
        """Return the step's plan."""
        return self.function(instance, observed, **options)


def step(*, needs: Sequence[Step] = (), operation: bool = False, person: bool = False,
         wanted: Wanted = lambda _: True, unconfirmed: str = "", see: str = "",
         otherwise: Sequence[tuple[str, str] | tuple[str, str, str]] = (), undoes: Step | None = None,
         before_login: bool = False, back: str = "", everywhere: bool = False,
         setting: str = "") -> Callable[[Callable[..., Plan]], Step]:
    """Make a function a step; see `Step` for the meaning of each word."""
    return lambda function: Step(function, tuple(needs), operation or bool(undoes), person, wanted, unconfirmed, see,
                                 tuple(otherwise), undoes, before_login, back, everywhere, setting)


@dataclass(frozen=True)
class Symptom:
    """Something that a reader may see, why, and what to do about it."""

    seen: str
    """In the reader's words; what stands in backticks is the message's own, and `…` in it stands for anything."""
    cause: str
    """Why, and what to do: one to three sentences."""
    command: str
    """The command that helps; {build}, {project} and {api} are those of the instance."""
    step: Step | None = None

    def matched(self, text: str) -> int:
        """Return how many characters of a message are this symptom's own words; 0 when it is another."""
        return len(self.words(text).replace("…", ""))

    def words(self, text: str) -> str:
        """Return the longest of this symptom's quotations that stands in a message, else ""."""
        return max((quote for quote in self.seen.split("`")[1::2] if len(quote) >= SHORTEST
                    and re.search(".*?".join(map(re.escape, quote.split("…"))), text, re.DOTALL)),
                   key=lambda quote: len(quote.replace("…", "")), default="")


SHORTEST = 5
"""Characters that a quotation needs to be told from a coincidence: `400` stands in many messages."""


class Runbook:
    """All procedures in order; `symptoms` are those that belong to no single step."""

    def __init__(self, procedures: Sequence[ModuleType], symptoms: Sequence[Symptom] = ()) -> None:
        self.procedures = tuple(procedures)
        self._symptoms = tuple(symptoms)

    @property
    def symptoms(self) -> tuple[Symptom, ...]:
        """Every symptom that the guide knows, step by step, and then the others."""
        return (*(found for step in self.steps for found in step.symptoms), *self._symptoms)

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """Every step, procedure by procedure, in the order of their definition."""
        return tuple(found for module in self.procedures for found in vars(module).values()
                     if isinstance(found, Step) and found.function.__module__ == module.__name__)

    @cached_property
    def standing(self) -> tuple[Step, ...]:
        """The standing steps in an order that respects `needs` and else keeps the guide's order.

        Raises ValueError when the needs form a circle.
        """
        order = {found: place for place, found in enumerate(self.steps)}
        graph = TopologicalSorter({found: found.needs for found in self.steps})
        try:
            graph.prepare()
        except CycleError as error:
            raise ValueError("steps need each other in a circle: " + ", ".join(s.name for s in error.args[1])) from error
        done: list[Step] = []
        ready: list[Step] = []
        while graph.is_active():
            ready = sorted({*ready, *graph.get_ready()}, key=order.__getitem__)
            done.append(ready.pop(0))
            graph.done(done[-1])
        return tuple(found for found in done if not found.operation)

    def find(self, name: str) -> Step:
        """Return the step of that name. Raises WrongUse with the nearest names when there is none."""
        for found in self.steps:
            if found.name == name:
                return found
        raise WrongUse(f"there is no step {name!r}", suggestion(name, [s.name for s in self.steps], LIST))

    def before(self, last: Step) -> Iterator[Step]:
        """Yield the standing steps that `last` needs, directly or not, and then itself, in order."""
        wanted = {last}
        for found in reversed(self.standing):
            if found in wanted:
                wanted.update(found.needs)
        wanted.update(*(self._all_needs(need) for need in last.needs))
        yield from (found for found in self.standing if found in wanted)
        if last.operation:
            yield last

    def _all_needs(self, found: Step) -> set[Step]:
        return {found}.union(*(self._all_needs(need) for need in found.needs))


LIST = "`invoke --list` shows all of them"


def suggestion(wrong: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return a sentence with the nearest of the known words; where none is near, `otherwise`, or else all of them."""
    import difflib

    known = list(known)
    near = difflib.get_close_matches(wrong, known, 3, 0.5)
    if near:
        return "did you mean " + " or ".join(near) + "?"
    return otherwise or "there are: " + ", ".join(known)
