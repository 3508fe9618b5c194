"""The node: runs the containers of every pod as sandboxed processes on this machine.

Stands for the scheduler, the kubelet and the container runtime of a node of the cluster. It binds pods, gives each a
network of its own, and its containers environment, files, volumes, probes, restarts with the kubelet's back-off,
SIGTERM and grace; `kubectl logs` and `kubectl exec` reach them through the API server.

Differs: there is one node, and requests and limits are neither checked nor enforced. Images come from
`stack/catalogue.py`. There is no DNS: names of services, Routes, databases and the platform stand in each pod's
/etc/hosts; a headless Service has no name, and curl takes every `*.localhost` for the pod itself. Pods cannot reach
the Internet. Mounted ConfigMaps and Secrets are not refreshed in a running pod. Left out are NetworkPolicy, UDP
services, hostPath and CSI volumes, mount propagation of anything but EOS, postStart hooks, gRPC probes, termination
messages, ephemeral containers, attach and port-forward. When the stack is started again, the containers of its pods
are, too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from stack import network as private_network
from stack.api import Api, Manifest
from stack.node import eos, heartbeat, pods, status
from stack.node.kubelet import Server
from stack.node.names import Names
from stack.node.network import Network
from stack.node.pods import Pod
from stack.state import State

API_SERVER = "https://127.0.0.1:6443"
GOODBYE = 1.0
"""Seconds that containers have after SIGTERM when the node itself ends."""


def run(state: State, stop: threading.Event) -> None:
    """Be the node until told to stop; raises what was unexpected in any of its threads."""
    Node(state, stop).run()


class Node:
    """The node with its pods."""

    def __init__(self, state: State, stop: threading.Event) -> None:
        self._state, self._stop = state, stop
        self._end = threading.Event()
        self._api = Api(API_SERVER, state.tokens.admin, state.ca)
        self._names = Names(state)
        self._failure: Exception | None = None
        self._server: Server | None = None
        self._pods: dict[str, Pod] = {}
        self._known = threading.Event()
        """Set when every pod that was there at the start is looked after."""
        self._named = threading.Event()
        self._network = Network()
        self._shared = pods.Surroundings(self._api, state, self._network, self._names, status.Events(self._api),
                                         self._fail)

    def run(self) -> None:
        """Start the threads and wait for the end."""
        private_network.prepare()
        self._network.clean()
        eos.clean(self._state)
        work: list[Callable[[], None]] = [
            self._serve, self._watch_pods, self._watch_services, self._watch_routes, self._watch_databases,
            self._refresh_names, lambda: heartbeat.run(self._api, self._end)]
        for each in work:
            threading.Thread(target=self._guard, args=(each,), daemon=True).start()
        while not self._stop.is_set() and not self._end.is_set():
            self._stop.wait(0.5)
        self._end.set()
        if self._server:
            self._server.shutdown()
        living = [pod for pod in self._pods.values() if not pod.over.is_set()]
        for pod in living:
            pod.stop_processes(GOODBYE)
        for container in [each for pod in living for each in pod.containers]:
            if container.run:
                container.run.finished.wait(GOODBYE + 0.5)
        if self._failure:
            raise self._failure

    def find(self, namespace: str, name: str) -> Pod | None:
        """Return the pod of a namespace and name; of several (one is being deleted) the newest."""
        wanted = f"{namespace}/{name}"
        found = [pod for pod in list(self._pods.values()) if pod.name == wanted and not pod.over.is_set()]
        return found[-1] if found else None

    def _serve(self) -> None:
        """Answer for the containers; that this answers says that the node is there, so no pod may still be told to be ready."""
        while not self._known.wait(0.1):
            if self._end.is_set():
                return
        self._server = Server(self._state, self._network, self.find)
        self._server.serve_forever()

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - raised again by run
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._failure = error
        self._end.set()

    def _watch_pods(self) -> None:
        for event, item in self._api.watch("Pod", stop=self._end):
            if event == "SYNCED":
                self._clean()
                self._known.set()
                continue
            uid = item["metadata"]["uid"]
            item.setdefault("kind", "Pod")
            if event == "DELETED":
                if pod := self._pods.pop(uid, None):
                    pod.update(item, gone=True)
            elif pod := self._pods.get(uid):
                pod.update(item)
            elif item["spec"].get("nodeName", status.NODE) == status.NODE and \
                    item["spec"].get("schedulerName", "default-scheduler") == "default-scheduler":
                self._pods[uid] = Pod(self._shared, item)
                if not self._known.is_set():
                    self._pods[uid].tell_what_ended()
                self._pods[uid].start()

    def _clean(self) -> None:
        """Remove the files of pods that are not there any more."""
        for folder in (self._state.path("pods"), self._state.logs / "pods"):
            for left in folder.iterdir() if folder.is_dir() else ():
                uid = left.name.rpartition("_")[2]
                if uid not in self._pods:
                    pods.forget(self._state, uid, left)

    def _watch_services(self) -> None:
        self._watch_names("Service", self._names.services)

    def _watch_routes(self) -> None:
        self._watch_names("Route", self._names.routes)

    def _watch_names(self, kind: str, kept: dict[str, Manifest]) -> None:
        for event, item in self._api.watch(kind, stop=self._end):
            if event != "SYNCED" and self._names.keep(kept, event, item):
                self._named.set()

    def _watch_databases(self) -> None:
        """Notice new database instances: their folder changes when one is made."""
        before = None
        while not self._end.wait(1):
            folder = self._state.databases
            now = folder.stat().st_mtime_ns if folder.is_dir() else None
            if now != before:
                before = now
                self._named.set()

    def _refresh_names(self) -> None:
        while not self._end.is_set():
            if self._named.wait(1):
                self._named.clear()
                for pod in list(self._pods.values()):
                    pod.refresh_hosts()
