"""The Node object and its Lease: how the cluster knows that its node lives. One request every ten seconds."""

from __future__ import annotations

import datetime as dt
import os
import platform
import threading
import time

from stack.api import Api, ApiError, Manifest, Unreachable
from stack.node.runtime import now
from stack.node.status import LABELS, NODE
from stack.services import KUBELET_PORT
from stack.state import NODE_ADDRESS

PERIOD = 10.0
"""Seconds between two renewals of the Lease."""
LATE = 30.0
"""Seconds without a renewal after which the node controller may have called the node lost."""


def run(api: Api, stop: threading.Event) -> None:
    """Register the node and renew its Lease until told to stop."""
    renewed = 0.0
    while not stop.is_set():
        try:
            if time.time() - renewed > LATE:
                _register(api)
            _renew(api)
            renewed = time.time()
        except Unreachable:
            stop.wait(1)
            continue
        except ApiError as error:
            if error.status != 404:
                raise
            renewed = 0.0  # somebody deleted the Node or the Lease
            stop.wait(1)
            continue
        stop.wait(PERIOD)


def _renew(api: Api) -> None:
    api.patch("Lease", NODE, {"spec": {"renewTime": _stamp()}}, "kube-node-lease")


def _register(api: Api) -> None:
    if api.get("Node", NODE) is None:
        api.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE, "labels": LABELS}})
    api.patch("Node", NODE, {"status": _status()}, subresource="status")
    if api.get("Namespace", "kube-node-lease") is None:
        api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-node-lease"}})
    if api.get("Lease", NODE, "kube-node-lease") is None:
        # With its time from the first moment on: a node controller that has once seen it without one notices no renewal.
        api.create({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                    "metadata": {"name": NODE, "namespace": "kube-node-lease"},
                    "spec": {"holderIdentity": NODE, "leaseDurationSeconds": 40, "renewTime": _stamp()}})


def _stamp() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _status() -> Manifest:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1024
    size = {"cpu": str(os.cpu_count() or 1), "memory": f"{memory}Ki", "pods": "110"}
    said = {"Ready": ("True", "KubeletReady", "the local stack's node runs"),
            "MemoryPressure": ("False", "KubeletHasSufficientMemory", "not measured"),
            "DiskPressure": ("False", "KubeletHasNoDiskPressure", "not measured"),
            "PIDPressure": ("False", "KubeletHasSufficientPID", "not measured")}
    return {"capacity": size, "allocatable": size,
            "addresses": [{"type": "InternalIP", "address": NODE_ADDRESS}, {"type": "Hostname", "address": NODE}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": KUBELET_PORT}},
            "nodeInfo": {"machineID": "", "systemUUID": "", "bootID": "", "kernelVersion": platform.release(),
                         "osImage": "the machine's own", "containerRuntimeVersion": "bubblewrap://0.11",
                         "kubeletVersion": "v1.34.1", "kubeProxyVersion": "", "operatingSystem": "linux",
                         "architecture": LABELS["kubernetes.io/arch"]},
            "conditions": [{"type": kind, "status": value, "reason": reason, "message": message,
                            "lastHeartbeatTime": now(), "lastTransitionTime": now()}
                           for kind, (value, reason, message) in said.items()]}
