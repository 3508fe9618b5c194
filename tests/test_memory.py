"""The folder in memory of a run: used where it fits, gone afterwards, and after a run that was killed."""

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests import memory


@pytest.fixture
def roomy(tmp_path, monkeypatch):
    """A place that is taken for one that fits, whatever this machine has."""
    monkeypatch.setattr(memory, "fits", Path.exists)
    return tmp_path


def test_it_is_there_for_everybody_and_gone_afterwards(roomy):
    with memory.folder(roomy) as made:
        assert Path(made).stat().st_mode & 0o7777 == 0o1777
        assert made == str(roomy / f"tests-{os.getpid()}")
    assert list(roomy.iterdir()) == []


def test_what_a_killed_run_left_goes_and_what_another_uses_stays(roomy):
    ended = subprocess.Popen(["true"])
    ended.wait()
    for name in (f"tests-{ended.pid}", f"tests-{os.getppid()}", "tests-of-somebody"):
        (roomy / name / "stack").mkdir(parents=True)
    with memory.folder(roomy):
        assert {path.name for path in roomy.iterdir()} == {f"tests-{os.getppid()}", "tests-of-somebody", f"tests-{os.getpid()}"}


def test_without_room_it_is_the_usual_one(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "ROOM", 2**60)
    for place in (tmp_path, tmp_path / "gone"):
        with memory.folder(place) as made:
            assert made == tempfile.gettempdir()
        assert Path(made).is_dir()
