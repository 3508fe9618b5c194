"""What a run finds on the reader's machine and around it, before any project is there."""

from __future__ import annotations

import platform
import re
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from runbook import backup
from runbook.errors import GuideError, Unknown
from runbook.observed import Machine, Rule
from runbook.plan import Manifest, Object

if TYPE_CHECKING:
    from runbook.connections import Connections

PROBE = "guide-tries-server-side-apply"
"""Name of the objects that are applied by dry run and never stored."""
TRIED: tuple[Manifest, ...] = (
    {"apiVersion": "image.openshift.io/v1", "kind": "ImageStream", "metadata": {"name": PROBE},
     "spec": {"lookupPolicy": {"local": False}}},
    {"apiVersion": "build.openshift.io/v1", "kind": "BuildConfig", "metadata": {"name": PROBE},
     "spec": {"source": {"type": "Git", "git": {"uri": "https://example.org/none.git"}}, "triggers": [],
              "strategy": {"type": "Source", "sourceStrategy": {
                  "from": {"kind": "ImageStreamTag", "name": "python:latest", "namespace": "openshift"}}},
              "output": {"to": {"kind": "ImageStreamTag", "name": f"{PROBE}:latest"}}}},
    {"apiVersion": "route.openshift.io/v1", "kind": "Route", "metadata": {"name": PROBE},
     "spec": {"to": {"kind": "Service", "name": PROBE, "weight": 100}, "port": {"targetPort": "8080-tcp"},
              "tls": {"termination": "edge"}}},
)
"""Kinds of OpenShift whose servers might not know server-side apply."""


def looked_at(connections: Connections) -> Machine:
    """Return what is found; what cannot be found out is said, and is no error."""
    instance = connections.instance
    login = connections.login()
    api = connections.cluster.server if instance.at == "local" else instance.api
    user = "" if login else connections.cluster.user()
    there = False if login else _there(connections)
    return Machine(
        programs={"python": platform.python_version(), "git": _version("git", "--version"),
                  "oc": _version("oc", "version", "--client"), "pg_dump": _dumping(connections)},
        network=_reached(api), login=login, user=user, database=connections.database.answers(),
        rules=_rules(connections) if there else None,
        quota=tuple(_quota(connections)) if there else (),
        applies={manifest["kind"]: _applied(manifest, connections) for manifest in TRIED} if there else {})


def _version(program: str, *question: str) -> str:
    path = shutil.which(program)
    if not path:
        return ""
    try:
        done = subprocess.run([path, *question], capture_output=True, text=True, timeout=20, check=False, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return ""
    found = re.search(r"\d+(\.\d+)+", done.stdout + done.stderr)
    return found[0] if found else "of unknown version"


def _dumping(connections: Connections) -> str:
    try:
        return _version(backup.program("pg_dump", connections), "--version")
    except GuideError:
        return ""


def _reached(address: str) -> str:
    parts = urlsplit(address)
    host, port = parts.hostname or "", parts.port or 443
    try:
        with socket.create_connection((host, port), timeout=5):
            return ""
    except OSError as error:
        return f"{host}:{port} does not answer: {error.strerror or error}"


def _there(connections: Connections) -> bool:
    try:
        return connections.cluster.get(Object("Namespace", connections.instance.project)) is not None
    except Unknown:  # So a project that is not there answers to an ordinary user.
        return False


def _rules(connections: Connections) -> tuple[Rule, ...]:
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview",
              "spec": {"namespace": connections.instance.project}}
    status = connections.cluster.request("POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", review)["status"]
    return tuple(Rule(*(tuple(rule.get(key) or ()) for key in ("apiGroups", "resources", "verbs")))
                 for rule in status["resourceRules"] if not rule.get("resourceNames"))


def _quota(connections: Connections) -> list[str]:
    try:
        found = connections.cluster.list("ResourceQuota")
    except Unknown:
        return []
    return [f"{name}: {quota['status'].get('used', {}).get(name, '0')} of {hard}" for quota in found
            for name, hard in quota.get("status", {}).get("hard", {}).items()]


def _applied(manifest: Manifest, connections: Connections) -> str:
    try:
        connections.cluster.apply(manifest, "guide/prerequisites.check", dry=True)
    except GuideError as error:
        return error.found
    return ""
