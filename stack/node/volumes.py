"""A pod's volumes: a folder for each, filled before the first container starts, and the mounts of a container."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from stack import eos
from stack.api import Api, Manifest, collection
from stack.node import environment
from stack.node.environment import ConfigError, Fetch
from stack.node.eos import View
from stack.sandbox import Mount
from stack.state import State

_UNWRITABLE = ("configMap", "secret", "projected", "downwardAPI")


class MountError(Exception):
    """A volume cannot be made; the text is what the kubelet would say (event FailedMount)."""


@dataclass
class Volumes:
    """The volumes of one pod, below one folder."""

    api: Api
    state: State
    folder: Path
    fetch: Fetch
    paths: dict[str, Path] = field(default_factory=dict)
    renew: float = float("inf")
    """When a token must be asked for again: seconds of the epoch."""
    view: View | None = None
    """What the pod sees of EOS, when one of its claims is of that class."""

    def prepare(self, pod: Manifest) -> None:
        """Make all volumes of a pod. Raises MountError naming the first that cannot be made."""
        for volume in pod["spec"].get("volumes", []):
            if volume["name"] not in self.paths:
                try:
                    self.paths[volume["name"]] = self._make(pod, volume)
                except (ConfigError, OSError) as error:
                    raise MountError(f'MountVolume.SetUp failed for volume "{volume["name"]}" : {error}') from error

    def renew_tokens(self, pod: Manifest) -> None:
        """Write fresh service account tokens into the projected volumes of a running pod."""
        self.renew = float("inf")
        for volume in pod["spec"].get("volumes", []):
            if "projected" in volume:
                self._write(self.folder / volume["name"], self._projected(pod, volume["projected"]))

    def mounts(self, pod: Manifest, container: Manifest, known: Mapping[str, str]) -> list[Mount]:
        """Return the mounts of a container; `known` is its environment. Raises ConfigError for a bad subPath."""
        kinds = {volume["name"]: next((key for key in volume if key != "name"), "emptyDir")
                 for volume in pod["spec"].get("volumes", [])}
        claims = {volume["name"]: volume["persistentVolumeClaim"] for volume in pod["spec"].get("volumes", [])
                  if "persistentVolumeClaim" in volume}
        found = []
        for mount in container.get("volumeMounts", []):
            name = mount["name"]
            writable = not (mount.get("readOnly") or kinds[name] in _UNWRITABLE
                            or claims.get(name, {}).get("readOnly"))
            source = self.paths[name]
            if self.view and source == self.view.path and "mountPropagation" not in mount:
                source = self.view.snapshot()
            below = mount.get("subPath") or environment.expand(mount.get("subPathExpr", ""), known)
            if below:
                source = _below(source, below, make=kinds[name] not in _UNWRITABLE)
            found.append(Mount(source, str(PurePosixPath("/", mount["mountPath"])), writable))
        return found

    def remove(self) -> None:
        """Remove what was made for the pod; volumes of claims stay."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """Take EOS away again; the pod's processes must have ended."""
        if self.view:
            view, self.view = self.view, None
            view.close()

    def _make(self, pod: Manifest, volume: Manifest) -> Path:
        folder = self.folder / str(volume["name"])
        if "persistentVolumeClaim" in volume:
            return self._claim(pod, volume["persistentVolumeClaim"]["claimName"])
        if "emptyDir" in volume:
            files: dict[str, tuple[bytes, int]] = {}
        elif "configMap" in volume:
            source = volume["configMap"]
            files = _files("ConfigMap", source, source.get("defaultMode", 0o644), self.fetch)
        elif "secret" in volume:
            source = {**volume["secret"], "name": volume["secret"].get("secretName", "")}
            files = _files("Secret", source, source.get("defaultMode", 0o644), self.fetch)
        elif "downwardAPI" in volume:
            files = _downward(pod, volume["downwardAPI"].get("items", []), volume["downwardAPI"].get("defaultMode"))
        elif "projected" in volume:
            files = self._projected(pod, volume["projected"])
        else:
            kind = next((key for key in volume if key != "name"), "unknown")
            raise ConfigError(f"volumes of the kind {kind} are not offered here")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._write(folder, files)
        return folder

    def _claim(self, pod: Manifest, name: str) -> Path:
        claim = self.api.get("PersistentVolumeClaim", name, pod["metadata"]["namespace"])
        if claim is None or claim.get("status", {}).get("phase") != "Bound":
            raise ConfigError(f'persistentvolumeclaim "{name}" is not bound')
        volume = self.api.get("PersistentVolume", claim["spec"]["volumeName"])
        path = Path(str((volume or {"spec": {}})["spec"].get("hostPath", {}).get("path", "/nowhere")))
        if not path.is_dir():
            raise ConfigError(f'the folder of persistent volume "{claim["spec"]["volumeName"]}" is gone')
        if claim["spec"].get("storageClassName") == eos.CLASS:
            self.view = self.view or View(self.state, pod["metadata"]["uid"], self.folder / eos.STORE)
            return self.view.path
        return path

    def _projected(self, pod: Manifest, source: Manifest) -> dict[str, tuple[bytes, int]]:
        files: dict[str, tuple[bytes, int]] = {}
        mode = source.get("defaultMode", 0o644)
        for part in source.get("sources", []):
            if "serviceAccountToken" in part:
                wanted = part["serviceAccountToken"]
                files[wanted["path"]] = (self._token(pod, wanted).encode(), mode)
            elif "configMap" in part:
                files |= _files("ConfigMap", part["configMap"], mode, self.fetch)
            elif "secret" in part:
                files |= _files("Secret", part["secret"], mode, self.fetch)
            elif "downwardAPI" in part:
                files |= _downward(pod, part["downwardAPI"].get("items", []), mode)
        return files

    def _token(self, pod: Manifest, wanted: Manifest) -> str:
        about = pod["metadata"]
        account = pod["spec"].get("serviceAccountName", "default")
        spec: dict[str, Any] = {"expirationSeconds": wanted.get("expirationSeconds", 3600), "boundObjectRef": {
            "apiVersion": "v1", "kind": "Pod", "name": about["name"], "uid": about["uid"]}}
        if wanted.get("audience"):
            spec["audiences"] = [wanted["audience"]]
        path = f"{collection('ServiceAccount', about['namespace'])}/{account}/token"
        answer = self.api.request("POST", path, {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
                                                 "spec": spec})["status"]
        left = dt.datetime.fromisoformat(answer["expirationTimestamp"]).timestamp() - time.time()
        self.renew = min(self.renew, time.time() + left * 0.8)
        return str(answer["token"])

    @staticmethod
    def _write(folder: Path, files: Mapping[str, tuple[bytes, int]]) -> None:
        for name, (content, mode) in files.items():
            path = _below(folder, name, make=False)
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            part = path.with_name(f".{path.name}.new")
            # The pod's user owns it; nobody else on the machine is to read it, whatever the mode says.
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(content)
                os.fchmod(file.fileno(), mode & 0o700)
            part.replace(path)


