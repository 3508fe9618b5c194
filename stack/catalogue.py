"""The images there are: what stands behind an image's name when a container of it is to run.

Stands for the image registry, and for the images that OpenShift's namespace `openshift` offers: `python` (the
source-to-image builder), `redis` and `nginx`, and for `eosclient`, which CERN puts into pods that mount EOS. Images made by
builds lie here too, named by the digest of their content.

Differs: an image is a folder below the state folder, not layers in a registry, and runs on this machine's own system
files. Every tag of `python` is the Python that runs the stack, whatever its number says, and has neither compilers nor
libraries that the machine has not; its scripts know pip with requirements.txt, setup.py and pyproject.toml, but not
pipenv and micropipenv, and gunicorn gets no settings but address, access log and APP_CONFIG. Requirements that are
pinned by hash are installed once, and later images lie over them. Every tag of `redis` is the machine's or the package's
Redis, and every tag of `nginx` the machine's or the package's nginx, without the modules and the source-to-image scripts
that the real image has: it runs what a pod's command says. What assemble writes outside /opt/app-root is lost. Other
images cannot be pulled.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stack import binaries, sandbox
from stack.errors import StackError
from stack.state import REGISTRY, State, cache_root

SCRIPTS = Path(__file__).parent / "builder" / "scripts"
APP_ROOT = "/opt/app-root"
HOME = sandbox.HOME
BUILD_USER = 1001
"""The user that images name; builds run as this one, pods as the random one of their project."""
S2I = "/usr/libexec/s2i"
PATH = f"{HOME}/bin:{APP_ROOT}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Image:
    """What a container is started from; folders are read-only to containers."""

    reference: str
    digest: str
    """`sha256:` and 64 hexadecimal digits."""
    layers: tuple[tuple[Path, str], ...]
    """(folder, mount point), the lowest first: the node puts a fresh writable overlay over them at every start of a container."""
    binds: tuple[tuple[Path, str], ...]
    """(file or folder, mount point): mounted read-only."""
    env: Mapping[str, str]
    command: tuple[str, ...]
    working_dir: str


@dataclass(frozen=True)
class Recipe:
    """How an image of the namespace `openshift` is made on this machine."""

    scripts: str
    """Its folder below SCRIPTS."""
    needs: Callable[[], list[str]]
    """What it is made from besides its scripts: when that changes, the image gets another digest."""
    make: Callable[[State, Path], None]
    """Fill the image's folder, whose subfolders are `layers`."""
    layers: Mapping[str, str]
    binds: Mapping[str, str]
    env: Mapping[str, str]
    command: tuple[str, ...]
    working_dir: str


def resolve(state: State, reference: str) -> Image | None:
    """Return the image that a reference names, made ready to run, or None when it cannot be pulled.

    Knows images by digest (`…@sha256:…`) and, by repository name and tag, what the image streams of the namespace
    `openshift` name. An image of those is made when it is first asked for, which takes seconds once per user.
    """
    digest = digest_of(reference)
    if not digest:
        return None
    folder = image_folder(state, digest)
    if not (folder / "image.json").exists():
        recipe = next((recipe for name, recipe in RECIPES.items() if _digest(name) == digest), None)
        if not recipe:
            return None
        _make(state, recipe, folder)
    kept = json.loads((folder / "image.json").read_text())
    elsewhere = kept.get("below", {})
    return Image(reference, digest,
                 layers=tuple((state.images / elsewhere[name] if name in elsewhere else folder / name, target)
                              for name, target in kept["layers"].items()),
                 binds=tuple((folder / name, target) for name, target in kept["binds"].items()),
                 env=kept["env"], command=tuple(kept["command"]), working_dir=kept["workingDir"])


def digest_of(reference: str) -> str:
    """Return the digest that an image reference stands for, or nothing when there is no such image here.

    A reference by digest stands for that digest, whether or not the image is there. One by tag is looked up by the last
    part of its repository: `quay.io/sclorg/redis-7-c9s:latest` is `redis`.
    """
    _, at, digest = reference.strip().partition("@")
    if at:
        return digest if re.fullmatch(r"sha256:[0-9a-f]{64}", digest) else ""
    name = re.fullmatch(r"(?:.+/)?([a-z]+)-[0-9][^/:]*(?::[^/:]+)?", reference.strip())
    return _digest(name.group(1)) if name and name.group(1) in RECIPES else ""


