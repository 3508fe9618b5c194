"""Make the JSON files of this folder: OpenShift's kinds as custom resources, and what its namespace `openshift` holds.

Run `python -m stack.openshift.make` after changing this file or `MODULE`; a test compares the result with the files.

Stands for: the aggregated API servers of OpenShift (builds, images, templates, routes) and CERN's own `OidcReturnURI`.
The schemas are the published ones: `openapi/openapi.json` and the Route's manifest in the Go module
`github.com/openshift/api`. The image streams and the Redis templates have the names, tags, parameters, defaults and
objects that sclorg publishes (github.com/sclorg/redis-container `examples/` and `imagestreams/`, s2i-python-container,
nginx-container; the community variants, which an OKD cluster has).

Differs: a custom resource has no code behind it. What the Go code of OpenShift checks and fills in is added here by
hand as far as this guide touches it (enumerations, defaults, a rule that a strategy has its part); the rest is accepted
as the schema allows. A DeploymentConfig can be made and scaled, and no controller makes pods of it. ImageStreamTag,
ImageStreamImage and TemplateInstance are no resources here: a tag is read from its image stream's status, and a
template is processed by whoever reads it, as `oc process --local`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

MODULE = "github.com/openshift/api@v0.0.0-20260105191300-d1c4dc4fd37b"
FOLDER = Path(__file__).parent

Schema = dict[str, Any]

KINDS: dict[str, tuple[str, list[str], dict[str, str]]] = {
    "BuildConfig": ("build", ["bc"], {"Type": ".spec.strategy.type", "Latest": ".status.lastVersion"}),
    "Build": ("build", [], {"Status": ".status.phase", "Started": ".status.startTimestamp"}),
    "ImageStream": ("image", ["is"], {"Tags": ".status.tags[*].tag"}),
    "Template": ("template", [], {"Description": ".metadata.annotations.description"}),
}
"""The kinds made from openapi.json: their API group (below openshift.io), short names and printed columns."""

KEPT = ("type", "format", "required", "pattern", "nullable", "enum", "x-kubernetes-list-type",
        "x-kubernetes-list-map-keys", "x-kubernetes-map-type")
"""What is taken over from the published schemas. Descriptions are left out for their size, and so are defaults: the
published ones ("" and {}) stand for Go's zero values and would hide that a required field is missing."""

OBJECT_KINDS = {"required": ["kind", "name"],
                "properties": {"kind": {"enum": ["ImageStreamTag", "ImageStreamImage", "DockerImage"]},
                               "name": {"minLength": 1}}}
OUTPUT_KINDS = {"required": ["kind", "name"],
                "properties": {"kind": {"enum": ["ImageStreamTag", "DockerImage"]}, "name": {"minLength": 1}}}
STRATEGIES = {"Source": "sourceStrategy", "Docker": "dockerStrategy", "Custom": "customStrategy",
              "JenkinsPipeline": "jenkinsPipelineStrategy"}
