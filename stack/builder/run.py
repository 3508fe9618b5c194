"""One build from Pending to its end: fetch the source, assemble it in a sandbox, keep the image, move the tag."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from stack import catalogue, sandbox
from stack.api import Api, ApiError, Manifest
from stack.builder import layers, source
from stack.builder.clock import now
from stack.builder.errors import BuildError, CancelledError
from stack.builder.streams import Streams
from stack.sandbox import Mount
from stack.state import REGISTRY, State

DEADLINE = 1800
"""Seconds that a build may take when its `completionDeadlineSeconds` says nothing."""

SNIPPET = 10
"""Lines of the log that `status.logSnippet` shows."""

PASSED_ON = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")
"""Settings of this machine for reaching package indexes that builds get, like those whose names begin with PIP_."""

PIP_CONF = "/run/pip.conf"

ASSEMBLE = 'code=0; "$0" || code=$?; rm -f -- "$@"; exit $code'
"""Runs assemble and removes the injected secrets, inside the sandbox, where a link leads nowhere else."""


class Run:
    """A build that is being carried out by a thread of its own."""

    def __init__(self, state: State, api: Api, streams: Streams, build: Manifest) -> None:
        self._state, self._api, self._streams, self.build = state, api, streams, build
        self.namespace, self.name = build["metadata"]["namespace"], build["metadata"]["name"]
        self._path = log_path(state, self.namespace, self.name)
        self._cancelled = threading.Event()
        self._abandoned = False
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._end = time.monotonic() + (build["spec"].get("completionDeadlineSeconds") or DEADLINE)

    def cancel(self) -> None:
        """End the build now; it becomes Cancelled."""
        with self._lock:
            self._cancelled.set()
            if self._process:
                self._process.kill()

    def abandon(self) -> None:
        """End the build's processes because the builder stops; its status stays as it is."""
        self._abandoned = True
        self.cancel()

    def run(self) -> None:
        """Carry the build out; every outcome is written to its status, and none raises."""
        started = time.monotonic()
        outcome: dict[str, Any]
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch(mode=0o600)
            self._status({"phase": "Pending"})
            self._status({"phase": "Running", "startTimestamp": now(), "reason": None, "message": None})
            digest = self._build()
            outcome = {"phase": "Complete", "output": {"to": {"imageDigest": digest}}}
        except CancelledError:
            outcome = CANCELLED
        except BuildError as failure:
            outcome = {"phase": "Failed", "reason": failure.reason, "message": str(failure)}
        except OSError as error:
            outcome = {"phase": "Failed", "reason": "GenericBuildFailed", "message": _unable(error, self._state)}
        except Exception as error:  # noqa: BLE001 - a mistake of ours must end the build, not the builder
            traceback.print_exc()
            outcome = {"phase": "Error", "reason": "GenericBuildFailed",
                       "message": f"The builder failed: {error}; `stack.logs builder` has more."}
        if self._abandoned:
            return
        if outcome["phase"] != "Complete":
            with suppress(OSError):  # no space left: the status says it
                outcome = outcome | {"logSnippet": self._tail(SNIPPET)}
                self._log(f"error: build error: {outcome['message']}")
        outcome |= {"completionTimestamp": now(), "duration": int((time.monotonic() - started) * 1e9)}
        try:
            self._status(outcome)
        except (ApiError, CancelledError) as error:
            print(f"build {self.namespace}/{self.name}: its end cannot be written: {error}", flush=True)

    def _build(self) -> str:
        """Make the image and move the tag; return the image's digest."""
        spec = self.build["spec"]
        strategy = spec["strategy"].get("sourceStrategy")
        if not strategy or not (spec.get("source") or {}).get("git") or spec.get("postCommit"):
            raise BuildError("GenericBuildFailed", "Only the source strategy with a Git source and without a "
                               "post-commit hook can be built here.")
        output = (spec.get("output") or {}).get("to") or {}
        self._look_for_builder(strategy["from"]["name"])
        self._state.images.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = Path(tempfile.mkdtemp(prefix=".build-", dir=self._state.images))
        try:
            environment = self._environment(strategy)
            commit, context = source.fetch(spec, self._source_secret(), folder, self._execute, log=self._log,
                                           tail=lambda: self._tail(SNIPPET))
            self._check_cancelled()
            self._api.patch("Build", self.name, {"spec": {"revision": commit.revision()}}, self.namespace)
            project = output.get("namespace") or self.namespace
            name = f"{project}/{output['name']}"
            keep = self._make(context, folder, name, environment=environment, commit=commit)
            self._check_cancelled()
            self._log(f"\nPushing image {REGISTRY}/{name} ...")
            digest = self._streams.push(project, output["name"], keep)
            self._log(f"Successfully pushed {REGISTRY}/{name.rpartition(':')[0]}@{digest}\nPush successful")
            return digest
        finally:
            layers.remove(folder)

    def _look_for_builder(self, reference: str) -> None:
        """See that the builder image can be used; raises BuildError when it cannot."""
        builder = catalogue.resolve(self._state, reference)
        if not builder:
            raise BuildError("PullBuilderImageFailed", f"Failed pulling builder image {reference}.")
        if not any(target == catalogue.APP_ROOT for _, target in builder.layers) or \
                not any(target == catalogue.S2I for _, target in builder.binds):
            raise BuildError("PullBuilderImageFailed", f"{reference} is not a builder image: it has no {catalogue.S2I}/assemble.")

    def _make(self, context: Path, folder: Path, name: str, *, environment: Mapping[str, str],  # noqa: ARG002 - others need `name`
              commit: source.Commit) -> Callable[[], str]:
        """Make the image `PROJECT/STREAM:TAG` of the sources; return what keeps it and returns its digest."""
        (folder / "image").mkdir()
        made = self._assemble(context, folder, environment=environment, commit=commit)
        return lambda: catalogue.keep(self._state, folder / "image", **made)

    def _own_environment(self, context: Path, environment: Mapping[str, str], commit: source.Commit) -> dict[str, str]:
        """Return what a build adds to the environment of its builder image."""
        return {**_source_environment(context / ".s2i" / "environment", self._log), **environment,
                "OPENSHIFT_BUILD_NAME": self.name, "OPENSHIFT_BUILD_NAMESPACE": self.namespace,
                "OPENSHIFT_BUILD_SOURCE": source.without_credentials(self.build["spec"]["source"]["git"]["uri"]),
                "OPENSHIFT_BUILD_COMMIT": commit.sha}

    def _labels(self, commit: source.Commit) -> dict[str, str]:
        spec = self.build["spec"]
        git = spec["source"]["git"]
        labels = {"io.openshift.build.name": self.name, "io.openshift.build.namespace": self.namespace,
                  "io.openshift.build.commit.id": commit.sha, "io.openshift.build.commit.message": commit.message,
                  "io.openshift.build.commit.author": f"{commit.author} <{commit.author_mail}>",
                  "io.openshift.build.commit.date": commit.date, "io.openshift.build.commit.ref": git.get("ref", ""),
                  "io.openshift.build.source-location": source.without_credentials(git["uri"]),
                  "io.openshift.build.source-context-dir": spec["source"].get("contextDir", "")}
        for label in (spec.get("output") or {}).get("imageLabels") or []:
            labels[label["name"]] = label.get("value", "")
        return labels

    def _assemble(self, context: Path, folder: Path, *, environment: Mapping[str, str], commit: source.Commit) -> dict[str, Any]:
        """Run assemble over the builder image; return what the new image is, as `catalogue.keep` wants it."""
        builder = catalogue.resolve(self._state, self.build["spec"]["strategy"]["sourceStrategy"]["from"]["name"])
        assert builder  # noqa: S101 - looked for before
        image = folder / "image"
        work = layers.prepare(self._state, builder, context, image, folder / "work")
        root, scripts, temporary = image / "app-root", image / "scripts", folder / "tmp"
        scripts.mkdir()
        temporary.mkdir()
        shutil.rmtree(folder / "checkout" / ".git")
        for script in sorted((context / ".s2i" / "bin").glob("*")):
            if script.is_file():
                shutil.copy(script, scripts / script.name, follow_symlinks=False)
                (scripts / script.name).chmod(0o755)
        mounts = [*work.mounts, Mount(temporary, "/tmp", writable=True),  # noqa: S108
                  Mount(context, "/tmp/src", writable=True), Mount(scripts, "/tmp/scripts"),  # noqa: S108
                  *(Mount(source, target) for source, target in builder.binds)]
        secrets, secret_mounts = self._inject_secrets(root, folder)
        env = {**builder.env, **self._own_environment(context, environment, commit)}
        assemble = "/tmp/scripts/assemble" if (scripts / "assemble").exists() else f"{catalogue.S2I}/assemble"  # noqa: S108
        code = self._execute(["bash", "-c", ASSEMBLE, assemble, *secrets], {**env, **work.environment}, [*mounts, *secret_mounts],
                             working_dir=catalogue.HOME, layers=work.lower, kept=work.kept)
        if code:
            full = "No space left on device" in self._tail(50)
            raise BuildError("AssembleFailed", f"Assemble script failed: it ended with exit code {code}."
                               + (f" {_no_space(self._state)}" if full else ""))
        own_run = (scripts / "run").exists()
        if not own_run:
            shutil.rmtree(scripts)
        # The builder image's own read-only parts are copied: the image must outlive a newer builder image.
        for number, (bound, _) in enumerate(builder.binds):
            shutil.copytree(bound, image / f"bind-{number}", symlinks=True)
        return {"layers": dict(work.layers) | ({"scripts": "/tmp/scripts"} if own_run else {}), "below": work.below,  # noqa: S108
                "binds": {f"bind-{number}": target for number, (_, target) in enumerate(builder.binds)},
                "env": env, "labels": self._labels(commit), "working_dir": builder.working_dir,
                "command": ("/tmp/scripts/run" if own_run else f"{catalogue.S2I}/run",)}  # noqa: S108

    def _environment(self, strategy: Mapping[str, Any]) -> dict[str, str]:
        """Return the build's environment with references to Secrets and ConfigMaps resolved."""
        environment: dict[str, str] = {}
        for entry in strategy.get("env") or []:
            value = self._value(entry)
            if value is not None:
                environment[entry["name"]] = value
        return environment

    def _value(self, entry: Mapping[str, Any]) -> str | None:
        wanted = entry.get("valueFrom") or {}
        for reference, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
            if reference in wanted:
                name, key = wanted[reference]["name"], wanted[reference]["key"]
                found = self._api.get(kind, name, self.namespace)
                if kind == "Secret":
                    data = source.secret_data(found or {})
                    if key in data:
                        return data[key].decode(errors="replace")
                elif key in ((found or {}).get("data") or {}):
                    return str(found["data"][key]) if found else None
                if wanted[reference].get("optional"):
                    return None
                raise BuildError("UnresolvableEnvironmentVariable", "Unable to resolve build environment variable "
                                 f"{entry['name']}: there is no key {key} in {kind} {name}.")
        return str(entry.get("value") or "")

    def _source_secret(self) -> dict[str, str] | None:
        name = (self.build["spec"]["source"].get("sourceSecret") or {}).get("name")
        return {key: value.decode(errors="replace") for key, value in self._secret(name).items()} if name else None

    def _secret(self, name: str) -> dict[str, bytes]:
        found = self._api.get("Secret", name, self.namespace)
        if not found:
            raise BuildError("FetchSourceFailed", f"Failed to fetch the input source. There is no Secret {name}, "
                             "which the build config's spec.source names.")
        return source.secret_data(found)

    def _inject_secrets(self, root: Path, folder: Path) -> tuple[list[str], list[Mount]]:
        """Place the build secrets; return their files as assemble sees them, and mounts for those outside the image."""
        files: list[str] = []
        mounts: list[Mount] = []
        for number, wanted in enumerate(self.build["spec"]["source"].get("secrets") or []):
            named = PurePosixPath(catalogue.HOME, wanted.get("destinationDir") or ".")
            destination = PurePosixPath(os.path.normpath(named))
            if destination.is_relative_to(catalogue.APP_ROOT):
                place = root / destination.relative_to(catalogue.APP_ROOT)
            else:
                place = folder / f"secret-{number}"
                mounts.append(Mount(place, str(destination), writable=True))
            place.mkdir(parents=True, exist_ok=True)
            for key, value in self._secret(wanted["secret"]["name"]).items():
                (place / key).touch(mode=0o600)
                (place / key).write_bytes(value)
                files.append(str(destination / key))
        return files, mounts

    def _execute(self, argv: list[str], environment: Mapping[str, str], mounts: list[Mount],
                 working_dir: str = "/tmp", **options: Any) -> int:  # noqa: S108 - in the sandbox
        """Run a command in a sandbox in the machine's network, its output into the log; return its exit code."""
        machine, machine_mounts = _machine_settings()
        command = sandbox.command(
            self._state, argv, user=catalogue.BUILD_USER, working_dir=working_dir, host_network=True,
            hosts=_hosts(self._state), hostname=f"{self.name}-build"[:63],
            mounts=[*mounts, *machine_mounts], **options)
        everything = {**sandbox.ENVIRONMENT, "GIT_SSL_CAINFO": sandbox.CA_BUNDLE, "PIP_CACHE_DIR": layers.PIP_CACHE,
                      "PIP_DISABLE_PIP_VERSION_CHECK": "1", **machine, **environment}
        return self._run(command, everything)

    def _run(self, command: list[str], environment: Mapping[str, str]) -> int:
        """Run a program, its output into the log, until it ends or the build is over; return its exit code."""
        with self._path.open("ab") as log:
            with self._lock:
                self._check_cancelled()
                self._process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log,
                                                 stderr=subprocess.STDOUT)
            try:
                return self._process.wait(timeout=max(self._end - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                raise BuildError("GenericBuildFailed", "The build took longer than its deadline "
                                   "(spec.completionDeadlineSeconds) and was stopped.") from None
            finally:
                with self._lock:
                    self._process.kill()
                    self._process.wait()
                    self._process = None
                self._check_cancelled()

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise CancelledError

    def _status(self, status: Mapping[str, Any]) -> None:
        try:
            self._api.patch("Build", self.name, {"status": dict(status)}, self.namespace, subresource="status")
        except ApiError as error:
            if error.status == 404:
                raise CancelledError from error
            raise

    def _log(self, line: str) -> None:
        with self._path.open("a") as log:
            log.write(line + "\n")

    def _tail(self, lines: int) -> str:
        with self._path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 16384))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])


