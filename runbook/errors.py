"""What can go wrong, named by what the reader can do about it; each knows its exit code.

An error is raised where it is known, with what was found and what to do next, and printed in `cli` only.
"""

from __future__ import annotations

DONE, FAILED, WRONG_USE, TO_DO, WAITING, INTERRUPTED = 0, 1, 2, 3, 75, 130
"""The exit codes of every command; 75 is EX_TEMPFAIL of sysexits.h."""


class GuideError(Exception):
    """Something failed: the text says what was found, `cure` what to do next."""

    code = FAILED

    def __init__(self, found: str, cure: str = "") -> None:
        super().__init__(found)
        self.found, self.cure = found, cure


class WrongUse(GuideError):
    """The command or a file that the reader wrote is wrong; nothing was tried."""

    code = WRONG_USE


class Unmet(GuideError):
    """A step was called before the steps that it needs."""


class Conflict(GuideError):
    """Somebody else manages a field that the step wants to set; see `field`, `manager`, both values in the text."""


class WaitingForPerson(GuideError):
    """A person has to act, and nobody is at a terminal; the cure is the line that resumes."""

    code = WAITING


class Unreachable(GuideError):
    """Nothing answers at an address."""


class Unknown(GuideError):
    """What is there could not be looked at (no rights, no password): neither done nor missing."""
