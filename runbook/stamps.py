"""What was proved of each step, when and on what: read from the file that a test run leaves, never typed.

`invoke test` writes `verified.json`; the site that is built afterwards carries its stamps. A step or page that has
changed since then is *stale*, and without the file nothing is claimed.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from runbook.plan import Action, Apply, Ask, Inside, Log, Look, Shell, StartBuild, WaitFor
from runbook.step import Step

UNPROVED = "not verified in this build"
"""The word for what no test run was seen for."""

STAND_INS: Mapping[type, str] = {Ask: "portal", StartBuild: "builder", WaitFor: "node", Look: "node", Inside: "node", Log: "node",
                                 Shell: "node"}
"""The parts of the local stack that stand in for something, by the values that need them."""


@dataclass(frozen=True)
class Proof:
    """One step in one test run."""

    passed: bool
    seconds: float
    """How long it took when it had something to do."""
    digest: str
    """Of the step and its page as they were."""


@dataclass(frozen=True)
class Verified:
    """What one test run proved."""

    when: str = ""
    """The day, as people write it: 2026-11-24."""
    commit: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    """The programs that the steps met, by name."""
    steps: Mapping[str, Proof] = field(default_factory=dict)
    pages: Mapping[str, str] = field(default_factory=dict)
    """The pages that the tests of the site found good: the file's name and the fingerprint of its text."""

    @staticmethod
    def read(path: Path) -> Verified:
        """Return what a file holds; nothing when there is none. Raises ValueError for a file that is something else."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return Verified()
        steps = {name: Proof(**proof) for name, proof in found.pop("steps").items()}
        return Verified(**found, steps=steps)

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(self), indent=1, sort_keys=True) + "\n", encoding="utf-8")
        part.replace(path)


def digest(step: Step, section: str) -> str:
    """Return the fingerprint of a step's code and of its section on the page."""
    return fingerprint(inspect.getsource(step.function) + section)


def fingerprint(text: str) -> str:
    """Return a short text that another text does not have."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def state(step: Step, plan: Sequence[Action], verified: Verified, section: str) -> str:
    """Return the word for a step: tested, tested with a stand-in, person, stale, failed, not verified in this build."""
    proof = verified.steps.get(step.name)
    if proof is None:
        return UNPROVED
    if proof.digest != digest(step, section):
        return "stale"
    if not proof.passed:
        return "failed"
    if step.person:
        return "person"
    return "tested with a stand-in" if list(stand_ins(plan)) else "tested"


def stand_ins(plan: Sequence[Action]) -> Iterator[str]:
    """Yield the stand-ins that a plan meets on the local stack, each once."""
    met = [STAND_INS[type(action)] for action in plan if type(action) in STAND_INS and not _real(action)]
    met += ["storage" for action in plan if isinstance(action, Apply) and action.object.kind == "PersistentVolumeClaim"]
    yield from dict.fromkeys(met)


def _real(action: Action) -> bool:
    """Waiting for what real controllers or the real router say needs no stand-in."""
    return isinstance(action, WaitFor) and action.object.kind not in ("Deployment", "Pod", "Job")


def stamp(step: Step, plan: Sequence[Action], verified: Verified, section: str, source: str = "") -> str:
    """Return the line below a step's heading; `source` ends it."""
    word = state(step, plan, verified, section)
    said = [WORDS[word]]
    if word not in (UNPROVED, "stale"):
        said += [_run(verified), f"{verified.steps[step.name].seconds:.1f} s", _versions(verified)]
        if met := list(stand_ins(plan)):
            said.append(f"stand-in: {', '.join(met)}")
    if word == "stale":
        said.append(f"last tested {verified.when}")
    return _line(said, word, source)


def page_stamp(name: str, text: str, states: Sequence[str], verified: Verified) -> str:
    """Return the line below a page's title: how many of its steps are in which state, or that its prose was checked.

    `states` are the words for the steps on the page.
    """
    known = verified.pages.get(name)
    if known is None:
        return _line([WORDS[UNPROVED]], UNPROVED)
    if known != fingerprint(text):
        return _line([WORDS["stale"], f"last tested {verified.when}"], "stale")
    if not states:
        return _line(["**Checked**: its commands exist and its links lead somewhere", _run(verified)], "tested")
    counted = Counter(states)
    worst = next(word for word in reversed(WORDS) if word in counted)
    said = [f"**{sum(counted.values())} step{'s' * (len(states) > 1)}**: " + ", ".join(
        f"{counted[word]} {SHORT[word]}" for word in WORDS if word in counted), _run(verified), _versions(verified)]
    return _line(said, worst)


def _run(verified: Verified) -> str:
    return f"{verified.when}, commit `{verified.commit[:8]}`"


def _versions(verified: Verified) -> str:
    return ", ".join(f"{name} {version}" for name, version in verified.versions.items())


def _line(said: Sequence[str], word: str, end: str = "") -> str:
    return f"{' · '.join(filter(None, said))}{end}\n{{ .stamp .stamp-{word.split(maxsplit=1)[0]} }}"


WORDS = {
    "tested": "**Tested** on the local stack",
    "tested with a stand-in": "**Tested** with a stand-in",
    "person": "**A person's step**: at CERN you do it; the tests had a stand-in do it",
    "failed": "**Failed** when it was tested last",
    "stale": "**Stale**: changed since it was tested",
    UNPROVED: "**Not verified in this build** of the site: `invoke test` was not run before it",
}
"""How the page says each word."""

SHORT = {"tested": "tested", "tested with a stand-in": "tested with a stand-in", "person": "a person's", "failed": "failed",
         "stale": "stale", UNPROVED: "not verified"}
"""The same in a list."""
