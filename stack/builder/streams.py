"""Image streams: moves their tags, imports what their `spec.tags` name, points Deployments at them, removes old images.

Written down in each stream's status, as OpenShift does: the newest image of a tag first. Which `spec.tags` entry was
imported last stands in the tag's condition `ImportSuccess`, so an entry moves its tag once, when it is new or changed
(a rollback, a promotion), and a later build moves it on.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from stack import catalogue
from stack.api import Api, ApiError, Manifest
from stack.builder import layers
from stack.builder.clock import now
from stack.state import REGISTRY, State

HISTORY = 5
"""Images that a tag remembers; older ones are removed."""

TRIGGERS = "image.openshift.io/triggers"
TRIGGER_MANAGER = "openshift-controller-manager"
STRATEGIC = "application/strategic-merge-patch+json"

Key = tuple[str, str]
"""(namespace, name)."""

DigestOf = Callable[[str], tuple[str, str]]
"""Returns the digest of the image that a reference names, and why there is none."""


@dataclass(frozen=True)
class Tagged:
    """An image that an image stream tag has."""

    digest: str
    source: str
    """Where the image came from (`dockerImageReference`)."""
    pull: str
    """The reference to pull it by: OpenShift's own registry, unless the tag's reference policy is Source."""


def key_of(manifest: Manifest) -> Key:
    """Return an object's namespace and name."""
    return manifest["metadata"]["namespace"], manifest["metadata"]["name"]


def tagged(stream: Manifest | None, tag: str) -> Tagged | None:
    """Return the newest image of an image stream's tag, or None when there is none yet."""
    items = _history(stream, tag)
    return _tagged(stream, tag, items[0]) if stream and items else None


def _tagged(stream: Manifest, tag: str, item: Mapping[str, Any]) -> Tagged:
    spec: dict[str, Any] = next((spec for spec in _spec_tags(stream) if spec["name"] == tag), {})
    foreign = not item["dockerImageReference"].startswith(REGISTRY)
    source = foreign and (spec.get("referencePolicy") or {}).get("type") != "Local"
    return Tagged(item["image"], item["dockerImageReference"], item["dockerImageReference"] if source
                  else catalogue.internal_reference(*key_of(stream), item["image"]))


def find(get: Callable[[Key], Manifest | None], reference: Mapping[str, Any], namespace: str) -> Tagged | None:
    """Return the image that an ImageStreamTag or ImageStreamImage stands for, or None when there is none.

    `get` returns an image stream; `namespace` is where the reference stands.
    """
    name = reference["name"]
    namespace = reference.get("namespace") or namespace
    if reference["kind"] == "ImageStreamImage":
        name, _, digest = name.partition("@")
        stream = get((namespace, name))
        for tag in (stream or {}).get("status", {}).get("tags") or []:
            for item in tag.get("items") or []:
                if stream and item["image"] == digest:
                    return _tagged(stream, tag["tag"], item)
        return None
    name, _, tag = name.partition(":")
    return tagged(get((namespace, name)), tag or "latest")


def _history(stream: Manifest | None, tag: str) -> list[dict[str, Any]]:
    tags = ((stream or {}).get("status") or {}).get("tags") or []
    return next((entry.get("items") or [] for entry in tags if entry["tag"] == tag), [])


