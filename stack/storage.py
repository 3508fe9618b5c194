"""Volumes for claims of the storage classes that CERN offers.

Stands for EOS, CephFS and block storage with their provisioners. A claim of the class `eos` gets the one folder that
stands for EOS (`stack/eos.py`), shared by all; a claim of another class that exists gets a folder of its own.

Differs: sizes and access modes are noted but not enforced, snapshots and resizing are not offered. Volumes live as long
as the cluster's objects: what an earlier cluster has left is removed.
"""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

from stack import eos
from stack.api import Api, ApiError, Manifest
from stack.state import State

PROVISIONER = "pv.kubernetes.io/provisioned-by"
BY = "local-stack/storage"


def run(state: State, stop: threading.Event) -> None:
    """Provide volumes until told to stop; raises what was unexpected in one of the two watches."""
    Storage(state, stop).run()


class Storage:
    """Makes a volume for each claim, and removes it when the claim is gone."""

    def __init__(self, state: State, stop: threading.Event) -> None:
        self._state, self._stop = state, stop
        self._api = Api(state.inside, state.tokens.admin, state.ca)
        self._failure: Exception | None = None
        self._volumes: set[str] = set()

    def run(self) -> None:
        """Watch volumes, and beside it claims."""
        eos.prepare(self._state)
        self._state.volumes.mkdir(parents=True, exist_ok=True, mode=0o700)
        ended = threading.Event()

        def watch_claims() -> None:
            try:
                for event, claim in self._api.watch("PersistentVolumeClaim", stop=self._stop):
                    if event in ("ADDED", "MODIFIED"):
                        self._provide(claim)
            except Exception as error:  # noqa: BLE001 - raised again below
                self._failure = error
                ended.set()

        def watch_volumes() -> None:
            try:
                for event, volume in self._api.watch("PersistentVolume", stop=self._stop):
                    self._follow(event, volume)
            except Exception as error:  # noqa: BLE001 - raised again below
                self._failure = error
                ended.set()

        for work in (watch_claims, watch_volumes):
            threading.Thread(target=work, name=work.__name__, daemon=True).start()
        while not self._stop.is_set() and not ended.wait(0.5):
            pass
        if self._failure:
            raise self._failure

    def _provide(self, claim: Manifest) -> None:
        """Make the volume that a claim asks for; the controllers bind the two."""
        spec, about = claim["spec"], claim["metadata"]
        if claim.get("status", {}).get("phase") != "Pending" or spec.get("volumeName") or \
                "deletionTimestamp" in about or spec.get("selector"):
            return
        kind = spec.get("storageClassName")
        found = self._api.get("StorageClass", kind) if kind else None
        if not found:
            return  # the controllers say so in an event of the claim
        name = f"pvc-{about['uid']}"
        path = self._state.eos if kind == eos.CLASS else self._state.volumes / name
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        if path.parent == self._state.volumes:
            path.chmod(0o777)  # MicroShift's pods have a random user; the folder above lets nobody else of this machine in
        reference = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "name": about["name"],
                     "namespace": about["namespace"], "uid": about["uid"]}
        try:
            self._api.create({
                "apiVersion": "v1", "kind": "PersistentVolume",
                "metadata": {"name": name, "annotations": {PROVISIONER: BY}},
                "spec": {"capacity": {"storage": spec["resources"]["requests"]["storage"]},
                         "accessModes": spec["accessModes"], "volumeMode": "Filesystem", "claimRef": reference,
                         "persistentVolumeReclaimPolicy": found.get("reclaimPolicy", "Delete"),
                         "storageClassName": kind, "hostPath": {"path": str(path), "type": ""}}})
        except ApiError as error:
            if error.status != 409:  # made already
                raise

    def _follow(self, event: str, volume: Manifest) -> None:
        if event == "SYNCED":
            for left in self._state.volumes.iterdir():
                if left.name not in self._volumes and not self._claimed(left):
                    shutil.rmtree(left, ignore_errors=True)
            return
        about, spec = volume["metadata"], volume["spec"]
        if about.get("annotations", {}).get(PROVISIONER) != BY:
            return
        if event == "DELETED":
            self._volumes.discard(about["name"])
            self._remove(about["name"])
            return
        self._volumes.add(about["name"])
        if volume.get("status", {}).get("phase") == "Released" and "deletionTimestamp" not in about \
                and spec["persistentVolumeReclaimPolicy"] == "Delete":
            self._remove(about["name"])
            self._api.delete("PersistentVolume", about["name"])

    def _claimed(self, folder: Path) -> bool:
        """Tell whether a folder was made for a volume whose object came after the listing."""
        return self._api.get("PersistentVolume", folder.name) is not None

    def _remove(self, name: str) -> None:
        # EOS itself is not below this folder: it outlives every claim.
        shutil.rmtree(self._state.volumes / name, ignore_errors=True)
