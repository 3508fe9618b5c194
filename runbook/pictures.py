"""Pictures of the guide, drawn as SVG while the site is built: they need no script and no network, and obey the theme.

A picture is a graph in layers from top to bottom: what is needed stands above what needs it. Every picture carries its
own text: a title and a description for those who do not see it, and links in its boxes for those who do.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

from runbook.errors import WrongUse
from runbook.instance import Instance
from runbook.observed import Observed
from runbook.options import outline
from runbook.plan import Apply, Credential, Manifest
from runbook.step import Runbook, Step

CHARACTER = 6.6
"""Width of a character of the boxes' text, in pixels, on average."""
HEIGHT, GAP, LAYER, MARGIN = 44.0, 18.0, 84.0, 8.0


@dataclass(frozen=True)
class Box:
    """One box: two lines of text, and where it leads."""

    name: str
    """What edges refer to."""
    title: str
    note: str = ""
    link: str = ""
    kind: str = ""
    """A word for the style sheet: `person`, `operation`, `outside`."""

    @property
    def width(self) -> float:
        """Width in pixels."""
        return max(len(self.title), len(self.note)) * CHARACTER + 22


Edges = Sequence[tuple[str, str]]


def drawn(boxes: Sequence[Box], edges: Edges, title: str, description: str) -> str:
    """Return a figure with the graph; an edge goes from what is above to what is below."""
    layers = layered([box.name for box in boxes], edges)
    known = {box.name: box for box in boxes}
    places, width = placed(layers, known)
    height = len(layers) * LAYER - (LAYER - HEIGHT) + 2 * MARGIN
    name = "picture-" + "".join(c if c.isalnum() else "-" for c in title.lower())
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    # An image has no links inside; a group has.
    role = "group" if any(box.link for box in boxes) else "img"
    parts = [f'<figure class="picture" tabindex="0"><svg {size} '
             f'role="{role}" aria-labelledby="{name}-title {name}-text" xmlns="http://www.w3.org/2000/svg">',
             f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-text">{escape(description)}</desc>',
             *(_line(points) for points in _routes(layers, places, edges)),
             *(_drawn_box(known[name], *places[name]) for layer in layers for name in layer if name in known)]
    # Markdown takes the lines for HTML until the first empty one.
    return "\n".join([*parts, "</svg>", f"<figcaption>{escape(title)}</figcaption></figure>"])


def layered(names: Sequence[str], edges: Edges) -> list[list[str]]:
    """Return the names in layers so that every edge goes down, with a place kept in each layer that a long edge crosses."""
    depth = dict.fromkeys(names, 0)
    for _ in names:
        for upper, lower in edges:
            depth[lower] = max(depth[lower], depth[upper] + 1)
    layers: list[list[str]] = [[] for _ in range(max(depth.values(), default=0) + 1)]
    for name in names:
        layers[depth[name]].append(name)
    for upper, lower in edges:
        for level in range(depth[upper] + 1, depth[lower]):
            layers[level].append(_crossing(upper, lower, level))
    above = {name: set[str]() for layer in layers for name in layer}
    for upper, lower in edges:
        for one, next_one in _pairs(_steps(upper, lower, depth)):
            above[next_one].add(one)
    for _ in range(4):  # Each pass brings boxes nearer to what they hang on; more passes change little.
        for level, layer in enumerate(layers[1:], 1):
            position = {name: place for place, name in enumerate(layers[level - 1])}
            layer.sort(key=lambda name: _mean([position[one] for one in above[name] if one in position]))
    return layers


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else 0.0


def _crossing(upper: str, lower: str, level: int) -> str:
    return f"{upper}→{lower}@{level}"


def _steps(upper: str, lower: str, depth: Mapping[str, int]) -> list[str]:
    return [upper, *(_crossing(upper, lower, level) for level in range(depth[upper] + 1, depth[lower])), lower]


