"""Deploying a new build: from the branch's newest commit to an app that answers."""

from typing import Annotated

from procedures import app, database, environment, source
from runbook.instance import Instance
from runbook.observed import Observed
from runbook.plan import Look, Manifest, Object, Plan, Require, Scale, StartBuild, WaitFor, rolled_out
from runbook.step import step

HELD = "guide/held"
"""The annotation of the image stream that says who holds an older image on purpose, when and why."""


@step(
    needs=(environment.check, environment.set, source.check, database.access),
    see="The site answers over HTTPS, from an image that was built from the branch's newest commit.",
    otherwise=(
        ("The build's log ends with `Could not find a version` or `THESE PACKAGES DO NOT MATCH THE HASHES`.",
         "The lock does not fit: renew it in your checkout, commit, push."),
        ("`CrashLoopBackOff`", ("The last lines of the pod's log, which this step shows, name the cause: mostly a "
                               "variable (`environment.check`) or the database (`database.access`).")),
        ("`0 of 1 pods`, and no pod appears.", "The quota of the project is used up: `oc describe quota`."),
        ("`OOMKilled`", "The app needs more memory: raise `memory` below [deploy]."),
        ("The site answers `Application is not available`.", ("No pod is ready: the readiness probe asks for / and "
                                                             "wants an answer below 400.")),
        ("A request ends after exactly 30 seconds.", "The Route lost its timeout annotation: run `app.create`."),
    ),
)
def build(instance: Instance, observed: Observed, *,
          again: Annotated[bool, "Build even when nothing changed."] = False) -> Plan:
    """Build the app from its branch's newest commit, run it, and look at it."""
    name, wanted = instance.app, instance.deploy
    held = holder(observed.object("ImageStream", name))
    yield Require("no older image is held on purpose", f"it is held: {held}" if held and again else "",
                  f"take the annotation {HELD} off the image stream {name} when its reason is gone")
    reason = "you asked for it again" if again else because(instance, observed)
    yield StartBuild(name, name, name, "" if held else reason)
    yield Scale(name, wanted.replicas)
    yield WaitFor(Object("Deployment", name), rolled_out, seconds=600)
    if not wanted.replicas:
        return
    yield Look(instance.url, "/", what="the home page")
    if wanted.static:
        yield Look(instance.url, wanted.static, what="a static file")
    if wanted.proof not in ("", "/"):
        yield Look(instance.url, wanted.proof, what="a page that needs the database")
    if wanted.websocket:
        yield Look(instance.url, wanted.websocket, websocket=True, what="the websocket, through Redis")


def because(instance: Instance, observed: Observed) -> str:
    """Return why a build is needed; "" when the running image is the newest commit's with today's settings."""
    image = app.running(observed.object("Deployment", instance.app), instance.app)
    digest = image.partition("@")[2]
    if not digest:
        return "nothing was built yet"
    made = next((one for one in observed.objects("Build", f"buildconfig={instance.app}")
                 if one.get("status", {}).get("phase") == "Complete" and digest_of(one) == digest), None)
    if made is None:
        return f"the running image {short(digest)} is from no build that the project still knows"
    newest = observed.source()
    commit = made["spec"].get("revision", {}).get("git", {}).get("commit", "")
    if newest and newest.commit and newest.commit != commit:
        return f"the branch {instance.source.branch} is at {newest.commit[:8]}, what runs was built from {commit[:8]}"
    changed = changed_settings(made, observed.object("BuildConfig", instance.app), builder_images(instance, observed))
    return f"the build settings changed: {', '.join(changed)}" if changed else ""


def digest_of(build: Manifest) -> str:
    """Return the digest of the image that a build made."""
    digest: str = build["status"].get("output", {}).get("to", {}).get("imageDigest", "")
    return digest


def short(digest: str) -> str:
    """Return a digest as people quote it."""
    return digest.removeprefix("sha256:")[:12]


def changed_settings(build: Manifest, config: Manifest | None, builders: frozenset[str]) -> list[str]:
    """Return the names of the settings in which a build differs from today's build config.

    A build keeps the builder image by the digest that the tag meant then. A newer image behind the same tag is no
    changed setting, so every digest that the tag has had counts as the same: those are `builders`.
    """
    then, today = build["spec"], (config or build)["spec"]
    before, now = flat(then.get("source", {})), flat(today.get("source", {}))
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    old, new = (spec.get("strategy", {}).get("sourceStrategy", {}) for spec in (then, today))
    if old.get("env", []) != new.get("env", []):
        changed.append("env")
    image, tag = (one.get("from", {}).get("name") for one in (old, new))
    if image != tag and str(image).rpartition("@")[2] not in builders:
        changed.append("builder image")
    return changed


def flat(node: Manifest, prefix: str = "") -> dict[str, object]:
    """Return a manifest's leaves by their dotted path; empty values count as absent."""
    leaves: dict[str, object] = {}
    for key, value in node.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value} if value else {}
    return leaves


def builder_images(instance: Instance, observed: Observed) -> frozenset[str]:
    """Return the digests of every image that the builder's tag has had."""
    stream, _, tag = instance.source.builder.partition(":")
    found = observed.object("ImageStream", stream, "openshift") or {}
    return frozenset(item["image"] for known in found.get("status", {}).get("tags", [])
                     if known["tag"] == tag for item in known.get("items") or [])


def holder(stream: Manifest | None) -> str:
    """Return who holds an older image and why, "" when nobody does."""
    held: str = ((stream or {}).get("metadata", {}).get("annotations") or {}).get(HELD, "")
    return held
