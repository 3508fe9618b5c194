"""Where assemble works: over the builder image, or over the packages that an earlier build installed on it.

Requirements that are pinned by hash always give the same files. Those are kept beside pip's cache, and an image that
needs them consists of them and of what its own build wrote: nothing is copied, and only the latter is hashed.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stack import catalogue, sandbox
from stack.sandbox import Mount
from stack.state import State, cache_root

PIP_CACHE = "/var/cache/pip"
"""Where a build sees the folder of `pip_cache`."""

BUILDER = "/run/builder-image"
"""Where a build sees what its builder image holds, when its packages may be kept."""

KEPT = 3
"""How many sets of packages are kept, those used last."""


@dataclass(frozen=True)
class Work:
    """What assemble works on, as `sandbox.command` and `catalogue.keep` want it."""

    layers: Mapping[str, str]
    """Subfolders of the new image and their mount points, the lowest first; the last one takes what is written."""
    below: Mapping[str, str] = field(default_factory=dict)
    """Those whose content has a name already."""
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
    root, below = image / "app-root", image / "below"
    base = next(layer for layer, target in builder.layers if target == catalogue.APP_ROOT)
    key = _key(source / "requirements.txt", builder.digest)
    installed = pip_cache() / "installed" / key
    environment, mounts, name = {}, [Mount(pip_cache(), PIP_CACHE, writable=True)], builder.digest
    image.mkdir(exist_ok=True)
    if key and installed.is_dir() and _linked(installed, below):
        os.utime(installed)
        environment, name = {"STAND_IN_INSTALLED": key}, key
    else:
        if not _linked(base, below):
            shutil.copytree(base, below, symlinks=True)
        if key:
            environment = {"STAND_IN_KEEP": f"{PIP_CACHE}/installed/{key}", "STAND_IN_KEPT": str(KEPT)}
            mounts.append(Mount(base, BUILDER))
    if work and keeps_writes(state):
        for folder in (root, work):
            folder.mkdir(mode=0o775)
        return Work({"below": catalogue.APP_ROOT, "app-root": catalogue.APP_ROOT}, {"below": name}, ((below, catalogue.APP_ROOT),),
                    {catalogue.APP_ROOT: (root, work)}, tuple(mounts), environment)
    shutil.copytree(below, root, symlinks=True)
    shutil.rmtree(below)
    return Work({"app-root": catalogue.APP_ROOT}, mounts=(*mounts, Mount(root, catalogue.APP_ROOT, writable=True)),
                environment=environment)


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


def _linked(folder: Path, target: Path) -> bool:
    """Make a second name for each file of a folder; return whether that went well, leaving nothing if it did not.

    It does not on another file system, or when another build removes the folder meanwhile.
    """
    done = subprocess.run(["cp", "-a", "-l", str(folder), str(target)], capture_output=True, check=False)
    if done.returncode:
        shutil.rmtree(target, ignore_errors=True)
    return done.returncode == 0
