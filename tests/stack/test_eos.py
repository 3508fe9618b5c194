"""EOS on the stack: seen by who logs in, hidden from who does not, and as badly behaved as a test wants it."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from stack import binaries, eos
from stack.api import Manifest, wait_until

pytestmark = pytest.mark.needs("cluster", "node", "eos")

IMAGE = "quay.io/sclorg/python-312-c9s:latest"
FILE = f"/eos/{eos.WELCOME}"


@pytest.fixture
def namespace(stack: Any) -> Iterator[str]:
    name = f"eos-{secrets.token_hex(3)}"
    stack.api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    wait_until(lambda: stack.api.get("ServiceAccount", "default", name), "the service account")
    stack.api.create({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "v", "namespace": name},
                      "spec": {"storageClassName": "eos", "accessModes": ["ReadWriteMany"],
                               "resources": {"requests": {"storage": "1"}}}})
    yield name
    stack.state.path("eos.json").unlink(missing_ok=True)
    stack.api.delete("Namespace", name)


@pytest.fixture
def account(stack: Any) -> Iterator[tuple[str, str]]:
    name = f"a{secrets.token_hex(3)}"
    yield name, eos.set_password(stack.state, name)
    eos.remove_account(stack.state, name)


def secret(stack: Any, namespace: str, **values: str) -> None:
    data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    stack.api.create({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "creds", "namespace": namespace}, "data": data})


def pod(stack: Any, namespace: str, name: str = "p", *, asks: bool = True, propagation: bool = True, **container: Any) -> Manifest:
    mount = {"name": "v", "mountPath": "/eos"} | ({"mountPropagation": "HostToContainer"} if propagation else {})
    stack.api.create({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "annotations": {eos.ANNOTATION: "creds"} if asks else {}},
        "spec": {"terminationGracePeriodSeconds": 1, "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "v"}}],
                 "containers": [{"name": "c", "image": IMAGE, "volumeMounts": [mount],
                                 "command": ["sh", "-c", "trap exit TERM; sleep 600 & wait"], **container}]}})

    def running() -> bool:
        found = stack.api.get("Pod", name, namespace) or {}
        return found.get("status", {}).get("phase") == "Running"

    wait_until(running, "the pod to run")
    return stack.api.get("Pod", name, namespace)


def inside(stack: Any, namespace: str, *command: str, name: str = "p") -> tuple[int, str]:
    done = stack.run(str(binaries.find("kubectl").path), "exec", "-n", namespace, name, "-c", "c", "--", *command,
                     KUBECONFIG=str(admin(stack)))
    return done.returncode, done.stdout + done.stderr


def admin(stack: Any) -> Any:
    """Write a kubeconfig of the cluster's administrator: these namespaces belong to no member."""
    path = stack.state.path("run", "admin.kubeconfig")
    cluster = {"server": stack.state.server, "certificate-authority": str(stack.state.ca)}
    return stack.state.write(str(path.relative_to(stack.state.root)), json.dumps({
        "apiVersion": "v1", "kind": "Config", "current-context": "a", "clusters": [{"name": "a", "cluster": cluster}],
        "users": [{"name": "a", "user": {"token": stack.state.tokens.admin}}],
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}]}))


def log(stack: Any, namespace: str) -> str:
    done = stack.run(str(binaries.find("kubectl").path), "logs", "-n", namespace, "p", "-c", eos.SIDECAR,
                     KUBECONFIG=str(admin(stack)))
    return done.stdout


def sees(stack: Any, namespace: str, *, name: str = "p") -> bool:
    return inside(stack, namespace, "cat", FILE, name=name) == (0, "This file lies in EOS.\n")


@pytest.mark.parametrize("keys", [("KEYTAB_USER", "KEYTAB_PWD"), ("keytab-user", "keytab-pwd")])
def test_a_pod_with_the_annotation_is_logged_in(stack: Any, namespace: str, account: tuple[str, str], keys: tuple[str, str]) -> None:
    secret(stack, namespace, **dict(zip(keys, account, strict=True)))
    made = pod(stack, namespace)
    assert [each["name"] for each in made["spec"]["containers"]] == ["c", eos.SIDECAR]
    wait_until(lambda: sees(stack, namespace), "the file")
    assert inside(stack, namespace, "sh", "-c", "echo written > /eos/project/t/tkdqmdoc/by-test")[0] == 0
    written = stack.state.eos / "project/t/tkdqmdoc/by-test"
    assert written.read_text() == "written\n"
    written.unlink()
    assert log(stack, namespace) == f"logged in as {account[0]}\n"


