"""Decides which build runs when: run policies, cancelled builds, builds that an earlier builder left behind."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping

from stack.api import Api, ApiError, Manifest
from stack.builder.clock import now
from stack.builder.run import CANCELLED, Run, log_path
from stack.builder.streams import DigestOf, Key, Streams, key_of
from stack.state import State

AT_ONCE = 2
"""Builds that run at the same time, whatever their build configs allow: more would only slow each other down."""

ENDED = ("Complete", "Failed", "Error", "Cancelled")
POLICY = "openshift.io/build.start-policy"
CONFIG = "openshift.io/build-config.name"
NUMBER = "openshift.io/build.number"
HISTORY = 5
"""Ended builds of each kind that are kept when the build config's history limits say nothing."""


class Queue:
    """All builds of the cluster, kept in step by a watch."""

    def __init__(self, state: State, api: Api, run: type[Run] = Run, digest_of: DigestOf | None = None) -> None:
        """`run` carries a build out, `digest_of` finds the images that streams import."""
        self._state, self._api, self._run = state, api, run
        self.streams = Streams(state, api, self.look, digest_of)
        self._lock = threading.RLock()
        self._builds: dict[Key, Manifest] = {}
        self._runs: dict[Key, Run] = {}
        self._begun: set[str] = set()
        """Uids of builds that were given to a thread: what the watch says of their phase may be old."""
        self._places = threading.Semaphore(AT_ONCE)
        self._synced = False

    def phase(self, key: Key) -> str:
        """Return a build's phase as seen last, or nothing when there is no such build."""
        build = self._builds.get(key)
        return phase_of(build) if build else ""

    def watch(self, stop: threading.Event) -> None:
        """Follow the builds until `stop`; then end those that run."""
        for left in self._state.images.glob(".build-*"):
            shutil.rmtree(left, ignore_errors=True)
        for event, build in self._api.watch("Build", stop=stop):
            with self._lock:
                if event == "SYNCED":
                    if not self._synced:
                        self._take_over()
                    self._synced = True
                elif event == "DELETED":
                    self._builds.pop(key_of(build), None)
                    if run := self._runs.get(key_of(build)):
                        run.cancel()
                    log_path(self._state, *key_of(build)).unlink(missing_ok=True)
                else:
                    self._builds[key_of(build)] = build
            self.look()

    def end(self) -> None:
        """End the builds that run, because the builder stops; the next start marks them Failed."""
        with self._lock:
            for run in self._runs.values():
                run.abandon()

    def look(self) -> None:
        """Start what may start."""
        with self._lock:
            if not self._synced:
                return
            for key, build in list(self._builds.items()):
                if (build.get("status") or {}).get("cancelled") and phase_of(build) not in ENDED:
                    if key in self._runs:
                        self._runs[key].cancel()
                    elif build["metadata"]["uid"] not in self._begun:
                        self._finish(build, CANCELLED)
            groups: dict[Key, list[Manifest]] = {}
            for build in self._builds.values():
                # One without a phase is still being made: whoever makes it would write New over what we write.
                if (build.get("status") or {}).get("phase") == "New" and build["metadata"]["uid"] not in self._begun:
                    config = (build["metadata"].get("labels") or {}).get(CONFIG, build["metadata"]["name"])
                    groups.setdefault((build["metadata"]["namespace"], config), []).append(build)
            for group, waiting in groups.items():
                self._start(group, sorted(waiting, key=_number))

    def _start(self, group: Key, waiting: list[Manifest]) -> None:
        """Start those builds of one build config that its run policy allows now."""
        policy = (waiting[-1]["metadata"].get("labels") or {}).get(POLICY, "Serial")
        if policy == "SerialLatestOnly":
            for old in waiting[:-1]:
                self._finish(old, {**CANCELLED, "message": "A newer build was waiting (run policy SerialLatestOnly)."})
            waiting = waiting[-1:]
        if policy != "Parallel":
            active = any(key[0] == group[0] and (run.build["metadata"].get("labels") or {}).get(CONFIG) == group[1]
                         for key, run in self._runs.items())
            waiting = [] if active else waiting[:1]
        for build in waiting:
            if not self._has_output(build):
                continue
            run = self._run(self._state, self._api, self.streams, build)
            self._begun.add(build["metadata"]["uid"])
            self._runs[key_of(build)] = run
            threading.Thread(target=self._carry_out, args=(run,), name=f"build {run.name}", daemon=True).start()

    def _carry_out(self, run: Run) -> None:
        with self._places:
            run.run()
        with self._lock:
            self._runs.pop((run.namespace, run.name), None)
        self._forget_old(run)
        self.look()

    def _has_output(self, build: Manifest) -> bool:
        """Return whether the image stream to push to is there; a build without one stays New and says why."""
        to = (build["spec"].get("output") or {}).get("to") or {}
        stream = to.get("name", "").partition(":")[0]
        there = (to.get("kind") == "ImageStreamTag"
                 and self.streams.get((to.get("namespace") or key_of(build)[0], stream)))
        if not there and (build.get("status") or {}).get("reason") != "InvalidOutputReference":
            self._write(build, {"reason": "InvalidOutputReference", "message": "Output image could not be resolved: "
                                f"there is no ImageStream {stream!r}."})
        return bool(there)

    def _take_over(self) -> None:
        """Bring builds that an earlier builder left to a state from which they go on or have ended."""
        for build in list(self._builds.values()):
            if not (build.get("status") or {}).get("phase"):
                self._write(build, {"phase": "New"})
            elif phase_of(build) in ("Pending", "Running"):
                self._finish(build, {"phase": "Failed", "reason": "BuildPodDeleted", "message":
                                     "The builder was stopped while this build ran: start the build again."})

    def _finish(self, build: Manifest, status: Mapping[str, object]) -> None:
        self._begun.add(build["metadata"]["uid"])
        self._write(build, {**status, "completionTimestamp": now()})

    def _write(self, build: Manifest, status: Mapping[str, object]) -> None:
        namespace, name = key_of(build)
        try:
            self._builds[namespace, name] = self._api.patch("Build", name, {"status": dict(status)}, namespace,
                                                            subresource="status")
        except ApiError as error:
            if error.status != 404:
                raise

    def _forget_old(self, run: Run) -> None:
        """Delete ended builds beyond the build config's history limits."""
        config_name = (run.build["metadata"].get("labels") or {}).get(CONFIG, "")
        try:
            config = self._api.get("BuildConfig", config_name, run.namespace) if config_name else None
            if not config:
                return
            builds = self._api.list("Build", run.namespace, labelSelector=f"{CONFIG}={config_name}")
            for field, phases in (("successfulBuildsHistoryLimit", ("Complete",)),
                                  ("failedBuildsHistoryLimit", ("Failed", "Error", "Cancelled"))):
                limit = config["spec"].get(field)
                ended = sorted((build for build in builds if phase_of(build) in phases), key=_number, reverse=True)
                for build in ended[HISTORY if limit is None else limit:]:
                    self._api.delete("Build", build["metadata"]["name"], run.namespace)
        except ApiError as error:
            print(f"old builds of {run.namespace}/{config_name} cannot be removed: {error}", flush=True)


def phase_of(build: Manifest) -> str:
    """Return a build's phase; one whose status is not written yet is New."""
    return (build.get("status") or {}).get("phase") or "New"


def _number(build: Manifest) -> int:
    return int((build["metadata"].get("annotations") or {}).get(NUMBER, 0))

