"""pytest-docker's fixtures with this project's answers, and the skips of what a stack does not give."""

from __future__ import annotations

import os

import pytest

from stack import commands, gives
from stack.compose import engine
from stack.state import State


def skip_what_is_not_given(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the tests on the session's stack that need what a stack of its kind does not give, with the reason."""
    kind = config.getoption("--stack")
    for item in (each for each in items if "stack_state" in getattr(each, "fixturenames", ())):
        needed = [word for mark in item.iter_markers("needs") for word in mark.args]
        reason = gives.missing(kind, *needed)
        if reason:
            item.add_marker(pytest.mark.skip(reason=f"the {kind} stack does not give {reason}"))
        elif kind == "compose" and not needed:
            item.add_marker(pytest.mark.skip(reason="it does not say what it needs: @pytest.mark.needs(…)"))


@pytest.fixture(scope="session")
def docker_compose_command(stack_state: State) -> str:
    return " ".join(engine.find(stack_state).command)


@pytest.fixture(scope="session")
def docker_compose_file() -> str:
    return str(engine.FILE)


@pytest.fixture(scope="session")
def docker_compose_project_name(stack_state: State) -> str:
    return engine.project_of(stack_state)


@pytest.fixture(scope="session")
def docker_setup(stack_state: State) -> list[str]:
    """Start the containers and what belongs beside them by the stack's own command: its messages say what is wrong.

    Nothing is left for pytest-docker to start, whose own error is a shell's output.
    """
    commands.up(stack_state, print, "compose")
    return []


@pytest.fixture(scope="session")
def docker_cleanup() -> list[str]:
    """Remove containers, network and volumes, unless the state folder is kept for the next session."""
    return [] if os.environ.get("RUNBOOK_TEST_STATE") else ["down --volumes"]
