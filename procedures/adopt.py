"""Adopting what was set up by hand: what the former guide made is taken over where it is; this stops what it left running."""

from procedures import app
from runbook.instance import Instance
from runbook.observed import Observed
from runbook.plan import Manifest, Object, Patch, Plan, Require
from runbook.step import step


@step(
    needs=(app.create,),
    see="No CronJob starts builds of the app through its webhook.",
    otherwise=(
        ("`somebody else manages`", ("The CronJob was made by hand: look at it, then run this with `--force`. "
                                     "It is suspended, not deleted.")),
    ),
)
def suspend(instance: Instance, observed: Observed) -> Plan:
    """Suspend every CronJob that starts builds through the webhook, as a set-up by hand does."""
    found = [one for one in observed.objects("CronJob") if calls_webhook(one, instance.app)]
    # Which they are is known only by looking; without a look one of them stands for all.
    for name in sorted(one["metadata"]["name"] for one in found) or ["NAME"] * observed.empty:
        yield Patch(Object("CronJob", name), {"spec": {"suspend": True}},
                    f"CronJob {name} starts builds by curl with the webhook's secret: it is suspended; "
                    f"`oc delete cronjob {name}` when nobody needs it", undo={"spec": {"suspend": False}}, foreign=True)
    if not found and not observed.empty:
        yield Require("no CronJob starts builds through the webhook", "", "")


def calls_webhook(cronjob: Manifest, name: str) -> bool:
    """Return whether a CronJob calls the webhook of the app's build config."""
    containers = cronjob["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    words = [word for container in containers for key in ("command", "args") for word in container.get(key) or []]
    return any(f"/buildconfigs/{name}/webhooks/" in word for word in words)
