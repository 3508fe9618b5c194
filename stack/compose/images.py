"""Images on the compose stack: the engine makes them, and MicroShift's own store takes them.

Stands for OpenShift's builder and registry. A build is one of the engine's, FROM the image that the build config names and
by that image's assemble, as OpenShift's is. `skopeo` in MicroShift's container takes the image into the store that its pods
are run from, under the name in OpenShift's registry, and gives the digest by which the image stream and the Deployment
name it. What image streams import is looked up in its registry by the same program, and pulled by the node when a pod
wants it.

Differs: there is no registry, so a build's image is in no other place, and is gone when MicroShift removes it from a full
disk. Settings of this machine for package indexes are not handed on to a build, except its proxies. The image trusts the
local CA besides those of its builder image.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path, PurePosixPath

from stack import catalogue
from stack.builder import source
from stack.builder.errors import BuildError
from stack.builder.run import PASSED_ON, Run
from stack.compose import engine
from stack.compose.engine import Engine
from stack.errors import StackError
from stack.state import REGISTRY, State

AGAIN = 60.0
"""Seconds after which an image that was not found is looked for again."""
LOAD = 600.0
"""Seconds that handing an image to MicroShift may take."""
ANCHORS = "/etc/pki/ca-trust/source/anchors/local-stack.crt"
BUNDLE = "/etc/pki/tls/certs/ca-bundle.crt"
"""Where the images of Red Hat and of CentOS keep the authorities that they trust."""


class Registries:
    """The digests of images in their registries, as MicroShift sees them."""

    def __init__(self, state: State, references: Iterable[str] = ()) -> None:
        """Begin to look up `references`: one after the other would take a minute."""
        self._state = state
        self._pool = ThreadPoolExecutor(6)
        self._asked: dict[str, tuple[float, Future[str]]] = {}
        for reference in references:
            self._ask(reference)

    def digest_of(self, reference: str) -> tuple[str, str]:
        """Return an image's digest and "", or "" and why there is none; a digest once seen stays until the builder's end."""
        begun, asked = self._asked.get(reference) or self._ask(reference)
        if asked.done() and asked.exception() and time.monotonic() > begun + AGAIN:
            _, asked = self._ask(reference)
        try:
            return asked.result(), ""
        except StackError as error:
            return "", f"the image {reference} cannot be looked up: {error}"

    def _ask(self, reference: str) -> tuple[float, Future[str]]:
        found = time.monotonic(), self._pool.submit(self._look, reference)
        self._asked[reference] = found
        return found

    @cached_property
    def _engine(self) -> Engine:
        return engine.find(self._state)

    def _look(self, reference: str) -> str:
        return _digest(self._engine, "--no-tags", f"docker://{reference}")


class EngineRun(Run):
    """A build that the engine carries out."""

    def _look_for_builder(self, reference: str) -> None:
        """Leave that to the engine, which pulls it."""

    def _make(self, context: Path, folder: Path, name: str, *, environment: Mapping[str, str],
              commit: source.Commit) -> Callable[[], str]:
        """Let the engine make the image, and MicroShift take it."""
        try:
            here = engine.find(self._state)
        except StackError as error:
            raise BuildError("GenericBuildFailed", str(error)) from error
        # Named by the build: the digest finds any image of its repository.
        reference = f"{REGISTRY}/{name.partition(':')[0]}:{self.name}"
        upload = folder / "upload"
        upload.mkdir()
        secrets, mounts = self._secrets(folder)
        recipe = containerfile(self.build["spec"]["strategy"]["sourceStrategy"]["from"]["name"],
                               self._own_environment(context, environment, commit), self._labels(commit),
                               own=_scripts(context, upload / "scripts"), mounts=mounts)
        shutil.rmtree(folder / "checkout" / ".git", ignore_errors=True)
        # Below the context and not as the context: a .dockerignore of the app's is no matter of source-to-image.
        context.rename(upload / "src")
        shutil.copy(self._state.ca, upload / "local-stack.crt")
        (folder / "Containerfile").write_text(recipe)
        argv = [here.program, "build", "--tag", reference, "--file", str(folder / "Containerfile"), *secrets,
                *(word for name in PASSED_ON if os.environ.get(name) for word in ("--build-arg", name)), str(upload)]
        # Docker's former builder, which is there where its plug-in is not, knows no secrets.
        code = self._run(argv, os.environ | ({"DOCKER_BUILDKIT": "1"} if secrets else {}))
        if code:
            said = self._tail(50)
            where = "PullBuilderImageFailed" if engine.NO_PULL.search(said) else "AssembleFailed" if "assemble" in said else ""
            raise BuildError(where or "GenericBuildFailed", here.refusal(f"{here.program} build", said, "the build's log"))
        try:
            digest = load(here, reference)
        except StackError as error:
            raise BuildError("PushImageToRegistryFailed", str(error)) from error
        return lambda: digest

    def _secrets(self, folder: Path) -> tuple[list[str], list[str]]:
        """Write the build secrets beside the context; return the engine's options and the mounts of assemble's command."""
        options, mounts = [], []
        for number, wanted in enumerate(self.build["spec"]["source"].get("secrets") or []):
            place = PurePosixPath(catalogue.HOME, wanted.get("destinationDir") or ".")
            for count, (key, value) in enumerate(self._secret(wanted["secret"]["name"]).items()):
                file = folder / f"secret-{number}-{count}"
                file.touch(mode=0o600)
                file.write_bytes(value)
                options += ["--secret", f"id={file.name},src={file}"]
                target = os.path.normpath(place / key)
                mounts.append(f"--mount=type=secret,id={file.name},target={target},uid={catalogue.BUILD_USER}")
        return options, mounts


def containerfile(builder: str, environment: Mapping[str, str], labels: Mapping[str, str], *, own: set[str],
                  mounts: list[str]) -> str:
    """Return the steps of a build as the engine reads them; `own` names the scripts that the app brings itself."""
    def script(name: str) -> str:
        return f"/tmp/scripts/{name}" if name in own else f"{catalogue.S2I}/{name}"  # noqa: S108 - in the image

    owner = f"--chown={catalogue.BUILD_USER}:0"
    return "\n".join([
        f"FROM {builder}", "USER 0", f"COPY local-stack.crt {ANCHORS}", "RUN update-ca-trust",
        # Python's own OpenSSL and requests look elsewhere unless they are told.
        f"ENV SSL_CERT_FILE={BUNDLE} REQUESTS_CA_BUNDLE={BUNDLE}",
        *(f"LABEL {_quoted(name)}={_quoted(value)}" for name, value in labels.items()),
        *(f"ENV {name}={_quoted(value)}" for name, value in environment.items()),
        f"COPY {owner} src /tmp/src", *([f"COPY {owner} scripts /tmp/scripts"] if own else []),
        f"USER {catalogue.BUILD_USER}", " ".join(["RUN", *mounts, script("assemble")]), f'CMD ["{script("run")}"]']) + "\n"


def load(here: Engine, reference: str) -> str:
    """Hand an image of the engine to MicroShift and return the digest that it has there; the engine's own name for it goes.

    Raises StackError with which of the two ends failed and what it said.
    """
    take = here.inside("microshift", "skopeo", "copy", "--quiet", "docker-archive:/dev/stdin", f"containers-storage:{reference}")
    with (subprocess.Popen([here.program, "save", reference], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as given,
          subprocess.Popen(take, stdin=given.stdout, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as taken):
        assert given.stdout and given.stderr  # noqa: S101 - both are pipes
        given.stdout.close()  # or the one would not see the other's end
        try:
            said = taken.communicate(timeout=LOAD)[1]
        except subprocess.TimeoutExpired as error:
            given.kill()
            raise StackError(f"MicroShift has not taken the image {reference} after {LOAD:.0f} s; see stack.logs "
                             "microshift") from error
        finally:
            taken.kill()
        why = given.stderr.read().decode(errors="replace").strip()
    # Either end fails when the other has: the first to fail is the one that says why.
    if given.returncode > 0 and "broken pipe" not in why.lower():
        raise StackError(f"`{here.program} save {reference}` failed: {engine.last(why)}")
    if taken.returncode:
        raise StackError(f"MicroShift does not take the image {reference}: {engine.last(said)}; the container's last lines: "
                         f"{here.last_lines('microshift')}")
    digest = _digest(here, f"containers-storage:{reference}")
    here.own("image", "rm", reference)
    return digest


def _digest(here: Engine, *where: str) -> str:
    said = here.execute("microshift", "skopeo", "inspect", "--format", "{{.Digest}}", *where).strip()
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", said):
        raise StackError(f"skopeo in the container microshift gives no digest of {where[-1]}: {engine.last(said)}")
    return said


def _scripts(context: Path, target: Path) -> set[str]:
    """Copy the app's own source-to-image scripts, runnable; return their names."""
    found = {script.name: script for script in (context / ".s2i" / "bin").glob("*") if script.is_file() and not script.is_symlink()}
    if found:
        target.mkdir()
    for name, script in found.items():
        shutil.copy(script, target / name)
        (target / name).chmod(0o755)
    return set(found)


def _quoted(value: str) -> str:
    """Return a value as a word of a Containerfile; raises BuildError for what cannot be said there."""
    if "\n" in value:
        raise BuildError("GenericBuildFailed", "a variable or label of more than one line cannot be given to an engine's build")
    return '"' + re.sub(r'(["\\$])', r"\\\1", value) + '"'
