"""Says for every test which steps it exercises: a failure names their page and line, and so does the JUnit file."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from procedures import RUNBOOK
from runbook.cli import page
from runbook.step import Step


def exercised(item: pytest.Item) -> list[str]:
    """Return the steps that a test exercises: its parameter, else those that its code names, else those of its file's procedure."""
    given = getattr(getattr(item, "callspec", None), "params", {}).values()
    named = [each.name for each in given if isinstance(each, Step)]
    if not named:
        try:
            source = inspect.getsource(getattr(item, "function", item))
        except (OSError, TypeError):
            source = ""
        named = [each.name for each in RUNBOOK.steps if each.name in source]
    stem = Path(str(item.path)).stem.removeprefix("test_")
    return named or [each.name for each in RUNBOOK.steps if each.procedure == stem]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Iterator[Any]:
    steps = exercised(item)
    if call.when == "setup":
        item.user_properties += [("step", f"{name} {page(name)}") for name in steps]
    report = yield
    if steps and report.failed:
        report.sections.append(("steps of the guide", "\n".join(f"{page(name)}: {name}" for name in steps)))
    return report
