"""A namespace of a test's own on a stack, in which it runs pods."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

from stack import binaries
from stack.api import Api, Manifest, wait_until
from stack.state import MEMBER, State

IMAGE = "quay.io/sclorg/python-312-c9s:latest"


class Project:
    """A namespace of its own, its member's kubectl, and shorthands to run pods in it."""

    def __init__(self, state: State, api: Api, name: str) -> None:
        self.state, self.api, self.name = state, api, name
        api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        api.create({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
                    "metadata": {"name": "admin", "namespace": name},
                    "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": MEMBER}],
                    "roleRef": {"kind": "ClusterRole", "apiGroup": "rbac.authorization.k8s.io", "name": "admin"}})
        # Pods are refused until the controllers have made the account that they run as.
        wait_until(lambda: api.get("ServiceAccount", "default", name), "the default service account")

    def create(self, kind: str, name: str, spec: Manifest | None = None, **more: Any) -> Manifest:
        group = {"Deployment": "apps/v1", "Job": "batch/v1"}.get(kind, "v1")
        manifest = {"apiVersion": group, "kind": kind, "metadata": {"name": name, "namespace": self.name}, **more}
        return self.api.create(manifest | ({"spec": spec} if spec else {}))

    def pod(self, name: str, code: str = "import time; time.sleep(600)", *, container: Manifest | None = None,
            **spec: Any) -> Manifest:
        return self.create("Pod", name, pod_spec(code, container, **spec))

    def get(self, name: str) -> Manifest:
        return self.api.get("Pod", name, self.name) or {}

    def container(self, name: str) -> Manifest:
        return (self.get(name).get("status", {}).get("containerStatuses") or [{}])[0]

    def until(self, name: str, condition: Callable[[Manifest], object], what: str, seconds: float = 30) -> Manifest:
        """Wait for a condition of the first container's status and return that status."""
        def holds() -> Manifest | None:
            found = self.container(name)
            return found if found and condition(found) else None
        try:
            found: Manifest = wait_until(holds, what, seconds)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; the status is {json.dumps(self.get(name).get('status'))}") from error
        return found

    def running(self, name: str) -> None:
        self.until(name, lambda each: each["ready"], f"pod {name} to be ready")

    def ended(self, name: str, phase: str = "Succeeded") -> str:
        """Wait for a pod's end and return its log."""
        try:
            wait_until(lambda: self.get(name).get("status", {}).get("phase") == phase, f"{name} to be {phase}")
        except TimeoutError as error:
            raise TimeoutError(f"{error}; {self.get(name).get('status')}; {self.kubectl('logs', name).stdout}") from error
        return self.kubectl("logs", name).stdout

    def kubectl(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [str(binaries.find("kubectl").path), f"--kubeconfig={self.state.kubeconfig}", "-n", self.name]
        return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60, check=False,
                              input=stdin, stdin=None if stdin is not None else subprocess.DEVNULL)

    def execute(self, pod: str, *argv: str) -> str:
        done = self.kubectl("exec", pod, "--", *argv)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def events(self, name: str) -> list[tuple[str, str]]:
        found = self.api.list("Event", self.name, fieldSelector=f"involvedObject.name={name}")
        return [(each["reason"], each["message"]) for each in found]


def pod_spec(code: str, container: Manifest | None = None, **spec: Any) -> Manifest:
    main = {"name": "main", "image": IMAGE, "command": ["python3", "-c", code], **(container or {})}
    return {"restartPolicy": "Never", "terminationGracePeriodSeconds": 2, "containers": [main], **spec}
