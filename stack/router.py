"""Keep HAProxy's configuration in step with Routes, Services and their endpoints.

Stands for: OpenShift's router controller and kube-proxy. A Route is admitted or refused as OpenShift does it: a host
belongs to the namespace of its oldest Route, and within it each path to the oldest Route; the verdict is written to the
Route's status with OpenShift's reasons. `stack/haproxy.py` says how traffic flows.

Differs: one router, named `default`, whose canonical host name is `router-default.localhost`. Termination `passthrough`
and `reencrypt` and wildcard hosts are refused. A Service's listener exists while it has ready endpoints, so a
connection to it is refused otherwise, as kube-proxy does.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import ipaddress
import json
import re
import socket
import sys
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from stack import certificates, haproxy
from stack.api import Api, ApiError, Manifest, wait_until
from stack.haproxy import Address, Endpoint, Web
from stack.state import API_CLUSTER_ADDRESS, State

ROUTER = "default"
CANONICAL = "router-default.localhost"
MANAGER = "openshift-router"
GATHER = 0.05
"""Seconds that changes are gathered before the configuration is written."""
RELOAD = 30.0
"""Seconds that HAProxy may take to answer whether it took a configuration over."""

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_PATH = re.compile(r"(/[!-~]*)?")
_TIME = re.compile(r"([1-9][0-9]*)(us|ms|s|m|h|d)?")
_MILLISECONDS = {"us": 0.001, "ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_LONGEST = 2_147_483_647
"""HAProxy's longest time, in milliseconds; OpenShift shortens a longer one to it."""


@dataclass(frozen=True)
class Verdict:
    """Whether a Route is served, and if not why, in OpenShift's words."""

    admitted: bool
    reason: str = ""
    message: str = ""


ADMITTED = Verdict(admitted=True)


def run(state: State, stop: threading.Event) -> None:
    """Watch and reconfigure until `stop` is set. Raises what ended a watch: ApiError when the API server refuses it."""
    api = Api("https://127.0.0.1:6443", state.tokens.admin, state.ca)
    sockets: dict[str, int] = json.loads(state.path("run", "sockets.json").read_text())
    frame = haproxy.frame(state, sockets)
    changed = threading.Event()
    follows = [Follow(api, kind, changed, stop) for kind in ("Route", "Service", "EndpointSlice")]
    loaded = ""  # Whoever ran before may have ended between the file and HAProxy's answer.
    while not stop.is_set():
        changed.wait(1)
        for follow in follows:
            if follow.failed:
                raise follow.failed
        if not changed.is_set() or not all(follow.synced for follow in follows):
            continue
        stop.wait(GATHER)
        changed.clear()
        routes, services, slices = (follow.objects() for follow in follows)
        verdicts = admit(routes)
        served = [route for route in routes if verdicts[route["metadata"]["uid"]].admitted]
        text = haproxy.render(frame, webs(state, served, slices), addresses(services, slices))
        taken = text == loaded
        if not taken and load(state, text):
            loaded, taken = text, True
        # What was refused is tried again: the reason (no memory, a file that was not there yet) may be gone by itself.
        if not (_write_status(api, routes, verdicts) and taken):
            stop.wait(1)
            changed.set()


def admit(routes: Iterable[Manifest]) -> dict[str, Verdict]:
    """Return the verdict on every Route, by uid: the oldest Route of a host and path wins."""
    verdicts: dict[str, Verdict] = {}
    owners: dict[str, str] = {}
    holders: dict[tuple[str, str], str] = {}
    for route in sorted(routes, key=lambda one: (one["metadata"]["creationTimestamp"], one["metadata"]["uid"])):
        spec, about = route["spec"], route["metadata"]
        host, path = spec.get("host", "").lower(), spec.get("path", "").rstrip("/")
        tls = spec.get("tls") or {}
        if not host:
            verdict = Verdict(False, "NoHostValue", "no host value was defined for the route")
        elif spec.get("wildcardPolicy", "None") != "None":
            verdict = Verdict(False, "RouteNotAdmitted", "wildcard routes are not allowed")
        elif not _HOST.fullmatch(host) or not _PATH.fullmatch(path):
            verdict = Verdict(False, "ExtendedValidationFailed", f"host {host!r} or path {path!r} is not valid")
        elif tls and tls.get("termination") != "edge":
            verdict = Verdict(False, "ExtendedValidationFailed",
                              f"termination {tls.get('termination')} is not served by the local stack; use edge")
        elif host in haproxy.PLATFORM_HOSTS:
            verdict = Verdict(False, "HostAlreadyClaimed", f"the platform itself holds {host}")
        elif owners.setdefault(host, about["namespace"]) != about["namespace"]:
            verdict = Verdict(False, "HostAlreadyClaimed",
                              f"a route in another namespace holds {host} and is older than {about['name']}")
        elif holders.setdefault((host, path), about["name"]) != about["name"]:
            verdict = Verdict(False, "HostAlreadyClaimed",
                              f"route {holders[host, path]} already exposes {host}{path} and is older")
        else:
            verdict = ADMITTED
        verdicts[about["uid"]] = verdict
    return verdicts


