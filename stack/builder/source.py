"""Fetches the source of a build: Git, in a sandbox, with credentials that show neither in arguments nor in logs."""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from stack.builder.errors import BuildError
from stack.sandbox import Mount

CHECKOUT = "/tmp/checkout"  # noqa: S108 - in the sandbox
KEYS = "/tmp/keys"  # noqa: S108 - in the sandbox

FETCH = r"""
set -eu
git init -q .
# A commit, and not only a branch or tag, can be asked for where the server allows it; else the whole history holds it.
git fetch -q --depth 1 origin "$SOURCE_REF" || {
    case "$SOURCE_REF" in *[!0-9a-f]*|"") exit 1 ;; esac
    [ ${#SOURCE_REF} -ge 7 ] && git fetch -q origin '+refs/heads/*:refs/remotes/origin/*'
    git rev-parse -q --verify "$SOURCE_REF^{commit}" > .git/FETCH_HEAD
}
git checkout -q FETCH_HEAD
[ ! -f .gitmodules ] || git submodule update -q --init --recursive --depth 1
git log -1 --format='%H%x00%an%x00%ae%x00%cn%x00%ce%x00%cI%x00%s' > .git/revision
"""

HELPER = r"""!f() {
    test "$1" != get || printf 'username=%s\npassword=%s\n' "$SOURCE_USER" "$SOURCE_PASSWORD"
}; f"""

Execute = Callable[[list[str], Mapping[str, str], list[Mount]], int]
"""Runs a command in the build's sandbox, its output into the build's log, and returns its exit code."""


@dataclass(frozen=True)
class Commit:
    """The commit that was fetched."""

    sha: str
    author: str
    author_mail: str
    committer: str
    committer_mail: str
    date: str
    message: str

    def revision(self) -> dict[str, Any]:
        """Return it as a Build's `spec.revision`."""
        return {"type": "Git", "git": {
            "commit": self.sha, "message": self.message,
            "author": {"name": self.author, "email": self.author_mail},
            "committer": {"name": self.committer, "email": self.committer_mail}}}


def fetch(spec: Mapping[str, Any], secret: Mapping[str, str] | None, folder: Path, execute: Execute, *,
          log: Callable[[str], None], tail: Callable[[], str]) -> tuple[Commit, Path]:
    """Fetch a build's Git source into an empty folder; return the commit and the folder of its context directory.

    `secret` is the data of the source secret, if there is one. `tail` returns the log's last lines.
    Raises BuildError when the repository, the branch or the context directory is not there.
    """
    git = spec["source"]["git"]
    uri = git["uri"]
    shown = without_credentials(uri)
    wanted = (spec.get("revision") or {}).get("git", {}).get("commit") or git.get("ref") or "HEAD"
    log(f'Cloning "{shown}" ...')
    checkout, keys = folder / "checkout", folder / "keys"
    checkout.mkdir()
    keys.mkdir(mode=0o700)
    environment = {"HOME": "/tmp", "SOURCE_REF": wanted, **_access(uri, secret or {}, keys)}  # noqa: S108
    for name in ("httpProxy", "httpsProxy", "noProxy"):
        if git.get(name):
            environment[name.replace("Proxy", "_proxy")] = git[name]
    mounts = [Mount(checkout, CHECKOUT, writable=True), Mount(keys, KEYS)]
    if execute(["sh", "-c", f"cd {CHECKOUT} && {FETCH.strip()}"], environment, mounts):
        why = _why(shown, wanted, secret, tail())
        raise BuildError("FetchSourceFailed", f"Failed to fetch the input source. {why}")
    shutil.rmtree(keys)
    commit = Commit(*(checkout / ".git" / "revision").read_text(errors="replace").rstrip("\n").split("\0"))
    log(f"\tCommit:\t{commit.sha} ({commit.message})\n\tAuthor:\t{commit.author} <{commit.author_mail}>\n"
        f"\tDate:\t{commit.date}")
    context = (checkout / spec["source"].get("contextDir", "").lstrip("/")).resolve()
    if not context.is_dir() or not context.is_relative_to(checkout.resolve()):
        raise BuildError("InvalidContextDirectory", "The supplied context directory does not exist: there is no "
                         f"folder {spec['source']['contextDir']} in {shown} at {wanted}.")
    return commit, context


def without_credentials(uri: str) -> str:
    """Return a repository's address as it may be shown."""
    parts = urlsplit(uri)
    if not parts.scheme or "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def secret_data(secret: Mapping[str, Any]) -> dict[str, bytes]:
    """Return what a Secret holds."""
    return {key: base64.b64decode(value) for key, value in (secret.get("data") or {}).items()}


def _access(uri: str, secret: Mapping[str, str], keys: Path) -> dict[str, str]:
    """Return Git's settings as environment variables: the address, and what the source secret gives access with."""
    settings = [("remote.origin.url", uri), ("advice.detachedHead", "false"), ("init.defaultBranch", "main"),
                ("credential.helper", "")]
    environment = {"GIT_TERMINAL_PROMPT": "0", "GIT_ALLOW_PROTOCOL": "http:https:ssh:git"}
    parts = urlsplit(uri)
    if secret.get("password") and parts.scheme in ("http", "https"):
        host = parts.netloc.rpartition("@")[2]
        # Only for the host of the source: a submodule elsewhere does not get it.
        settings.append((f"credential.{parts.scheme}://{host}.helper", HELPER))
        environment |= {"SOURCE_USER": secret.get("username", ""), "SOURCE_PASSWORD": secret["password"]}
    if secret.get("ssh-privatekey"):
        key = keys / "ssh-privatekey"
        key.touch(mode=0o600)
        key.write_text(secret["ssh-privatekey"].rstrip("\n") + "\n")
        environment["GIT_SSH_COMMAND"] = f"ssh -i {KEYS}/ssh-privatekey -o BatchMode=yes -o StrictHostKeyChecking=no"
    if secret.get("ca.crt"):
        (keys / "ca.crt").write_text(secret["ca.crt"])
        settings.append(("http.sslCAInfo", f"{KEYS}/ca.crt"))
    environment["GIT_CONFIG_COUNT"] = str(len(settings))
    for number, (name, value) in enumerate(settings):
        environment |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
    return environment


def _why(shown: str, wanted: str, secret: Mapping[str, str] | None, tail: str) -> str:
    if "find remote ref" in tail or re.search(r"unadvertised object|not our ref", tail):
        return f'There is no branch, tag or commit "{wanted}" in {shown}.'
    if re.search(r"could not read (Username|Password)|Authentication failed|error: 40[13]|Permission denied", tail):
        return (f"{shown} refused the source secret: check its username and password." if secret else
                f"{shown} wants credentials: name a secret with username and password in spec.source.sourceSecret.")
    if re.search(r"not found|does not appear to be a git repository|error: 404", tail):
        return f"There is no Git repository at {shown} (or it is private and needs spec.source.sourceSecret)."
    said = [line for line in tail.splitlines() if line.startswith(("fatal:", "error:"))]
    return f"{shown}: {said[-1] if said else 'see the log'}"