class Streams:
    """The image streams of the whole cluster, kept in step by two watches; safe to use from several threads."""

    def __init__(self, state: State, api: Api, changed: Callable[[], None], digest_of: DigestOf | None = None) -> None:
        """`changed` is called after image streams came, changed or went; `digest_of` finds images elsewhere than here."""
        self._state, self._api, self._changed = state, api, changed
        self._digest_of = digest_of or self._in_catalogue
        self._lock = threading.RLock()
        self._streams: dict[Key, Manifest] = {}
        self._deployments: dict[Key, Manifest] = {}
        self._synced = False
        """Before all streams were seen, one that follows another would be said to have no image."""

    def get(self, key: Key) -> Manifest | None:
        """Return an image stream as it was seen last."""
        return self._streams.get(key)

    def watch_streams(self, stop: threading.Event) -> None:
        """Follow the image streams until `stop`."""
        for event, stream in self._api.watch("ImageStream", stop=stop):
            with self._lock:
                if event == "SYNCED":
                    self._synced = True
                    for key in list(self._streams):
                        self._follow(key)
                    self.collect_garbage()
                elif event == "DELETED":
                    self._streams.pop(key_of(stream), None)
                else:
                    self._streams[key_of(stream)] = stream
                    self._follow(key_of(stream))
            self._changed()

    def watch_deployments(self, stop: threading.Event) -> None:
        """Follow the Deployments that have an image trigger until `stop`."""
        for event, deployment in self._api.watch("Deployment", stop=stop):
            if event == "SYNCED":
                continue
            with self._lock:
                if event == "DELETED" or TRIGGERS not in (deployment["metadata"].get("annotations") or {}):
                    self._deployments.pop(key_of(deployment), None)
                else:
                    self._deployments[key_of(deployment)] = deployment
                    self._trigger(deployment)

    def push(self, namespace: str, name: str, keep: Callable[[], str]) -> str:
        """Make a new image the newest one of `STREAM:TAG`; `keep` stores it and returns its digest, as this does."""
        stream, _, tag = name.partition(":")
        with self._lock:  # so that the image is not taken for garbage before a tag has it
            digest = keep()
            source = catalogue.internal_reference(namespace, stream, digest)
            self._move((namespace, stream), tag or "latest", source, digest)
            self.collect_garbage()
        return digest

    def _move(self, key: Key, tag: str, source: str, digest: str, condition: dict[str, Any] | None = None) -> None:
        """Put an image on top of a tag's history; without a digest write only the condition."""
        def change(stream: Manifest) -> Manifest:
            generation = stream["metadata"].get("generation", 1)
            tags: list[dict[str, Any]] = json.loads(json.dumps((stream.get("status") or {}).get("tags") or []))
            entry = next((entry for entry in tags if entry["tag"] == tag), None)
            if entry is None:
                entry = {"tag": tag, "items": []}
                tags.append(entry)
            items = entry.get("items") or []
            if digest and not (items and items[0]["image"] == digest):
                items = [{"created": now(), "dockerImageReference": source, "image": digest, "generation": generation},
                         *items][:HISTORY]
            entry["items"] = items
            if condition:
                entry["conditions"] = [{**condition, "generation": generation, "lastTransitionTime": now()}]
            return {"metadata": {"resourceVersion": stream["metadata"]["resourceVersion"]},
                    "status": {"dockerImageRepository": f"{REGISTRY}/{key[0]}/{key[1]}", "tags": tags}}

        for _ in range(20):
            stream = self._api.get("ImageStream", key[1], key[0])
            if not stream:
                raise ApiError(404, "NotFound", f"there is no ImageStream {key[0]}/{key[1]}")
            try:
                self._streams[key] = self._api.patch("ImageStream", key[1], change(stream), key[0],
                                                     subresource="status", manager=TRIGGER_MANAGER)
            except ApiError as error:
                if error.status != 409:
                    raise
            else:
                self._follow(key)
                return
        raise ApiError(409, "Conflict", f"ImageStream {key[0]}/{key[1]} is changed all the time")

    def _follow(self, key: Key) -> None:
        """Carry a change of a stream on: into its own tags, the streams that refer to it, and Deployments."""
        if not self._synced:
            return
        if stream := self._streams.get(key):
            self._import(stream)
        for other in list(self._streams.values()):
            if key_of(other) != key and any(_refers(spec, key_of(other), key) for spec in _spec_tags(other)):
                self._import(other)
        for deployment in self._deployments.values():
            self._trigger(deployment)

    def _import(self, stream: Manifest) -> None:
        """Move the tags whose `spec.tags` entry is new, or follows a tag that has moved."""
        key = key_of(stream)
        for spec in _spec_tags(stream):
            found, problem = self._source(spec["from"], key)
            known = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:12]
            condition = ({"type": "ImportSuccess", "status": "True", "reason": "Imported",
                          "message": f"{spec['from']['name']} is {found[1]} (spec {known})"} if found else
                         {"type": "ImportSuccess", "status": "False", "reason": "NotFound", "message": problem})
            status: dict[str, Any] = next((entry for entry in (stream.get("status") or {}).get("tags") or []
                                           if entry["tag"] == spec["name"]), {})
            if any(old.get("message") == condition["message"] for old in status.get("conditions") or []):
                continue
            try:
                self._move(key, spec["name"], *(found or ("", "")), condition)
            except ApiError as error:
                if error.status != 404:
                    raise
            return  # _move has looked at the stream again

    def _source(self, wanted: Mapping[str, Any], key: Key) -> tuple[tuple[str, str] | None, str]:
        """Return (source reference, digest) of what a `spec.tags` entry names, or why there is none."""
        name = wanted["name"]
        if wanted["kind"] == "DockerImage":
            digest, problem = self._digest_of(name)
            return ((f"{_repository(name)}@{digest}", digest) if digest else None), problem
        if wanted["kind"] == "ImageStreamTag" and ":" not in name:
            wanted = {**wanted, "name": f"{key[1]}:{name}"}  # a tag of the same stream
        found = find(self.get, wanted, key[0])
        return ((found.source, found.digest), "") if found else (None, f"{wanted['kind']} {name} has no image")

    def _in_catalogue(self, reference: str) -> tuple[str, str]:
        digest = catalogue.digest_of(reference)
        known = digest and catalogue.exists(self._state, digest)
        return (digest, "") if known else ("", f"the image {reference} is not in the local stack's catalogue")

    def _trigger(self, deployment: Manifest) -> None:
        """Set the images of a Deployment that its triggers name to the newest of their tags."""
        try:
            triggers = json.loads(deployment["metadata"]["annotations"][TRIGGERS])
        except ValueError:
            return
        namespace, name = key_of(deployment)
        pod = deployment["spec"]["template"]["spec"]
        changes: dict[str, list[dict[str, str]]] = {}
        for trigger in triggers if isinstance(triggers, list) else []:
            if str(trigger.get("pause", trigger.get("paused", ""))).lower() == "true":
                continue
            group, container = _container(pod, trigger.get("fieldPath", ""))
            followed = trigger.get("from") or {}
            image = find(self.get, followed, namespace) if followed.get("kind") == "ImageStreamTag" else None
            if container and image and container.get("image") != image.pull:
                changes.setdefault(group, []).append({"name": container["name"], "image": image.pull})
        if changes:
            try:
                self._deployments[namespace, name] = self._api.patch(
                    "Deployment", name, {"spec": {"template": {"spec": changes}}}, namespace, manager=TRIGGER_MANAGER,
                    content=STRATEGIC)
            except ApiError as error:
                # Refused by its validation or gone meanwhile: its next change is looked at again.
                print(f"image trigger of Deployment {namespace}/{name}: {error}", flush=True)

    def collect_garbage(self) -> None:
        """Remove the images that no tag remembers and nothing runs, and the packages that no image lies over."""
        with self._lock:
            folders = list(self._state.images.glob("sha256-*"))
            if not folders:  # an engine keeps them elsewhere
                return
            used = {item["image"] for stream in self._api.list("ImageStream")
                    for tag in (stream.get("status") or {}).get("tags") or [] for item in tag.get("items") or []}
            for kind in ("Pod", "ReplicaSet", "Deployment", "Job", "CronJob"):
                used.update(re.findall(r"sha256:[0-9a-f]{64}", json.dumps(self._api.list(kind))))
            used.update(catalogue.made_here())
            names = {digest.replace(":", "-") for digest in used}.union(*(catalogue.below(self._state, digest) for digest in used))
            for folder in [*folders, *layers.unclaimed(self._state)]:
                if folder.name not in names:
                    gone = folder.with_name(f".build-gone-{folder.name}")
                    folder.rename(gone)
                    shutil.rmtree(gone, ignore_errors=True)


