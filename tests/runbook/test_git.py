"""The user's copy of an app's repository: shared by all runs, several at once, and after one that was killed."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runbook.clients.git import Git
from runbook.observed import Source

BRANCHES = [f"branch-{number}" for number in range(6)]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with a commit on each branch, whose file says which it is."""
    made = tmp_path / "app"
    made.mkdir()

    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@localhost", *words], cwd=made, check=True, capture_output=True)

    git("init", "--quiet")
    for branch in BRANCHES:
        git("checkout", "--quiet", "-b", branch)
        (made / "which").write_text(branch)
        git("add", "which")
        git("commit", "--quiet", f"--message={branch}")
    return made


def which(found: Source) -> str:
    assert not found.error
    return found.files["which"].text


def test_runs_at_the_same_time_do_not_hinder_each_other(repository: Path, tmp_path: Path) -> None:
    def read(branch: str) -> str:
        return which(Git(tmp_path / "cache").remote(str(repository), branch, ""))

    with ThreadPoolExecutor(len(BRANCHES)) as several:
        assert list(several.map(read, BRANCHES)) == BRANCHES


def test_what_a_killed_run_locked_is_free_for_the_next(repository: Path, tmp_path: Path) -> None:
    git = Git(tmp_path / "cache")
    which(git.remote(str(repository), BRANCHES[0], ""))
    (store,) = (path for path in (tmp_path / "cache" / "git").iterdir() if path.is_dir())
    (store / "shallow.lock").touch()
    fetch = subprocess.run(["git", "fetch", "--depth=1", str(repository), BRANCHES[1]], cwd=store, capture_output=True, text=True, check=False)
    assert "remove the file manually" in fetch.stderr, "git does not mind the file that is left here"
    assert which(git.remote(str(repository), BRANCHES[1], "")) == BRANCHES[1]