def webs(state: State, routes: Iterable[Manifest], slices: Iterable[Manifest]) -> list[Web]:
    """Return what HAProxy needs to know of admitted Routes; makes their certificates."""
    by_service = _by_service(slices)
    found = []
    for route in routes:
        spec, about = route["spec"], route["metadata"]
        annotations = about.get("annotations", {})
        host, tls, to = spec["host"].lower(), spec.get("tls"), spec["to"]
        mine = by_service.get((about["namespace"], to["name"]), []) if to.get("kind", "Service") == "Service" else []
        found.append(Web(
            name=f"{about['namespace']}:{about['name']}", host=host, path=spec.get("path", ""),
            endpoints=_endpoints(mine, (spec.get("port") or {}).get("targetPort")),
            certificate=certificate(state, host) if tls else "",
            insecure=(tls.get("insecureEdgeTerminationPolicy") or "None") if tls else "Allow",
            timeout=_time(annotations.get("haproxy.router.openshift.io/timeout", "")),
            tunnel=_time(annotations.get("haproxy.router.openshift.io/timeout-tunnel", "")),
            allowed=_networks(annotations.get("haproxy.router.openshift.io/ip_whitelist", ""))))
    return found


def addresses(services: Iterable[Manifest], slices: Iterable[Manifest]) -> list[Address]:
    """Return the ports of all Services that have an address and, behind that port, a ready endpoint."""
    by_service = _by_service(slices)
    found = []
    for service in services:
        spec, about = service["spec"], service["metadata"]
        address = spec.get("clusterIP", "")
        if address in ("", "None", API_CLUSTER_ADDRESS):  # the API's own is a frontend of its own
            continue
        mine = by_service.get((about["namespace"], about["name"]), [])
        for port in spec.get("ports", []):
            endpoints = _endpoints(mine, port.get("name", "")) if port.get("protocol", "TCP") == "TCP" else ()
            if endpoints:
                found.append(Address(f"{about['namespace']}:{about['name']}:{port['port']}", address, port["port"],
                                     endpoints))
    return found


def _by_service(slices: Iterable[Manifest]) -> dict[tuple[str, str], list[Manifest]]:
    found: dict[tuple[str, str], list[Manifest]] = {}
    for one in slices:
        service = one["metadata"].get("labels", {}).get("kubernetes.io/service-name")
        if service and one.get("addressType") == "IPv4":
            found.setdefault((one["metadata"]["namespace"], service), []).append(one)
    return found


def _endpoints(slices: Iterable[Manifest], port: str | int | None) -> tuple[Endpoint, ...]:
    """Return the ready endpoints of a port, named or numbered; without one those of the first port there is."""
    found = set()
    for one in slices:
        ports = [known for known in one.get("ports") or [] if known.get("protocol", "TCP") == "TCP"]
        if port is None:
            ports = ports[:1]
        else:
            ports = [known for known in ports if known.get("name", "") == port or known.get("port") == port]
        found |= {Endpoint(address, known["port"]) for known in ports for endpoint in one.get("endpoints") or []
                  if (endpoint.get("conditions") or {}).get("ready", True) for address in endpoint["addresses"]}
    return tuple(sorted(found, key=lambda endpoint: (endpoint.address, endpoint.port)))


def certificate(state: State, host: str) -> str:
    """Return the path of a host's certificate and key in one file; makes it when missing."""
    name = f"route-{host}" if len(host) < 100 else f"route-{hashlib.sha256(host.encode()).hexdigest()}"
    certificates.issue(state, name, [host])
    return str(state.path("pki", f"{name}.pem"))