BUILD_BASE: Schema = {"properties": {
    "nodeSelector": {"nullable": True},  # exports carry `nodeSelector: null`
    "source": {"properties": {"type": {"enum": ["Git", "Binary", "Dockerfile", "Image", "None"]},
                              "git": {"properties": {"uri": {"minLength": 1}}}}},
    "strategy": {
        "properties": {"type": {"enum": [*STRATEGIES]}, "sourceStrategy": {"properties": {"from": OBJECT_KINDS}}},
        "x-kubernetes-validations": [
            {"rule": "has(self.sourceStrategy) || has(self.dockerStrategy) || has(self.customStrategy) || "
                     "has(self.jenkinsPipelineStrategy)",
             "message": "must provide a value for one of sourceStrategy, customStrategy, dockerStrategy, or "
                        "jenkinsPipelineStrategy"},
            *({"rule": f"!has(self.type) || self.type != '{name}' || has(self.{part})",
               "message": f"strategy type {name} needs {part}"} for name, part in STRATEGIES.items()),
        ]},
    "output": {"properties": {"to": OUTPUT_KINDS}},
}}
LIMIT: Schema = {"default": 5, "minimum": 0}
ADDED: dict[str, Schema] = {
    "BuildConfig": {"properties": {"spec": {**BUILD_BASE, "properties": {
        **BUILD_BASE["properties"],
        "runPolicy": {"enum": ["Serial", "SerialLatestOnly", "Parallel"], "default": "Serial"},
        "failedBuildsHistoryLimit": LIMIT, "successfulBuildsHistoryLimit": LIMIT,
        "triggers": {"nullable": True, "items": {"properties": {"type": {
            # The lower-case names are what OpenShift's own client sent before 3.0 and is still accepted.
            "enum": ["GitHub", "Generic", "GitLab", "Bitbucket", "ImageChange", "ConfigChange",
                     "github", "generic", "imageChange"]}}}},
    }}}},
    "Build": {"properties": {
        "spec": {**BUILD_BASE, "properties": {**BUILD_BASE["properties"], "triggeredBy": {"nullable": True}}},
        "status": {"properties": {"phase": {
            "enum": ["New", "Pending", "Running", "Complete", "Failed", "Error", "Cancelled"]}}}}},
    "ImageStream": {"properties": {
        "spec": {"properties": {"tags": {"nullable": True, "items": {"properties": {
            "annotations": {"nullable": True}, "from": {"nullable": True}, "generation": {"nullable": True},
            "name": {"minLength": 1}, "referencePolicy": {"properties": {"type": {"enum": ["Source", "Local"]}}}}}}}},
        "status": {"properties": {"tags": {"items": {"properties": {"items": {"nullable": True}}}}}}}},
    "Template": {},
}
"""What OpenShift's Go code enforces or fills in and the published schemas do not say."""


def download() -> Path:
    """Fetch the Go module (checked against Go's checksum database) and return its folder.

    Raises FileNotFoundError without Go on PATH, RuntimeError when the module cannot be fetched.
    """
    done = subprocess.run(["go", "mod", "download", "-json", MODULE], capture_output=True, text=True, check=False,
                          cwd=Path.home(), timeout=120)
    answer = json.loads(done.stdout or "{}")
    if "Dir" not in answer:
        raise RuntimeError(f"the Go module {MODULE} cannot be fetched: {answer.get('Error') or done.stderr.strip()}")
    return Path(answer["Dir"])


