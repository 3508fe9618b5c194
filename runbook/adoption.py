"""Taking over what people set up by hand: whose a field is, what may not change, and what is left when every step is through.

The API server keeps in `managedFields` who set which field. A field that a person's tool set and no step names would stay
for ever: nobody but that tool may take it out. So a forced run moves such entries under a manager of its own and lets go of
them. What the platform's own controllers set is never touched. Pure: objects in, objects out.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from runbook.instance import size_of
from runbook.plan import Manifest

MANAGER = "guide/adopt"
"""Under this manager leftovers are let go of."""
PEOPLE = re.compile(r"(Mozilla|openshift-console|kubectl|oc)\b")
"""The tools by which people set fields: the web console (its manager is the browser's name), kubectl, oc."""
KEPT = (("f:metadata", "f:finalizers"), ("f:metadata", "f:ownerReferences"),
        # Who may visit the site is decided by `expose` alone; the default that the platform gives has no owner.
        ("f:metadata", "f:annotations", "f:haproxy.router.openshift.io/ip_whitelist"))
"""Fields that stay as they are although no step names them; nobody manages them then."""
KEPT_OF = {"Secret": (("f:data",), ("f:type",)), "PersistentVolumeClaim": (("f:spec",),), "Deployment": (("f:spec", "f:selector"),)}
"""More of them by kind: what may not change, and secrets, which others may still read."""
CHOICES = ("livenessProbe", "readinessProbe", "startupProbe")
"""Fields of a container of which the server accepts one kind of content only: they are taken over whole."""

Tree = dict[str, Any]
Path = tuple[str, ...]


def people(live: Manifest | None) -> list[str]:
    """Return the managers of an object that are people's tools."""
    return sorted({e["manager"] for e in _entries(live) if _is_persons(e)})


def kept(manifest: Manifest, live: Manifest | None) -> Manifest:
    """Return a manifest in which what may not change is as it is: a Secret's type, a Deployment's selector, a claim's spec.

    A claim may grow, and nothing else of it changes.
    """
    if live is None:
        return manifest
    if manifest["kind"] == "Secret" and "type" in manifest:
        return manifest | {"type": live.get("type", "Opaque")}
    if manifest["kind"] == "PersistentVolumeClaim" and "spec" in manifest:
        spec = {key: live["spec"].get(key, value) for key, value in manifest["spec"].items()}
        now, wanted = ((spec.get("resources") or {}).get("requests", {}).get("storage", "")
                       for spec in (live["spec"], manifest["spec"]))
        grown = {"resources": manifest["spec"]["resources"]} if size_of(wanted) > size_of(now) else {}
        return manifest | {"spec": spec | grown}
    if manifest["kind"] == "Deployment" and "selector" in manifest.get("spec", {}):
        return manifest | {"spec": manifest["spec"] | {"selector": live["spec"]["selector"]}}
    return manifest


def owners(live: Manifest | None) -> dict[str, str]:
    """Return the fields that people's tools set and no step does: the path as a conflict writes it, and the tool."""
    found: dict[str, str] = {}
    ours = [e["fieldsV1"] for e in _entries(live) if e["manager"].startswith("guide/")]
    for entry in _entries(live):
        if _is_persons(entry):
            for path in _paths(_without(entry["fieldsV1"], ours)):
                found[path] = entry["manager"]
    return found


def choices(live: Manifest | None, manifest: Manifest) -> list[Path]:
    """Return the fields which a manifest sets in one way and people's tools in another that excludes it."""
    if manifest["kind"] != "Deployment":
        return []
    pod = manifest.get("spec", {}).get("template", {}).get("spec", {})
    top = ("f:spec", "f:template", "f:spec")
    wanted: list[Path] = [(*top, "f:volumes", _item(volume)) for volume in pod.get("volumes", [])]
    for container in pod.get("containers", []):
        inside = (*top, "f:containers", _item(container))
        wanted += [(*inside, f"f:{name}") for name in CHOICES if name in container]
        wanted += [(*inside, "f:env", _item(variable)) for variable in container.get("env", [])]
    return [path for path in wanted if any(_at(e["fieldsV1"], path) is not None for e in _entries(live) if _is_persons(e))]


def moved(live: Manifest, paths: Sequence[Path], manager: str) -> list[Manifest]:
    """Return the managedFields in which these fields are the manager's and no longer of people's tools."""
    entries = copy.deepcopy(_all(live))
    taken: Tree = {}
    for entry in entries:
        if _is_persons(entry):
            for path in paths:
                if (found := _at(entry["fieldsV1"], path)) is not None:
                    _merge(taken, _nested(path, found))
                    _cut(entry["fieldsV1"], path)
    return _given(entries, taken, manager, live["apiVersion"])


def released(live: Manifest) -> tuple[list[Manifest], list[str]]:
    """Return the managedFields without people's tools, and the fields which then only `MANAGER` has: nobody wants those."""
    entries = copy.deepcopy(_all(live))
    others = [e["fieldsV1"] for e in entries if not _is_persons(e) and not e.get("subresource")]
    left: Tree = {}
    for entry in entries:
        if _is_persons(entry):
            rest = _without(entry["fieldsV1"], others)
            for path in (*KEPT, *KEPT_OF.get(live["kind"], ())):
                _cut(rest, path)
            _merge(left, rest)
    entries = [e for e in entries if not _is_persons(e)]
    return _given(entries, left, MANAGER, live["apiVersion"]), sorted(set(_paths(left)))


def _all(live: Manifest | None) -> list[Manifest]:
    found: list[Manifest] = (live or {}).get("metadata", {}).get("managedFields") or []
    return found


def _entries(live: Manifest | None) -> Iterator[Manifest]:
    return (e for e in _all(live) if e.get("manager") and not e.get("subresource"))


def _is_persons(entry: Manifest) -> bool:
    return not entry.get("subresource") and bool(PEOPLE.match(entry.get("manager", "")))


def _given(entries: list[Manifest], fields: Tree, manager: str, version: str) -> list[Manifest]:
    """Return entries with more fields for a manager; those that hold nothing any more are left out."""
    if fields:
        mine = next((e for e in entries if (e["manager"], e["operation"], e.get("subresource")) == (manager, "Apply", None)), None)
        if mine is None:
            mine = {"manager": manager, "operation": "Apply", "apiVersion": version, "fieldsType": "FieldsV1", "fieldsV1": {}}
            entries = [*entries, mine]
        _merge(mine["fieldsV1"], fields)
    return [e for e in entries if e.get("fieldsV1")]


def _item(item: Manifest) -> str:
    """Return how fieldsV1 writes an item of a list that is told apart by name."""
    return "k:" + json.dumps({"name": item["name"]}, separators=(",", ":"))


def _at(tree: Tree, path: Path) -> Tree | None:
    node: Tree | None = tree
    for key in path:
        node = node.get(key) if node is not None else None
    return node


def _nested(path: Path, leaf: Tree) -> Tree:
    for key in reversed(path):
        leaf = {key: leaf}
    return leaf


def _merge(tree: Tree, more: Tree) -> None:
    for key, inner in more.items():
        _merge(tree.setdefault(key, {}), inner)


def _cut(tree: Tree, path: Path) -> None:
    """Take a field out, and with it what then holds nothing."""
    head, *rest = path
    if head not in tree:
        return
    if rest:
        _cut(tree[head], tuple(rest))
    if not rest or not tree[head]:
        del tree[head]


def _without(tree: Tree, others: Sequence[Tree]) -> Tree:
    """Return the fields of a tree that no other tree has."""
    left: Tree = {}
    for key, inner in tree.items():
        same = [other[key] for other in others if key in other]
        if not same:
            left[key] = copy.deepcopy(inner)
        elif inner and all(same) and (rest := _without(inner, same)):
            rest.pop(".", None)  # Others have fields inside: the field itself stays.
            left |= {key: rest} if rest else {}
    return left


def _paths(tree: Tree, before: str = "") -> Iterator[str]:
    """Yield the fields of a tree as a conflict writes them: `spec.containers[name="c"].image`."""
    for key, inner in tree.items():
        if key == ".":
            continue
        kind, _, name = key.partition(":")
        shown = f"{before}.{name}" if before else name
        if kind == "k":
            pairs = json.loads(name).items()
            shown = before + "".join(f"[{k}={json.dumps(v)}]" for k, v in pairs)
        elif kind in ("v", "i"):
            shown = f"{before}[{name}]"
        below = list(_paths(inner, shown))
        yield from below or [shown]