def exists(state: State, digest: str) -> bool:
    """Return whether the image of a digest is here or can be made here."""
    return (image_folder(state, digest) / "image.json").exists() or digest in made_here()


def made_here() -> set[str]:
    """Return the digests of the images that this machine makes itself."""
    return {_digest(name) for name in RECIPES}


def below(state: State, digest: str) -> set[str]:
    """Return the names of the folders, beside that of an image, in which its lower layers lie."""
    about = image_folder(state, digest) / "image.json"
    found = json.loads(about.read_text()).get("below", {}) if about.exists() else {}
    return {str(place).partition("/")[0] for place in found.values()}


def image_folder(state: State, digest: str) -> Path:
    """Return where the image of a digest lies or would lie."""
    return state.images / digest.replace(":", "-")


def internal_reference(namespace: str, stream: str, digest: str) -> str:
    """Return how OpenShift's own registry names an image of an image stream."""
    return f"{REGISTRY}/{namespace}/{stream}@{digest}"


def keep(state: State, folder: Path, *, layers: Mapping[str, str], binds: Mapping[str, str], env: Mapping[str, str],
         command: tuple[str, ...], working_dir: str, labels: Mapping[str, str], below: Mapping[str, str]) -> str:
    """Make a filled folder an image and return its digest; the folder is moved away, whole or not at all.

    `layers` and `binds` map the folder's subfolders to mount points. Those that `below` names lie elsewhere: it says
    where in the folder of all images, which is a name of their content.
    """
    about = {"layers": dict(layers), "binds": dict(binds), "env": dict(env), "command": list(command),
             "workingDir": working_dir, "labels": dict(labels), "below": dict(below)}
    content = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    _hash_tree(folder, content)
    digest = f"sha256:{content.hexdigest()}"
    (folder / "image.json").write_text(json.dumps(about, indent=1))
    target = image_folder(state, digest)
    if target.exists():
        shutil.rmtree(folder)
    else:
        folder.rename(target)
    return digest


@functools.cache
def _digest(name: str) -> str:
    """Return the digest of an image of ours, known before the image is made."""
    recipe = RECIPES[name]
    content = hashlib.sha256(json.dumps([recipe.needs(), dict(recipe.layers), dict(recipe.binds), dict(recipe.env),
                                         recipe.command, recipe.working_dir]).encode())
    _hash_tree(SCRIPTS / recipe.scripts, content)
    return f"sha256:{content.hexdigest()}"


def _hash_tree(folder: Path, content: hashlib._Hash) -> None:
    """Add a tree's names, modes and contents to a hash. Byte code is left out: it carries the time it was made."""
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for name in sorted((*folders, *files)):
            file = Path(path, name)
            about = file.lstat()
            content.update(f"{file.relative_to(folder)}\0{about.st_mode:o}\0".encode(errors="surrogateescape"))
            if stat.S_ISLNK(about.st_mode):
                content.update(os.fsencode(file.readlink()))
            elif stat.S_ISREG(about.st_mode):
                with file.open("rb") as source:
                    content.update(hashlib.file_digest(source, "sha256").digest())


def _make(state: State, recipe: Recipe, folder: Path) -> None:
    """Make one of our images, once per user, and copy it into the state folder.

    The node and the builder may both want it, and so may another stack: only one makes it.
    """
    cache = cache_root() / "images"
    for place in (cache, state.images):
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in (*cache.glob(".part-*"), *state.images.glob(".part-*")):  # of somebody who was killed
            shutil.rmtree(left)
        with _part_of(cache / folder.name) as part:
            if part:
                for name in (*recipe.layers, *recipe.binds):
                    (part / name).mkdir()
                recipe.make(state, part)
                (part / "image.json").write_text(json.dumps({
                    "layers": dict(recipe.layers), "binds": dict(recipe.binds), "env": dict(recipe.env),
                    "command": list(recipe.command), "workingDir": recipe.working_dir, "labels": {}}, indent=1))
        with _part_of(folder) as part:
            if part:
                shutil.copytree(cache / folder.name, part, symlinks=True, dirs_exist_ok=True)


@contextmanager
def _part_of(folder: Path) -> Iterator[Path | None]:
    """Give a folder to fill that becomes `folder` at the end, or None when that is there."""
    if folder.exists():
        yield None
        return
    part = Path(tempfile.mkdtemp(prefix=".part-", dir=folder.parent))
    try:
        yield part
        part.rename(folder)
    finally:
        if part.exists():
            shutil.rmtree(part)


