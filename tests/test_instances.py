"""dev, training and production side by side on one stack: what is done for one is not seen by the others."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from procedures import RUNBOOK
from runbook.instance import load
from stack.api import wait_until
from tests.guide import Guide
from tests.procedures.conftest import FACTS

pytestmark = pytest.mark.needs("cluster", "database", "databases", "redis", "portal", "sign-on", "node", "builder", "router")

ROOT = Path(__file__).parent.parent
BUILDS = ("dev", "training", "production")


@pytest.fixture(scope="module")
def three(guide: Guide) -> Iterator[Guide]:
    """All three instances, deployed at the same time."""
    with ThreadPoolExecutor() as three_people:
        list(three_people.map(lambda build: run(guide, build, "guide.run"), BUILDS))
    yield guide
    with ThreadPoolExecutor() as two_people:  # dev is left to the tests that share it
        list(two_people.map(lambda build: run(guide, build, "guide.undo", "--data"), ("production", "training")))


def run(guide: Guide, build: str, *words: str, code: int = 0) -> str:
    done = guide(words[0], f"--build={build}", "--target=local", *words[1:], "--yes", code=code)
    return str(done.stdout)


def settled(guide: Guide, build: str) -> dict[str, Any]:
    """Return what an instance is made of once its own roll-out has ended and nothing moves any more."""
    last: list[dict[str, Any]] = []

    def still() -> bool:
        # First who is on his way out: what goes between the two looks would be in the second one's answer.
        going = [pod for pod in guide.stack.api.list("Pod", guide.instance(build).project) if "deletionTimestamp" in pod["metadata"]]
        last.append(guide.seen(build))
        return not going and len(last) > 1 and last[-1] == last[-2]

    wait_until(still, f"{build} to settle", 90, pause=1)
    return last[-1]


def others(build: str) -> list[str]:
    return [other for other in BUILDS if other != build]


def test_each_has_a_project_host_database_registration_and_branch_of_its_own() -> None:
    instances = [load(ROOT / "instances" / f"{build}.toml") for build in BUILDS]
    local = [load(ROOT / "instances" / f"{build}.toml", "local", FACTS) for build in BUILDS]
    assert {found.name: found.source.branch for found in local} == BRANCHES
    for of in (lambda i: i.project, lambda i: i.host, lambda i: i.database.instance, lambda i: (i.database.host, i.database.port),
               lambda i: i.sso.identifier, lambda i: i.source.branch):
        assert len({of(instance) for instance in instances}) == len(BUILDS)


BRANCHES = {"dev": "develop", "training": "training", "production": "main"}
"""What each instance builds on the stack."""


def test_each_is_deployed_by_a_policy_of_its_own(three: Guide) -> None:
    instances = {build: three.instance(build) for build in BUILDS}
    policies = {build: (found.deploy.when, found.deploy.ask, found.deploy.backup) for build, found in instances.items()}
    assert policies["dev"] == ("", "", False)
    assert len(set(policies.values())) == len(BUILDS)
    for build in ("training", "production"):
        number = len(three.stack.api.list("Build", instances[build].project))
        asked = three("deploy.build", f"--build={build}", "--target=local", "--again", code=75).stderr
        assert instances[build].deploy.when in asked and instances[build].deploy.ask in asked
        assert len(three.stack.api.list("Build", instances[build].project)) == number


def test_history_without_a_build_says_which_commit_runs_where(three: Guide) -> None:
    def git(*words: str) -> str:
        done = subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@localhost", "-C",
                               str(three.stack.state.git / "example.git"), *words], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    own = git("commit-tree", "refs/heads/training^{tree}", "-p", "refs/heads/training", "-m", "Only for trainees")
    git("update-ref", "refs/heads/training", own)
    run(three, "training", "guide.run")
    lines = [json.loads(line) for line in three("deploy.history", "--target=local", "--json").stdout.splitlines()]
    running = {line["instance"]: line["commit"] for line in lines if "runs" in line.get("", "")}
    assert running == {build: git("rev-parse", f"refs/heads/{branch}")[:8] for build, branch in BRANCHES.items()}
    assert running["training"] == own[:8] and own[:8] not in (running["dev"], running["production"])
    text = three("deploy.history", "--target=local").stdout.splitlines()
    assert [line.rpartition(" ")[2] for line in text if line.startswith("local · ")] == sorted(BUILDS)


def test_they_run_side_by_side_each_on_its_own_database_and_registration(three: Guide) -> None:
    identities = set()
    for build in BUILDS:
        instance = three.instance(build)
        status, text = three.web().request("GET", f"{instance.url}/database/")
        assert status == 200 and json.loads(text)["role"] == instance.database.role
        secret = three.stack.api.get("Secret", f"{instance.app}-sso", instance.project)
        identities.add(secret["data"]["CERN_SSO_REGISTRATION_CLIENT_SECRET"])
        assert three.sql(build, f"SELECT 1 FROM pg_database WHERE datname = '{instance.database.name}'")
    assert len(identities) == len(BUILDS)


@pytest.mark.parametrize(("build", "words"), [
    ("dev", ("environment.set", "--undo")), ("training", ("sso.secret", "--undo")), ("production", ("database.role", "--rotate"))])
def test_a_step_taken_back_or_renewed_and_a_whole_run_touch_no_other(three: Guide, build: str, words: tuple[str, ...]) -> None:
    before = {other: settled(three, other) for other in others(build)}
    place = three.audit_end()
    run(three, build, *words)
    run(three, build, "guide.run")
    assert {other: three.seen(other) for other in others(build)} == before
    written = three.writes(place)
    assert written
    project = three.instance(build).project
    assert [uri for uri in written if f"/namespaces/{project}/" not in uri] == []


def test_status_without_a_build_shows_all_and_a_broken_file_hides_none(three: Guide, tmp_path: Path) -> None:
    for path in (ROOT / "instances").glob("*.toml"):
        (tmp_path / path.name).write_text(path.read_text())
    said = three("guide.status", "--target=local", "--json", RUNBOOK_INSTANCES=str(tmp_path))
    found = [json.loads(line) for line in said.stdout.splitlines()]
    assert {(one["build"], one["step"]) for one in found} >= {(build, step.name) for build in BUILDS for step in RUNBOOK.standing}
    (tmp_path / "broken.toml").write_text("project = = 1\n")
    (tmp_path / "new.toml").write_text((ROOT / "instances" / "dev.toml").read_text().replace("dev-certhelper", "new-certhelper"))
    said = three("guide.status", "--target=local", code=1, RUNBOOK_INSTANCES=str(tmp_path)).stdout
    assert len([line for line in said.splitlines() if line.startswith("broken: cannot be looked at") and "broken.toml:1" in line]) == 1
    assert [line.rpartition(" ")[2] for line in said.splitlines() if line.startswith("local · ")] == ["dev", "new", "production", "training"]
    for name in ("broken", "dev"):
        (tmp_path / f"{name}.toml").unlink()
    # Where to go is not guessed: those that do not say are one line each.
    said = three("guide.status", code=1, RUNBOOK_INSTANCES=str(tmp_path)).stdout
    assert {line.partition(":")[0] for line in said.splitlines() if "does not say where to go" in line} == {"production", "training"}
    for name in ("production", "training"):
        (tmp_path / f"{name}.toml").unlink()
    three("guide.status", "--target=local", code=3, RUNBOOK_INSTANCES=str(tmp_path))  # `new` is still to be set up


def test_everything_of_one_taken_back_leaves_the_others_running(three: Guide) -> None:
    before = {other: settled(three, other) for other in others("training")}
    assert len(RUNBOOK.standing) > 5
    run(three, "training", "guide.undo", "--data")
    assert {other: three.seen(other) for other in others("training")} == before
    for other in others("training"):
        assert three.web().request("GET", f"{three.instance(other).url}/")[0] == 200


@pytest.mark.parametrize(("kind", "name"), [("Service", "redis"), ("ResourceQuota", "default")])
def test_a_write_to_another_instance_would_be_seen(three: Guide, kind: str, name: str) -> None:
    before, contents = settled(three, "dev"), three.snapshot("dev")
    project = three.instance("dev").project
    three.stack.api.patch(kind, name, {"metadata": {"annotations": {"seen": "yes"}}}, project)
    assert three.seen("dev") != before
    assert three.snapshot("dev") != contents
    three.stack.api.patch(kind, name, {"metadata": {"annotations": {"seen": None}}}, project)
    assert three.snapshot("dev") == contents, "the same words are the same, whoever wrote them and when"


def test_a_membership_that_somebody_else_gives_would_be_seen(three: Guide) -> None:
    before, db = settled(three, "dev"), three.instance("dev").database
    three.sql("dev", "CREATE ROLE passing")
    three.sql("dev", f'GRANT passing TO "{db.role}"')
    assert ("passing", db.role) in three.seen("dev")["members"]
    three.sql("dev", "DROP ROLE passing")
    assert three.seen("dev") == before


def test_a_file_of_eos_that_changed_would_be_seen(three: Guide) -> None:
    before, file = three.snapshot("dev")["files"], three.stack.state.eos / "project/t/tkdqmdoc/welcome.txt"
    kept = file.read_text()
    file.write_text(kept.swapcase())
    assert three.snapshot("dev")["files"] != before
    file.write_text(kept)
    assert three.snapshot("dev")["files"] == before
