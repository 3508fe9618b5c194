"""Probes of a running container: exec, httpGet and tcpSocket, with the kubelet's timings, thresholds and texts."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

from stack.api import Manifest
from stack.node.runtime import Run

KINDS = {"startupProbe": "Startup", "livenessProbe": "Liveness", "readinessProbe": "Readiness"}
REDIRECTS = 10


@dataclass(frozen=True)
class Target:
    """What a container's probes look at, and whom they tell."""

    container: Manifest
    run: Run
    address: str
    working_dir: str
    unhealthy: Callable[[str], None]
    """Called with the kubelet's text for every failed probe."""
    failed: Callable[[str], None]
    """Called with `liveness` or `startup` when the container must be restarted."""
    changed: Callable[[], None]
    """Called when `run.ready` or `run.started_up` changed."""


def start(target: Target) -> None:
    """Start a container's probes, one thread each; they end with its run."""
    run, container = target.run, target.container
    run.started_up = "startupProbe" not in container
    run.ready = run.started_up and "readinessProbe" not in container
    for kind in KINDS:
        if kind in container:
            threading.Thread(target=_repeat, args=(target, kind), name=kind, daemon=True).start()


def check(target: Target, probe: Manifest) -> str:
    """Carry out one probe; return nothing when it succeeded, else the kubelet's words."""
    seconds = float(probe.get("timeoutSeconds", 1))
    if "exec" in probe:
        code, output = target.run.execute(probe["exec"]["command"], target.working_dir, seconds)
        if code is None:
            return f"command timed out: {probe['exec']['command']!r} timed out after {seconds:g}s"
        return (output.strip() or f"command ended with exit code {code}") if code else ""
    if "httpGet" in probe:
        return _http(probe["httpGet"], target, seconds)
    if "tcpSocket" in probe:
        action = probe["tcpSocket"]
        address = (action.get("host") or target.address, port_of(target.container, action["port"]))
        try:
            socket.create_connection(address, timeout=seconds).close()
        except OSError as error:
            return f"dial tcp {address[0]}:{address[1]}: {error.strerror or error}"
        return ""
    return f"probes of the kind {', '.join(set(probe) & {'grpc'}) or 'unknown'} are not offered here"


def port_of(container: Manifest, port: int | str) -> int:
    """Return a port given by number or by its name in the container; 0 for a name that it has not."""
    if str(port).isdigit():
        return int(port)
    return next((int(each["containerPort"]) for each in container.get("ports", []) if each.get("name") == port), 0)


def _repeat(target: Target, kind: str) -> None:
    run, probe = target.run, target.container[kind]
    if kind != "startupProbe":
        while not run.started_up:
            if run.finished.wait(0.2):
                return
    good = bad = 0
    wait = float(probe.get("initialDelaySeconds", 0))
    while not run.finished.wait(wait) and not run.stopping:
        wait = float(probe.get("periodSeconds", 10))
        problem = check(target, probe)
        if run.finished.is_set() or run.stopping:
            return
        good, bad = (0, bad + 1) if problem else (good + 1, 0)
        if problem:
            target.unhealthy(f"{KINDS[kind]} probe failed: {problem}")
        if kind == "readinessProbe":
            ready = run.ready
            if good >= probe.get("successThreshold", 1):
                ready = True
            elif bad >= probe.get("failureThreshold", 3):
                ready = False
            if ready != run.ready:
                run.ready = ready
                target.changed()
        elif bad >= probe.get("failureThreshold", 3):
            target.failed(KINDS[kind].lower())
            return
        elif kind == "startupProbe" and good:
            run.started_up, run.ready = True, "readinessProbe" not in target.container
            target.changed()
            return


def _http(action: Manifest, target: Target, seconds: float) -> str:
    scheme = action.get("scheme", "HTTP").lower()
    host, port = action.get("host") or target.address, port_of(target.container, action["port"])
    # The Host header is the reader's: an app that checks it answers 400 to an address.
    headers: dict[str, str] = {"User-Agent": "kube-probe/1.34", "Accept": "*/*", "Connection": "close"}
    headers |= {each["name"].title(): each["value"] for each in action.get("httpHeaders", [])}
    url = f"{scheme}://{host}:{port}{action.get('path') or '/'}"
    try:
        for _ in range(REDIRECTS):
            status, location = _get(url, headers, seconds)
            there = urlsplit(urljoin(url, location))
            if not (300 <= status < 400 and location) or there.hostname != host:
                break  # a redirect to another host counts as success
            url = there.geturl()
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = "context deadline exceeded" if isinstance(error, TimeoutError) else error
        return f'Get "{url}": {reason}'
    return "" if 200 <= status < 400 else f"HTTP probe failed with statuscode: {status}"


def _get(url: str, headers: Mapping[str, str], seconds: float) -> tuple[int, str]:
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port
    # Probes do not verify certificates, here as on a kubelet: they ask whether the container answers.
    connection = (http.client.HTTPSConnection(host, port, timeout=seconds, context=ssl._create_unverified_context())  # noqa: S323, SLF001
                  if parts.scheme == "https" else http.client.HTTPConnection(host, port, timeout=seconds))
    try:
        connection.request("GET", parts._replace(scheme="", netloc="", fragment="").geturl() or "/", headers=headers)
        answer = connection.getresponse()
        answer.read(10240)
        return answer.status, answer.getheader("Location") or ""
    finally:
        connection.close()