def _pairs(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    return pairwise(names)


def placed(layers: Sequence[Sequence[str]], known: Mapping[str, Box]) -> tuple[dict[str, tuple[float, float]], float]:
    """Return the middle of each place, layer by layer centred, and the width of the whole."""
    def width(name: str) -> float:
        return known[name].width if name in known else 6.0

    widths = [sum(width(name) for name in layer) + GAP * (len(layer) - 1) for layer in layers]
    whole = max(widths, default=0) + 2 * MARGIN
    places = {}
    for level, layer in enumerate(layers):
        x = (whole - widths[level]) / 2
        for name in layer:
            places[name] = (x + width(name) / 2, MARGIN + level * LAYER + HEIGHT / 2)
            x += width(name) + GAP
    return places, whole


def _routes(layers: Sequence[Sequence[str]], places: Mapping[str, tuple[float, float]],
            edges: Edges) -> Iterator[list[tuple[float, float]]]:
    depth = {name: level for level, layer in enumerate(layers) for name in layer}
    for upper, lower in edges:
        points = [places[name] for name in _steps(upper, lower, depth)]
        yield [(points[0][0], points[0][1] + HEIGHT / 2), *points[1:-1], (points[-1][0], points[-1][1] - HEIGHT / 2 - 5)]


def _line(points: Sequence[tuple[float, float]]) -> str:
    path = f"M{points[0][0]:.0f},{points[0][1]:.0f}"
    for (x, y), (to_x, to_y) in pairwise(points):
        half = (y + to_y) / 2
        path += f" C{x:.0f},{half:.0f} {to_x:.0f},{half:.0f} {to_x:.0f},{to_y:.0f}"
    x, y = points[-1]
    head = f"M{x - 4:.0f},{y - 2:.0f} L{x:.0f},{y + 5:.0f} L{x + 4:.0f},{y - 2:.0f} Z"
    return f'<path class="edge" d="{path}"/><path class="head" d="{head}"/>'


def _drawn_box(box: Box, x: float, y: float) -> str:
    left, top = x - box.width / 2, y - HEIGHT / 2
    lines = [f'<text x="{x:.0f}" y="{y - 3 if box.note else y + 4:.0f}">{escape(box.title)}</text>']
    if box.note:
        lines.append(f'<text class="note" x="{x:.0f}" y="{y + 13:.0f}">{escape(box.note)}</text>')
    drawn_box = (f'<rect class="{box.kind or "box"}" x="{left:.0f}" y="{top:.0f}" width="{box.width:.0f}" height="{HEIGHT:.0f}" '
                 f'rx="6"/>{"".join(lines)}')
    return f'<a href="{escape(box.link)}">{drawn_box}</a>' if box.link else drawn_box


def order(runbook: Runbook) -> str:
    """Return the picture of the standing steps and what each needs; what follows from another need is not drawn."""
    steps = runbook.standing
    boxes = [Box(step.name, step.name, "you" if step.person else "", f"{step.procedure}.html#{step.name}",
                 "person" if step.person else "") for step in steps]
    edges = [(need.name, step.name) for step in steps for need in reduced(step) if need in steps]
    text = "; ".join(f"{step.name} needs {', '.join(need.name for need in step.needs) or 'nothing'}" for step in steps)
    return drawn(boxes, edges, "What needs what", text + ".")


def reduced(step: Step) -> list[Step]:
    """Return the needs of a step that no other need of it needs already."""
    return [need for need in step.needs if not any(need in _all(other) for other in step.needs if other is not need)]


def _all(step: Step) -> set[Step]:
    return {found for need in step.needs for found in (need, *_all(need))}


def topology(runbook: Runbook, instance: Instance) -> str:
    """Return the picture of an instance's objects and how they refer to each other, read from the manifests of its plans."""
    manifests: dict[tuple[str, str], list[Manifest]] = {}
    for step in runbook.standing:
        if step.wanted(instance):
            for action in outline(step, instance, Observed()):
                if isinstance(action, Apply):
                    manifests.setdefault((action.object.kind, action.object.name), []).append(action.manifest)
    boxes = [Box(f"{kind}/{name}", name, kind) for kind, name in manifests]
    boxes.append(Box("outside/database", instance.database.host, "PostgreSQL, DBoD", kind="outside"))
    names = {box.name for box in boxes}
    edges = [edge for (kind, name), parts in manifests.items() for part in parts
             for edge in _references(kind, name, part, manifests)]
    edges.append((f"Deployment/{instance.app}", "outside/database"))
    edges = [edge for edge in dict.fromkeys(edges) if set(edge) <= names and edge[0] != edge[1]]
    text = "; ".join(f"{upper.replace('/', ' ')} refers to {lower.replace('/', ' ')}" for upper, lower in edges)
    return drawn(boxes, edges, "The objects of the app, and what refers to what", text + ".")


def _references(kind: str, name: str, manifest: Manifest, known: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    me = f"{kind}/{name}"
    spec = manifest.get("spec", {})
    if kind == "Route":
        yield me, f"Service/{spec.get('to', {}).get('name', '')}"
    if kind == "Service":
        # A Service finds pods by label; here they are those of the Deployment with its name.
        yield me, f"Deployment/{name}"
    if kind == "BuildConfig":
        yield me, "ImageStream/" + str(spec.get("output", {}).get("to", {}).get("name", "")).partition(":")[0]
    if kind == "ImageStream" and ("Deployment", name) in known:
        yield me, f"Deployment/{name}"
    for reference, named in _named(manifest):
        yield me, f"{reference}/{named}"


def _named(node: Any) -> Iterator[tuple[str, str]]:
    """Yield kind and name of every Secret, ConfigMap and claim that a manifest refers to."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            match key, value:
                case "secretKeyRef" | "sourceSecret" | "secretRef", {"name": str(name)}:
                    yield "Secret", name
                case "secret", {"secretName": str(name)} | {"name": str(name)}:
                    yield "Secret", name
                case "configMapKeyRef" | "configMapRef" | "configMap", {"name": str(name)}:
                    yield "ConfigMap", name
                case "persistentVolumeClaim", {"claimName": str(name)}:
                    yield "PersistentVolumeClaim", name
                case _:
                    yield from _named(value)
    elif isinstance(node, list | tuple) and not isinstance(node, Credential):
        for inner in node:
            yield from _named(inner)


def chain(title: str, body: str) -> str:
    """Return a picture of lines `name: note`, each leading to the next; `a > b` on a line of its own adds another edge."""
    boxes, edges, previous = [], [], ""
    for line in filter(None, map(str.strip, body.splitlines())):
        if " > " in line:
            upper, _, lower = line.partition(" > ")
            edges.append((upper.strip(), lower.strip()))
            previous = ""
            continue
        name, _, note = line.partition(":")
        boxes.append(Box(name.strip(), name.strip(), note.strip()))
        if previous:
            edges.append((previous, name.strip()))
        previous = name.strip()
    text = "; ".join(f"from {upper} to {lower}" for upper, lower in edges)
    return drawn(boxes, edges, title, text + ".")


FORM = 320.0
"""Width of a drawn form: a phone shows it as it is."""
LINE, INSET = 15.0, 12.0
LABEL, VALUE = 46, 41
"""Characters of a label and of a value, which has a fixed width, that fit into one line."""


def form(title: str, lines: Sequence[str]) -> str:
    """Return the picture of a form, filled in; each line of it is one of the below, and `*` marks what must be given.

    `Label: value`, `[x] Label`, `[ ] Label`, `(o) Label`, `( ) Label`, `<Button>`, `# Heading`.

    It is inline all through: Markdown takes no block of HTML inside a tab or a list. Raises WrongUse for another line.
    """
    parts, told, y = [_said(title, INSET, 24, "title")], [], 36.0
    for line in lines:
        part, words, height = _row(line, y)
        parts.append(part)
        told.append(words)
        y += height
    height = y + INSET / 2
    return (f'<svg class="form" viewBox="0 0 {FORM:.0f} {height:.0f}" role="img" xmlns="http://www.w3.org/2000/svg">'
            f'<title>{_inert(title)}</title><desc>{_inert("; ".join(told) + ".")}</desc>'
            f'<rect class="sheet" x="0.5" y="0.5" width="{FORM - 1:.0f}" height="{height - 1:.0f}" rx="6"/>{"".join(parts)}</svg>')


def _row(line: str, y: float) -> tuple[str, str, float]:
    """Return a line's drawing from `y` on, the same in words, and its height."""
    if found := re.fullmatch(r"\[([ x])\] (.+)", line):
        tick = f'<path class="tick" d="M{INSET + 3:.0f},{y + 9:.0f} l3,3 l5,-6"/>' if found[1] == "x" else ""
        box = f'<rect class="field" x="{INSET:.0f}" y="{y + 2:.0f}" width="14" height="14" rx="2"/>{tick}'
        return _choice(found[2], box, "ticked" if tick else "not ticked", y)
    if found := re.fullmatch(r"\(([ o])\) (.+)", line):
        dot = f'<circle class="dot" cx="{INSET + 7:.0f}" cy="{y + 9:.0f}" r="3.5"/>' if found[1] == "o" else ""
        ring = f'<circle class="field" cx="{INSET + 7:.0f}" cy="{y + 9:.0f}" r="7"/>{dot}'
        return _choice(found[2], ring, "chosen" if dot else "not chosen", y)
    if found := re.fullmatch(r"<(.+)>", line):
        wide = len(found[1]) * CHARACTER + 24
        button = f'<rect class="button" x="{INSET:.0f}" y="{y + 6:.0f}" width="{wide:.0f}" height="26" rx="4"/>'
        return button + _said(found[1], INSET + 12, y + 23, "pressed"), f"button {found[1]}", 38
    if found := re.fullmatch(r"# (.+)", line):
        rule = f'<path class="rule" d="M{INSET:.0f},{y + 2:.0f} H{FORM - INSET:.0f}"/>'
        return rule + _said(found[1], INSET, y + 20, "heading"), f"below {found[1]}", 32
    if found := re.fullmatch(r"([^:*]+)(\*?):(?: (.*))?", line):
        return _field(found[1], found[2], found[3] or "", y)
    raise WrongUse(f"{line!r} is no line of a form", "write `Label: value`, `[x] Label`, `(o) Label`, `<Button>` or `# Heading`")


def _choice(label: str, mark: str, state: str, y: float) -> tuple[str, str, float]:
    lines = textwrap.wrap(label, LABEL - 4)
    return mark + _block(lines, INSET + 22, y + 13, "label"), f"{label}: {state}", len(lines) * LINE + 8


def _field(label: str, required: str, value: str, y: float) -> tuple[str, str, float]:
    names = textwrap.wrap(label + required, LABEL)
    values = textwrap.wrap(value, VALUE, break_on_hyphens=False)
    top, high = y + len(names) * LINE + 3, max(len(values), 1) * LINE + 8
    box = f'<rect class="field" x="{INSET:.0f}" y="{top:.0f}" width="{FORM - 2 * INSET:.0f}" height="{high:.0f}" rx="3"/>'
    words = f"{label}{' (must be given)' if required else ''}: {value or 'empty'}"
    return _block(names, INSET, y + 11, "label") + box + _block(values, INSET + 7, top + 15, "value"), words, top + high - y + 8


def _block(lines: Sequence[str], x: float, y: float, kind: str) -> str:
    return "".join(_said(line, x, y + number * LINE, kind) for number, line in enumerate(lines))


def _said(text: str, x: float, y: float, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.0f}" y="{y:.0f}">{_inert(text)}</text>'


def _inert(text: str) -> str:
    """Return a text in which nothing means anything, neither to HTML nor to Markdown."""
    return re.sub(r"[^\w ]|_", lambda found: f"&#{ord(found[0])};", text)
