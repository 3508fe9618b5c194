"""The prerequisites on the stack: before any project, with one, and from a machine that lacks something."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.guide import ROOT, Guide, Site, laid_over, toml

pytestmark = pytest.mark.needs("cluster", "database", "databases", "redis", "portal", "sign-on", "node", "builder", "router")


def table(done: Any) -> dict[str, dict[str, str]]:
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {row["what"]: row for row in rows if "what" in row}


@pytest.fixture
def fresh(guide: Guide) -> Iterator[Site]:
    """An instance for which nothing was requested yet."""
    made = Site.written(guide, "fresh", port=6)
    yield made
    made.remove()


def test_before_any_project_it_works_and_changes_nothing(fresh: Site) -> None:
    place = fresh.guide.audit_end()
    rows = table(fresh("prerequisites.check", "--json"))
    assert rows["project"]["found"] == "not there yet"
    assert rows["log-in"]["found"] == "shifter"
    assert rows["Python"]["found"] == ".".join(map(str, sys.version_info[:3]))
    assert fresh.guide.writes(place) == []
    fresh("prerequisites.login")


def test_of_what_was_never_begun_the_doctor_says_only_that(fresh: Site) -> None:
    said = [json.loads(line) for line in fresh("guide.doctor", "--json", code=3).stdout.splitlines()]
    assert [one["step"] for one in said if "state" in one] == ["project.request"]
    assert f"next: invoke guide.run --build={fresh.name}" in fresh("guide.doctor", code=3).stdout


def test_with_a_project_it_tells_rights_and_server_side_apply(site: Site) -> None:
    place = site.guide.audit_end()
    rows = table(site("prerequisites.check", "--json"))
    assert rows["rights"]["found"] == "all that the steps need"
    assert rows["database server"]["found"] == "reached"
    assert {rows[f"server-side apply, {kind}"]["found"] for kind in ("ImageStream", "BuildConfig", "Route")} == {"taken"}
    assert site.guide.writes(place) == []
    assert not [r for r in site.guide.stack.api.list("Route", site.instance.project) if r["metadata"]["name"].startswith("guide-")]


@pytest.mark.fault(40)
def test_without_git_it_says_how_to_get_it(site: Site, tmp_path: Path) -> None:
    failed = site("prerequisites.check", code=1, PATH=str(tmp_path))
    assert "there is no git on PATH" in failed.stderr and "dnf install git" in failed.stderr
    assert "pg_dump" in failed.stdout  # the table came before


class Reader:
    """A reader at CERN whose API server is the stack's, with or without a log-in."""

    def __init__(self, guide: Guide, folder: Path, api: str) -> None:
        import tomllib

        plain = tomllib.loads((ROOT / "instances" / "dev.toml").read_text())
        plain.pop("local")
        (folder / "dev.toml").write_text("\n".join(toml(laid_over(plain, {"api": api, "target": "cern"}))) + "\n")
        self.guide, self.kubeconfig = guide, folder / "kubeconfig"
        self.environment = {"RUNBOOK_INSTANCES": str(folder), "KUBECONFIG": str(self.kubeconfig), "HOME": str(folder)}


def test_without_a_log_in_it_says_how_to_log_in(guide: Guide, tmp_path: Path) -> None:
    reader = Reader(guide, tmp_path, guide.stack.state.server)
    failed = guide("prerequisites.check", "--build=dev", code=1, **reader.environment)
    assert "somebody is logged in: not so: no log-in to a cluster" in failed.stderr and "prerequisites.login" in failed.stderr
    waiting = guide("prerequisites.login", "--build=dev", code=75, **reader.environment)
    assert "oc login --web" in waiting.stderr


def test_outside_cern_it_says_how_to_get_in(guide: Guide, tmp_path: Path) -> None:
    reader = Reader(guide, tmp_path, "https://127.0.0.1:9")
    failed = guide("prerequisites.check", "--build=dev", code=1, **reader.environment)
    assert "127.0.0.1:9 does not answer" in failed.stderr and "sshuttle" in failed.stderr


def test_the_log_in_is_waited_for_and_seen(guide: Guide, tmp_path: Path) -> None:
    reader = Reader(guide, tmp_path, guide.stack.state.server)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execve(sys.executable, [sys.executable, "-m", "runbook", "prerequisites.login", "--build=dev"],
                  guide.environment | reader.environment)
    said, deadline = "", time.monotonic() + 60
    with contextlib.suppress(OSError):  # which is how the other end of a terminal says that it is gone
        while time.monotonic() < deadline:
            if select.select([terminal], [], [], 1)[0]:
                said += os.read(terminal, 4096).decode(errors="replace")
            if "Waiting until it is done" in said and not reader.kubeconfig.exists():
                reader.kubeconfig.write_text(guide.stack.state.kubeconfig.read_text())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, said
    assert "oc sso-login" in said
