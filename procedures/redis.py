"""Adding a Redis server: the backing store of the websockets, from the template that the platform offers."""

import re
from typing import Any

from procedures import project
from runbook.errors import Unknown
from runbook.instance import Instance, Redis
from runbook.observed import Observed
from runbook.plan import Apply, Credential, Former, Manifest, Object, Plan, Require, Revision, WaitFor, rolled_out
from runbook.step import step

TEMPLATE = "redis-ephemeral"
"""Channel data is transient, so the template without a volume is the right one."""
ASKED = 'test "$(REDISCLI_AUTH="$REDIS_PASSWORD" redis-cli -h 127.0.0.1 ping)" = PONG'
"""The template's question whether Redis is ready, but for the password: the template's names it where a process list shows it."""
REVISION = "guide/password"
"""The annotation that carries the revision of the Secret with the password."""


def password(instance: Instance) -> Credential:
    """The password of the Redis server; letters and digits only, because the app builds a URL from it."""
    return Credential("redis", "password of the Redis server", secret=instance.redis.name, key="database-password",
                      generated=True, former=Former("REDIS_PASSWORD"))


@step(
    needs=(project.request,),
    see="One pod named after the server is ready.",
    otherwise=(
        ("`a DeploymentConfig … runs`",
         "The template made one until 2023. Scale it to 0, and run this again at once: the websockets wait meanwhile, and what "
         "Redis held is of no worth. Nothing of it is deleted."),
        ("`the image stream redis has the tag …`, or the pod of Redis cannot pull its image.",
         "The tag is not in the image stream: this step lists those that are."),
        ("`Error … connecting to redis` or `Name or service not known`", "The app does not find the Redis server: run this step, "
                                                                         "then `environment.set`."),
        ("The app's log shows `NOAUTH` or `WRONGPASS`.", "The password was changed on one side only: "
                                                         "run this step again, then `environment.set`."),
    ),
    unconfirmed=f"Which tags the image stream redis and which objects the template {TEMPLATE} have at CERN: "
                f"`oc get is redis -n openshift` and `oc get template {TEMPLATE} -n openshift -o yaml` tell.",
)
def add(instance: Instance, observed: Observed) -> Plan:
    """Add a Redis server from the platform's template."""
    wanted = instance.redis
    stream = observed.object("ImageStream", "redis", "openshift")
    tags = sorted(tag["tag"] for tag in (stream or {}).get("status", {}).get("tags", []))
    yield Require(f"the image stream redis has the tag {wanted.version}",
                  "" if (stream is None and observed.empty) or wanted.version in tags
                  else f"it has {', '.join(tags)}" if tags else "there is no image stream redis in the namespace openshift",
                  "put one of those tags into the instance file as `version` below [redis]")
    if pods := former(instance, observed):
        yield Require("no other server has the name", f"a DeploymentConfig {wanted.name} runs {pods} of it, and a Deployment "
                      "beside it would be a second server of this name",
                      f"`oc scale dc/{wanted.name} --replicas=0`, then run this again at once; "
                      f"`oc delete dc/{wanted.name}` when all is well")
    template = observed.object("Template", TEMPLATE, "openshift") or SHAPE
    for manifest in filled(template, {
        "DATABASE_SERVICE_NAME": wanted.name, "REDIS_VERSION": wanted.version, "MEMORY_LIMIT": wanted.memory,
        "NAMESPACE": "openshift", "REDIS_PASSWORD": password(instance),
    }):
        deployed = manifest["kind"] == "Deployment"
        yield Apply(completed(manifest, observed, stream, wanted) if deployed else manifest)
    yield WaitFor(Object("Deployment", wanted.name), rolled_out)


def former(instance: Instance, observed: Observed) -> int:
    """Return how many pods a DeploymentConfig of the server's name has: the template's form until 2023, which no step makes."""
    try:
        found = observed.object("DeploymentConfig", instance.redis.name)
    except Unknown:  # A cluster that has given the kind up.
        return 0
    pods: int = found["spec"].get("replicas", 1) if found else 0
    return pods