def _time(value: str) -> str:
    """Return a time as HAProxy takes it, or nothing when it is none: OpenShift ignores such an annotation."""
    match = _TIME.fullmatch(value)
    if not match:
        return ""
    longer = int(match[1]) * _MILLISECONDS[match[2] or "ms"] > _LONGEST
    return f"{_LONGEST}ms" if longer else value


def _networks(value: str) -> tuple[str, ...]:
    """Return the networks of an address list; with one that is none the list counts for nothing, as in OpenShift."""
    try:
        return tuple(str(ipaddress.ip_network(word, strict=False)) for word in value.split())
    except ValueError:
        return ()


def load(state: State, text: str) -> bool:
    """Let HAProxy take over a configuration; return False, and say so, when it did not: the former one stays."""
    config = state.path("run", "haproxy.cfg")
    former = config.read_text()
    state.write("run/haproxy.cfg", text)
    said: str = wait_until(lambda: _reload(state), "HAProxy to run", RELOAD)
    if said.startswith("Success=1"):
        return True
    refused = state.write("run/haproxy.next.cfg", text)
    state.write("run/haproxy.cfg", former)
    sys.stderr.write(f"router: HAProxy refuses the configuration {refused}; the former one stays:\n{said}\n")
    return False


def _reload(state: State) -> str:
    """Ask HAProxy's master to reload; return what it says when the new worker serves or could not, "" without a master.

    A signal would not do: HAProxy 2.8 forgets one that comes while it starts anew, and nobody would know.
    """
    with socket.socket(socket.AF_UNIX) as master:
        master.settimeout(RELOAD)
        try:
            master.connect(str(state.root / haproxy.MASTER))
            master.sendall(b"reload\n")
            return b"".join(iter(lambda: master.recv(65536), b"")).decode(errors="replace")
        except OSError:
            return ""


def _write_status(api: Api, routes: Iterable[Manifest], verdicts: Mapping[str, Verdict]) -> bool:
    """Write the verdicts that the Routes do not show yet; return whether all could be written."""
    written = True
    for route in routes:
        about, verdict = route["metadata"], verdicts[route["metadata"]["uid"]]
        condition = {"type": "Admitted", "status": str(verdict.admitted)}
        if not verdict.admitted:
            condition |= {"reason": verdict.reason, "message": verdict.message}
        wanted = {"host": route["spec"].get("host", ""), "routerName": ROUTER, "routerCanonicalHostname": CANONICAL,
                  "wildcardPolicy": route["spec"].get("wildcardPolicy", "None"), "conditions": [condition]}
        if [_timeless(ingress) for ingress in (route.get("status") or {}).get("ingress", [])] == [wanted]:
            continue
        now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        stamped = wanted | {"conditions": [condition | {"lastTransitionTime": now}]}
        try:
            api.patch("Route", about["name"], {"status": {"ingress": [stamped]}}, about["namespace"],
                      subresource="status", manager=MANAGER)
        except ApiError as error:
            if error.status != 404:  # deleted meanwhile
                sys.stderr.write(f"router: the status of Route {about['namespace']}/{about['name']}: {error}\n")
                written = False
    return written


def _timeless(ingress: Manifest) -> Manifest:
    return ingress | {"conditions": [{key: value for key, value in condition.items() if key != "lastTransitionTime"}
                                     for condition in ingress.get("conditions", [])]}


class Follow:
    """One watch in a thread of its own, and what it has seen."""

    def __init__(self, api: Api, kind: str, changed: threading.Event, stop: threading.Event) -> None:
        self.synced = False
        self.failed: Exception | None = None
        """Why it sees nothing any more."""
        self._objects: dict[str, Manifest] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._run, args=(api, kind, changed, stop), name=f"router {kind}", daemon=True).start()

    def objects(self) -> list[Manifest]:
        """Return the objects as they are now."""
        with self._lock:
            return list(self._objects.values())

    def _run(self, api: Api, kind: str, changed: threading.Event, stop: threading.Event) -> None:
        try:
            for event, item in api.watch(kind, stop=stop):
                if event == "SYNCED":
                    self.synced = True
                else:
                    with self._lock:
                        if event == "DELETED":
                            self._objects.pop(item["metadata"]["uid"], None)
                        else:
                            self._objects[item["metadata"]["uid"]] = item
                changed.set()
        except Exception as error:  # noqa: BLE001 - raised again by run: a router that does not see is worse than none
            self.failed = error
            changed.set()
