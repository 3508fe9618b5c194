"""The sandbox in which every process of a pod or a build runs: one bubblewrap command line.

Stands for the container runtime and the common part of every image (the operating system): a process sees a read-only
system, its image's folders with a fresh writable layer, its mounts, and nothing else of the machine. It runs as a
random user with group 0, as OpenShift's restricted policy has it.

Differs: the operating system is that of the machine, not UBI, and so is the Python; memory and processor limits,
seccomp and SELinux are not applied; inside, every file of the image belongs to the random user himself.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stack import binaries
from stack.state import State

CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
"""Where a process in the sandbox finds the system's certificate authorities and the local one."""

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    # Python's own OpenSSL and requests look elsewhere unless they are told.
    "SSL_CERT_FILE": CA_BUNDLE,
    "REQUESTS_CA_BUNDLE": CA_BUNDLE,
}
"""What an image may count on; its own environment is put over this."""

HOME = "/opt/app-root/src"

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
# A list of what is let in, not of what is kept out: /etc holds keys and passwords of the machine, and root's pods are
# the machine's root without his rights.
_ETC = ("alternatives", "bash.bashrc", "crypto-policies", "debian_version", "fonts", "gai.conf", "host.conf", "inputrc",
        "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "locale.alias", "locale.conf", "localtime", "magic", "mime.types",
        "os-release", "perl", "profile", "protocols", "python3", "redhat-release", "services", "ssl/openssl.cnf",
        "terminfo", "timezone")
_ETC_OF_BUILDS = ("gitconfig", "npmrc", "pip.conf", "resolv.conf")
"""How this machine reaches package indexes: builds run in its network."""
_BUNDLES = (CA_BUNDLE, "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem")


@dataclass(frozen=True)
class Mount:
    """A file or folder of the machine and where it stands in the sandbox."""

    source: Path
    target: str
    writable: bool = False


def user_of(namespace: str) -> int:
    """Return the random user that a project's processes run as, as OpenShift chooses one per project."""
    block = int.from_bytes(hashlib.sha256(namespace.encode()).digest()[:4], "big") % 100_000
    return 1_000_000_000 + block * 10_000


def command(state: State, argv: Sequence[str], *, user: int, layers: Iterable[tuple[Path, str]] = (),
            mounts: Iterable[Mount] = (), working_dir: str = "/", hosts: Path | None = None, hostname: str = "",
            host_network: bool = False, info_fd: int | None = None,
            kept: Mapping[str, tuple[Path, Path]] | None = None) -> list[str]:
    """Return the command line that runs `argv` in a sandbox; the environment is that of the process that starts it.

    `layers` are folders (of an image) that get a fresh writable layer at their mount point, `mounts` stand over them;
    several at one mount point lie upon each other, the lowest first. `kept` names, by mount point, a folder that takes
    what is written there, and an empty one beside it for the kernel.
    `hosts` is the file to use as /etc/hosts (the machine's own when not given). `host_network` adds what the machine
    knows about reaching the Internet; the network itself is the caller's. On `info_fd` bubblewrap writes the process id
    of the program. Raises StackError when there is no bubblewrap.
    """
    mounts = sorted(mounts, key=lambda mount: mount.target.count("/"))
    layers = sorted(layers, key=lambda layer: (layer[1].count("/"), layer[1]))
    words = [str(binaries.find("bwrap").path), "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts",
             "--as-pid-1", "--die-with-parent", "--uid", str(user), "--gid", "0"]
    if info_fd is not None:
        words += ["--info-fd", str(info_fd)]
    if hostname:
        words += ["--hostname", hostname]
    words += _system([mount.target for mount in mounts] + [target for _, target in layers])
    words += ["--proc", "/proc", "--dev", "/dev", "--perms", "1777", "--tmpfs", "/dev/shm"]  # noqa: S108 - a mount
    for folder in ("/tmp", "/run", "/var"):  # noqa: S108 - the sandbox's own
        words += ["--perms", "1777", "--tmpfs", folder]
    words += ["--perms", "1777", "--dir", "/var/tmp", "--symlink", "../run", "/var/run"]  # noqa: S108
    words += _etc(state, user, hosts, host_network=host_network)
    # The Python that runs the stack may lie in a home folder of mode 700: itself and nothing beside it is let in.
    pythons = [prefix for prefix in dict.fromkeys((sys.base_prefix, str(Path(sys.base_prefix).resolve())))
               if not Path(prefix).is_relative_to("/usr")]
    # bubblewrap makes missing parents readable by their owner only.
    targets = [*pythons, *(target for _, target in layers), *(mount.target for mount in mounts)]
    for parent in sorted({str(parent) for target in targets for parent in Path(target).parents} - {"/"}):
        if not any(Path(parent).is_relative_to(part) for part in _SYSTEM):
            words += ["--perms", "0755", "--dir", parent]
    for prefix in pythons:
        words += ["--ro-bind", prefix, prefix]
    for target, group in itertools.groupby(layers, key=lambda layer: layer[1]):
        for layer, _ in group:
            words += ["--overlay-src", str(layer)]
        words += ["--overlay", *map(str, kept[target]), target] if kept and target in kept else ["--tmp-overlay", target]
    for mount in mounts:
        words += ["--bind" if mount.writable else "--ro-bind", str(mount.source), mount.target]
    shell, bash = (Path(name).resolve() for name in ("/bin/sh", "/bin/bash"))
    if bash.exists() and shell != bash:
        # In OpenShift's images sh is bash, and the probes of its templates rely on that.
        words += ["--ro-bind", str(bash), str(shell)]
    return [*words, "--remount-ro", "/etc", "--remount-ro", "/", "--chdir", working_dir, "--", *argv]


