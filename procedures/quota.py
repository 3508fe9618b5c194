"""What a deployment asks of the project's quota, and whether that leaves it."""

import re
from decimal import Decimal

from runbook.instance import Instance
from runbook.observed import Observed
from runbook.plan import Require

NEEDED = {"requests.cpu": "100m", "cpu": "100m", "pods": "1"}
"""What the build's pod asks for, and after it one more pod of the app beside the old one."""


def enough(instance: Instance, observed: Observed) -> Require:
    """Require that the project's quota leaves room for a build and for a second pod of the app."""
    needed = asked_for(instance)
    lacking = [f"{left(hard, used)} of {key}, and {needed[key]} is needed" for quota in observed.objects("ResourceQuota")
               for key, hard in ((quota.get("status") or {}).get("hard") or {}).items() if key in needed
               for used in [quota["status"].get("used", {}).get(key, "0")]
               if amount(hard) - amount(used) < amount(needed[key])]
    return Require("the quota leaves room for a build and a pod", f"the quota leaves {'; '.join(lacking)}" if lacking else "",
                   f"`oc describe quota` shows what is used; {MORE}")


MORE = "stop what nobody needs, or ask for more in a Service Now ticket"


def asked_for(instance: Instance) -> dict[str, str]:
    """Return what a build and one more pod of the app ask of a quota, by the quota's own names."""
    memory = instance.deploy.memory
    return NEEDED | {"requests.memory": memory, "memory": memory, "limits.memory": "2Gi", "limits.cpu": "1"}


def leaves_room(instance: Instance, line: str) -> bool:
    """Return whether a line of a quota, such as `pods: 3 of 10`, leaves what a deployment asks for, and anything at all."""
    name, _, rest = line.partition(": ")
    used, _, hard = rest.partition(" of ")
    left_over = amount(hard) - amount(used)
    return left_over > 0 and left_over >= amount(asked_for(instance).get(name, "0"))


def left(hard: str, used: str) -> str:
    """Return what is left of a quota, in the unit in which people read it."""
    rest = max(amount(hard) - amount(used), Decimal(0))
    if hard.endswith("i") or used.endswith("i"):
        return f"{rest / 2**20:.0f}Mi"
    return f"{rest * 1000:.0f}m" if rest % 1 else f"{rest:.0f}"


def amount(quantity: str) -> Decimal:
    """Return a quantity as Kubernetes writes it (`100m`, `1Gi`, `2`) as a number."""
    found = re.fullmatch(r"([0-9.]+)(m|[kMGTP]|[KMGTP]i)?", quantity)
    if not found:
        return Decimal(0)
    unit = found[2] or ""
    place = " KMGTP".index(unit[0].upper()) if unit not in ("", "m") else 0
    scale = Decimal(1) / 1000 if unit == "m" else Decimal(1024 if unit.endswith("i") else 1000) ** place
    return Decimal(found[1]) * scale