def filled(template: Manifest, values: dict[str, Any]) -> list[Manifest]:
    """Return a template's objects with its parameters filled in; a parameter that is a whole value keeps its type."""
    defaults = {p["name"]: p.get("value", "") for p in template.get("parameters", [])}
    known = defaults | values

    def fill(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: fill(value) for key, value in node.items() if value is not None}
        if isinstance(node, list):
            return [fill(value) for value in node]
        if not isinstance(node, str):
            return node
        if whole := re.fullmatch(r"\$\{\{?(\w+)\}?\}", node):
            return known[whole[1]]
        return re.sub(r"\$\{(\w+)\}", lambda match: str(known[match[1]]), node)

    labels = fill(template.get("labels", {}))
    objects = []
    for node in template["objects"]:
        manifest = fill(node)
        manifest["metadata"]["labels"] = manifest["metadata"].get("labels", {}) | labels
        manifest.pop("status", None)
        objects.append(manifest)
    return objects


def completed(manifest: Manifest, observed: Observed, stream: Manifest | None, wanted: Redis) -> Manifest:
    """Put in the image that the platform's image trigger sets, so that the first pod does not wait for the trigger.

    And a probe without the password on its command line, unless somebody made the server from the template before:
    to change what is theirs takes `--force`, and nothing is broken.
    And the revision of the Secret: Redis takes its password at its start, so a changed one is another pod.
    """
    template = manifest["spec"]["template"]["metadata"]
    template["annotations"] = template.get("annotations", {}) | {REVISION: Revision((Object("Secret", wanted.name),))}
    found = observed.object("Deployment", manifest["metadata"]["name"])
    container = manifest["spec"]["template"]["spec"]["containers"][0]
    there = found["spec"]["template"]["spec"]["containers"][0] if found else {}
    asked = container.get("readinessProbe", {})
    if "exec" in asked and there.get("readinessProbe", {}).get("exec") != asked["exec"]:
        asked["exec"]["command"] = ["/bin/sh", "-c", ASKED]
    if found:
        container["image"] = there["image"]
    else:
        container["image"] = tagged(stream, wanted.version) or f"redis:{wanted.version}"
    return manifest


def tagged(stream: Manifest | None, tag: str) -> str:
    """Return the image that the trigger will set for a tag, "" when the tag has none.

    With the reference policy `Local` that is the platform's own registry, whatever the tag was imported from.
    """
    known = stream or {}
    items = next((t.get("items") or [] for t in known.get("status", {}).get("tags", []) if t["tag"] == tag), [])
    policy = next((t.get("referencePolicy", {}).get("type") for t in known.get("spec", {}).get("tags", []) if t["name"] == tag), "")
    here = known.get("status", {}).get("dockerImageRepository", "")
    if not items:
        return ""
    return f"{here}@{items[0]['image']}" if policy == "Local" and here else str(items[0]["dockerImageReference"])


SHAPE: Manifest = {
    "parameters": [],
    "objects": [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "${DATABASE_SERVICE_NAME}"},
         "stringData": {"database-password": "${REDIS_PASSWORD}"}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "${DATABASE_SERVICE_NAME}"},
         "spec": {"ports": [{"name": "redis", "port": 6379, "protocol": "TCP", "targetPort": 6379}],
                  "selector": {"name": "${DATABASE_SERVICE_NAME}"}}},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "${DATABASE_SERVICE_NAME}"},
         "spec": {"replicas": 1, "selector": {"matchLabels": {"name": "${DATABASE_SERVICE_NAME}"}},
                  "template": {"metadata": {"labels": {"name": "${DATABASE_SERVICE_NAME}"}},
                               "spec": {"containers": [{"name": "redis", "image": "redis:${REDIS_VERSION}"}]}}}},
    ],
}
"""The template's outline, for the page only: the real objects are read from the cluster."""
