"""One real stack for all tests of a session, in a folder of its own; `RUNBOOK_TEST_STATE` names one to keep and reuse."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from stack import commands
from stack.api import Api
from stack.state import State


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
def stack() -> Iterator[Stack]:
    kept = os.environ.get("RUNBOOK_TEST_STATE")
    # Not pytest's own folder: its path is too long for the Unix sockets below it.
    state = State(Path(kept) if kept else Path(tempfile.mkdtemp(prefix="stack-")))
    try:
        commands.up(state, lambda _line: None)
        yield connect(state)
    finally:
        if not kept:
            commands.down(state, wipe=True, progress=lambda _line: None)
