"""One real stack for all tests of a session, in a folder of its own; `RUNBOOK_TEST_STATE` names one to keep and reuse."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext

from stack import commands
from stack.api import Api
from stack.state import State
from tests import browser as browsers
from tests import stamping
from tests.compose.fixtures import (  # noqa: F401  those of pytest-docker, with our answers
    docker_cleanup,
    docker_compose_command,
    docker_compose_file,
    docker_compose_project_name,
    docker_setup,
    skip_what_is_not_given,
)
from tests.guide import Guide, Site, instances
from tests.reporting import pytest_runtest_makereport  # noqa: F401  a hook of pytest
from tests.site import ROOT, build
from tests.stamping import (  # noqa: F401  hooks of pytest
    pytest_addoption,
    pytest_runtest_logreport,
    pytest_sessionfinish,
    pytest_testnodedown,
)

# A shell that starts the tests in the background has them ignore Ctrl-C, and what they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


LONGEST = ["test_guide", "test_compose", "test_database", "test_sso", "test_eos", "test_site", "test_deploy", "test_newcomer", "test_blocks",
           "test_instances", "test_credentials", "test_volume", "test_adoption", "test_app", "test_cern", "test_builder"]
"""The files that take longest: begun first, so that the workers end together."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    skip_what_is_not_given(config, items)
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@dataclass(frozen=True)
class Stack:
    """A running stack, and the API as its administrator and as the project member."""

    state: State
    api: Api
    member: Api

    def run(self, *command: str, text: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command as a reader would after `stack.env`; it may fail."""
        exports = dict(word.split("=", 1) for line in commands.env(self.state).splitlines()
                       for word in shlex.split(line)[1:])
        return subprocess.run(command, env=os.environ | exports | environment, input=text, capture_output=True,
                              text=True, check=False, timeout=120)


def connect(state: State) -> Stack:
    tokens = state.tokens
    return Stack(state, Api(state.server, tokens.admin, state.ca), Api(state.server, tokens.member, state.ca))


@pytest.fixture(scope="session")
def stack_state(request: pytest.FixtureRequest) -> Iterator[State]:
    """The state folder of the session's stack, of either kind, which `stack` starts; it is stopped and removed at the end."""
    kept = os.environ.get("RUNBOOK_TEST_STATE")
    # Not pytest's own folder: its path is too long for the Unix sockets below it.
    state = State(Path(kept) if kept else Path(tempfile.mkdtemp(prefix="stack-")))
    try:
        yield state
    finally:
        if not kept:
            commands.down(state, wipe=True, progress=lambda _line: None)


@pytest.fixture(scope="session")
def stack(request: pytest.FixtureRequest, stack_state: State) -> Iterator[Stack]:
    if request.config.getoption("--stack") == "compose":
        request.getfixturevalue("docker_services")  # pytest-docker starts and removes it; tests/compose/fixtures.py
    else:
        commands.up(stack_state, lambda _line: None)
    yield connect(stack_state)
    stamping.remember(stack_state)


@pytest.fixture(scope="session")
def guide(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Guide:
    return Guide(stack, instances(stack.state.kind, tmp_path_factory.mktemp("instances")))


@pytest.fixture(scope="session")
def site(guide: Guide) -> Iterator[Site]:
    """A site of its own, deployed once by `guide.run` and used by the tests of the steps after that; leave it as found."""
    made = Site.written(guide, "steps", port=4)
    made("guide.run")
    yield made
    made.remove()


@pytest.fixture(scope="session")
def built_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site, built without a warning."""
    folder = tmp_path_factory.mktemp("site")
    built = build(ROOT, folder)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "WARNING" not in built.stdout + built.stderr
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A running Chromium; the test is skipped where there is none."""
    with browsers.launched() as found:
        yield found


@pytest.fixture
def visitor(browser: Browser) -> Iterator[BrowserContext]:
    """A browser's window without anybody's cookies."""
    with browsers.visitor(browser) as window:
        yield window
