"""The commands that every step's page shows, run as a reader pastes them: the guide then finds everything done."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from procedures import RUNBOOK
from runbook import shell
from runbook.connections import Connections
from runbook.instance import Instance, load
from runbook.observed import Observed
from runbook.plan import Apply, Plan
from runbook.step import step
from runbook.target import Target
from stack import binaries, commands

ROOT = Path(__file__).parent.parent
BUILD = ["--build=production", "--target=local"]


@dataclass
class Reader:
    """Somebody at a terminal with `oc`, `psql`, `curl` and what `stack.env` prints; nobody answers questions."""

    stack: Any
    folder: Path
    target: Target
    instance: Instance

    @property
    def environment(self) -> dict[str, str]:
        exports = dict(word.split("=", 1) for line in commands.env(self.stack.state).splitlines()
                       for word in shlex.split(line)[1:])
        path = os.pathsep.join([str(self.folder), str(binaries.find("psql").path.parent), os.environ["PATH"]])
        return os.environ | exports | {"PATH": path, "RUNBOOK_JOURNAL": str(self.folder / "journal")}

    def invoke(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self._run([sys.executable, "-m", "runbook", *words])

    def paste(self, block: str) -> subprocess.CompletedProcess[str]:
        return self._run(["bash", "-c", block])

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=600,
                              check=False, stdin=subprocess.DEVNULL)

    def differing(self) -> set[tuple[str, str]]:
        """Return the steps that are not done, each with every field that differs."""
        status = self.invoke("guide.status", *BUILD, "--json")
        standings = [json.loads(line) for line in status.stdout.splitlines()]
        assert {found["step"] for found in standings} >= {each.name for each in RUNBOOK.standing}, status.stderr
        return {(found["step"], field["path"] if field else str(detail)) for found in standings if found["state"] != "done"
                for detail in found["detail"] for field in detail["fields"] or [None]}

    def observed(self) -> tuple[Observed, Connections]:
        connections = Connections(self.instance, self.target, cache=self.folder / "cache")
        return connections.observed, connections


@pytest.fixture(scope="module")
def reader(stack: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    folder = tmp_path_factory.mktemp("reader")
    (folder / "oc").symlink_to(binaries.find("kubectl").path)
    known = commands.connection(stack.state)
    facts = known | {f"database_port_{place}": port for place, port in enumerate(stack.state.ports.databases, 1)}
    target = Target("local", stack.state.kubeconfig, stack.state.ca, known["portal"], stack.state.tokens.member,
                    stack.state.pgpass, facts)
    found = Reader(stack, folder, target, load(ROOT / "instances" / "production.toml", "local", facts))
    yield found
    found.invoke("guide.undo", *BUILD, "--data", "--yes")


def test_the_pages_commands_alone_reach_what_the_guide_reaches(reader: Reader) -> None:
    for each in (found for found in RUNBOOK.standing if found.wanted(reader.instance)):
        if each.person:  # At CERN a person fills a form; here the portal plays that person.
            done = reader.invoke(each.name, *BUILD)
            assert done.returncode == 0, f"{each.name}\n{done.stdout}{done.stderr}"
        observed, connections = reader.observed()
        block = shell.block(each, reader.instance, observed)
        connections.close()
        done = reader.paste(block)
        assert done.returncode == 0, f"{each.name} ended with {done.returncode}\n{block}\n{done.stdout}{done.stderr}"
    assert reader.differing() == set()


def test_a_block_whose_manifest_is_refused_ends_with_an_error(reader: Reader) -> None:
    def broken(instance: Instance, _observed: Observed) -> Plan:
        """Make a Service that no server takes."""
        yield Apply({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "broken"},
                     "spec": {"ports": [{"port": "no port"}]}})

    done = reader.paste(shell.block(step()(broken), reader.instance))
    assert done.returncode != 0
    assert "broken" in done.stderr or "port" in done.stderr


def test_a_block_ends_at_the_first_command_that_fails(reader: Reader) -> None:
    """`psql` is refused: nothing after it runs, and the shell that it was pasted into goes on."""
    block = shell.block(RUNBOOK.find("database.create"), reader.instance)
    done = reader.paste(f"export PGPASSFILE=/dev/null\n{block}echo \"ended $?\"")
    assert "ended 0" not in done.stdout and "ended" in done.stdout, done.stdout + done.stderr
