"""The target: where a run goes, and how it gets there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runbook.errors import WrongUse


@dataclass(frozen=True)
class Target:
    """A place to deploy to: CERN with the reader's own log-in, or the local stack with what it hands out."""

    name: str
    kubeconfig: Path | None = None
    ca: Path | None = None
    """The local CA; None trusts the system's."""
    portal: str = ""
    """Address of the stand-in that plays the person; "" when a person is a person."""
    token: str = field(default="", repr=False)
    password_file: Path | None = None
    ailing: Callable[[], str] = lambda: ""
    """Says what is wrong with the target itself, when something does not answer; "" when nothing is known."""
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """What fills the braces in an instance file's `[local]`."""


def choose(option: str, variable: str, from_file: str, build: str, command: str) -> str:
    """Return `local` or `cern`: option, else RUNBOOK_TARGET, else the instance file.

    Raises WrongUse when none of them says, with both commands to choose from.
    """
    for source, value in (("--target", option), ("RUNBOOK_TARGET", variable), ("the instance file", from_file)):
        if value in ("local", "cern"):
            return value
        if value:
            raise WrongUse(f"{source} says {value!r}", "a target is local or cern")
    raise WrongUse(f"{build} does not say where to go",
                   f"choose: `invoke {command} --build={build} --target=local` or "
                   f"`invoke {command} --build={build} --target=cern`")
