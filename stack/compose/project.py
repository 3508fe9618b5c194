"""Brings the containers up: writes what they read, starts them, waits until each is healthy, and learns where they are."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

import yaml

from stack import binaries
from stack.compose import database, engine
from stack.compose.engine import Container, Engine
from stack.errors import StackError
from stack.state import POD_NETWORK, State

DEADLINE = 1500.0
"""Seconds until all containers must be healthy; MicroShift pulls the images of its own pods first."""
PAUSE = 1.0
"""Seconds between two looks."""
SERVICES = ("postgres", "redis", "microshift")
KUBECONFIG = "/var/lib/microshift/resources/kubeadmin/kubeconfig"


@dataclass(frozen=True)
class Published:
    """Where the containers are found from this machine, kept in `compose/published.json`."""

    api: int
    router: int
    postgres: int
    redis: int
    server: str
    """The host name that MicroShift's certificate for its API has."""
    network: str
    """The containers' network; where the engine does not tell it, that of the embedded stack's pods."""
    gateway: str
    """This machine's address in it, or nothing."""


def published(state: State) -> Published:
    """Return where the containers are; known once they are up."""
    return Published(**json.loads(state.path("compose", "published.json").read_text()))


def bring_up(state: State, progress: binaries.Progress) -> None:
    """Start the containers and wait until they are healthy; safe to repeat.

    Raises StackError with what the engine would not do, or which container is not healthy and its last lines.
    """
    here = engine.find(state)
    write_files(state)
    progress(f"containers: starting with `{here.name}`; the first time it pulls some gigabytes")
    here.up()
    found = _wait(here, progress)
    kubeconfig = yaml.safe_load(here.execute("microshift", "cat", KUBECONFIG))
    server = _keep_kubeconfig(state, kubeconfig)
    network, gateway = here.network()
    api, https, postgres, redis = (_port(found, *each) for each in (
        ("microshift", 6443), ("microshift", 443), ("postgres", 5432), ("redis", 6379)))
    state.write_json("compose/published.json", asdict(Published(
        api, https, postgres, redis, server, network or POD_NETWORK, gateway)))


def write_files(state: State) -> None:
    """Write the secrets and settings that the compose file names; what is there stays as it is."""
    for name in ("compose", "compose/postgres", "volumes"):
        state.path(name).mkdir(parents=True, exist_ok=True, mode=0o700)
    state.write("compose/env", f"STACK_STATE={state.root}\n")
    for name, text in (("postgres-superuser", secrets.token_urlsafe(24)), ("admin-password", secrets.token_urlsafe(18) + "\n"),
                       ("redis.conf", f"requirepass {secrets.token_urlsafe(24)}\nsave \"\"\nappendonly no\n")):
        if not state.path("compose", name).exists():
            state.write(f"compose/{name}", text)
    if not state.path("compose", "postgres-admin").exists():
        # Made here, because a verifier tells nobody the password: not the container, not its log.
        state.write("compose/postgres-admin", scram(state.path("compose", "admin-password").read_text().strip()))
    if not state.path("compose", "postgres", "server.crt").exists():
        database.write_files(state)


def scram(password: str) -> str:
    """Return the SCRAM-SHA-256 verifier of a password, as PostgreSQL keeps it (RFC 5802)."""
    salt, rounds = secrets.token_bytes(16), 4096
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, rounds)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    salt_text, stored_text, server_text = (base64.b64encode(each).decode() for each in (salt, stored, server))
    return f"SCRAM-SHA-256${rounds}:{salt_text}${stored_text}:{server_text}"


def _port(containers: Mapping[str, Container], service: str, inside: int) -> int:
    """Return the port on the loopback that a service's port is published at."""
    found = containers[service].ports.get(inside)
    if not found:
        raise StackError(f"the container {service} publishes no port for {inside}; stop the stack (stack.down) and start it "
                         "again")
    return found


def _wait(here: Engine, progress: binaries.Progress) -> dict[str, Container]:
    """Wait until every container is healthy and return them; one that ended or is unhealthy ends the wait at once."""
    end = time.monotonic() + DEADLINE
    seen: dict[str, str] = {}
    while True:
        found = here.containers()
        for name in SERVICES:
            about = found.get(name, Container("missing", "", 0))
            line = f"{about.state} {about.health}".strip()
            if seen.get(name) != line:
                seen[name] = line
                progress(f"{name}: {line}")
            if about.ended:
                raise StackError(f"the container {name} ended with {about.code}; its last lines: {here.last_lines(name)}")
            if about.health == "unhealthy":
                raise StackError(f"the container {name} runs but is unhealthy: its health check in {engine.FILE.name} fails; "
                                 f"its last lines: {here.last_lines(name)}")
        late = [name for name in SERVICES if name not in found or not found[name].ready]
        if not late:
            return found
        if time.monotonic() > end:
            name = late[0]
            raise StackError(f"the container {name} is not healthy after {DEADLINE:.0f} s ({seen[name]}); its last lines: "
                             f"{here.last_lines(name)}; all of them: stack.logs {name}")
        time.sleep(PAUSE)


def _keep_kubeconfig(state: State, config: dict[str, Any]) -> str:
    """Keep what the administrator of MicroShift needs, for HAProxy; return the host name of the API's certificate."""
    try:
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        authority, certificate, key = (base64.b64decode(text).decode() for text in (
            cluster["certificate-authority-data"], user["client-certificate-data"], user["client-key-data"]))
    except (LookupError, TypeError, ValueError) as error:
        raise StackError(f"the kubeconfig of MicroShift ({KUBECONFIG} in the container) has no client certificate where one is "
                         f"expected ({error}); was the image in {engine.FILE.name} replaced by another?") from error
    state.write("compose/api-ca.crt", authority)
    state.write("compose/client.pem", certificate + key)
    return urlsplit(cluster["server"]).hostname or "localhost"
