"""The cluster: the only module that imports `kubernetes`, which reads kubeconfigs and knows the ways of logging in.

Requests go over that client's own urllib3 pool, as JSON: server-side apply of any kind needs no class per kind, and no
discovery. Every request is counted, so that `bench` can list what a step costs.
"""

from __future__ import annotations

import importlib
import json
import re
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runbook.errors import Conflict, GuideError, Unknown, Unreachable
from runbook.plan import Condition, Manifest, Object
from runbook.unused import Unused, without

KINDS = {
    "Namespace": "api/v1", "Secret": "api/v1", "ConfigMap": "api/v1", "Service": "api/v1", "Pod": "api/v1",
    "PersistentVolumeClaim": "api/v1", "Event": "api/v1", "ServiceAccount": "api/v1",
    "ResourceQuota": "api/v1",
    "Deployment": "apis/apps/v1", "ReplicaSet": "apis/apps/v1", "CronJob": "apis/batch/v1", "Job": "apis/batch/v1",
    "DeploymentConfig": "apis/apps.openshift.io/v1",
    "Role": "apis/rbac.authorization.k8s.io/v1", "RoleBinding": "apis/rbac.authorization.k8s.io/v1",
    "BuildConfig": "apis/build.openshift.io/v1", "Build": "apis/build.openshift.io/v1",
    "ImageStream": "apis/image.openshift.io/v1", "Template": "apis/template.openshift.io/v1",
    "Route": "apis/route.openshift.io/v1", "Lease": "apis/coordination.k8s.io/v1",
    "OidcReturnURI": "apis/webservices.cern.ch/v1alpha1", "StorageClass": "apis/storage.k8s.io/v1",
}
"""The kinds that the guide speaks of, and where the API serves them."""

CLUSTER_WIDE = {"Namespace", "StorageClass"}


def _session(*given: Any, **named: Any) -> Any:
    """Stand in for the session that renews a log-in by OpenID Connect: few log-ins need one."""
    from requests_oauthlib import OAuth2Session

    return OAuth2Session(*given, **named)


LEFT_OUT: Mapping[str, Mapping[str, Any]] = {
    # Its classes for the answers of typed calls, which nothing here makes.
    "pydantic": {"__getattr__": lambda _name: Unused},
    "requests_oauthlib": {"OAuth2Session": _session},
    "oauthlib": {"__getattr__": lambda name: importlib.import_module(f"oauthlib.{name}")},
    "oauthlib.oauth2": {},
    **{f"kubernetes.{part}": {} for part in ("dynamic", "informer", "leaderelection", "stream", "watch")},
    "kubernetes.dynamic.client": {"DynamicClient": Unused},
}
"""What the library imports to read a kubeconfig and does not need for it: more than half of the time it takes."""

REVIEW = re.compile(r"/self\w*reviews$")
"""Questions to the server that are sent as a POST: who am I, what may I."""

STARTING = 10
"""Seconds that a server which says "not yet" (429, 503) is asked again."""


class Refused(GuideError):
    """The API server refused a request; `status` and `reason` are its own."""

    def __init__(self, status: int, reason: str, message: str, cure: str = "") -> None:
        super().__init__(message, cure)
        self.status, self.reason = status, reason


