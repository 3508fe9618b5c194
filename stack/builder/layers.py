"""Where assemble works: over the builder image, or over the packages that an earlier build installed on it.

Requirements that are pinned by hash always give the same files. Those are kept beside pip's cache, and once in the state
folder of each stack whose images need them: such an image consists of them and of what its own build wrote.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from stack import catalogue, sandbox
from stack.sandbox import Mount
from stack.state import State, cache_root

PIP_CACHE = "/var/cache/pip"
"""Where a build sees the folder of `pip_cache`."""

BUILDER = "/run/builder-image"
"""Where a build sees what its builder image holds, when its packages may be kept."""

KEPT = 5
"""How many sets of packages are kept for later stacks, those used last."""

LEFT = 86_400
"""Seconds without use after which packages that no image lies over are removed: a build may have begun with them."""


@dataclass(frozen=True)
class Work:
    """What assemble works on, as `sandbox.command` and `catalogue.keep` want it."""

    layers: Mapping[str, str]
    """Names of the new image's layers and their mount points, the lowest first; the last one takes what is written."""
    below: Mapping[str, str] = field(default_factory=dict)
    """Where those of them lie that are not in the image's own folder."""
    lower: tuple[tuple[Path, str], ...] = ()
    kept: Mapping[str, tuple[Path, Path]] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    """What the image's own assemble wants to know."""


def pip_cache() -> Path:
    """Return the folder where this user's builds keep what pip fetched, and what it installed."""
    folder = cache_root() / "pip"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def prepare(state: State, builder: catalogue.Image, source: Path, image: Path, work: Path | None) -> Work:
    """Fill a new image's folder with what assemble begins with for an application's source.

    `work` is a path beside it for the kernel, which lets writes go to a folder of their own; without one (and where
    `keeps_writes` says no) they go into a copy. Raises OSError.
    """
    root, base = image / "app-root", next(layer for layer, target in builder.layers if target == catalogue.APP_ROOT)
    key = _key(source / "requirements.txt", builder.digest)
    packages = state.images / f"packages-{key}"
    environment, mounts, lower = {}, [Mount(pip_cache(), PIP_CACHE, writable=True)], base
    if key and _taken(pip_cache() / "installed" / key, packages):
        environment, lower = {"STAND_IN_INSTALLED": key}, packages
    elif key:
        environment = {"STAND_IN_KEEP": f"{PIP_CACHE}/installed/{key}", "STAND_IN_KEPT": str(KEPT)}
        mounts.append(Mount(base, BUILDER))
    image.mkdir(exist_ok=True)
    if work and keeps_writes(state):
        for folder in (root, work):
            folder.mkdir(mode=0o775)
        return Work({"below": catalogue.APP_ROOT, "app-root": catalogue.APP_ROOT},
                    {"below": str(lower.relative_to(state.images))}, ((lower, catalogue.APP_ROOT),),
                    {catalogue.APP_ROOT: (root, work)}, tuple(mounts), environment)
    shutil.copytree(lower, root, symlinks=True)
    return Work({"app-root": catalogue.APP_ROOT}, mounts=(*mounts, Mount(root, catalogue.APP_ROOT, writable=True)),
                environment=environment)


def unclaimed(state: State) -> list[Path]:
    """Return the folders of packages that are not needed unless an image lies over them."""
    return [folder for folder in state.images.glob("packages-*") if time.time() - folder.stat().st_mtime > LEFT]


@functools.cache
def keeps_writes(state: State) -> bool:
    """Return whether what is written over a layer can be kept: not where the state folder lies on an overlay itself."""
    state.images.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=state.images) as folder:
        lower, upper, work = (Path(folder, name) for name in ("lower", "upper", "work"))
        for each in (lower, upper, work):
            each.mkdir()
        argv = sandbox.command(state, ["touch", f"{catalogue.APP_ROOT}/written"], user=catalogue.BUILD_USER,
                               layers=[(lower, catalogue.APP_ROOT)], kept={catalogue.APP_ROOT: (upper, work)})
        done = subprocess.run(argv, env=sandbox.ENVIRONMENT, capture_output=True, check=False)
        return done.returncode == 0 and (upper / "written").exists()


def remove(folder: Path) -> None:
    """Remove a build's folder as far as it can be; the kernel leaves one in it that even its owner may not list."""
    for locked in folder.glob("work/work"):
        locked.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


def _key(requirements: Path, digest: str) -> str:
    """Return what names the packages of requirements that are all pinned by hash, or nothing."""
    if not requirements.is_file() or requirements.is_symlink():
        return ""
    content = requirements.read_bytes()
    if b"--hash=" not in content or any(line.startswith(b"-") for line in content.splitlines()):
        return ""
    return f"{hashlib.sha256(content).hexdigest()}-{digest.removeprefix('sha256:')[:16]}"


def _taken(installed: Path, packages: Path) -> bool:
    """Return whether a stack has a set of packages, after taking it from those that are kept; it is used from now on.

    Its files have two names then; they are copied where the two folders lie on different file systems.
    """
    if not packages.exists() and installed.is_dir():
        part = Path(tempfile.mkdtemp(prefix=".build-", dir=packages.parent))
        with suppress(OSError):  # another build was quicker
            if any(not subprocess.run(["cp", "-a", way, f"{installed}/.", str(part)], capture_output=True, check=False).returncode
                   for way in ("--link", "--remove-destination")):
                part.rename(packages)
        shutil.rmtree(part, ignore_errors=True)
    for folder in (installed, packages):
        with suppress(OSError):  # of the former only those used last are kept
            os.utime(folder)
    return packages.is_dir()