def bundle(state: State) -> Path:
    """Return a file with the machine's certificate authorities and the local one, made when one of them is newer."""
    candidates = map(Path, (os.environ.get("SSL_CERT_FILE", ""), *_BUNDLES))
    system = next((path for path in candidates if path.is_file()), None)
    sources = [path for path in (system, state.ca) if path and path.exists()]
    made = state.path("run", "ca-bundle.crt")
    if not made.exists() or any(path.stat().st_mtime > made.stat().st_mtime for path in sources):
        state.write("run/ca-bundle.crt", "\n".join(path.read_text() for path in sources))
    return made


def _system(targets: Iterable[str]) -> list[str]:
    """Return the read-only system, with a writable layer over folders of it in which mount points are missing."""
    words = []
    for part in map(Path, _SYSTEM):
        if part.is_symlink():
            words += ["--symlink", str(part.readlink()), str(part)]
        elif part.is_dir():
            words += ["--ro-bind", str(part), str(part)]
    # The layer lies over the nearest folder that exists: below it an ordinary user could make nothing.
    above = {next(str(parent.resolve()) for parent in Path(target).parents if parent.is_dir()) for target in targets
             if any(Path(target).is_relative_to(part) for part in _SYSTEM) and not Path(target).exists()}
    for folder in sorted(above):
        words += ["--overlay-src", folder, "--tmp-overlay", folder]
    return words


def _etc(state: State, user: int, hosts: Path | None, *, host_network: bool) -> list[str]:
    words = ["--tmpfs", "/etc"]
    for name in (*_ETC, *(_ETC_OF_BUILDS if host_network else ())):
        if (source := Path("/etc", name)).exists():
            if name.startswith("ssl/"):
                words += ["--perms", "0755", "--dir", "/etc/ssl"]
            words += ["--ro-bind", str(source.resolve()), str(source)]
    look_up = "files dns" if host_network else "files"  # pods have no DNS: unknown names fail at once
    for name, text in (
        ("passwd", f"root:x:0:0:root:/root:/sbin/nologin\ndefault:x:{user}:0:default user:{HOME}:/bin/bash\n"),
        ("group", "root:x:0:\n"),
        ("nsswitch.conf", f"passwd: files\ngroup: files\nhosts: {look_up}\n"),
    ):
        # Named by what it says, so that sandboxes that start at once need no lock.
        file = state.path("run", "sandbox", f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}")
        if not file.exists():
            state.write(str(file.relative_to(state.root)), text)
        words += ["--ro-bind", str(file), f"/etc/{name}"]
    words += ["--ro-bind", str(hosts or Path("/etc/hosts")), "/etc/hosts"]
    trusted = str(bundle(state))
    for folder in ("/etc/ssl", "/etc/ssl/certs", "/etc/pki", "/etc/pki/tls", "/etc/pki/tls/certs"):
        words += ["--perms", "0755", "--dir", folder]
    for target in (CA_BUNDLE, "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"):
        words += ["--ro-bind", trusted, target]
    return words
