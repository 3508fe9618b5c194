"""Three tests that `tests/stack/test_compose.py` runs with `--stack=compose`; not collected by name."""

import pytest

from tests.conftest import Stack


@pytest.mark.needs("cluster", "database")
def test_the_session_stack_is_the_compose_stack(stack: Stack) -> None:
    assert stack.state.kind == "compose"
    assert stack.api.get("ImageStream", "python", "openshift")


@pytest.mark.needs("databases")
def test_that_needs_what_is_not_there(stack: Stack) -> None:
    raise AssertionError(stack)


def test_that_does_not_say_what_it_needs(stack: Stack) -> None:
    raise AssertionError(stack)
