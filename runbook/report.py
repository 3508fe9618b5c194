"""What a run says: one line a step with its state and seconds, live on a terminal, plain or JSON elsewhere."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from typing import TYPE_CHECKING, Any

from runbook.errors import GuideError

if TYPE_CHECKING:
    from runbook.diff import Difference, Standing
    from runbook.instance import Instance
    from runbook.plan import Show
    from runbook.run import Outcome
    from runbook.step import Symptom

COLOURS = {"changed": "33", "unchanged": "32", "done": "32", "failed": "31", "missing": "33", "drifted": "31",
           "waiting": "36", "unknown": "35", "new": "33", "orphan": "35"}


class Report:
    """Where a run's lines go: stdout for results, stderr for what is going on and what went wrong."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._live: Any = None
        self._name, self._started, self._build = "", 0.0, ""
        self._terminal = sys.stdout.isatty() and sys.stderr.isatty() and not as_json
        self._said = 0.0
        self._target, self._command = "", re.compile("")

    def header(self, text: str) -> None:
        """Say first where the run goes."""
        if not self.as_json:
            self._print(text)

    def aim(self, build: str, target: str) -> None:
        """Have each command for an instance name this target too, because its file does not; "" for none."""
        self._target = target
        self._command = re.compile(rf"(invoke [\w.]+ (?:--\S+ )*--build={re.escape(build)})(?![\w-])(?! --target)")

    def _aimed(self, text: str) -> str:
        return self._command.sub(rf"\1 --target={self._target}", text) if self._target else text

    def about(self, build: str) -> None:
        """Say that what follows is about one instance among several: a blank line, and its name in every JSON object."""
        if not self.as_json and self._build:
            self._print("")
        self._build = build

    def passed_over(self, build: str, error: GuideError) -> None:
        """Say in one line that an instance cannot be looked at, and why."""
        self.quiet()
        if self.as_json:
            self._print(json.dumps({"build": build, "state": "failed", "detail": [error.found, error.cure]}))
        else:
            why = f"{error.found}; {error.cure}" if error.cure else error.found
            self._print(f"{build}: {self._colour('cannot be looked at', 'failed')}: {why}".replace("\n", " "))

    def begin(self, name: str) -> None:
        """Say that a step begins; a terminal shows it with a moving sign until it ends."""
        self._name, self._started, self._said = name, time.monotonic(), time.monotonic()
        if self._terminal:
            from rich.console import Console

            self._live = Console(stderr=True).status(name)
            self._live.start()

    def tell(self, text: str) -> None:
        """Say what is going on; without a terminal at most every ten seconds, on stderr."""
        line = f"{self._name}  {time.monotonic() - self._started:.0f} s  {text[:100]}"
        if self._live:
            from rich.text import Text

            self._live.update(Text(line))
        elif not self.as_json and time.monotonic() - self._said > 10:
            self._said = time.monotonic()
            sys.stderr.write(f"  … {line}\n")
            sys.stderr.flush()

    def outcome(self, outcome: Outcome) -> None:
        """Say how a step went."""
        self.quiet()
        if self.as_json:
            self._print(json.dumps({"step": outcome.name, "state": outcome.state, "seconds": round(outcome.seconds, 3),
                                    "detail": outcome.detail}))
            return
        self._print(f"{self._colour(f'{outcome.state:<10}', outcome.state)} {outcome.name:<22} {outcome.seconds:6.1f} s")
        for line in outcome.detail:
            self._print(f"           {line}")

    def standing(self, standing: Standing, *, full: bool = False) -> None:
        """Say how a step stands; with `full` every field that differs."""
        self.quiet()
        differences = [d for d in standing.differences if d.state != "done" or d.note]
        if self.as_json:
            build = {"build": self._build} if self._build else {}
            self._print(json.dumps({**build, "step": standing.name, "state": standing.state, "since": standing.since,
                                    "by": standing.by, "detail": [_flat(d) for d in differences]}))
            return
        state = self._colour(f"{standing.state:<10}", standing.state)
        self._print(f"{state} {standing.name:<22} {standing.since}".rstrip())
        for difference in differences:
            self._difference(difference, full=full)

    def _difference(self, difference: Difference, *, full: bool) -> None:
        note = f": {difference.note}" if difference.note else ""
        said = f"{difference.what.partition(chr(10))[0]}{note}" if difference.state != "done" else difference.note
        self._print(f"           {said}")
        fields = difference.fields if full else difference.fields[:3]
        for field in fields:
            who = f"   ({field.manager})" if field.manager else ""
            self._print(f"             {field.path}: {_shown(field.found)} → {_shown(field.wanted)}{who}")
        if len(fields) < len(difference.fields):
            self._print(f"             and {len(difference.fields) - len(fields)} more fields")
        if full and difference.cure:
            self._print(f"             {difference.cure}")

    def quiet(self) -> None:
        """End the moving line."""
        if self._live:
            self._live.stop()
            self._live = None

    def error(self, error: GuideError, where: str = "") -> None:
        """Say what went wrong, where, and what to do next; on stderr."""
        self.quiet()
        if self.as_json and self._name:
            state = "waiting" if error.code == 75 else "failed"
            self._print(json.dumps({"step": self._name, "state": state, "detail": [error.found, error.cure],
                                    "seconds": round(time.monotonic() - self._started, 3)}))
        lines = [f"{self._colour('error', 'failed', sys.stderr)}: {where + ': ' if where else ''}{error.found}"]
        lines += [f"  next: {error.cure}"] if error.cure else []
        sys.stderr.write(self._aimed("\n".join(lines)) + "\n")

    def line(self, text: str) -> None:
        """Say one line of result."""
        self.quiet()
        if not self.as_json:
            self._print(text)

    def next(self, command: str) -> None:
        """Say last which command helps."""
        self.line(f"next: {command}")

    def diagnosis(self, symptom: Symptom, instance: Instance | None, origin: str = "") -> None:
        """Say what a symptom means and which command helps; without an instance its name stands as NAME."""
        names = {"build": instance.name, "project": instance.project, "api": instance.api} if instance else \
            {"build": "NAME", "project": "PROJECT", "api": "https://api.paas.okd.cern.ch"}
        command = symptom.command.format(**names)
        self.quiet()
        if self.as_json:
            self._print(json.dumps({"symptom": symptom.seen, "cause": symptom.cause, "command": command, "origin": origin}))
            return
        seen = f"{origin}: {symptom.seen}" if origin else symptom.seen
        self._print(f"{seen}\n  {symptom.cause}\n  next: {command}")

    def table(self, table: Show) -> None:
        """Show a table; as JSON one object a row."""
        self.quiet()
        if self.as_json:
            instance = {"instance": self._build} if self._build else {}  # `build` is a column of the images' history
            for row in table.rows:
                self._print(json.dumps(instance | dict(zip(table.head, row, strict=True))))
            return
        if not table.rows:
            self._print(table.empty)
            return
        widths = [max(len(cell) for cell in column) for column in zip(table.head, *table.rows, strict=True)]
        for row in (table.head, *table.rows):
            self._print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

    def _print(self, text: str) -> None:
        sys.stdout.write(self._aimed(text) + "\n")
        sys.stdout.flush()

    def _colour(self, text: str, state: str, stream: Any = None) -> str:
        wanted = (stream or sys.stdout).isatty() and not os.environ.get("NO_COLOR")
        return f"\x1b[{COLOURS.get(state, '0')}m{text}\x1b[0m" if wanted else text


def _shown(value: object) -> str:
    from runbook.run import short

    return short(value)


def _flat(difference: Difference) -> dict[str, Any]:
    fields = [{"path": f.path, "found": f.found, "wanted": f.wanted, "manager": f.manager} for f in difference.fields]
    return {"what": difference.what, "state": difference.state, "note": difference.note, "fields": fields}
