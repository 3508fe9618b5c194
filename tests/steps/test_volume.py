"""The shared volume on the stack: two pods see one file, and it stays until somebody says otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from stack.api import wait_until
from tests.guide import Site

pytestmark = pytest.mark.needs("cluster", "database", "databases", "redis", "portal", "sign-on", "node", "builder", "router", "storage")


@pytest.fixture(scope="module")
def shared(site: Site) -> Iterator[Site]:
    """The site with a shared volume; afterwards without it."""
    site.change({"volume": {"mount": "/shared"}})
    site("volume.share")
    yield site
    site("volume.share", "--undo", "--data", "--yes")
    site.change({"volume": None})


def claim(site: Site) -> Any:
    return site.guide.stack.api.get("PersistentVolumeClaim", "shared", site.instance.project)


@pytest.mark.fault(14, 15)
def test_two_pods_see_one_file(shared: Site) -> None:
    project = shared.instance.project
    shared.guide.stack.member.create({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "neighbour", "namespace": project},
        "spec": {"terminationGracePeriodSeconds": 0, "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "shared"}}],
                 "containers": [{"name": "c", "image": "quay.io/sclorg/python-312-c9s:latest", "command": ["sleep", "600"],
                                 "volumeMounts": [{"name": "v", "mountPath": "/there"}]}]}})

    def running() -> bool:
        return bool(shared.guide.stack.api.get("Pod", "neighbour", project)["status"].get("phase") == "Running")

    wait_until(running, "the neighbour")
    shared.inside(f"deployment/{shared.instance.app}", "sh", "-c", "echo from-the-app > /shared/file")
    assert shared.inside("neighbour", "cat", "/there/file") == "from-the-app\n"
    shared.inside("neighbour", "sh", "-c", "echo from-the-neighbour > /there/file")
    assert shared.inside(f"deployment/{shared.instance.app}", "cat", "/shared/file") == "from-the-neighbour\n"
    shared.guide.stack.member.delete("Pod", "neighbour", project)
    wait_until(lambda: shared.guide.stack.api.get("Pod", "neighbour", project) is None, "the neighbour to go")


def test_the_claim_is_as_wanted_and_a_second_run_changes_nothing(shared: Site) -> None:
    spec = claim(shared)["spec"]
    assert (spec["accessModes"], spec["resources"]["requests"]["storage"]) == (["ReadWriteMany"], "1Gi")
    place = shared.guide.audit_end()
    assert shared.outcomes("volume.share")["volume.share"]["state"] == "unchanged"
    assert shared.guide.writes(place) == []


def test_undo_keeps_the_files_unless_data_is_said(shared: Site) -> None:
    shared.inside(f"deployment/{shared.instance.app}", "sh", "-c", "echo kept > /shared/kept")
    done = shared("volume.share", "--undo")
    assert "kept, it holds data" in done.stdout
    assert shared.outcomes("guide.status", code=3)["volume.share"]["state"] == "drifted"
    uid = claim(shared)["metadata"]["uid"]
    assert shared.outcomes("volume.share")["volume.share"]["state"] == "changed"
    assert claim(shared)["metadata"]["uid"] == uid
    assert shared.inside(f"deployment/{shared.instance.app}", "cat", "/shared/kept") == "kept\n"
    shared("volume.share", "--undo", "--data", code=75)
    assert claim(shared)
    shared("volume.share", "--undo", "--data", "--yes")
    assert claim(shared) is None
    shared("volume.share")


@pytest.mark.parametrize(("changes", "code", "said"), [
    ({"size": "1"}, 2, "volume.size must be at least 1Mi and have a unit, found '1'"),
    ({"storage_class": "nfs"}, 1, "the cluster offers cephfs, cephfs-no-backup, eos, standard"),
])
def test_what_cannot_be_is_refused_before_anything_is_done(shared: Site, changes: dict[str, str], code: int, said: str) -> None:
    shared.change({"volume": changes})
    place = shared.guide.audit_end()
    done = shared("volume.share", code=code)
    assert said in done.stderr
    assert shared.guide.writes(place) == []
    shared.change({"volume": dict.fromkeys(changes)})