class Cluster:
    """The API server as one user sees it, and one project in it."""

    def __init__(self, project: str, kubeconfig: Path | None = None,
                 before_write: Callable[[], None] = lambda: None) -> None:
        with without(LEFT_OUT):
            from kubernetes.config import kube_config

        try:
            client = kube_config.new_client_from_config(str(kubeconfig) if kubeconfig else None)
        except Exception as error:
            raise GuideError(f"no log-in to a cluster: {error}",
                             "log in first: `oc login --web --server=https://api.paas.okd.cern.ch:443`") from error
        self.project = project
        self.server: str = client.configuration.host.rstrip("/")
        self.counted: Counter[str] = Counter()
        self.seconds = 0.0
        self.before_write = before_write
        """Called before every request that stores something."""
        self._client = client
        self._pool = client.rest_client.pool_manager

    def path(self, wanted: Object) -> str:
        """Return the path of an object."""
        return f"{self.collection(wanted.kind, wanted.namespace)}/{wanted.name}"

    def collection(self, kind: str, namespace: str = "") -> str:
        """Return the path of a kind's objects, in the project unless another namespace is named."""
        where = "" if kind in CLUSTER_WIDE else f"/namespaces/{namespace or self.project}"
        plural = kind.lower() + ("es" if kind.endswith("s") else "s")
        return f"/{KINDS[kind]}{where}/{plural}"

    def request(self, method: str, path: str, body: object = None, *, content: str = "application/json",
                timeout: float = 30, query: Mapping[str, str] | None = None) -> Any:
        """Send one request and return what it answered, parsed when it is JSON.

        Raises Unreachable, Conflict, Unknown (401, 403) or Refused.
        """
        query = query or {}
        if method != "GET" and "dryRun" not in query and not REVIEW.search(path):
            self.before_write()
        self.counted[f"{method}{' dry' if 'dryRun' in query else ''}"] += 1
        deadline = time.monotonic() + STARTING
        while True:
            try:
                return self._send(method, path, body, content=content, timeout=timeout, query=query)
            except Refused as error:
                # The server did nothing yet: it is starting, or its admission policies are.
                if error.status not in (429, 503) or time.monotonic() > deadline:
                    raise
                time.sleep(0.3)

    def _send(self, method: str, path: str, body: object, *, content: str, timeout: float,
              query: Mapping[str, str]) -> Any:
        import urllib3

        started = time.perf_counter()
        url = self.server + path + ("?" + urllib.parse.urlencode(query) if query else "")
        try:
            answer = self._pool.request(method, url, headers=self._headers(content), timeout=timeout, retries=False,
                                        body=None if body is None else json.dumps(body).encode())
        except urllib3.exceptions.HTTPError as error:
            raise Unreachable(f"the API server {self.server} does not answer: {type(error).__name__}",
                              "is the network (or the tunnel) up? on the local stack: `invoke stack.status`") from error
        finally:
            self.seconds += time.perf_counter() - started
        if answer.status >= 400:
            raise _refusal(answer.status, answer.data, path)
        return json.loads(answer.data) if answer.data[:1] in (b"{", b"[") else answer.data.decode()

    def get(self, wanted: Object) -> Manifest | None:
        """Return an object, None when there is none."""
        try:
            found: Manifest = self.request("GET", self.path(wanted))
        except Refused as error:
            if error.status == 404:
                return None
            raise
        return found

    def list(self, kind: str, selector: str = "", **query: str) -> list[Manifest]:
        """Return the project's objects of a kind that carry the labels."""
        if selector:
            query["labelSelector"] = selector
        try:
            answer = self.request("GET", self.collection(kind), query=query)
        except Refused as error:
            if error.status == 404:
                return []
            raise
        return [{"apiVersion": answer["apiVersion"], "kind": kind, **item} for item in answer["items"]]

    def apply(self, manifest: Manifest, manager: str, *, dry: bool = False, force: bool = False) -> Manifest:
        """Apply a manifest server-side; with `dry` nothing is stored."""
        query = {"fieldManager": manager, "fieldValidation": "Strict"}
        query |= ({"dryRun": "All"} if dry else {}) | ({"force": "true"} if force else {})
        meta = manifest["metadata"]
        applied: Manifest = self.request(
            "PATCH", self.path(Object(manifest["kind"], meta["name"], meta.get("namespace", ""))), manifest,
            content="application/apply-patch+yaml", query=query)
        return applied

    def delete(self, wanted: Object, uid: str) -> None:
        """Delete the object that has this uid, and what it owns."""
        body = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        try:
            self.request("DELETE", self.path(wanted), body)
        except Refused as error:
            if error.status != 404:
                raise

    def user(self) -> str:
        """Return who is logged in, as the server knows him."""
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        return str(self.request("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", review)
                   ["status"]["userInfo"]["username"])

    def watch(self, wanted: Object, seconds: float) -> Iterator[Manifest | None]:
        """Yield the object as it is and after every change, until the time is up; survives lost connections."""
        deadline, pause = time.monotonic() + seconds, 0.2
        field = f"metadata.name={wanted.name}"
        while time.monotonic() < deadline:
            try:
                listing = self.request("GET", self.collection(wanted.kind, wanted.namespace),
                                       query={"fieldSelector": field})
                yield next(iter(listing["items"]), None)
                for event in self._events(wanted, field, listing["metadata"]["resourceVersion"], deadline):
                    yield None if event["type"] == "DELETED" else event["object"]
                pause = 0.2
            except (Unreachable, Refused) as error:
                if isinstance(error, Refused) and error.status not in (410, 429, 503, 504):
                    raise
                time.sleep(min(pause, max(deadline - time.monotonic(), 0)))
                pause = min(pause * 2, 5)

    def wait(self, wanted: Object, condition: Condition, seconds: float,
             seen: Callable[[str], None] = lambda _: None) -> Manifest | None:
        """Wait until the condition holds and return the object; `seen` is told what is seen meanwhile.

        Raises GuideError with the last thing seen when it failed or the time is up.
        """
        last = "nothing"
        for found in self.watch(wanted, seconds):
            last = condition.test(found)
            if not last:
                return found
            if why := condition.failed(found):
                raise GuideError(f"{wanted} will not be {condition.name}: {why}")
            seen(f"{wanted}: {last}")
        raise GuideError(f"{wanted} was not {condition.name} after {seconds:g} s; last seen: {last}")

    def stream(self, path: str, seconds: float, **query: str) -> Iterator[str]:
        """Yield the lines of a log as they come."""
        import urllib3

        url = self.server + path + "?" + urllib.parse.urlencode(query)
        self.counted["GET"] += 1
        try:
            with self._pool.request("GET", url, headers=self._headers("text/plain"), preload_content=False,
                                    retries=False, timeout=urllib3.Timeout(connect=10, read=seconds)) as answer:
                if answer.status >= 400:
                    raise _refusal(answer.status, answer.read(), path)
                rest = b""
                for chunk in answer.stream(4096):
                    *lines, rest = (rest + chunk).split(b"\n")
                    yield from (line.decode(errors="replace") for line in lines)
                if rest:
                    yield rest.decode(errors="replace")
        except urllib3.exceptions.HTTPError as error:
            raise Unreachable(f"the log of {path} broke off: {type(error).__name__}") from error

    def log(self, pod: str, container: str = "", *, previous: bool = False, lines: int = 20) -> str:
        """Return the last lines of a pod's log, "" when there is none."""
        query = {"tailLines": str(lines)} | ({"container": container} if container else {})
        query |= {"previous": "true"} if previous else {}
        try:
            return str(self.request("GET", f"{self.path(Object('Pod', pod))}/log", query=query))
        except (Refused, Unreachable):
            return ""

    def execute(self, pod: str, container: str, command: Sequence[str], seconds: float = 30,
                line: str = "") -> tuple[int, str]:
        """Run a command in a running container, with a line for its standard input.

        Returns its exit code, 124 when the time was up, and what it printed: first as a result, then as an error.
        """
        session = self._session(pod, container, command, *(["stdin"] if line else []))
        try:
            if line:
                session.write_stdin(line)
            session.run_forever(timeout=seconds)
            code = session.returncode
            # Not as they came: the two streams overtake each other, and the last line is what went wrong.
            printed = session.read_channel(1) + session.read_channel(2)
        except Exception as error:
            raise GuideError(f"cannot run a command in pod {pod}: {error}") from error
        return (124 if code is None else int(code)), printed

    def terminal(self, pod: str, container: str, command: Sequence[str]) -> Any:
        """Return a session of a command that has a terminal of its own."""
        return self._session(pod, container, command, "stdin", "tty")

    def _session(self, pod: str, container: str, command: Sequence[str], *streams: str) -> Any:
        # Not through CoreV1Api: the classes of every kind of the API take half a second to import.
        from kubernetes.stream import ws_client

        self.counted["EXEC"] += 1
        query = [("command", list(command)), ("container", container),
                 *((stream, "true") for stream in ("stdout", "stderr", *streams))]
        headers = {name.lower(): value for name, value in self._headers("").items()}
        try:
            return ws_client.websocket_call(
                self._client.configuration, "GET", f"{self.server}{self.path(Object('Pod', pod))}/exec",
                query_params=query, headers=headers, _preload_content=False)
        except Exception as error:
            raise GuideError(f"cannot run a command in pod {pod}: {error}") from error

    def _events(self, wanted: Object, field: str, version: str, deadline: float) -> Iterator[Manifest]:
        """Yield the events of one watch request; it ends after at most 10 s or at the deadline.

        A Deployment does not change when its pod starts again: whoever waits has to look from time to time.
        """
        import urllib3

        seconds = max(1, min(10, int(deadline - time.monotonic()) + 1))
        query = {"watch": "true", "fieldSelector": field, "resourceVersion": version, "timeoutSeconds": str(seconds)}
        url = f"{self.server}{self.collection(wanted.kind, wanted.namespace)}?{urllib.parse.urlencode(query)}"
        self.counted["WATCH"] += 1
        try:
            with self._pool.request("GET", url, headers=self._headers("application/json"), preload_content=False,
                                    retries=False, timeout=urllib3.Timeout(connect=10, read=seconds + 5)) as answer:
                if answer.status >= 400:
                    raise _refusal(answer.status, answer.read(), wanted.kind)
                rest = b""
                for chunk in answer.stream(65536):
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        event = json.loads(line)
                        if event["type"] == "ERROR":
                            raise Refused(event["object"].get("code", 410), "Expired", "the watch expired")
                        yield event
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            raise Unreachable(f"the watch of {wanted} broke off") from error

    def _headers(self, content: str) -> dict[str, str]:
        """Return the headers of a request; a log-in that has run out is renewed as the kubeconfig says."""
        configuration = self._client.configuration
        token = configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        basic = {"Authorization": token} if token else {}
        return {"Accept": "application/json", "Content-Type": content, "User-Agent": "certhelper-guide"} | basic


