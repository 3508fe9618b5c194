"""Writes what a test run proved of each step, for the stamps on the site: `pytest --verified=FILE`.

Nothing is claimed that did not happen: a step counts as proved when the guide's own journal has it and no test of its
procedure or of the whole guide failed.
"""

from __future__ import annotations

import datetime as dt
import json
import statistics
import subprocess
from pathlib import Path
from typing import Any

import pytest

from procedures import RUNBOOK
from runbook import pages
from runbook.markdown import section
from runbook.stamps import Proof, Verified, digest, fingerprint
from runbook.step import Step
from stack import commands
from stack.state import State

ROOT = Path(__file__).parent.parent
WHOLE = {"test_guide", "test_blocks"}
"""Tests of all steps together: when one fails, no step is proved."""
SITE = {"test_docs", "test_site"}
"""Tests of the pages: when one fails, no page is proved."""

journal: list[dict[str, Any]] = []
versions: dict[str, str] = {}
failed: set[str] = set()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--stack", choices=commands.KINDS, default="embedded", help="The stack that the tests run on.")
    parser.addoption("--verified", metavar="FILE", help="Write what was proved of each step to this file.")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        failed.add(Path(report.location[0]).stem)


def remember(state: State) -> None:
    """Keep what a stack knows before it is stopped."""
    path = state.path("journal")
    journal.extend(json.loads(line) for line in path.read_text().splitlines() if line) if path.exists() else None
    found = commands.status(state)
    named = {"kube-apiserver": "Kubernetes", "postgres": "PostgreSQL", "redis-server": "Redis", "haproxy": "HAProxy", "nginx": "nginx"}
    for row in [*found["parts"], *found["programs"]]:
        if row.get("program") in named and row.get("version"):
            versions[named[row["program"]]] = str(row["version"]).removeprefix("v")


def pytest_testnodedown(node: Any) -> None:
    """Take what a worker of pytest-xdist remembered."""
    told = getattr(node, "workeroutput", {})
    journal.extend(told.get("journal", []))
    versions.update(told.get("versions", {}))


def pytest_sessionfinish(session: pytest.Session) -> None:
    target = session.config.getoption("--verified")
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput |= {"journal": journal, "versions": versions}
    elif target and journal:
        proved(failed, journal).write(Path(target))


def proved(failures: set[str], entries: list[dict[str, Any]]) -> Verified:
    """Return what a journal and the stems of the failed tests say."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    steps = {}
    for step in RUNBOOK.steps:
        seconds = [entry["seconds"] for entry in entries if entry["step"] == step.name]
        changed = [entry["seconds"] for entry in entries if entry["step"] == step.name and entry["state"] == "changed"]
        if seconds:
            passed = not failures & {f"test_{step.procedure}", *WHOLE}
            steps[step.name] = Proof(passed, round(statistics.median(changed or seconds), 1), digest(step, text(step)))
    day = dt.datetime.now(dt.UTC).date().isoformat()
    found = {} if failures & SITE else {path.name: fingerprint(path.read_text()) for path in (ROOT / "docs").glob("*.md")}
    return Verified(day, commit, dict(sorted(versions.items())), steps, found)


def text(step: Step) -> str:
    """Return a step's section as its page has it."""
    return section(step, pages.load(ROOT), pages.body(ROOT / "docs", step))
