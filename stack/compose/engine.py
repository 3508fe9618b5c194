"""The container engine and its compose command: found, asked, and its failures told in one sentence each."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stack.errors import StackError
from stack.state import State

FILE = Path(__file__).parents[2] / "docker-compose.test.yml"
CANDIDATES = (("docker", "compose"), ("docker-compose",), ("podman", "compose"))
"""In this order: the plug-in is the maintained one."""

QUICK = 60.0
"""Seconds that a question to the engine may take."""
PULL = 1800.0
"""Seconds that `up` may take: it pulls the images."""
LINES = 5
"""Lines of a container's log that a message shows."""

NO_ENGINE = re.compile(r"cannot connect to (the )?(docker daemon|podman)|is the docker daemon running|unable to connect to podman"
                       r"|error during connect|permission denied.*docker\.sock|dial unix", re.IGNORECASE)
"""Nothing that a registry which does not answer makes the engine say."""
NO_PULL = re.compile(r"pull access denied|manifest (for .* )?(unknown|not found)|toomanyrequests|unauthorized|denied: "
                     r"|failed to resolve|no such host|tls handshake timeout|initializing source|pinging container registry"
                     r"|error response from daemon: get ", re.IGNORECASE)
NO_PORT = re.compile(r"port is already allocated|address already in use|ports are not available", re.IGNORECASE)
NO_ROOM = re.compile(r"no space left on device", re.IGNORECASE)


class NoEngineError(StackError):
    """No program of an engine is on PATH."""


@dataclass(frozen=True)
class Container:
    """How a service's container stands."""

    state: str
    """`running`, `exited`, `created` …"""
    health: str = ""
    """`healthy`, `starting`, `unhealthy`; empty for one without a check."""
    code: int = 0
    """Its exit code, once it has ended."""
    ports: Mapping[int, int] = field(default_factory=dict)
    """The port on the loopback by the port inside."""

    @property
    def ready(self) -> bool:
        """Return whether it runs and its check, if it has one, is content."""
        return self.state == "running" and self.health in ("healthy", "")

    @property
    def ended(self) -> bool:
        """Return whether it runs no more."""
        return self.state in ("exited", "dead", "removing")


@dataclass(frozen=True)
class Engine:
    """A compose command for one project: the containers of one state folder.

    Of compose only `up`, `stop` and `down` are used: for the rest its implementations differ, and the engines do not.
    """

    program: str
    """`docker` or `podman`: for what is not compose's."""
    words: tuple[str, ...]
    """The compose command itself."""
    project: str
    settings: Path
    """The file with the values that the compose file asks for."""

    @property
    def name(self) -> str:
        """Return the compose command as a person writes it."""
        return " ".join(self.words)

    @property
    def command(self) -> list[str]:
        """Return the compose command with settings; the file and the project's name come after it."""
        return [*self.words, "--env-file", str(self.settings)]

    def up(self) -> None:
        """Make and start the containers; raises StackError with what the engine said."""
        self._compose("up", "--detach", seconds=PULL)

    def stop(self) -> None:
        """Stop the containers and keep what they hold."""
        self._compose("stop")

    def remove(self) -> None:
        """Remove the containers, their network and their volumes."""
        self._compose("down", "--volumes")

    def _compose(self, *words: str, seconds: float = 180) -> None:
        done = _run([*self.command, "-f", str(FILE), "-p", self.project, *words], None, seconds)
        if done.returncode:
            by_hand = f"{self.name} -f {FILE.name} -p {self.project} {' '.join(words)}"
            raise StackError(self.refusal(f"{self.name} {words[0]}", done.stderr + "\n" + done.stdout, by_hand))

    def own(self, *words: str, seconds: float = QUICK) -> str:
        """Run a command of the engine itself and return what it printed; raises StackError with what it would not do."""
        done = _run([self.program, *words], None, seconds)
        if done.returncode:
            said = f"{self.program} {words[0]}"
            raise StackError(self.refusal(said, done.stderr + "\n" + done.stdout, said))
        return done.stdout

    def containers(self) -> dict[str, Container]:
        """Return the project's containers by service."""
        found = self._identities()
        return dict(map(_container, json.loads(self.own("inspect", *found)))) if found else {}

    def _identities(self, *which: str) -> list[str]:
        labels = (f"label=com.docker.compose.{each}" for each in (f"project={self.project}", *which))
        filters = (word for label in labels for word in ("--filter", label))
        return self.own("ps", "--all", "--quiet", "--no-trunc", *filters).split()

    def execute(self, service: str, *argv: str, user: str = "", text: str | None = None) -> str:
        """Run a command in a service's container and return what it printed; raises StackError when it fails."""
        done = _run(self.inside(service, *argv, user=user), text, QUICK)
        if done.returncode:
            raise StackError(f"`{argv[0]}` in the container {service} failed with {done.returncode}: "
                             f"{last(done.stderr or done.stdout)}; the container's last lines: {self.last_lines(service)}")
        return done.stdout

    def inside(self, service: str, *argv: str, user: str = "") -> list[str]:
        """Return the command line that runs a command in a service's container, its input handed on."""
        return [self.program, "exec", "--interactive", *(["--user", user] if user else []), self._identity(service), *argv]

    def _identity(self, service: str) -> str:
        found = self._identities(f"service={service}")
        if not found:
            raise StackError(f"there is no container {service}; start the stack (stack.up)")
        return found[0]

    def network(self) -> tuple[str, str]:
        """Return the project's network and the address that this machine has in it; empty where the engine does not say."""
        done = _run([self.program, "network", "inspect", f"{self.project}_default"], None, QUICK)
        try:
            about = json.loads(done.stdout)[0]
            found = [*((about.get("IPAM") or {}).get("Config") or []), *(about.get("subnets") or [])]
            lower = [{key.lower(): value for key, value in each.items()} for each in found]
            four = next(each for each in lower if ":" not in each["subnet"])
        except (ValueError, LookupError, StopIteration, AttributeError):
            return "", ""
        return str(four["subnet"]), str(four.get("gateway", ""))

    def logs(self, service: str, lines: int) -> list[str]:
        """Return the last lines of a service's log; none where there is no container."""
        found = self._identities(f"service={service}")
        if not found:
            return []
        done = _run([self.program, "logs", "--tail", str(lines), found[0]], None, QUICK)
        return [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]

    def last_lines(self, service: str) -> str:
        """Return the last lines of a service's log on one line, or `none`."""
        return " / ".join(line.strip()[-300:] for line in self.logs(service, LINES)[-LINES:]) or "none"

    def refusal(self, command: str, said: str, by_hand: str) -> str:
        """Return one sentence for what the engine would not do, with the cure."""
        why = last(said)
        if NO_ENGINE.search(said):
            return (f"{self.program} is installed, but its engine does not answer ({why}); start it (systemctl start "
                    f"{self.program}, or its desktop program) and see that you may use it (`{self.program} version` shows both), "
                    "or use the embedded stack (stack.up)")
        if NO_PULL.search(said):
            image = re.search(r"((?:[\w.-]+/)+[\w.-]+:[\w.-]+)", said)
            what = f"the image {image[1]}" if image else "an image"
            return (f"{what} could not be pulled ({why}); see that this machine reaches its registry and may pull from it: "
                    f"{self.program} pull {image[1] if image else 'IMAGE'}")
        if NO_PORT.search(said):
            return (f"{self.program} cannot publish a port ({why}); something else uses it: stop that (ss -ltnp shows it), "
                    "then run the same command again")
        if NO_ROOM.search(said):
            return f"{self.program} has no room left ({why}); make room where it keeps its images: {self.program} system df"
        return f"`{command}` failed: {why}; the same by hand shows all of it: {by_hand}"


