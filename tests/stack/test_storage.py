"""Volumes for claims: made, shared or not, and removed with their claim."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from stack.api import Api, Manifest, wait_until

pytestmark = pytest.mark.needs("cluster", "storage", "eos")


@pytest.fixture
def namespace(stack: Any) -> Iterator[str]:
    name = f"storage-{secrets.token_hex(3)}"
    stack.api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield name
    stack.api.delete("Namespace", name)


def claim(api: Api, namespace: str, name: str, kind: str) -> None:
    api.create({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": namespace},
                "spec": {"storageClassName": kind, "accessModes": ["ReadWriteMany"],
                         "resources": {"requests": {"storage": "1Gi"}}}})


def bound(api: Api, namespace: str, name: str) -> Manifest:
    def look() -> Manifest | None:
        found = api.get("PersistentVolumeClaim", name, namespace)
        return found if found and found["status"].get("phase") == "Bound" else None
    found: Manifest = wait_until(look, f"claim {name} to be bound")
    return api.get("PersistentVolume", found["spec"]["volumeName"]) or {}


def test_claims_of_eos_share_one_folder(stack: Any, namespace: str) -> None:
    for name in ("first", "second"):
        claim(stack.api, namespace, name, "eos")
    paths = {bound(stack.api, namespace, name)["spec"]["hostPath"]["path"] for name in ("first", "second")}
    assert paths == {str(stack.state.eos)}
    (stack.state.eos / namespace).write_text("kept")
    stack.api.delete("PersistentVolumeClaim", "first", namespace)
    wait_until(lambda: not stack.api.get("PersistentVolumeClaim", "first", namespace), "the claim to go")
    assert (stack.state.eos / namespace).read_text() == "kept"
    (stack.state.eos / namespace).unlink()


@pytest.mark.parametrize("kind", ["cephfs", "standard"])
def test_another_claim_has_its_own_folder_which_goes_with_it(stack: Any, namespace: str, kind: str) -> None:
    claim(stack.api, namespace, "data", kind)
    volume = bound(stack.api, namespace, "data")
    folder = stack.state.volumes / volume["metadata"]["name"]
    assert volume["spec"]["hostPath"]["path"] == str(folder)
    assert volume["metadata"]["annotations"]["pv.kubernetes.io/provisioned-by"]
    (folder / "file").write_text("data")
    stack.api.delete("PersistentVolumeClaim", "data", namespace)
    wait_until(lambda: not folder.exists(), "the folder to go")
    wait_until(lambda: not stack.api.get("PersistentVolume", folder.name), "the volume to go")


def test_a_claim_of_an_unknown_class_stays_and_says_why(stack: Any, namespace: str) -> None:
    claim(stack.api, namespace, "odd", "no-such-class")

    def told() -> bool:
        return any("no-such-class" in event["message"] for event in stack.api.list(
            "Event", namespace, fieldSelector="involvedObject.name=odd"))
    wait_until(told, "the event")
    assert stack.api.get("PersistentVolumeClaim", "odd", namespace)["status"]["phase"] == "Pending"


def test_a_pod_waits_for_its_claim(stack: Any, namespace: str) -> None:
    wait_until(lambda: stack.api.get("ServiceAccount", "default", namespace), "the service account")
    stack.api.create({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "early", "namespace": namespace}, "spec": {
        "restartPolicy": "Never", "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "late"}}],
        "containers": [{"name": "c", "image": "quay.io/sclorg/python-312-c9s:latest",
                        "command": ["sh", "-c", "echo kept >/data/file"],
                        "volumeMounts": [{"name": "v", "mountPath": "/data"}]}]}})

    def condition() -> str:
        pod = stack.api.get("Pod", "early", namespace)
        return str([each.get("message") for each in pod["status"].get("conditions", [])])
    wait_until(lambda: 'persistentvolumeclaim "late" not found' in condition(), "the reason")
    claim(stack.api, namespace, "late", "cephfs")
    volume = bound(stack.api, namespace, "late")
    file = stack.state.volumes / volume["metadata"]["name"] / "file"
    wait_until(lambda: file.exists() and file.read_text() == "kept\n", "the pod to write")
