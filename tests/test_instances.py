"""dev, training and production side by side on one stack: what is done for one is not seen by the others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from procedures import RUNBOOK
from runbook.instance import load
from stack.api import wait_until
from tests.guide import Guide

ROOT = Path(__file__).parent.parent
BUILDS = ("dev", "training", "production")
KINDS = ("Secret", "ConfigMap", "Service", "Deployment", "ReplicaSet", "Pod", "PersistentVolumeClaim", "ServiceAccount", "Role",
         "RoleBinding", "CronJob", "Job", "BuildConfig", "Build", "ImageStream", "Route", "OidcReturnURI", "Lease")


@pytest.fixture(scope="module")
def three(guide: Guide) -> Iterator[Guide]:
    """All three instances, deployed."""
    for build in BUILDS:
        run(guide, build, "guide.run")
    yield guide
    for build in ("production", "training"):  # dev is left to the tests that share it
        run(guide, build, "guide.undo", "--data")


def run(guide: Guide, build: str, *words: str, code: int = 0) -> str:
    done = guide(words[0], f"--build={build}", "--target=local", *words[1:], "--yes", code=code)
    return str(done.stdout)


def seen(guide: Guide, build: str) -> dict[str, Any]:
    """Return all that an instance is made of, each object with its resourceVersion: a write that changed nothing shows too."""
    instance = guide.instance(build)
    objects = {f"{kind} {item['metadata']['name']}": item["metadata"]["resourceVersion"]
               for kind in KINDS for item in guide.stack.api.list(kind, instance.project)}
    token = {"Authorization": f"Bearer {guide.stack.state.tokens.member}"}
    registration = guide.web().request("GET", f"{guide.facts['portal']}/registrations/{instance.sso.identifier}", headers=token)
    return {"objects": objects, "project": guide.stack.api.get("Namespace", instance.project)["metadata"]["resourceVersion"],
            "registration": registration,
            "roles": guide.sql(build, "SELECT rolname, rolconfig::text, rolcanlogin FROM pg_roles ORDER BY 1"),
            "members": guide.sql(build, "SELECT roleid, member FROM pg_auth_members ORDER BY 1, 2"),
            "databases": guide.sql(build, "SELECT datname, datdba FROM pg_database ORDER BY 1")}


def settled(guide: Guide, build: str) -> dict[str, Any]:
    """Return what an instance is made of once its own roll-out has ended and nothing moves any more."""
    last: list[dict[str, Any]] = []

    def still() -> bool:
        last.append(seen(guide, build))
        going = [pod for pod in guide.stack.api.list("Pod", guide.instance(build).project) if "deletionTimestamp" in pod["metadata"]]
        return not going and len(last) > 1 and last[-1] == last[-2]

    wait_until(still, f"{build} to settle", 90, pause=1)
    return last[-1]


def others(build: str) -> list[str]:
    return [other for other in BUILDS if other != build]


def test_each_has_a_project_host_database_registration_and_branch_of_its_own() -> None:
    instances = [load(ROOT / "instances" / f"{build}.toml") for build in BUILDS]
    for of in (lambda i: i.project, lambda i: i.host, lambda i: i.database.instance, lambda i: (i.database.host, i.database.port),
               lambda i: i.sso.identifier, lambda i: i.source.branch):
        assert len({of(instance) for instance in instances}) == len(BUILDS)


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
    assert {other: seen(three, other) for other in others(build)} == before
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
    (tmp_path / "broken.toml").unlink()
    three("guide.status", "--target=local", code=3, RUNBOOK_INSTANCES=str(tmp_path))  # `new` is still to be set up
    # Where to go is not guessed: those that do not say are one line each.
    said = three("guide.status", code=1, RUNBOOK_INSTANCES=str(tmp_path)).stdout
    assert {line.partition(":")[0] for line in said.splitlines() if "does not say where to go" in line} == {"production", "training"}


def test_everything_of_one_taken_back_leaves_the_others_running(three: Guide) -> None:
    before = {other: settled(three, other) for other in others("training")}
    assert len(RUNBOOK.standing) > 5
    run(three, "training", "guide.undo", "--data")
    assert {other: seen(three, other) for other in others("training")} == before
    for other in others("training"):
        assert three.web().request("GET", f"{three.instance(other).url}/")[0] == 200


def test_a_write_to_another_instance_would_be_seen(three: Guide) -> None:
    before = settled(three, "dev")
    project = three.instance("dev").project
    three.stack.member.patch("Service", "redis", {"metadata": {"annotations": {"seen": "yes"}}}, project)
    assert seen(three, "dev") != before
    three.stack.member.patch("Service", "redis", {"metadata": {"annotations": {"seen": None}}}, project)