def _spec_tags(stream: Manifest) -> Iterable[dict[str, Any]]:
    return [spec for spec in (stream.get("spec") or {}).get("tags") or [] if spec.get("from")]


def _refers(spec: Mapping[str, Any], owner: Key, key: Key) -> bool:
    """Return whether a `spec.tags` entry of the stream `owner` names the stream `key`."""
    wanted = spec["from"]
    stream = re.split("[:@]", wanted["name"])[0]
    return wanted["kind"] != "DockerImage" and (wanted.get("namespace") or owner[0], stream) == key


def _repository(reference: str) -> str:
    """Return an image reference without tag and digest; a port's colon stays."""
    name = reference.partition("@")[0]
    return name.rpartition(":")[0] if ":" in name.rpartition("/")[2] else name


def _container(pod: Mapping[str, Any], path: str) -> tuple[str, Mapping[str, Any] | None]:
    """Return the list and the container that a trigger's field path names, by name or by number."""
    parts = re.fullmatch(r"""spec\.template\.spec\.(containers|initContainers)"""
                         r"""\[(?:\?\(@\.name==["']([^"']+)["']\)|(\d+))\]\.image""", path)
    if not parts:
        return "", None
    containers = pod.get(parts.group(1)) or []
    if parts.group(2):
        return parts.group(1), next((each for each in containers if each["name"] == parts.group(2)), None)
    number = int(parts.group(3))
    return parts.group(1), containers[number] if number < len(containers) else None
