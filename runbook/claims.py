"""Let a claim go: a deleted one stays, *Terminating*, as long as something uses it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from runbook.errors import GuideError
from runbook.plan import Manifest, Object
from runbook.pods import PATIENCE

if TYPE_CHECKING:
    from runbook.connections import Connections

SOON = 20
"""Seconds after its last pod ended by which a claim should be gone."""


def let_go(wanted: Object, live: Manifest, connections: Connections) -> str:
    """Delete a claim and see it go; return what else was done.

    Raises GuideError naming what uses it, or the finalizers that hold it. With `--force` the finalizers are removed.
    """
    cluster, force = connections.cluster, connections.flags.force
    by = holders(wanted.name, connections)
    if by and not force:
        named = " and ".join(str(each) for each in by)
        raise GuideError(f"{wanted} is used by {named}", "; ".join(map(_cure, by)) + "; `--force` does not wait for that: what "
                         "these pods have not written yet may be lost")
    cluster.delete(wanted, live["metadata"]["uid"])
    hung = "deletionTimestamp" in live["metadata"]  # Since an earlier run, which has waited.
    started = last = time.monotonic()
    while (found := cluster.get(wanted)) and found["metadata"]["uid"] == live["metadata"]["uid"]:
        using = [pod["metadata"]["name"] for pod in cluster.list("Pod") if _names(pod["spec"], wanted.name)]
        now = time.monotonic()
        last = now if using else last
        if now - started > PATIENCE or now - last > SOON or (force and (by or (hung and not using))):
            return _unfinished(wanted, found, using, connections)
        time.sleep(0.5)
    return ""


def holders(claim: str, connections: Connections) -> list[Object]:
    """Return what mounts a claim and is not about to end: Deployments, and pods that no Deployment made."""
    cluster = connections.cluster
    deployments = [Object("Deployment", each["metadata"]["name"]) for each in cluster.list("Deployment")
                   if _names(each["spec"]["template"]["spec"], claim)]
    # A pod of a Deployment follows its Deployment: it goes when the new ones are ready.
    alone = [Object("Pod", each["metadata"]["name"]) for each in cluster.list("Pod") if _names(each["spec"], claim)
             and "deletionTimestamp" not in each["metadata"]
             and not any(owner["kind"] == "ReplicaSet" for owner in each["metadata"].get("ownerReferences", []))]
    return [*deployments, *alone]


def _unfinished(wanted: Object, found: Manifest, using: list[str], connections: Connections) -> str:
    finalizers = found["metadata"].get("finalizers", [])
    held = f"pods still use it: {', '.join(using)}" if using else "no pod uses it"
    if not connections.flags.force:
        raise GuideError(f"{wanted} hangs in Terminating; {held}; finalizers: {', '.join(finalizers) or 'none'}",
                         "`--force` removes the finalizers: what pods have not written yet may be lost, and whoever set them does "
                         "not clean up behind the claim")
    connections.cluster.request("PATCH", connections.cluster.path(wanted), {"metadata": {"finalizers": None}},
                                content="application/merge-patch+json")
    return f"removed by force, {held}: the finalizers {', '.join(finalizers)} of {wanted} are not respected"


def _names(spec: Manifest, claim: str) -> bool:
    return any(volume.get("persistentVolumeClaim", {}).get("claimName") == claim for volume in spec.get("volumes", []))


def _cure(holder: Object) -> str:
    return f"`oc set volume deployment/{holder.name} --remove --name=VOLUME`" if holder.kind == "Deployment" \
        else f"`oc delete pod {holder.name}`"
