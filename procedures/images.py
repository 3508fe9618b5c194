"""What the image stream, the builds and the Deployment say of the app's images: which runs, from what, and which is held."""

from functools import partial

from procedures import app
from runbook.instance import Instance
from runbook.observed import Observed
from runbook.plan import Condition, Manifest

HELD = "guide/held"
"""The annotation of the image stream that says who holds an older image on purpose, when and why."""


def newest(stream: Manifest | None) -> str:
    """Return the digest that the tag latest names now, "" when it names none."""
    return app.latest(stream).rpartition("@")[2]


def all_of(stream: Manifest | None) -> list[Manifest]:
    """Return what the tag latest named, the newest first."""
    return next((tag.get("items") or [] for tag in ((stream or {}).get("status") or {}).get("tags", [])
                 if tag["tag"] == "latest"), [])


def tags(stream: Manifest | None, wanted: Manifest | None, notes: dict[str, str] | None = None) -> list[Manifest] | None:
    """Return the stream's own list of tags with latest following an image, or following builds only; None for no list."""
    others = [tag for tag in ((stream or {}).get("spec") or {}).get("tags") or [] if tag["name"] != "latest"]
    latest = [{"name": "latest", "from": wanted, "referencePolicy": {"type": "Local"}}
              | ({"annotations": notes} if notes else {})] if wanted else []
    return others + latest or None


def holder(stream: Manifest | None) -> str:
    """Return who holds an older image and why, "" when nobody does."""
    held: str = ((stream or {}).get("metadata", {}).get("annotations") or {}).get(HELD, "")
    return held


def older(stream: Manifest | None, made: dict[str, Manifest], to: str, name: str) -> tuple[str, str]:
    """Return the digest to go back to and "", or "" and why there is none."""
    there = list(dict.fromkeys(item["image"] for item in reversed(all_of(stream))))  # in the order of their making
    if to:
        digest, builds = to.removeprefix("sha256:"), (to, f"{name}-{to}")
        found = [image for image in there if build_name(made.get(image)) in builds
                 or (len(digest) >= 6 and image.removeprefix("sha256:").startswith(digest))]
        if len(found) == 1:
            return found[0], ""
        known = ", ".join(f"{short(image)} ({build_name(made.get(image)) or 'no build known'})" for image in there)
        return "", f"there is no image {to!r}; there are {known}" if there else "there is no image at all"
    now = newest(stream)
    place = there.index(now) if now in there else 0
    return (there[place - 1], "") if place else ("", "there is no image older than the one that runs")


def runs(container: str, digest: str) -> Condition:
    """Return the condition that a Deployment was given an image."""
    place = f'.spec.template.spec.containers[?(@.name=="{container}")].image'
    return Condition(f"given the image {short(digest) or 'DIGEST'}", partial(_given, container, digest), f"jsonpath={{{place}}}")


def _given(container: str, digest: str, found: Manifest | None) -> str:
    now = digest_in(found, container)
    return "" if now and now == digest else f"its image is {short(now) or 'none'}"


def digest_in(deployment: Manifest | None, container: str) -> str:
    """Return the digest of the image that a Deployment's container runs, "" before the first build."""
    return app.running(deployment, container).partition("@")[2]


def running_digest(instance: Instance, observed: Observed) -> str:
    """Return the digest of the image that the instance runs."""
    return digest_in(observed.object("Deployment", instance.app), instance.app)


def running_pods(instance: Instance, observed: Observed) -> int:
    """Return how many pods of the app the controller counts."""
    found: int = ((observed.object("Deployment", instance.app) or {}).get("status") or {}).get("replicas", 0)
    return found


def digest_of(build: Manifest) -> str:
    """Return the digest of the image that a build made."""
    digest: str = build["status"].get("output", {}).get("to", {}).get("imageDigest", "")
    return digest


def short(digest: str) -> str:
    """Return a digest as people quote it."""
    return digest.removeprefix("sha256:")[:12]


def build_name(build: Manifest | None) -> str:
    """Return a build's name, "" for none."""
    name: str = build["metadata"]["name"] if build else ""
    return name


def commit_of(build: Manifest) -> str:
    """Return the commit that a build was made from."""
    commit: str = build["spec"].get("revision", {}).get("git", {}).get("commit", "")
    return commit


def made(instance: Instance, observed: Observed) -> dict[str, Manifest]:
    """Return the builds that made an image, by its digest."""
    return {digest_of(build): build for build in observed.objects("Build", f"buildconfig={instance.app}")
            if (build.get("status") or {}).get("phase") == "Complete" and digest_of(build)}


def triggered(build: Manifest) -> str:
    """Return who or what started a build."""
    said: str = next((cause.get("message", "") for cause in build["spec"].get("triggeredBy") or []), "")
    return said or "not said"


def app_project(reference: str) -> str:
    """Return the project in whose part of the platform's registry an image lies, "" for another registry."""
    return reference.removeprefix(app.REGISTRY + "/").split("/")[0] if reference.startswith(app.REGISTRY) else ""


def because(instance: Instance, observed: Observed) -> str:
    """Return why a build is needed; "" when the running image is the newest commit's with today's settings."""
    digest = running_digest(instance, observed)
    if not digest:
        return "nothing was built yet"
    build = made(instance, observed).get(digest)
    if build is None:
        return f"the running image {short(digest)} is from no build that the project still knows"
    there, commit = observed.source(), commit_of(build)
    if there and there.commit and there.commit != commit:
        return f"the branch {instance.source.branch} is at {there.commit[:8]}, what runs was built from {commit[:8]}"
    changed = changed_settings(build, observed.object("BuildConfig", instance.app), builder_images(instance, observed))
    return f"the build settings changed: {', '.join(changed)}" if changed else ""


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