def _files(kind: str, source: Manifest, mode: int, fetch: Fetch) -> dict[str, tuple[bytes, int]]:
    data = environment.values(kind, source, fetch)
    if "items" not in source:
        return {key: (content, mode) for key, content in data.items()}
    files = {}
    for item in source["items"]:
        if item["key"] in data:
            files[item["path"]] = (data[item["key"]], item.get("mode", mode))
        elif not source.get("optional"):
            raise ConfigError(f"references non-existent {kind.lower()} key: {item['key']}")
    return files


def _downward(pod: Manifest, items: list[Manifest], mode: int | None) -> dict[str, tuple[bytes, int]]:
    files = {}
    for item in items:
        if "fieldRef" in item:
            text = environment.field(pod, item["fieldRef"]["fieldPath"])
        else:
            wanted = item["resourceFieldRef"]
            named = [each for each in pod["spec"]["containers"] if each["name"] == wanted.get("containerName")]
            text = environment.resource(named[0] if named else {}, wanted)
        files[item["path"]] = (text.encode(), item.get("mode", mode or 0o644))
    return files


def _below(folder: Path, path: str, *, make: bool) -> Path:
    """Return a path below a folder; raises ConfigError when it would lead out of it."""
    target = folder / path
    if not target.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"{path} leads out of its volume")
    if make and not target.exists():
        target.mkdir(parents=True, mode=0o700)
    if not make and not target.parent.exists():
        target.parent.mkdir(parents=True, mode=0o700)
    return target