def _copy_scripts(recipe: str, target: Path, *names: str) -> None:
    for name in names:
        shutil.copy2(SCRIPTS / recipe / name, target / name)


# python

def machine_python() -> Path:
    """Return the Python that images get: the one that the stack's own environment was made from."""
    return Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}").resolve()


def _make_python(state: State, folder: Path) -> None:
    _copy_scripts("python", folder / "s2i", "assemble", "run")
    root = folder / "app-root"
    (root / "src").mkdir()
    # Paths in a virtual environment are absolute: it is made at the place where containers see it.
    argv = sandbox.command(state, [str(machine_python()), "-m", "venv", APP_ROOT], user=BUILD_USER,
                           mounts=[sandbox.Mount(root, APP_ROOT, writable=True)])
    made = subprocess.run(argv, check=False, capture_output=True, text=True,
                          env={**sandbox.ENVIRONMENT, "HOME": HOME})
    if made.returncode:
        raise StackError(f"the Python image cannot be made: {' '.join((made.stderr or made.stdout).split())}; "
                         f"{machine_python()} needs its module venv, and bubblewrap needs user namespaces")
    _copy_scripts("python", root / "bin", "fix-permissions", "init-wrapper")
    # Here once, and not again in the layer of each image.
    subprocess.run([str(root / "bin" / "fix-permissions"), str(root)], check=True)


def _python_needs() -> list[str]:
    return [str(machine_python()), sys.version]


# redis

def _redis_binaries() -> list[Path]:
    return [binaries.find(name).path for name in ("redis-server", "redis-cli")]


def _make_redis(_state: State, folder: Path) -> None:
    (folder / "app-root" / "bin").mkdir()
    (folder / "redis" / "data").mkdir()
    _copy_scripts("redis", folder / "app-root" / "bin", "run-redis")
    for program in _redis_binaries():
        shutil.copy2(program, folder / "app-root" / "bin" / program.name)


def _redis_needs() -> list[str]:
    return [binaries.find(name).version for name in ("redis-server", "redis-cli")]


# eosclient

def _make_eosclient(_state: State, folder: Path) -> None:
    _copy_scripts("eosclient", folder / "bin", "run-eosclient")


# nginx

def _make_nginx(_state: State, folder: Path) -> None:
    (folder / "app-root" / "bin").mkdir()
    _copy_scripts("nginx", folder / "s2i", "usage")
    shutil.copy2(binaries.find("nginx").path, folder / "app-root" / "bin" / "nginx")


def _nginx_needs() -> list[str]:
    return [binaries.find("nginx").version]


RECIPES: dict[str, Recipe] = {
    "python": Recipe(
        scripts="python", needs=_python_needs, make=_make_python,
        layers={"app-root": APP_ROOT}, binds={"s2i": S2I},
        env={"PATH": PATH, "HOME": HOME, "APP_ROOT": APP_ROOT, "STI_SCRIPTS_PATH": S2I,
             "STI_SCRIPTS_URL": f"image://{S2I}", "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "UTF-8",
             "LC_ALL": "C.UTF-8", "LANG": "C.UTF-8", "VIRTUAL_ENV": APP_ROOT,
             "PYTHON_VERSION": f"{sys.version_info.major}.{sys.version_info.minor}", "PORT": "8080"},
        command=(f"{S2I}/run",), working_dir=HOME),
    "redis": Recipe(
        scripts="redis", needs=_redis_needs, make=_make_redis,
        layers={"app-root": APP_ROOT, "redis": "/var/lib/redis"}, binds={},
        env={"PATH": PATH, "HOME": "/var/lib/redis"},
        command=("run-redis",), working_dir="/var/lib/redis"),
    "nginx": Recipe(
        scripts="nginx", needs=_nginx_needs, make=_make_nginx,
        layers={"app-root": APP_ROOT}, binds={"s2i": S2I},
        env={"PATH": PATH, "HOME": HOME, "APP_ROOT": APP_ROOT, "STI_SCRIPTS_PATH": S2I},
        command=(f"{S2I}/usage",), working_dir="/"),
    "eosclient": Recipe(
        scripts="eosclient", needs=list, make=_make_eosclient,
        layers={}, binds={"bin": "/opt/eosclient"}, env={},
        command=("/opt/eosclient/run-eosclient",), working_dir="/"),
}
"""By the word that their repositories begin with: `python-312`, `redis-7-c9s`."""
