"""The stack's only client of the Kubernetes API: JSON over one urllib3 pool, and a watch that survives restarts.

The guide itself uses the `kubernetes` package; the parts of the stack run all the time and must stay small.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import urllib3

Manifest = dict[str, Any]

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"

GROUPS: dict[str, str] = {
    "Deployment": "apis/apps/v1", "ReplicaSet": "apis/apps/v1", "DeploymentConfig": "apis/apps.openshift.io/v1",
    "CronJob": "apis/batch/v1", "Job": "apis/batch/v1",
    "BuildConfig": "apis/build.openshift.io/v1", "Build": "apis/build.openshift.io/v1",
    "ImageStream": "apis/image.openshift.io/v1", "Template": "apis/template.openshift.io/v1",
    "Route": "apis/route.openshift.io/v1",
    "ClusterRole": "apis/rbac.authorization.k8s.io/v1", "ClusterRoleBinding": "apis/rbac.authorization.k8s.io/v1",
    "Role": "apis/rbac.authorization.k8s.io/v1", "RoleBinding": "apis/rbac.authorization.k8s.io/v1",
    "StorageClass": "apis/storage.k8s.io/v1", "Lease": "apis/coordination.k8s.io/v1",
    "EndpointSlice": "apis/discovery.k8s.io/v1", "CustomResourceDefinition": "apis/apiextensions.k8s.io/v1",
    "MutatingAdmissionPolicy": "apis/admissionregistration.k8s.io/v1beta1",
    "MutatingAdmissionPolicyBinding": "apis/admissionregistration.k8s.io/v1beta1",
    "ValidatingAdmissionPolicy": "apis/admissionregistration.k8s.io/v1",
    "ValidatingAdmissionPolicyBinding": "apis/admissionregistration.k8s.io/v1",
    "OidcReturnURI": "apis/webservices.cern.ch/v1alpha1",
}
"""Where the kinds live that are not in the core group."""

PLURALS = {"EndpointSlice": "endpointslices", "StorageClass": "storageclasses", "Endpoints": "endpoints",
           "MutatingAdmissionPolicy": "mutatingadmissionpolicies",
           "ValidatingAdmissionPolicy": "validatingadmissionpolicies", "OidcReturnURI": "oidcreturnuris"}


class ApiError(Exception):
    """The API server refused: `status` is the HTTP status, `reason` the machine-readable word, the text its message."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status, self.reason, self.message = status, reason, message


class Unreachable(ApiError):
    """Nothing answered at the server's address, or it is still starting."""


def collection(kind: str, namespace: str | None) -> str:
    """Return the path of a kind's collection, in one namespace or everywhere."""
    plural = PLURALS.get(kind, kind.lower() + "s")
    where = f"/namespaces/{namespace}" if namespace else ""
    return f"/{GROUPS.get(kind, 'api/v1')}{where}/{plural}"