def structural(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> Schema:
    """Return a published schema as a structural one: references inlined, merge keys as list maps, nothing else."""
    if "$ref" in node:
        name = node["$ref"].removeprefix("#/definitions/")
        known = KNOWN.get(name.rpartition(".")[2])
        return dict(known) if known is not None else structural(definitions[name], definitions)
    made: Schema = {key: node[key] for key in KEPT if key in node}
    if "x-kubernetes-patch-merge-key" in node and "x-kubernetes-list-type" not in made:
        made |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [node["x-kubernetes-patch-merge-key"]]}
    if "properties" in node:
        made["properties"] = {name: structural(part, definitions) for name, part in node["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            made[key] = structural(node[key], definitions)
    return made


KNOWN: dict[str, Schema] = {
    "ObjectMeta": {"type": "object"},  # the server has its own schema of metadata
    "Time": {"type": "string", "format": "date-time", "nullable": True},
    "Quantity": {"x-kubernetes-int-or-string": True,
                 "anyOf": [{"type": "integer"}, {"type": "string"}]},
    "IntOrString": {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]},
    "RawExtension": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
}
"""Types with a meaning of their own, by the last part of their name."""


def merge(schema: Schema, added: Schema) -> Schema:
    """Return the schema with additions laid over it; an addition to a field that is not there is a KeyError."""
    merged = dict(schema)
    for key, value in added.items():
        if key == "properties":
            merged[key] = schema[key] | {name: merge(schema[key][name], part) for name, part in value.items()}
        elif key == "items":
            merged[key] = merge(schema[key], value)
        elif key == "required":
            merged[key] = sorted({*schema.get(key, []), *value})
        else:
            merged[key] = value
    return merged


def definition(group: str, kind: str, schema: Schema, *, version: str = "v1", short: list[str] | None = None,
               columns: dict[str, str] | None = None, status: bool = True) -> Schema:
    """Return the CustomResourceDefinition of a namespaced kind with one version."""
    plural = kind.lower() + "s"
    printed = [{"name": name, "type": "integer" if name == "Latest" else "string", "jsonPath": path}
               for name, path in (columns or {}).items()]
    names = {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower()}
    return {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": f"{plural}.{group}"},
            "spec": {"group": group, "scope": "Namespaced", "names": names | ({"shortNames": short} if short else {}),
                     "versions": [{"name": version, "served": True, "storage": True,
                                   **({"additionalPrinterColumns": printed} if printed else {}),
                                   **({"subresources": {"status": {}}} if status else {}),
                                   "schema": {"openAPIV3Schema": schema}}]}}


def without_descriptions(schema: Any) -> Any:
    """Return a schema without its descriptions; a property that is called `description` stays."""
    if isinstance(schema, list):
        return [without_descriptions(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: {name: without_descriptions(part) for name, part in value.items()} if key == "properties"
            else without_descriptions(value)
            for key, value in schema.items() if key != "description"}


def definitions(module: Path) -> dict[str, Any]:
    """Return the custom resource definitions, by file name."""
    published = json.loads((module / "openapi" / "openapi.json").read_text())["definitions"]
    made: dict[str, Any] = {}
    for kind, (group, short, columns) in KINDS.items():
        schema = structural(published[f"com.github.openshift.api.{group}.v1.{kind}"], published)
        schema = merge(schema, ADDED[kind])
        schema["required"] = [name for name in schema.get("required", []) if name not in ("metadata", "status")]
        crd = definition(f"{group}.openshift.io", kind, schema, short=short, columns=columns, status=kind != "Template")
        made[f"crd-{kind.lower()}s.json"] = crd
    route = yaml.safe_load((module / "route/v1/zz_generated.crd-manifests/routes.crd.yaml").read_text())
    approved = "api-approved.openshift.io"
    route["metadata"]["annotations"] = {approved: route["metadata"]["annotations"][approved]}
    for version in route["spec"]["versions"]:
        version["schema"] = without_descriptions(version["schema"])
    made["crd-routes.json"] = route
    made["crd-oidcreturnuris.json"] = definition(
        "webservices.cern.ch", "OidcReturnURI", version="v1alpha1", schema={
            "type": "object", "required": ["spec"], "properties": {
                "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"},
                "spec": {"type": "object", "required": ["redirectURI"], "properties": {
                    "redirectURI": {"type": "string", "pattern": "^https?://.+"}}},
                "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}})
    made["crd-deploymentconfigs.json"] = deployment_config()
    return made


def deployment_config() -> Schema:
    """Return the kind that sites of 2022 have: any content, and its number of pods as a subresource."""
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    crd = definition("apps.openshift.io", "DeploymentConfig", short=["dc"], schema={"type": "object", "properties": {
        "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}, "status": anything,
        "spec": anything | {"properties": {"replicas": {"type": "integer", "minimum": 0}}}}})
    crd["spec"]["versions"][0]["subresources"]["scale"] = {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}
    return crd


UBI = "registry.access.redhat.com"
STREAMS: dict[str, tuple[str, dict[str, str]]] = {
    "python": ("Python", {
        "3.6-ubi8": f"{UBI}/ubi8/python-36:latest", "3.9-ubi8": f"{UBI}/ubi8/python-39:latest",
        "3.9-ubi9": f"{UBI}/ubi9/python-39:latest", "3.12-ubi8": f"{UBI}/ubi8/python-312:latest",
        "3.12-ubi9": f"{UBI}/ubi9/python-312:latest",
        "3.12-minimal-ubi9": f"{UBI}/ubi9/python-312-minimal:latest",
        "3.12-minimal-ubi10": f"{UBI}/ubi10/python-312-minimal:latest", "latest": "3.12-ubi9"}),
    "redis": ("Redis", {
        "6-el9": "quay.io/sclorg/redis-6-c9s:latest", "7-el9": "quay.io/sclorg/redis-7-c9s:latest",
        "latest": "6-el9"}),
    "nginx": ("Nginx HTTP server and a reverse proxy (nginx)", {
        "1.22-ubi8": f"{UBI}/ubi8/nginx-122:latest", "1.22-ubi9": f"{UBI}/ubi9/nginx-122:latest",
        "1.24-ubi8": f"{UBI}/ubi8/nginx-124:latest", "1.24-ubi9": f"{UBI}/ubi9/nginx-124:latest",
        "1.26-ubi9": f"{UBI}/ubi9/nginx-126:latest", "latest": "1.26-ubi9"}),
}
"""The image streams: display name, and for each tag an image or another tag of the stream."""


def stream(name: str) -> Schema:
    """Return an image stream without status: the builder imports what its tags name, as OpenShift's controller does."""
    title, sources = STREAMS[name]
    tags = []
    for tag, source in sources.items():
        version = tag.split("-")[0]
        tags.append({
            "name": tag, "referencePolicy": {"type": "Local"},
            "annotations": {"openshift.io/display-name": f"{title} {version if tag != 'latest' else '(Latest)'}",
                            "openshift.io/provider-display-name": "Red Hat, Inc.",
                            "tags": name if name == "redis" else f"builder,{name}",
                            **({"version": version} if tag != "latest" else {})},
            "from": {"kind": "ImageStreamTag" if source in sources else "DockerImage", "name": source}})
    return {"apiVersion": "image.openshift.io/v1", "kind": "ImageStream",
            "metadata": {"name": name, "namespace": "openshift", "annotations": {"openshift.io/display-name": title}},
            "spec": {"lookupPolicy": {"local": False}, "tags": tags}}


def redis_template(*, persistent: bool) -> Schema:
    """Return the template `redis-ephemeral` or `redis-persistent`."""
    variant = "persistent" if persistent else "ephemeral"
    name, readme = "${DATABASE_SERVICE_NAME}", "https://github.com/sclorg/redis-container/blob/master/7"
    trigger = [{"from": {"kind": "ImageStreamTag", "name": "redis:${REDIS_VERSION}", "namespace": "${NAMESPACE}"},
                "fieldPath": 'spec.template.spec.containers[?(@.name=="redis")].image'}]
    container = {
        "name": "redis",
        "image": " ",  # the image trigger fills it in
        "ports": [{"containerPort": 6379, "protocol": "TCP"}],
        "readinessProbe": {"timeoutSeconds": 1, "initialDelaySeconds": 5, "exec": {"command": [
            "/bin/sh", "-i", "-c", 'test "$(redis-cli -h 127.0.0.1 -a $REDIS_PASSWORD ping)" == "PONG"']}},
        "livenessProbe": {"timeoutSeconds": 1, "initialDelaySeconds": 30, "tcpSocket": {"port": 6379}},
        "env": [{"name": "REDIS_PASSWORD",
                 "valueFrom": {"secretKeyRef": {"name": name, "key": "database-password"}}}],
        "resources": {"limits": {"memory": "${MEMORY_LIMIT}"}},
        "volumeMounts": [{"name": f"{name}-data", "mountPath": "/var/lib/redis/data"}],
        "terminationMessagePath": "/dev/termination-log", "imagePullPolicy": "IfNotPresent",
        "securityContext": {"capabilities": {}, "privileged": False},
    }
    volume = {"persistentVolumeClaim": {"claimName": name}} if persistent else {"emptyDir": {"medium": ""}}
    objects: list[Schema] = [
        {"kind": "Secret", "apiVersion": "v1",
         "metadata": {"name": name, "annotations": {
             "template.openshift.io/expose-password": "{.data['database-password']}"}},
         "stringData": {"database-password": "${REDIS_PASSWORD}"}},
        {"kind": "Service", "apiVersion": "v1",
         "metadata": {"name": name, "annotations": {
             "template.openshift.io/expose-uri":
                 'redis://{.spec.clusterIP}:{.spec.ports[?(.name=="redis")].port}'}},
         "spec": {"ports": [{"name": "redis", "protocol": "TCP", "port": 6379, "targetPort": 6379, "nodePort": 0}],
                  "selector": {"name": name}, "type": "ClusterIP", "sessionAffinity": "None"},
         "status": {"loadBalancer": {}}},
        *([{"kind": "PersistentVolumeClaim", "apiVersion": "v1", "metadata": {"name": name},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "${VOLUME_CAPACITY}"}}}}]
          if persistent else []),
        {"kind": "Deployment", "apiVersion": "apps/v1",
         "metadata": {"name": name, "annotations": {
             "template.alpha.openshift.io/wait-for-ready": "true",
             "image.openshift.io/triggers": json.dumps(trigger, separators=(",", ":"))}},
         "spec": {"strategy": {"type": "Recreate"}, "replicas": 1, "selector": {"matchLabels": {"name": name}},
                  "template": {"metadata": {"labels": {"name": name}},
                               "spec": {"containers": [container], "volumes": [{"name": f"{name}-data", **volume}],
                                        "restartPolicy": "Always", "dnsPolicy": "ClusterFirst"}}},
         "status": {}},
    ]
    parameters = [
        {"name": "MEMORY_LIMIT", "displayName": "Memory Limit", "value": "512Mi", "required": True,
         "description": "Maximum amount of memory the container can use."},
        {"name": "NAMESPACE", "displayName": "Namespace", "value": "openshift",
         "description": "The OpenShift Namespace where the ImageStream resides."},
        {"name": "DATABASE_SERVICE_NAME", "displayName": "Database Service Name", "value": "redis", "required": True,
         "description": "The name of the OpenShift Service exposed for the database."},
        {"name": "REDIS_PASSWORD", "displayName": "Redis Connection Password", "required": True,
         "description": "Password for the Redis connection user.",
         "generate": "expression", "from": "[a-zA-Z0-9]{16}"},
        *([{"name": "VOLUME_CAPACITY", "displayName": "Volume Capacity", "value": "1Gi", "required": True,
            "description": "Volume space available for data, e.g. 512Mi, 2Gi."}] if persistent else []),
        {"name": "REDIS_VERSION", "displayName": "Version of Redis Image", "value": "7-el9", "required": True,
         "description": "Version of Redis image to be used (6-el8, 6-el9, 7-el8, 7-el9, or latest)."},
    ]
    stored = "with persistent storage" if persistent else "without persistent storage"
    return {"apiVersion": "template.openshift.io/v1", "kind": "Template",
            "metadata": {"name": f"redis-{variant}", "namespace": "openshift", "annotations": {
                "openshift.io/display-name": "Redis" if persistent else "Redis (Ephemeral)",
                "description": f"Redis in-memory data structure store, {stored}.", "tags": "database,redis",
                "iconClass": "icon-redis", "openshift.io/documentation-url": readme,
                "openshift.io/provider-display-name": "Red Hat, Inc."}},
            "labels": {"template": f"redis-{variant}-template"},
            "message": f"The following service(s) have been created in your project: {name}.\n\n"
                       f"       Password: ${{REDIS_PASSWORD}}\n Connection URL: redis://{name}:6379/\n",
            "objects": objects, "parameters": parameters}


def library() -> dict[str, Any]:
    """Return the content of the namespace `openshift`, by file name."""
    return {f"stream-{name}.json": stream(name) for name in STREAMS} | {
        "template-redis-ephemeral.json": redis_template(persistent=False),
        "template-redis-persistent.json": redis_template(persistent=True)}


def render(content: Any) -> str:
    """Return what a file of this folder holds."""
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False) + "\n"


def main() -> None:
    """Write all files anew."""
    for name, content in (definitions(download()) | library()).items():
        (FOLDER / name).write_text(render(content))
        sys.stdout.write(f"{name}\n")


if __name__ == "__main__":
    main()
