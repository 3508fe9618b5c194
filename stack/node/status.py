"""What the node says about a pod: container statuses, phase, conditions, events, as a kubelet words them."""

from __future__ import annotations

import platform
import threading
import time
from typing import Any

from stack.api import Api, ApiError, Manifest
from stack.node.runtime import Run, now

NODE = "local"
LABELS = {"kubernetes.io/hostname": NODE, "kubernetes.io/os": "linux", "kubernetes.io/arch":
          {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())}
"""The node's labels: what a nodeSelector can ask for."""


def terminated(run: Run, container_id: str) -> Manifest:
    """Return the terminated state of a run that has ended."""
    reason = "StartError" if run.message else "Error" if run.exit_code else "Completed"
    state: Manifest = {"exitCode": run.exit_code, "reason": reason, "startedAt": run.started_at,
                       "finishedAt": run.finished_at, "containerID": container_id}
    return state | ({"message": run.message} if run.message else {})


def phase(pod: Manifest, inits: list[Manifest], mains: list[Manifest]) -> str:
    """Return the phase that follows from the container statuses and the restart policy."""
    policy = pod["spec"].get("restartPolicy", "Always")
    failed_init = any(each["state"].get("terminated", {}).get("exitCode") for each in inits)
    if failed_init and policy == "Never":
        return "Failed"
    waiting = [each for each in mains if "waiting" in each["state"] and "terminated" not in each["lastState"]]
    if waiting:
        return "Pending"
    ended = [each["state"]["terminated"]["exitCode"] for each in mains if "terminated" in each["state"]]
    if len(ended) < len(mains) or policy == "Always":
        return "Running"
    if not any(ended):
        return "Succeeded"
    return "Failed" if policy == "Never" else "Running"


def conditions(pod: Manifest, status: Manifest, told: list[Manifest], *, network: bool) -> list[Manifest]:
    """Return the pod's conditions. Those that others set are kept; times change only with the status told last."""
    inits = [each["name"] for each in status["initContainerStatuses"]
             if not (each["ready"] or each["state"].get("terminated", {}).get("exitCode") == 0)]
    unready = [each["name"] for each in status["containerStatuses"] if not each["ready"]]
    done = status["phase"] == "Succeeded"
    wanted: dict[str, tuple[bool, str, str]] = {
        "PodScheduled": (True, "", ""),
        "PodReadyToStartContainers": (network, "", ""),
        "Initialized": (not inits, "ContainersNotInitialized",
                        f"containers with incomplete status: [{' '.join(inits)}]"),
    }
    not_ready = ("PodCompleted", "") if done else ("ContainersNotReady",
                                                   f"containers with unready status: [{' '.join(unready)}]")
    wanted["ContainersReady"] = wanted["Ready"] = (not unready, *not_ready)
    known = {each["type"]: each for each in pod.get("status", {}).get("conditions", [])}
    earlier = {each["type"]: each for each in told}
    gates = [gate["conditionType"] for gate in pod["spec"].get("readinessGates", [])]
    closed = [gate for gate in gates if known.get(gate, {}).get("status") != "True"]
    if closed and not unready:
        wanted["Ready"] = (False, "ReadinessGatesNotReady",
                           f'corresponding condition of pod readiness gate "{closed[0]}" is not true.')
    made = []
    for kind, (holds, reason, message) in wanted.items():
        value = "True" if holds else "False"
        known.pop(kind, None)
        before = earlier.get(kind, {})
        since = before.get("lastTransitionTime") if before.get("status") == value else None
        made.append({"type": kind, "status": value, "lastProbeTime": None, "lastTransitionTime": since or now()}
                    | ({} if holds or not reason else {"reason": reason, "message": message}))
    return [*made, *known.values()]


class Events:
    """Tells the API about what happened; the same event again raises its count, ever more rarely."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._known: dict[tuple[str, ...], list[Any]] = {}
        self._lock = threading.Lock()

    def tell(self, about: Manifest, kind: str, reason: str, message: str, *, field: str = "",
             source: str = "kubelet") -> None:
        """Write an event about an object (Warning or Normal); never fails, events are for people."""
        metadata = about["metadata"]
        key = (metadata["uid"], reason, message, field)
        with self._lock:
            for stale in [old for old, entry in self._known.items() if time.monotonic() - entry[2] > 3600]:
                del self._known[stale]
            entry = self._known.setdefault(key, ["", 0, 0.0, 0.0])
            entry[1] += 1
            if entry[0] and time.monotonic() < entry[3]:
                return
            entry[2] = time.monotonic()
            entry[3] = entry[2] + min(5 * 2 ** min(entry[1], 6), 300)
        try:
            if entry[0]:
                self._api.patch("Event", entry[0], {"count": entry[1], "lastTimestamp": now()}, metadata["namespace"])
            else:
                reference = {"kind": about.get("kind", "Pod"), "apiVersion": "v1", "name": metadata["name"],
                             "namespace": metadata["namespace"], "uid": metadata["uid"],
                             **({"fieldPath": field} if field else {})}
                made = self._api.create({
                    "kind": "Event", "apiVersion": "v1", "type": kind, "reason": reason, "message": message[:1000],
                    "metadata": {"generateName": f"{metadata['name']}.", "namespace": metadata["namespace"]},
                    "involvedObject": reference, "source": {"component": source, "host": NODE}, "count": 1,
                    "firstTimestamp": now(), "lastTimestamp": now(), "reportingComponent": source,
                    "reportingInstance": NODE})
                entry[0] = made["metadata"]["name"]
        except ApiError:
            # The namespace is being deleted, or the server is away.
            return
