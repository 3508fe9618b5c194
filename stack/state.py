"""The one folder a stack lives in: its paths, ports, addresses and credentials.

Everything that a part of the stack must agree on with another part is read from here, so that no name or number stands
in two modules. The folder is readable by its owner only; `stack.down --wipe` removes it whole.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path

DATABASE_SLOTS = 6
"""How many database instances one stack can hold: each has a port of its own, opened on the host before the start."""

BRIDGE = "br0"
POD_NETWORK = "10.244.0.0/24"
NODE_ADDRESS = "10.244.0.1"
"""The bridge's address: what a pod sees of the machine it runs on."""
SERVICE_NETWORK = "10.96.0.0/16"
API_CLUSTER_ADDRESS = "10.96.0.1"
OUTSIDE_ADDRESS = "10.97.0.1"
"""Where pods find what lies outside the cluster: the router's hosts, the databases, sign-on, Git, the portal."""

KEEP_ALIVE = 3600
"""Seconds that a part keeps a connection open which nobody uses. HAProxy shares its connections to a part among requests, and
must be the one that closes them: a request that meets a closing one is lost without an answer."""
REGISTRY = "image-registry.openshift-image-registry.svc:5000"
"""How OpenShift names its own registry; images that builds made are named below it, by digest."""


def default_root() -> Path:
    """Return the state folder: `RUNBOOK_STATE`, else one below `$XDG_STATE_HOME`."""
    named = os.environ.get("RUNBOOK_STATE")
    if named:
        return Path(named).absolute()
    home = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(home).absolute() / "certhelper-guide"


def cache_root() -> Path:
    """Return the user's cache folder for binaries and packages: `RUNBOOK_CACHE`, else below `$XDG_CACHE_HOME`."""
    named = os.environ.get("RUNBOOK_CACHE")
    if named:
        return Path(named).absolute()
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home).absolute() / "certhelper-guide"


@dataclass
class Ports:
    """The ports on 127.0.0.1, chosen once and kept, the same on the host and inside the stack's own network."""

    api: int = 0
    http: int = 0
    https: int = 0
    outside: int = 0
    """As https, for clients that say with the PROXY protocol which address they come from: the world outside CERN."""
    databases: list[int] = field(default_factory=list)


@dataclass
class Tokens:
    """Bearer tokens of the users that the API server knows (its `--token-auth-file`)."""

    admin: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    """Administrator of the cluster: the stack's own parts only."""
    controllers: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    """The cluster's own controllers, so that the audit log tells them from the stack's administrator."""
    member: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    """An ordinary user, who gets `admin` on the projects that the portal makes for him. The guide runs as this user."""
    stranger: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    """An ordinary user without any project: what somebody else sees."""


MEMBER = "shifter"
"""The name of the ordinary user for whom the guide works on the local stack."""


@dataclass(frozen=True)
class State:
    """The folder of one stack, with the place of everything in it."""

    root: Path

    def path(self, *parts: str) -> Path:
        """Return a path below the state folder."""
        return self.root.joinpath(*parts)

    @property
    def full(self) -> str:
        """How a full disk is said, whoever notices it."""
        return f"No space left on device: the disk of the state folder {self.root} is full"

    @property
    def pki(self) -> Path:
        """Folder of the local CA (`ca.crt`, `ca.key`) and of the keys signed by it."""
        return self.path("pki")

    @property
    def ca(self) -> Path:
        """Certificate of the local CA: signs the API server, the router, the databases."""
        return self.path("pki", "ca.crt")

    @property
    def logs(self) -> Path:
        """One file per part: `logs/NAME.log`; pods in `logs/pods/`."""
        return self.path("logs")

    @property
    def images(self) -> Path:
        """One folder per image, named by digest; see `stack/catalogue.py`."""
        return self.path("images")

    @property
    def volumes(self) -> Path:
        """One folder per persistent volume."""
        return self.path("volumes")

    @property
    def eos(self) -> Path:
        """The folder that stands for EOS (`/eos` in pods that mount it)."""
        return self.path("eos")

    @property
    def databases(self) -> Path:
        """One folder per database instance: PostgreSQL's data, configuration and log."""
        return self.path("databases")

    @property
    def git(self) -> Path:
        """Bare Git repositories that the stack serves as `https://git.localhost:PORT/NAME.git`."""
        return self.path("git")

    @property
    def mail(self) -> Path:
        """What services would send to the requester by mail (initial passwords), one 0600 file a message."""
        return self.path("mail")

    @property
    def pgpass(self) -> Path:
        """The requester's own password file (libpq's `PGPASSFILE` format): the person keeps the DBA passwords here."""
        return self.path("pgpass")

    @property
    def kubeconfig(self) -> Path:
        """The project member's kubeconfig: what `stack.env` exports as KUBECONFIG."""
        return self.path("kubeconfig")

    @property
    def connection(self) -> Path:
        """What others need to know to use the stack, as JSON; written when everything is ready, removed at stop."""
        return self.path("connection.json")

    @property
    def builder_socket(self) -> Path:
        """Unix socket of the builder's HTTP service (the builder runs in the host's network, HAProxy does not)."""
        return self.path("run", "builder.sock")

    @property
    def portal_socket(self) -> Path:
        """Unix socket of the HTTP service of portal, Git and sign-on (told apart by the Host header)."""
        return self.path("run", "portal.sock")

    @property
    def kind(self) -> str:
        """`embedded` or `compose`: which kind of stack lives in this folder."""
        kept = self.path("kind")
        return kept.read_text().strip() if kept.exists() else "embedded"

    @property
    def inside(self) -> str:
        """Address of the API for the stack's own parts: the server itself where they share its network."""
        return self.server if self.kind == "compose" else "https://127.0.0.1:6443"

    @property
    def server(self) -> str:
        """Address of the API for everybody, host and stack: `https://127.0.0.1:PORT` (through HAProxy)."""
        return f"https://127.0.0.1:{self.ports.api}"

    @property
    def ports(self) -> Ports:
        """The ports that this stack has chosen."""
        return Ports(**json.loads(self.path("ports.json").read_text()))

    @property
    def tokens(self) -> Tokens:
        """The tokens that this stack has made."""
        return Tokens(**json.loads(self.path("tokens.json").read_text()))

    def url(self, host: str) -> str:
        """Return the HTTPS address of a host behind the router, as browsers and pods both use it."""
        return f"https://{host}:{self.ports.https}"

    @property
    def issuer(self) -> str:
        """The sign-on's address, as applications are told it and as tokens carry it: with a realm, as at CERN."""
        return self.url("auth.localhost") + "/auth/realms/cern"

    def write(self, name: str, text: str) -> Path:
        """Write a file that only its owner can read, at once or not at all; return its path."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_native_id()}")
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(text)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return path

    def write_json(self, name: str, value: object) -> Path:
        """Write a value as JSON; see `write`."""
        return self.write(name, json.dumps(value, indent=1) + "\n")

    def keep_tokens(self) -> Tokens:
        """Return the tokens, made on the first call."""
        path = self.path("tokens.json")
        kept = json.loads(path.read_text()) if path.exists() else {}
        tokens = Tokens(**kept)
        if asdict(tokens) != kept:
            self.write_json("tokens.json", asdict(tokens))
        return tokens