CANCELLED = {"phase": "Cancelled", "reason": "CancelledBuild", "message": "The build was cancelled by the user."}
"""The status of a build that somebody cancelled."""


def log_path(state: State, namespace: str, name: str) -> Path:
    """Return where a build's log lies. A namespace has no dot, so no two builds share a file."""
    return state.logs / "builds" / f"{namespace}.{name}.log"


def _source_environment(file: Path, log: Any) -> dict[str, str]:
    """Return what `.s2i/environment` sets: lines of KEY=VALUE, taken as they are; `#` begins a comment line."""
    environment = {}
    if file.is_file() and not file.is_symlink():
        for line in map(str.strip, file.read_text(errors="replace").splitlines()):
            name, equals, value = line.partition("=")
            if equals and name and not line.startswith("#"):
                environment[name.strip()] = value.strip()
            elif line and not line.startswith("#"):
                log(f"warning: .s2i/environment: a line without KEY=VALUE is ignored: {line}")
    return environment


def _machine_settings() -> tuple[dict[str, str], list[Mount]]:
    """Return how this machine reaches package indexes: environment variables, and the files they name."""
    kept = {name: value for name, value in os.environ.items()
            if (name.startswith("PIP_") or name.lower() in PASSED_ON)
            and name not in ("PIP_CACHE_DIR", "PIP_CONFIG_FILE", "PIP_TARGET", "PIP_PREFIX", "PIP_USER")}
    if "PIP_CERT" in kept:
        kept["PIP_CERT"] = sandbox.CA_BUNDLE  # it holds the machine's own authorities and the local one
    mounts = []
    links = [Path(link) for link in kept.get("PIP_FIND_LINKS", "").split()]
    mounts += [Mount(link, str(link)) for link in links if link.is_absolute() and link.exists()]
    home = Path.home()
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf"
    named = os.environ.get("PIP_CONFIG_FILE")
    candidates = [Path(named)] if named else [config, home / ".pip" / "pip.conf"]
    found = next((file for file in candidates if file.is_file()), None)
    if found:
        mounts.append(Mount(found, PIP_CONF))
        kept["PIP_CONFIG_FILE"] = PIP_CONF
    return kept, mounts


def _hosts(state: State) -> Path:
    """Return a hosts file in which the stack's own names lead to this machine, whatever its resolver knows."""
    names = " ".join(("git.localhost", "auth.localhost", "portal.localhost"))
    path = state.path("run", "build-hosts")
    machine = Path("/etc/hosts")
    text = (machine.read_text() if machine.exists() else "") + f"\n127.0.0.1 localhost {names}\n"
    if not path.exists() or path.read_text() != text:
        state.write("run/build-hosts", text)
    return path


def _unable(error: OSError, state: State) -> str:
    return _no_space(state) if error.errno in (errno.ENOSPC, errno.EDQUOT) else f"The build could not go on: {error}."


def _no_space(state: State) -> str:
    return f"{state.full}; make room there and start the build again."