def _refusal(status: int, data: bytes, path: str) -> GuideError:
    """Return the error for a refused request, in the words of the server."""
    try:
        answer = json.loads(data)
    except ValueError:
        answer = {"message": data.decode(errors="replace").strip()[:300]}
    message, reason = answer.get("message", ""), answer.get("reason", "")
    causes = answer.get("details", {}).get("causes") or []
    conflicts = [c for c in causes if c.get("reason") == "FieldManagerConflict"]
    if status == 409 and conflicts:
        error = Conflict("; ".join(f"{c['field']} is managed by {manager_of(c['message'])}" for c in conflicts))
        error.conflicts = [(c["field"], manager_of(c["message"])) for c in conflicts]  # type: ignore[attr-defined]
        return error
    if status == 401:
        return Unknown("the log-in is not valid any more", "log in again: `oc login --web`")
    if status == 403:  # A rule of the platform refuses everybody; what helps then the step's page says.
        ruled = "ValidatingAdmissionPolicy" in message or "admission webhook" in message
        return Unknown(message, "" if ruled else
                       "is the project there? `project.request` asks for it; its owner can give you the role `admin`")
    if status == 500 and "failed to create typed patch object" in message:
        return Refused(422, "Invalid", message, "the manifest has a field that the cluster does not know")
    return Refused(status, reason, message or f"{status} for {path}")


def manager_of(message: str) -> str:
    """Return the manager that a conflict's message names: `conflict with "kubectl-set" using apps/v1`."""
    return message.split('"')[1] if '"' in message else message