def project_of(state: State) -> str:
    """Return the compose project's name: one for every state folder."""
    return f"certhelper-{hashlib.sha256(str(state.root).encode()).hexdigest()[:10]}"


def find(state: State) -> Engine:
    """Return the first compose command that works here; raises StackError with what is missing."""
    without = []
    for words in CANDIDATES:
        if not shutil.which(words[0]):
            continue
        done = _run([*words, "version"], None, QUICK)
        if done.returncode == 0:
            program = words[0] if words[0] != "docker-compose" else "docker" if shutil.which("docker") else "podman"
            return Engine(program, words, project_of(state), state.path("compose", "env"))
        without.append(f"`{' '.join(words)}`: {last(done.stderr or done.stdout)}")
    tried = "docker compose, docker-compose and podman compose"
    if without:
        raise StackError(f"a container engine is here, but no compose command works ({'; '.join(without)}); install Docker's "
                         "compose plug-in or podman-compose, or use the embedded stack (stack.up)")
    raise NoEngineError(f"no container engine was found ({tried} are not on PATH); install Docker or Podman with its compose "
                        "command, or use the embedded stack, which needs none (stack.up)")


def _run(argv: list[str], text: str | None, seconds: float) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(argv, input=text, stdin=None if text is not None else subprocess.DEVNULL, capture_output=True,
                              text=True, errors="replace", check=False, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise StackError(f"`{' '.join(argv[:2])}` has not answered for {seconds:.0f} s; see what its engine does "
                         f"({argv[0]} version), and restart it if it hangs") from error
    except OSError as error:
        raise StackError(f"{argv[0]} cannot be run: {error.strerror}") from error


def last(said: str) -> str:
    """Return the last line that says something."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1][-400:] if lines else "it said nothing"


def _container(about: dict[str, Any]) -> tuple[str, Container]:
    """Return service and container of what `inspect` says; Docker and Podman say it alike."""
    state, labels = about["State"], (about.get("Config") or {}).get("Labels") or {}
    published = ((about.get("NetworkSettings") or {}).get("Ports") or {}).items()
    ports = {int(inside.partition("/")[0]): int(found[0]["HostPort"]) for inside, found in published if found}
    health = (state.get("Health") or state.get("Healthcheck") or {}).get("Status") or ""
    return str(labels.get("com.docker.compose.service", "")), Container(
        str(state.get("Status", "")).lower(), health.lower(), int(state.get("ExitCode") or 0), ports)
