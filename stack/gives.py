"""What each kind of stack gives: the one source of the table on the page "What differs from CERN" and of the tests' skips."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ability:
    """Something that a stack may give; a reason stands where it does not."""

    what: str
    embedded: str = ""
    compose: str = ""
    real: bool = False
    """Whether what the tests saw of it on the compose stack is the real thing; else real images have never been run."""

    def missing(self, kind: str) -> str:
        """Return why a stack of this kind does not give it; nothing when it does."""
        return self.compose if kind == "compose" else self.embedded


ABILITIES: dict[str, Ability] = {
    "cluster": Ability("a Kubernetes API with OpenShift's kinds and roles, and a project member's rights"),
    "database": Ability("a PostgreSQL server with TLS, only hostssl, and a DBA role as DBoD gives it"),
    "databases": Ability("several database instances at once", compose="the compose file has one PostgreSQL server"),
    "hba": Ability("a server that tells pods from this machine by their address",
                   compose="the container sees pods and this machine at one address"),
    "redis": Ability("a Redis server with a password"),
    "portal": Ability("a stand-in for the person: projects, databases, registrations", real=True),
    "sign-on": Ability("an OpenID Connect provider that apps are registered with", real=True),
    "node": Ability("pods that run"),
    "builder": Ability("images from Git sources, and image stream tags that move"),
    "router": Ability("a host for every Route, with a certificate of the local CA"),
    "storage": Ability("volumes for the classes that CERN offers"),
    "eos": Ability("EOS in pods that are annotated for it", compose="MicroShift takes no mutating policies, which add the mount"),
    "defaults": Ability("CERN's defaults for Routes: host and address list",
                        compose="MicroShift takes no mutating policies, which set them"),
    "addresses": Ability("Routes that only some networks reach", compose="MicroShift's router sees HAProxy's address only"),
    "audit": Ability("a log of every request at the API server", compose="MicroShift's audit log stays in its container"),
    "inside": Ability("images, volumes and the servers' logs as files of this machine",
                      compose="they are in the containers"),
}
"""By the word that a test needs: `needs("node", "builder")`."""


def missing(kind: str, *needed: str) -> str:
    """Return why a stack of this kind cannot run a test that needs these; nothing when it can.

    Raises KeyError for a word that is no ability.
    """
    reasons = (f"{name}: {ABILITIES[name].missing(kind)}" for name in needed if ABILITIES[name].missing(kind))
    return "; ".join(reasons)


def rows() -> list[tuple[str, str, str, str]]:
    """Return the table of the page: the word, what it is, and for each kind of stack whether it gives it."""
    def said(reason: str, given: str) -> str:
        return f"no: {reason}" if reason else given
    return [(f"`{name}`", each.what, said(each.embedded, "given"),
             said(each.compose, "given" if each.real else "given, seen with a stand-in only")) for name, each in ABILITIES.items()]
