"""The instances that the plans are made for, and the plan as a list of values."""

import copy
from pathlib import Path

import pytest

from runbook.instance import load
from runbook.observed import File, Observed

ROOT = Path(__file__).parents[2]
FACTS = {"https_port": 8443, "git": "https://git.localhost:8443", "issuer": "https://auth.localhost:8443",
         "database_port_1": 5501, "database_port_2": 5502, "database_port_3": 5503, "pod_network": "10.244.0.0/24"}


@pytest.fixture(scope="session")
def instance():
    """The development instance as it is at CERN."""
    return load(ROOT / "instances" / "dev.toml")


@pytest.fixture(scope="session")
def local():
    """The development instance on the local stack."""
    return load(ROOT / "instances" / "dev.toml", "local", FACTS)


@pytest.fixture(scope="session")
def plan():
    """Return a step's plan for an instance and what is known."""
    def made(step, instance, known=None, **options):
        return copy.deepcopy(list(step.plan(instance, Observed(known=known or {}), **options)))
    return made


@pytest.fixture(scope="session")
def example():
    """The files of the example app: a repository that needs no mending."""
    folder = ROOT / "example"
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            files[str(path.relative_to(folder))] = File(path.read_text(), bool(path.stat().st_mode & 0o100))
    return files


@pytest.fixture
def changed(example):
    """Return the example's files with some changed: a text, a File, or None for one that is gone."""
    def made(changes):
        files = {path: file for path, file in example.items() if changes.get(path, "") is not None}
        for path, to in changes.items():
            if to is not None:
                mode = example[path].executable if path in example else False
                files[path] = to if isinstance(to, File) else File(to, mode)
        return files
    return made


@pytest.fixture(scope="session")
def named():
    """Return the one manifest of that kind and name in a plan."""
    def one(values, kind, name=None):
        from runbook.plan import Apply

        found = [v.manifest for v in values if isinstance(v, Apply) and v.manifest["kind"] == kind
                 and name in (None, v.manifest["metadata"]["name"])]
        assert len(found) == 1, f"{len(found)} of {kind} {name or ''}"
        return found[0]
    return one


@pytest.fixture(scope="session")
def unmet():
    """Return what the checks of a plan found."""
    def found(values):
        from runbook.plan import Require

        return [v.found for v in values if isinstance(v, Require) and v.found]
    return found
