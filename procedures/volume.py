"""Add a shared volume: files that several pods of the project see, and that outlive them."""

from procedures import app
from runbook.instance import Instance
from runbook.observed import Observed
from runbook.plan import Apply, Manifest, Object, Plan, Require, WaitFor, rolled_out
from runbook.step import step

SHARED = "ReadWriteMany"
PLACE = "/shared"
"""Where the page shows the volume, when an instance names no place."""


@step(
    needs=(app.create,),
    wanted=lambda instance: bool(instance.volume.mount),
    setting="`mount` below [volume]",
    see="The claim is bound, and every pod of the app sees the same files.",
    otherwise=(
        ("`storageclass.storage.k8s.io … not found` in an event of the claim, or `the cluster offers … below [volume]`",
         "The storage class is not offered: `oc get storageclass` lists those that are, and `storage_class` below [volume] "
         "names one."),
        ("`Multi-Attach error` or `it is ReadWriteOnce, and that cannot be changed`",
         "The claim is ReadWriteOnce, so a second node may not mount it. A claim's access mode cannot be changed: give `claim` "
         "below [volume] another name."),
        ("`must support resize`", "This storage class lets no claim grow: put the former `size` back, or give `claim` below "
                                  "[volume] another name and copy the files."),
        ("`exceeded quota: …requests.storage`", "The project's storage is used up: lower `size`, or ask for more in a ticket."),
    ),
    unconfirmed="Which storage classes the platform offers today: `oc get storageclass` would tell.",
)
def share(instance: Instance, observed: Observed) -> Plan:
    """Mount a volume that all pods of the project can share."""
    wanted = instance.volume
    yield class_is_offered(observed, wanted.storage_class, "[volume]")
    there = observed.object("PersistentVolumeClaim", wanted.claim)
    yield is_not_going(there, wanted.claim, f"invoke volume.share --undo --data --build={instance.name}")
    modes = there["spec"]["accessModes"] if there else [SHARED]
    yield Require(f"the claim {wanted.claim} can be shared",
                  "" if SHARED in modes else f"it is {', '.join(modes)}, and that cannot be changed",
                  "give `claim` below [volume] another name, and copy the files")
    before = observed.object("Deployment", instance.app)
    well = before is None or not rolled_out.test(before)
    size = app.quantity(wanted.size)
    yield Apply(claim(there, wanted.claim, wanted.storage_class, size), data=True)
    yield Apply(mounted(instance, "shared", wanted.claim, {"mountPath": wanted.mount or PLACE}, {}), part=True)
    if well:
        yield WaitFor(Object("Deployment", instance.app), rolled_out)


def claim(there: Manifest | None, name: str, storage_class: str, size: str) -> Manifest:
    """Return a claim; of one that is there, access mode and class are kept, because they cannot be changed."""
    kept = there["spec"] if there else {}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
            "spec": {"accessModes": kept.get("accessModes", [SHARED]),
                     "storageClassName": kept.get("storageClassName", storage_class),
                     "resources": {"requests": {"storage": size}}}}


def mounted(instance: Instance, volume: str, claim: str, mount: Manifest, container: Manifest, *,
            annotations: Manifest | None = None) -> Manifest:
    """Return the part of the app's Deployment that mounts a claim; `container` and `annotations` are further fields of it."""
    return {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": instance.app},
        "spec": {"template": {
            **({"metadata": {"annotations": annotations}} if annotations else {}),
            "spec": {
                "containers": [{"name": instance.app, "volumeMounts": [{"name": volume, **mount}], **container}],
                "volumes": [{"name": volume, "persistentVolumeClaim": {"claimName": claim}}],
            }}},
    }


def class_is_offered(observed: Observed, name: str, table: str) -> Require:
    """Return the check that the cluster offers a storage class; a member who may not read them is told so, and goes on."""
    offered = observed.storage_classes()
    if offered is None and not observed.empty:
        return Require(f"the storage class {name} exists (not checked: you may not read the storage classes)", "", "")
    return Require(f"the storage class {name} exists",
                   "" if offered is None or name in offered else f"the cluster offers {', '.join(offered) or 'none'}",
                   f"put one of those into the instance file as `storage_class` below {table}")


def is_not_going(there: Manifest | None, name: str, command: str) -> Require:
    """Return the check that a claim is not being deleted: what is applied to it then would go with it."""
    return Require(f"the claim {name} is there to stay",
                   "it hangs in Terminating" if there and "deletionTimestamp" in there["metadata"] else "",
                   f"`{command}` finds what holds it and frees it; then run this again")
