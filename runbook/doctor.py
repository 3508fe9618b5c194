"""What is wrong, why, and which command helps: the cluster's own words, held against the symptoms that the guide knows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runbook.errors import Unknown
from runbook.plan import Inside, Look, Manifest, Object, Require, WaitFor
from runbook.step import Runbook, Step, Symptom

if TYPE_CHECKING:
    from runbook.connections import Connections
    from runbook.diff import Standing
    from runbook.instance import Instance


@dataclass(frozen=True)
class Evidence:
    """Something that the cluster says is not well."""

    origin: str
    """Which object says it: `pod x`, `build y`."""
    text: str


@dataclass(frozen=True)
class Diagnosis:
    """A message and the symptom that it shows."""

    evidence: Evidence
    symptom: Symptom


def recognized(runbook: Runbook, text: str) -> list[Symptom]:
    """Return the symptoms whose words stand in a text, the longest match first, without those that say a part of a better one."""
    found = [symptom for symptom in runbook.symptoms if symptom.matched(text)]
    best: dict[Symptom, str] = {}
    for symptom in sorted(found, key=lambda symptom: -symptom.matched(text)):
        words = symptom.words(text)
        if not any(words != better and words in better for better in best.values()):
            best[symptom] = words
    return list(best)


def diagnoses(runbook: Runbook, evidence: list[Evidence]) -> list[Diagnosis]:
    """Return the best symptom for each message that is known, each symptom once."""
    found: dict[Symptom, Diagnosis] = {}
    for said in evidence:
        for symptom in recognized(runbook, said.text)[:1]:
            found.setdefault(symptom, Diagnosis(said, symptom))
    return list(found.values())


def looked_at(runbook: Runbook, connections: Connections) -> list[Standing]:
    """Return how every standing step stands, and every operation that only looks."""
    from runbook.run import stand

    looking = (step for step in runbook.steps if step.operation and _only_looks(step, connections))
    return [stand(step, connections) for step in (*runbook.standing, *looking)]


def helps(standings: Iterable[Standing], instance: Instance) -> str:
    """Return the command that brings about what is missing, or else finds out why it is not there; "" when all is well."""
    states = {standing.state for standing in standings}
    task = "run" if states & {"missing", "drifted", "new"} else "doctor" if states & {"waiting", "unknown"} else ""
    return task and f"invoke guide.{task} --build={instance.name}"


def _only_looks(step: Step, connections: Connections) -> bool:
    if step.undoes or step.options:  # An operation with options of its own needs somebody who chooses.
        return False
    if not step.wanted(connections.instance):
        return False
    plan = list(step.plan(connections.instance, connections.observed))
    return bool(plan) and all(isinstance(action, Look | Require | WaitFor) or (isinstance(action, Inside) and not action.unless
                                                                               and not action.show and not action.input)
                              for action in plan)


def evidence(connections: Connections) -> list[Evidence]:
    """Return what the project's objects say of what is not well; nothing without a project or the right to look."""
    try:
        if connections.cluster.get(Object("Namespace", connections.instance.project)) is None:
            return []
        return [said for said in _said(connections) if said.text.strip()]
    except Unknown:
        return []


def _said(connections: Connections) -> Iterator[Evidence]:
    cluster = connections.cluster
    for pod in cluster.list("Pod"):
        yield from _pod(pod, connections)
    for kind in ("Deployment", "Job"):
        for found in cluster.list(kind):
            yield from _conditions(found, {"ReplicaFailure": "True", "Failed": "True"}, kind)
    for route in cluster.list("Route"):
        for ingress in route.get("status", {}).get("ingress", []):
            yield from _conditions(route | {"status": ingress}, {"Admitted": "False"}, "Route")
    for claim in cluster.list("PersistentVolumeClaim"):
        if "deletionTimestamp" in claim["metadata"]:
            yield Evidence(f"claim {claim['metadata']['name']}", "the claim is Terminating: something still uses it")
    builds = sorted(cluster.list("Build"), key=lambda build: str(build["metadata"]["creationTimestamp"]))
    for build in builds[-1:]:
        status = build.get("status", {})
        if status.get("phase") in ("Failed", "Error"):
            yield Evidence(f"build {build['metadata']['name']}",
                           " ".join(str(status.get(key, "")) for key in ("reason", "message", "logSnippet")))
    texts = {str(event.get("message", "")): event for event in cluster.list("Event", fieldSelector="type=Warning")}
    for text, event in texts.items():
        about = event.get("involvedObject", {})
        if _still_there(about, connections):
            origin = f"{about.get('kind', 'object')} {about.get('name', '')}".lower()
            yield Evidence(origin, f"{event.get('reason', '')}: {text}")


def _still_there(about: dict[str, Any], connections: Connections) -> bool:
    """Events outlive what they speak of; what is gone, or a pod that is ready now, needs no doctor."""
    if about.get("kind") != "Pod":
        return True
    pod = connections.observed.object("Pod", about.get("name", ""))
    statuses = (pod or {}).get("status", {}).get("containerStatuses", [])
    return pod is not None and not all(status.get("ready") for status in statuses)


def _conditions(found: Manifest, bad: dict[str, str], kind: str) -> Iterator[Evidence]:
    for condition in found.get("status", {}).get("conditions", []):
        if bad.get(condition["type"]) == condition["status"]:
            yield Evidence(f"{kind.lower()} {found['metadata']['name']}",
                           f"{condition.get('reason', '')}: {condition.get('message', '')}")


def _pod(pod: Manifest, connections: Connections) -> Iterator[Evidence]:
    name = pod["metadata"]["name"]
    if pod.get("status", {}).get("phase") == "Succeeded":
        return
    yield from _conditions(pod, {"PodScheduled": "False"}, "Pod")
    for status in pod.get("status", {}).get("containerStatuses", []):
        if status.get("ready"):
            continue
        # The log first: it names the cause, where the state only says that there is one.
        log = connections.cluster.log(name, status["name"], previous=True) if status.get("restartCount") else ""
        yield Evidence(f"log of pod {name}", log or connections.cluster.log(name, status["name"]))
        ended = status.get("lastState", {}).get("terminated", {})
        waiting = status.get("state", {}).get("waiting", {})
        yield Evidence(f"pod {name}", " ".join(str(one.get(key, "")) for one in (waiting, ended) for key in ("reason", "message")))
