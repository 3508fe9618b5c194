"""Git: what stands on the remote branch, and what stands in the reader's checkout.

The branch is fetched into a bare repository in the user's cache, so that an unchanged branch costs one `ls-remote`.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from runbook.errors import WrongUse
from runbook.observed import File, Source

LARGEST = 512 * 1024
"""Bytes; a longer file is no file that the guide judges."""


class Git:
    """The `git` program, run without prompts and without the reader's own configuration of credentials on argv."""

    def __init__(self, cache: Path, ca: Path | None = None, environment: Mapping[str, str] | None = None) -> None:
        self._cache, self._ca = cache, ca
        self._environment = dict(environment or {})

    def remote(self, url: str, branch: str, folder: str) -> Source:
        """Return the newest commit of a branch with its files; `error` says why it cannot be read."""
        def newest() -> Source:
            listed = self._run(*self._own_ca_only(url), "ls-remote", url, f"refs/heads/{branch}")
            return self._at(url, listed.split()[0], folder) if listed else Source("", error=f"{url} has no branch {branch!r}")

        return self._read(url, newest)

    def at(self, url: str, commit: str, folder: str) -> Source:
        """Return a commit with its files, which a server gives also when no branch names it; `error` as above."""
        return self._read(url, lambda: self._at(url, commit, folder))

    def _at(self, url: str, commit: str, folder: str) -> Source:
        store = self._cache / "git" / hashlib.sha256(url.encode()).hexdigest()[:16]
        if not self._has(store, commit):
            with _alone(store):
                if not self._has(store, commit):
                    self._run("init", "--quiet", "--bare", str(store))
                    self._run("-C", str(store), "-c", "gc.auto=0", *self._own_ca_only(url),
                              "fetch", "--quiet", "--depth=1", url, commit)
        return Source(commit, self._files(store, commit, folder))

    def _read(self, url: str, read: Callable[[], Source]) -> Source:
        try:
            return read()
        except subprocess.TimeoutExpired:
            return Source("", error=f"{url} does not answer within a minute")
        except subprocess.CalledProcessError as error:
            last = (error.stderr or b"").decode(errors="replace").strip().splitlines() or ["git failed"]
            return Source("", error=f"{url}: {last[-1]}")
        except FileNotFoundError:
            return Source("", error="there is no program git on PATH")

    def checkout(self, path: Path) -> Source:
        """Return the files of a checkout. Raises WrongUse when there is none."""
        if not path.is_dir():
            raise WrongUse(f"{path} is no folder", "name your checkout of the app's repository: --checkout=FOLDER")
        files = {}
        for found in sorted(path.rglob("*")):
            below = found.relative_to(path)
            if ".git" in below.parts or not found.is_file() or found.stat().st_size > LARGEST:
                continue
            try:
                files[str(below)] = File(found.read_text(), os.access(found, os.X_OK))
            except UnicodeDecodeError:
                continue
        return Source("", files)

    def _has(self, store: Path, commit: str) -> bool:
        if not store.is_dir():
            return False
        return self._call("-C", str(store), "cat-file", "-e", f"{commit}^{{tree}}").returncode == 0

    def _files(self, store: Path, commit: str, folder: str) -> dict[str, File]:
        tree = f"{commit}:{folder.strip('/')}" if folder.strip("/") else commit
        packed = self._call("-C", str(store), "archive", "--format=tar", tree)
        packed.check_returncode()
        files = {}
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
            for member in archive:
                opened = archive.extractfile(member) if member.isfile() and member.size <= LARGEST else None
                if opened:
                    try:
                        files[member.name] = File(opened.read().decode(), bool(member.mode & 0o100))
                    except UnicodeDecodeError:
                        continue
        return files

    def _own_ca_only(self, url: str) -> tuple[str, ...]:
        """Return options that leave out the system's authorities for a host of the local stack: they take longer to read."""
        local = (urlsplit(url).hostname or "").endswith(".localhost")
        return ("-c", f"http.{url}.sslCAPath={os.devnull}") if self._ca and local else ()

    def _run(self, *arguments: str) -> str:
        done = self._call(*arguments)
        done.check_returncode()
        return done.stdout.decode()

    def _call(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        trust = {"GIT_SSL_CAINFO": str(self._ca)} if self._ca else {}
        environment = os.environ | {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"} | trust | self._environment
        return subprocess.run(["git", *arguments], capture_output=True, env=environment, timeout=60, check=False)


@contextmanager
def _alone(store: Path) -> Iterator[None]:
    """Wait until no other run writes into a store. What git locked there it cannot need any more: its run was killed."""
    store.parent.mkdir(parents=True, exist_ok=True)
    with store.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for left in store.glob("*.lock"):
            left.unlink()
        yield
