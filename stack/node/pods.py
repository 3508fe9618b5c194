"""The life of one pod on the node: bound, set up, its containers started and restarted, its status told, its end."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from stack import catalogue, sandbox
from stack.api import Api, ApiError, Manifest, Unreachable, collection
from stack.errors import StackError
from stack.node import environment, eos, probes, status
from stack.node.environment import ConfigError
from stack.node.names import Names, write_hosts
from stack.node.network import Namespace, Network
from stack.node.runtime import Run, now
from stack.node.volumes import MountError, Volumes
from stack.state import NODE_ADDRESS, State

BACKOFF = float(os.environ.get("RUNBOOK_BACKOFF", "10"))
"""Seconds of the first pause before a restart; each next one is twice as long, up to thirty times this."""
LONGEST_BACKOFF = BACKOFF * 30
FORGIVEN = BACKOFF * 60
"""Seconds that a container must have run for its crashes to be forgotten."""


@dataclass
class Container:
    """One container of a pod, over all its runs."""

    spec: Manifest
    init: bool = False
    run: Run | None = None
    working_dir: str = "/"
    image_id: str = ""
    state: Manifest = field(default_factory=dict)
    last: Manifest = field(default_factory=dict)
    restarts: int = 0
    pause: float = 0
    not_before: float = 0
    attempts: int = 0

    @property
    def name(self) -> str:
        """Its name in the pod."""
        return str(self.spec["name"])

    @property
    def sidecar(self) -> bool:
        """Whether it is an init container that keeps running beside the others."""
        return self.init and self.spec.get("restartPolicy") == "Always"

    @property
    def running(self) -> bool:
        """Whether it has a process."""
        return self.run is not None and not self.run.finished.is_set()

    @property
    def succeeded(self) -> bool:
        """Whether it ended, and ended well."""
        return bool(self.state.get("terminated", {}).get("exitCode") == 0)


@dataclass
class Surroundings:
    """What all pods of the node share."""

    api: Api
    state: State
    network: Network
    names: Names
    events: status.Events
    fail: Callable[[Exception], None]
    """Called with an error that is a fault of the node itself."""


class Pod:
    """Brings one pod to what its object says, and its object's status to what is."""

    def __init__(self, shared: Surroundings, manifest: Manifest) -> None:
        about = manifest["metadata"]
        self.name = f"{about['namespace']}/{about['name']}"
        self.shared, self.manifest, self.uid = shared, manifest, about["uid"]
        self.gone = False
        """Set when the object is not there any more."""
        self.over = threading.Event()
        self.logs = shared.state.logs / "pods" / f"{about['namespace']}_{about['name']}_{self.uid}"
        self._folder = shared.state.path("pods", self.uid)
        self._wake = threading.Event()
        self._namespace: Namespace | None = None
        self._volumes = Volumes(shared.api, shared.state, self._folder / "volumes", self._fetch)
        self._told: Manifest = manifest.get("status", {})
        self._version = _version(manifest)
        """Of the object that holds what was told."""
        self._since = self._told.get("startTime") or now()
        self._attempts = 0
        self.inits = [Container(spec, init=True) for spec in manifest["spec"].get("initContainers", [])]
        self.mains = [Container(spec) for spec in manifest["spec"]["containers"]]
        self._adopt()

    def tell_what_ended(self) -> None:
        """Write that the containers which an earlier process of the node ran are gone, before anything else is done."""
        about, before = self.manifest["metadata"], self.manifest.get("status", {})
        if before.get("phase") == "Running" and "deletionTimestamp" not in about:
            with suppress(ApiError):  # It is gone; or else it is told again soon.
                self._tell(self.manifest)

    def start(self) -> None:
        """Begin to look after the pod, in a thread of its own."""
        threading.Thread(target=self._live, name=self.name, daemon=True).start()

    @property
    def containers(self) -> list[Container]:
        """All containers, init containers first."""
        return [*self.inits, *self.mains]

    def update(self, manifest: Manifest, *, gone: bool = False) -> None:
        """Take over what the API says about the pod now."""
        self.manifest, self.gone = manifest, self.gone or gone
        self._wake.set()

    def wake(self) -> None:
        """Have the pod looked at soon."""
        self._wake.set()

    def refresh_hosts(self) -> None:
        """Write the names that resolve inside."""
        if self._namespace:
            about, spec = self.manifest["metadata"], self.manifest["spec"]
            text = self.shared.names.hosts(about["namespace"], spec.get("hostname") or about["name"],
                                           self._namespace.address, spec.get("hostAliases", []))
            write_hosts(self._folder / "hosts", text)

    def stop_processes(self, grace: float) -> None:
        """Ask all containers to end; used when the node itself ends."""
        for container in self.containers:
            if container.run and container.running:
                container.run.stop(grace)

    def _live(self) -> None:
        """Look at the pod whenever something changed, until it is gone and cleaned up."""
        while not self.over.is_set():
            self._wake.clear()
            try:
                seconds = self._look()
            except Unreachable:
                seconds = 1.0
            except ApiError as error:
                if error.status != 404:  # the pod is gone: the watch will say so
                    print(f"pod {self.name}: {error}", file=sys.stderr, flush=True)
                seconds = 5.0
            except Exception as error:  # noqa: BLE001 - told to the node, which ends
                self.shared.fail(error)
                return
            if not self.over.is_set():
                self._wake.wait(seconds)

    def _look(self) -> float | None:
        """Do what is to be done now; return after how many seconds to look again, None for at the next change."""
        pod = self.manifest
        if self.gone or "deletionTimestamp" in pod["metadata"]:
            return self._end(pod)
        if pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            return self._rest()
        if not pod["spec"].get("nodeName"):
            return self._schedule(pod)
        soon = self._set_up(pod) or self._advance_all()
        self._tell(pod)
        return soon

    def _schedule(self, pod: Manifest) -> float | None:
        """Bind the pod to this node, as the scheduler would."""
        if pod["spec"].get("schedulingGates"):
            return None
        problem = self._unschedulable(pod)
        about = pod["metadata"]
        if problem:
            message = f"0/1 nodes are available: {problem}"
            self.shared.events.tell(pod, "Warning", "FailedScheduling", message, source="default-scheduler")
            known = [each for each in pod.get("status", {}).get("conditions", []) if each["type"] != "PodScheduled"]
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
                         "lastTransitionTime": now()}
            if self._attempts == 0:
                self.shared.api.patch("Pod", about["name"], {"status": {"conditions": [*known, condition]}},
                                      about["namespace"], subresource="status")
            self._attempts += 1
            return min(0.2 * 2.0 ** self._attempts, 5)
        self._attempts = 0
        try:
            self.shared.api.request("POST", f"{collection('Pod', about['namespace'])}/{about['name']}/binding", {
                "apiVersion": "v1", "kind": "Binding", "metadata": {"name": about["name"], "uid": self.uid},
                "target": {"apiVersion": "v1", "kind": "Node", "name": status.NODE}})
        except ApiError as error:
            if error.status != 409:  # bound meanwhile
                raise
        else:
            self.shared.events.tell(pod, "Normal", "Scheduled", f"Successfully assigned {about['namespace']}/"
                                    f"{about['name']} to {status.NODE}", source="default-scheduler")
        return None

    def _unschedulable(self, pod: Manifest) -> str:
        wanted = pod["spec"].get("nodeSelector") or {}
        if any(status.LABELS.get(key) != value for key, value in wanted.items()):
            return "1 node(s) didn't match Pod's node affinity/selector."
        for volume in pod["spec"].get("volumes", []):
            if name := volume.get("persistentVolumeClaim", {}).get("claimName"):
                claim = self.shared.api.get("PersistentVolumeClaim", name, pod["metadata"]["namespace"])
                if claim is None:
                    return f'persistentvolumeclaim "{name}" not found.'
                if claim.get("status", {}).get("phase") != "Bound":
                    return "pod has unbound immediate PersistentVolumeClaims."
        return ""

    def _set_up(self, pod: Manifest) -> float | None:
        """Make network, names and volumes; returns seconds until the next try when a volume cannot be made."""
        if not self._namespace:
            self._namespace = self.shared.network.open()
            self.refresh_hosts()
        try:
            if time.time() > self._volumes.renew:
                self._volumes.renew_tokens(pod)
            self._volumes.prepare(self._with_address(pod))
        except MountError as error:
            self.shared.events.tell(pod, "Warning", "FailedMount", str(error))
            self._attempts += 1
            return min(0.5 * 2.0 ** self._attempts, 10)
        self._attempts = 0
        return None

    def _with_address(self, pod: Manifest) -> Manifest:
        """Return the pod as containers see it: with its address, which the API may not know yet."""
        address = self._namespace.address if self._namespace else ""
        return {**pod, "status": {**pod.get("status", {}), "podIP": address, "hostIP": NODE_ADDRESS}}

    def _advance_all(self) -> float | None:
        """Advance init containers one after another, then the others; return the next time to look."""
        waits = [self._volumes.renew - time.time()] if self._volumes.renew < float("inf") else []
        never = self.manifest["spec"].get("restartPolicy") == "Never"
        for container in self.inits:
            waits.append(self._advance(container) or float("inf"))
            passed = (container.running and container.run and container.run.started_up if container.sidecar
                      else container.succeeded)
            if not passed:
                if never and "terminated" in container.state:
                    self.stop_processes(30)
                break
        else:
            waits += [self._advance(container) or float("inf") for container in self.mains]
            if all("terminated" in each.state and not self._restarts(each) for each in self.mains):
                self.stop_processes(30)  # sidecars
        soonest = min(waits, default=float("inf"))
        return None if soonest == float("inf") else max(soonest, 0.05)

    def _restarts(self, container: Container) -> bool:
        """Tell whether a container that has ended is to be started again."""
        policy = self.manifest["spec"].get("restartPolicy", "Always")
        if container.sidecar:
            return not all("terminated" in each.state and not self._restarts(each) for each in self.mains)
        if container.init:
            return not container.succeeded and policy != "Never"
        return policy == "Always" or (policy == "OnFailure" and not container.succeeded)

    def _advance(self, container: Container) -> float | None:
        """Start a container when it is due; return seconds until it will be, None when nothing is to be waited for."""
        if container.running:
            return None
        self._note_end(container)
        if "terminated" in container.state and not self._restarts(container):
            return None
        left = container.not_before - time.monotonic()
        if left > 0:
            if container.run and "terminated" in container.state:
                self._back_off(container)
            elif container.state.get("waiting", {}).get("reason") == "ErrImagePull":
                container.state["waiting"] = {"reason": "ImagePullBackOff",
                                              "message": f'Back-off pulling image "{container.spec["image"]}"'}
                self._event("Normal", "BackOff", container.state["waiting"]["message"], container)
            return left
        return self._start(container)

    def _note_end(self, container: Container) -> None:
        """Take over how a run ended, and when the next one may begin."""
        run = container.run
        if run is None or not run.finished.is_set() or "running" not in container.state:
            return
        container.state = {"terminated": status.terminated(run, self._id(container))}
        begun = container.not_before
        if time.monotonic() - begun > FORGIVEN:
            container.pause = 0
        container.not_before = time.monotonic() + container.pause
        container.attempts = 0

    def _back_off(self, container: Container) -> None:
        about = self.manifest["metadata"]
        container.last = {"terminated": container.state["terminated"]}
        seconds = int(container.pause)
        text = f"{seconds // 60}m{seconds % 60}s" if seconds >= 60 else f"{container.pause:g}s"
        pod = f"{about['name']}_{about['namespace']}({self.uid})"
        container.state = {"waiting": {"reason": "CrashLoopBackOff", "message":
                                       f"back-off {text} restarting failed container={container.name} pod={pod}"}}
        self._event("Warning", "BackOff", f"Back-off restarting failed container {container.name} in pod {pod}",
                    container)

    def _start(self, container: Container) -> float | None:
        """Start a container; when it cannot be, note why and return seconds until the next try."""
        spec, state = container.spec, self.shared.state
        try:
            image = catalogue.resolve(state, spec["image"])
            problem = "" if image else "no image of this name is known to the local stack"
        except StackError as error:
            image, problem = None, str(error)
        if not image:
            message = f'Failed to pull image "{spec["image"]}": {problem}'
            self._event("Warning", "Failed", message, container)
            self._event("Warning", "Failed", "Error: ErrImagePull", container)
            container.attempts += 1
            container.not_before = time.monotonic() + min(BACKOFF * 2.0 ** (container.attempts - 1), LONGEST_BACKOFF)
            return self._wait_because(container, "ErrImagePull", message, 1)
        try:
            pod = self._with_address(self.manifest)
            variables = sandbox.ENVIRONMENT | dict(image.env) | {"HOSTNAME": self._hostname()}
            variables |= environment.environment(pod, spec, self.shared.names.of_services(), self._fetch)
            mounts = self._volumes.mounts(pod, spec, variables)
        except ConfigError as error:
            self._event("Warning", "Failed", f"Error: {error}", container)
            container.attempts += 1
            return self._wait_because(container, "CreateContainerConfigError", str(error),
                                      min(2.0 ** (container.attempts - 1), 10))
        # An image's command is its entry point and its arguments in one: `args` alone stand for both, as they do in
        # images whose entry point runs whatever it is given.
        argv = [environment.expand(word, variables) for word in [*spec.get("command", []), *spec.get("args", [])]]
        container.working_dir = spec.get("workingDir") or image.working_dir or "/"
        container.image_id = f"{spec['image'].partition('@')[0]}@{image.digest}"
        again = bool(container.last or "terminated" in container.state or container.run)
        log = self._log(container, container.restarts + again)
        argv = argv or list(image.command)
        if not self._namespace:
            return 0.1
        try:
            run = Run(self.shared.network, self._namespace, lambda tell: sandbox.command(
                state, argv, user=self._user(spec), layers=image.layers, working_dir=container.working_dir,
                mounts=[*(sandbox.Mount(source, target) for source, target in image.binds), *mounts],
                hosts=self._folder / "hosts", hostname=self._hostname(), info_fd=tell),
                environment=variables, log=log, changed=self.wake,
                      late=partial(eos.slowed, state))
        except (OSError, StackError) as error:
            self._event("Warning", "Failed", f"Error: {error}", container)
            return self._wait_because(container, "RunContainerError", str(error), 10)
        if again:
            container.last = {"terminated": container.state["terminated"]} if "terminated" in container.state \
                else container.last
            container.restarts += 1
            container.pause = min(container.pause * 2 or BACKOFF, LONGEST_BACKOFF)
            self._log(container, container.restarts - 2).unlink(missing_ok=True)
        else:
            container.pause = 0
        container.run, container.state = run, {"running": {"startedAt": run.started_at}}
        container.not_before = time.monotonic()
        self._event("Normal", "Pulled", f'Container image "{spec["image"]}" already present on machine', container)
        self._event("Normal", "Started", f"Started container {container.name}", container)
        if container.sidecar or not container.init:
            probes.start(self._target(container, run))
        return None

    def _target(self, container: Container, run: Run) -> probes.Target:
        return probes.Target(
            container.spec, run, self._namespace.address if self._namespace else "", container.working_dir,
            unhealthy=lambda text: self._event("Warning", "Unhealthy", text, container),
            failed=partial(self._fail_probe, container, run), changed=self.wake)

    def _fail_probe(self, container: Container, run: Run, kind: str) -> None:
        self._event("Normal", "Killing", f"Container {container.name} failed {kind} probe, will be restarted",
                    container)
        own = container.spec[f"{kind}Probe"].get("terminationGracePeriodSeconds")
        run.stop(own or self.manifest["spec"].get("terminationGracePeriodSeconds", 30), self._hook(container, run))
        self.wake()

    def _hook(self, container: Container, run: Run) -> Callable[[float], None] | None:
        """Return what is to be done before SIGTERM: the container's preStop."""
        action = container.spec.get("lifecycle", {}).get("preStop")
        if not action:
            return None

        def before(seconds: float) -> None:
            if "sleep" in action:
                run.finished.wait(min(float(action["sleep"]["seconds"]), seconds))
                return
            problem = probes.check(self._target(container, run), {**action, "timeoutSeconds": seconds})
            if problem:
                self._event("Warning", "FailedPreStopHook", f"PreStopHook failed: {problem}", container)
        return before

    def _end(self, pod: Manifest) -> float | None:
        """Stop the containers with the grace that the deletion gives, then let the object go."""
        grace = 1 if self.gone else float(pod["metadata"].get("deletionGracePeriodSeconds", 30))
        running = [each for each in self.containers if each.running]
        for container in running:
            if container.run and not container.run.stopping:
                self._event("Normal", "Killing", f"Stopping container {container.name}", container)
            if container.run:
                container.run.stop(grace, self._hook(container, container.run))
        if running:
            return None
        for container in self.containers:
            self._note_end(container)
        self._release()
        if not self.gone:
            if pod["spec"].get("nodeName") and any("terminated" in each.state for each in self.containers):
                self._tell(pod, final=True)
            try:
                self.shared.api.delete("Pod", pod["metadata"]["name"], pod["metadata"]["namespace"],
                                       {"gracePeriodSeconds": 0, "preconditions": {"uid": self.uid}})
            except ApiError as error:
                if error.status != 409:  # another pod of this name by now
                    raise
        forget(self.shared.state, self.uid, self.logs)
        self.over.set()
        return None

    def _rest(self) -> float | None:
        """Keep a pod that is complete: only its logs, until it is deleted."""
        if not any(container.running for container in self.containers):
            self._release()
        return None

    def _release(self) -> None:
        self._volumes.close()
        if self._namespace:
            namespace, self._namespace = self._namespace, None
            self.shared.network.close(namespace)

    def _tell(self, pod: Manifest, *, final: bool = False) -> None:
        """Write the pod's status when it changed."""
        if _version(pod) > self._version:  # Others write it, too: the node controller, when it took the node for lost.
            self._told, self._version = pod.get("status", {}), _version(pod)
        inits, mains = ([self._status(each) for each in group] for group in (self.inits, self.mains))
        said: Manifest = {"initContainerStatuses": inits, "containerStatuses": mains, "startTime": self._since,
                          "hostIP": NODE_ADDRESS, "hostIPs": [{"ip": NODE_ADDRESS}]}
        said["phase"] = status.phase(pod, inits, mains)
        if final and said["phase"] in ("Running", "Pending"):
            codes = [each["state"].get("terminated", {}).get("exitCode") for each in mains]
            said["phase"] = "Succeeded" if all(code == 0 for code in codes) else "Failed"
        if self._namespace:
            said |= {"podIP": self._namespace.address, "podIPs": [{"ip": self._namespace.address}]}
        said["conditions"] = status.conditions(pod, said, self._told.get("conditions", []),
                                               network=self._namespace is not None)
        if not inits:
            del said["initContainerStatuses"]
        if any(self._told.get(key) != value for key, value in said.items()):
            about = pod["metadata"]
            kept = self.shared.api.patch("Pod", about["name"], {"status": said, "metadata": {"uid": self.uid}},
                                         about["namespace"], subresource="status")
            self._told, self._version = kept["status"], _version(kept)

    def _status(self, container: Container) -> Manifest:
        run = container.run
        waits = "PodInitializing" if self.inits and not container.init else "ContainerCreating"
        live = container.running and run is not None
        if container.init and not container.sidecar:
            ready, started = container.succeeded, bool(live)
        else:
            started = bool(live and run and run.started_up)
            ready = started and bool(run and run.ready and not run.stopping)
        return {"name": container.name, "image": container.spec["image"], "imageID": container.image_id,
                "restartCount": container.restarts, "ready": ready, "started": started,
                "state": container.state or {"waiting": {"reason": waits}}, "lastState": container.last,
                **({"containerID": self._id(container)} if run or "terminated" in container.state else {})}

    def _id(self, container: Container) -> str:
        return f"bubblewrap://{self.uid}-{container.name}-{container.restarts}"

    def _wait_because(self, container: Container, reason: str, message: str, seconds: float) -> float:
        if "terminated" in container.state:
            container.last = {"terminated": container.state["terminated"]}
        container.state = {"waiting": {"reason": reason, "message": message}}
        if reason != "ErrImagePull":
            container.not_before = time.monotonic() + seconds
        return seconds

    def _adopt(self) -> None:
        """Take over what an earlier process of the node knew: its containers have died with it."""
        known = {each["name"]: each for each in (*self._told.get("initContainerStatuses", []),
                                                 *self._told.get("containerStatuses", []))}
        for container in self.containers:
            before = known.get(container.name, {})
            container.restarts, container.last = before.get("restartCount", 0), before.get("lastState", {})
            container.image_id = before.get("imageID", "")
            if "terminated" in before.get("state", {}):
                container.state = before["state"]
            elif "running" in before.get("state", {}):
                container.state = {"terminated": {
                    "exitCode": 137, "reason": "Error", "message": "the node was started again",
                    "startedAt": before["state"]["running"].get("startedAt"), "finishedAt": now()}}

    def _fetch(self, kind: str, name: str) -> Manifest | None:
        return self.shared.api.get(kind, name, self.manifest["metadata"]["namespace"])

    def _hostname(self) -> str:
        return str(self.manifest["spec"].get("hostname") or self.manifest["metadata"]["name"])[:63].rstrip("-.")

    def _user(self, spec: Manifest) -> int:
        for context in (spec.get("securityContext"), self.manifest["spec"].get("securityContext")):
            if context and "runAsUser" in context:
                return int(context["runAsUser"])
        return sandbox.user_of(self.manifest["metadata"]["namespace"])

    def _log(self, container: Container, number: int) -> Path:
        return self.logs / container.name / f"{number}.log"

    def _event(self, kind: str, reason: str, message: str, container: Container) -> None:
        part = "initContainers" if container.init else "containers"
        self.shared.events.tell(self.manifest, kind, reason, message, field=f"spec.{part}{{{container.name}}}")


def _version(manifest: Manifest) -> int:
    return int(manifest["metadata"]["resourceVersion"])


def forget(state: State, uid: str, logs: Path) -> None:
    """Remove the files of a pod that is gone."""
    for folder in (state.path("pods", uid), logs):
        shutil.rmtree(folder, ignore_errors=True)