def test_an_empty_folder_lies_over_tmp_unless_the_container_has_its_own(stack: Any, namespace: str, account: tuple[str, str]) -> None:
    secret(stack, namespace, KEYTAB_USER=account[0], KEYTAB_PWD=account[1])
    made = pod(stack, namespace)
    mounts = {mount["mountPath"]: mount["name"] for mount in made["spec"]["containers"][0]["volumeMounts"]}
    assert mounts["/tmp"] == eos.TMP
    own = [{"name": "v", "mountPath": "/tmp"}]
    other = pod(stack, namespace, "own", volumeMounts=own)
    assert [m["name"] for m in other["spec"]["containers"][0]["volumeMounts"] if m["mountPath"] == "/tmp"] == ["v"]


def test_without_annotation_eos_is_an_empty_folder(stack: Any, namespace: str) -> None:
    made = pod(stack, namespace, asks=False)
    assert len(made["spec"]["containers"]) == 1
    assert inside(stack, namespace, "ls", "/eos") == (0, "")


@pytest.mark.parametrize(("wrong", "said"), [("password", "Preauthentication failed"), ("user", "not found in Kerberos database")])
def test_wrong_credentials_show_nothing_and_say_why(stack: Any, namespace: str, account: tuple[str, str], wrong: str,
                                                    said: str) -> None:
    user, password = ("stranger", account[1]) if wrong == "user" else (account[0], "canary-wrong")
    secret(stack, namespace, KEYTAB_USER=user, KEYTAB_PWD=password)
    pod(stack, namespace)
    wait_until(lambda: said in log(stack, namespace), "the answer")
    code, text = inside(stack, namespace, "stat", FILE)
    assert code != 0 and "No such file or directory" in text
    assert "canary-wrong" not in log(stack, namespace)


def test_what_is_mounted_later_needs_propagation(stack: Any, namespace: str, account: tuple[str, str]) -> None:
    secret(stack, namespace, KEYTAB_USER=account[0], KEYTAB_PWD=account[1])
    stack.state.write_json("eos.json", {"absent": True})
    pod(stack, namespace)
    pod(stack, namespace, "deaf", propagation=False)
    assert not sees(stack, namespace)
    stack.state.path("eos.json").unlink()
    wait_until(lambda: sees(stack, namespace), "the file")
    assert not sees(stack, namespace, name="deaf")
    stack.state.write_json("eos.json", {"absent": True})
    wait_until(lambda: not sees(stack, namespace), "EOS to go")


def test_a_slow_eos_holds_back_what_names_it(stack: Any, namespace: str, account: tuple[str, str]) -> None:
    secret(stack, namespace, KEYTAB_USER=account[0], KEYTAB_PWD=account[1])
    stack.state.write_json("eos.json", {"slow": 30})
    probe = {"exec": {"command": ["stat", FILE]}, "timeoutSeconds": 1, "periodSeconds": 1, "failureThreshold": 100}
    pod(stack, namespace, startupProbe=probe)

    def told() -> bool:
        return any("timed out" in event["message"] for event in stack.api.list(
            "Event", namespace, fieldSelector="involvedObject.name=p"))

    wait_until(told, "the probe to time out")
    assert inside(stack, namespace, "true") == (0, "")
    stack.state.path("eos.json").unlink()
    wait_until(lambda: sees(stack, namespace), "the file")


def test_a_pod_leaves_no_mount_and_takes_no_file_with_it(stack: Any, namespace: str, account: tuple[str, str]) -> None:
    secret(stack, namespace, KEYTAB_USER=account[0], KEYTAB_PWD=account[1])
    made = pod(stack, namespace)
    wait_until(lambda: sees(stack, namespace), "the file")
    view = stack.state.path("run", "eos", made["metadata"]["uid"])
    assert view.exists()
    stack.api.delete("Pod", "p", namespace)
    wait_until(lambda: not view.exists(), "the view to go")
    assert (stack.state.eos / eos.WELCOME).read_text() == "This file lies in EOS.\n"
