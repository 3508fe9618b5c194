"""Makes a Build from a BuildConfig, numbered one after the other."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any

from stack.api import Api, ApiError, Manifest
from stack.builder import queue
from stack.builder.streams import Key, find
from stack.state import REGISTRY

TAKEN_OVER = ("serviceAccount", "source", "revision", "strategy", "output", "resources", "postCommit",
              "completionDeadlineSeconds", "nodeSelector", "mountTrustedCA")
"""What a Build takes over from its BuildConfig's spec."""

_numbering = threading.Lock()


def instantiate(api: Api, config: Manifest, request: Mapping[str, Any]) -> Manifest:
    """Create the next Build of a build config and return it.

    `request` is a BuildRequest: `env` is put over that of the build config, `revision` asks for a commit.
    Raises ApiError 400 when the builder image or the request cannot be used.
    """
    namespace, name = config["metadata"]["namespace"], config["metadata"]["name"]
    spec = {key: json.loads(json.dumps(value)) for key, value in config["spec"].items()
            if key in TAKEN_OVER and value is not None}
    strategy = (spec.get("strategy") or {}).get("sourceStrategy")
    if not strategy:
        raise ApiError(400, "BadRequest", f"BuildConfig {namespace}/{name}: only the source strategy "
                       "(spec.strategy.sourceStrategy) can be built on the local stack")
    strategy["from"] = {"kind": "DockerImage", "name": _builder_image(api, strategy["from"], namespace)}
    if request.get("env"):
        replaced = {entry["name"] for entry in request["env"]}
        kept = [entry for entry in strategy.get("env") or [] if entry["name"] not in replaced]
        strategy["env"] = [*kept, *request["env"]]
    if request.get("revision"):
        spec["revision"] = request["revision"]
    spec["triggeredBy"] = request.get("triggeredBy") or [{"message": "Manually triggered"}]
    policy = config["spec"].get("runPolicy") or "Serial"
    to = (spec.get("output") or {}).get("to") or {}
    target = (f"{REGISTRY}/{to.get('namespace') or namespace}/{to['name']}"
              if to.get("kind") == "ImageStreamTag" else to.get("name", ""))
    with _numbering:
        number = _next_number(api, namespace, name)
        build: Manifest = {
            "apiVersion": "build.openshift.io/v1", "kind": "Build",
            "metadata": {
                "name": f"{name}-{number}", "namespace": namespace,
                "labels": {**(config["metadata"].get("labels") or {}), "buildconfig": name, queue.CONFIG: name,
                           queue.POLICY: policy},
                "annotations": {queue.CONFIG: name, queue.NUMBER: str(number)},
                "ownerReferences": [{"apiVersion": "build.openshift.io/v1", "kind": "BuildConfig", "name": name,
                                     "uid": config["metadata"]["uid"], "controller": True}]},
            "spec": spec}
        made = api.create(build)
    status = {"phase": "New", "outputDockerImageReference": target, "output": {},
              "config": {"kind": "BuildConfig", "namespace": namespace, "name": name}}
    return api.patch("Build", made["metadata"]["name"], {"status": status}, namespace, subresource="status")


def _next_number(api: Api, namespace: str, name: str) -> int:
    """Take the next build number; the build config remembers it, so that no name is given twice."""
    config = api.get("BuildConfig", name, namespace)
    if not config:
        raise not_found(name)
    number = int((config.get("status") or {}).get("lastVersion") or 0) + 1
    while api.get("Build", f"{name}-{number}", namespace):  # the build config was deleted and made again
        number += 1
    api.patch("BuildConfig", name, {"status": {"lastVersion": number}}, namespace, subresource="status")
    return number


def not_found(name: str) -> ApiError:
    """Return OpenShift's answer for a build config that is not there."""
    return ApiError(404, "NotFound", f'buildconfigs.build.openshift.io "{name}" not found')


def _builder_image(api: Api, reference: Mapping[str, Any], namespace: str) -> str:
    """Return the image to pull for a strategy's `from`."""
    if reference["kind"] == "DockerImage":
        return str(reference["name"])

    def get(key: Key) -> Manifest | None:
        return api.get("ImageStream", key[1], key[0])

    where = reference.get("namespace") or namespace
    image = find(get, reference, namespace)
    if not image:
        stream = get((where, reference["name"].partition(":")[0].partition("@")[0]))
        tags = [tag["tag"] for tag in ((stream or {}).get("status") or {}).get("tags") or [] if tag.get("items")]
        has = f"it has {', '.join(tags) or 'none'}" if stream else "there is no such image stream"
        raise ApiError(400, "BadRequest", f"Error resolving {reference['kind']} {reference['name']} in namespace "
                       f"{where}: unable to find latest tagged image ({has})")
    return image.pull