class Api:
    """One connection to the API server as one user."""

    def __init__(self, server: str, token: str, ca: Path) -> None:
        self.server = server
        self._pool = urllib3.PoolManager(ca_certs=str(ca), maxsize=16, retries=False)
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def request(self, method: str, path: str, body: object = None, *, content: str = "application/json",
                query: Mapping[str, str] | None = None, timeout: float = 30) -> Any:
        """Send one request and return the JSON it answered.

        Raises Unreachable when nothing answered or the server is starting (503, 429), else ApiError.
        """
        headers = self._headers | {"Content-Type": content}
        try:
            answer = self._pool.request(method, self.server + path + _query(query), headers=headers, timeout=timeout,
                                        body=None if body is None else json.dumps(body).encode())
        except urllib3.exceptions.HTTPError as error:
            raise Unreachable(0, "Unreachable", f"{self.server} does not answer: {error}") from error
        if answer.status >= 400:
            raise _refusal(answer.status, answer.data)
        return json.loads(answer.data) if answer.data[:1] in (b"{", b"[") else answer.data.decode()

    def get(self, kind: str, name: str, namespace: str | None = None) -> Manifest | None:
        """Return an object, or None when there is none of that name."""
        try:
            found: Manifest = self.request("GET", f"{collection(kind, namespace)}/{name}")
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        return found

    def list(self, kind: str, namespace: str | None = None, **query: str) -> list[Manifest]:
        """Return the objects of a kind; `query` takes labelSelector and fieldSelector."""
        items: list[Manifest] = self.request("GET", collection(kind, namespace), query=query)["items"]
        return items

    def create(self, manifest: Manifest) -> Manifest:
        """Create an object; raises ApiError 409 when it exists."""
        made: Manifest = self.request("POST", collection(manifest["kind"], _namespace(manifest)), manifest)
        return made

    def apply(self, manifest: Manifest, manager: str) -> Manifest:
        """Apply an object server-side under a field manager, taking over fields of others."""
        path = f"{collection(manifest['kind'], _namespace(manifest))}/{manifest['metadata']['name']}"
        query = {"fieldManager": manager, "force": "true"}
        applied: Manifest = self.request("PATCH", path, manifest, content=APPLY, query=query)
        return applied

    def patch(self, kind: str, name: str, patch: object, namespace: str | None = None, *, subresource: str = "",
              manager: str = "stack", content: str = MERGE) -> Manifest:
        """Patch an object, or its status with `subresource="status"`."""
        path = f"{collection(kind, namespace)}/{name}" + (f"/{subresource}" if subresource else "")
        patched: Manifest = self.request("PATCH", path, patch, content=content, query={"fieldManager": manager})
        return patched

    def delete(self, kind: str, name: str, namespace: str | None = None, body: object = None) -> bool:
        """Delete an object; return whether there was one."""
        try:
            self.request("DELETE", f"{collection(kind, namespace)}/{name}", body)
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True

    def watch(self, kind: str, namespace: str | None = None, *, stop: threading.Event | None = None,
              **query: str) -> Iterator[tuple[str, Manifest]]:
        """Yield what exists and then every change, for ever, as (event, object).

        The events are ADDED, MODIFIED and DELETED. After a lost connection everything is listed again: objects that
        are still there come as ADDED once more, those that went meanwhile as DELETED, so a reader that keeps a
        dictionary stays true. After each complete listing comes ("SYNCED", {}). Raises ApiError on 401 and 403.
        """
        known: dict[str, Manifest] = {}
        pause = 0.1
        while stop is None or not stop.is_set():
            try:
                path = collection(kind, namespace)
                listing = self.request("GET", path, query=query)
                found = {item["metadata"]["uid"]: item for item in listing["items"]}
                for uid in [uid for uid in known if uid not in found]:
                    yield "DELETED", known.pop(uid)
                for uid, item in found.items():
                    item.setdefault("kind", kind)
                    known[uid] = item
                    yield "ADDED", item
                yield "SYNCED", {}
                pause = 0.1
                version = listing["metadata"]["resourceVersion"]
                while stop is None or not stop.is_set():
                    for event in self._stream(path, version, query):
                        if event["type"] == "ERROR":
                            raise Unreachable(event["object"].get("code", 410), "Expired", "the watch expired")
                        item = event["object"]
                        version = item["metadata"]["resourceVersion"]
                        if event["type"] == "BOOKMARK":
                            continue
                        if event["type"] == "DELETED":
                            known.pop(item["metadata"]["uid"], None)
                        else:
                            known[item["metadata"]["uid"]] = item
                        yield event["type"], item
            except ApiError as error:
                if error.status in (401, 403):
                    raise
                (stop.wait if stop else time.sleep)(pause)
                pause = min(pause * 2, 2)

    def _stream(self, path: str, version: str, query: Mapping[str, str]) -> Iterator[Manifest]:
        """Yield the events of one watch request, at most 50 s of them."""
        asked = {**query, "watch": "true", "resourceVersion": version, "timeoutSeconds": "50",
                 "allowWatchBookmarks": "true"}
        try:
            answer = self._pool.request("GET", self.server + path + _query(asked), headers=self._headers,
                                        preload_content=False, timeout=urllib3.Timeout(connect=10, read=60))
            with answer:
                if answer.status >= 400:
                    raise _refusal(answer.status, answer.read())
                rest = b""
                for chunk in answer.stream(65536):
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        if line.strip():
                            yield json.loads(line)
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            raise Unreachable(0, "Unreachable", f"the watch of {path} ended: {error}") from error


def wait_until(condition: Callable[[], object], what: str, seconds: float = 60, pause: float = 0.05) -> Any:
    """Call `condition` until it returns something true and return that.

    The longer it has waited, the longer is the `pause` before it looks again: a twentieth of that time, at most a second.
    Raises TimeoutError that says `what` was waited for and what was seen last.
    """
    begun = time.monotonic()
    while True:
        last = condition()
        if last:
            return last
        waited = time.monotonic() - begun
        if waited > seconds:
            raise TimeoutError(f"waited {seconds:g} s for {what}; last seen: {last!r}")
        time.sleep(max(pause, min(waited / 20, 1)))


def _namespace(manifest: Manifest) -> str | None:
    named: str | None = manifest["metadata"].get("namespace")
    return named


def _query(query: Mapping[str, str] | None) -> str:
    return "?" + urllib.parse.urlencode(query) if query else ""


def _refusal(status: int, data: bytes) -> ApiError:
    try:
        answer = json.loads(data)
        reason, message = answer.get("reason", ""), answer.get("message", "")
    except ValueError:
        reason, message = "", data.decode(errors="replace").strip()[:500]
    return (Unreachable if status in (429, 503) else ApiError)(status, reason, message)
