"""The web console way of a step: the clicks that stand on its page, filled in for each instance. From text to text.

A placeholder is a dotted path. `{database.host}` begins at the instance; `{Secret.metadata.name}` and `{Ask.values.name}`
begin, with a capital, at what the step's plan has of that kind. So a page repeats no fact that either of them knows.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from runbook import markdown
from runbook.errors import WrongUse
from runbook.instance import Instance
from runbook.pictures import form
from runbook.plan import Action, Apply, Ask, Credential, Patch
from runbook.shell import shown

CONSOLE = "https://paas.cern.ch"
"""The web console; `{console}` in a way. Below it, `/k8s/ns/PROJECT/KINDS/NAME/TAB` is the address of an object."""

SEPARATOR = re.compile(r"^=== web console[ \t]*$\n?", re.MULTILINE)
MARK = re.compile(r"(?:confirmed: (?P<date>\d{4}-\d\d-\d\d)|(?P<word>untried|cannot))[ \t]*\n")
MARKS = {"": "*Not confirmed since 2023.*", "untried": "*Not in the former guide, and not confirmed at CERN.*", "cannot": ""}
"""What a way begins with: by its first line; without one it is the former guide's."""

PLACEHOLDER = re.compile(r"\{([A-Za-z][\w./-]*)\}")
FENCE = re.compile(r"^(?P<blanks> *)~~~(?P<kind>form|values) (?P<about>.+)\n(?P<body>(?:.*\n)*?)(?P=blanks)~~~$", re.MULTILINE)
TWO_LABELS = re.compile(r"(?P<key>[^:]+) / (?P<value>[^:]+): \{(?P<path>[\w./-]+)\}")

Plan = Callable[[Instance], Iterable[Action]]


class _Absent(Exception):
    """The plan of one instance has nothing of the kind."""


def split(body: str) -> tuple[str, str]:
    """Return the prose of a step's fence, and the way after its line `=== web console`, "" when there is none."""
    prose, *way = SEPARATOR.split(body, maxsplit=1)
    return prose.strip("\n"), "".join(way).strip("\n")


def ways(text: str, instances: Sequence[Instance], plan: Plan = lambda _: ()) -> str:
    """Return a way as Markdown: once when it is the same for all instances, else a tab for each.

    An instance whose plan lacks what the way is about gets none. Raises WrongUse for a placeholder that nobody fills.
    """
    if not text:
        return ""
    mark, clicks = marked(text)
    filled, absent = {}, ""
    for instance in instances:
        try:
            filled[instance.name] = drawn(clicks, instance, tuple(plan(instance)))
        except _Absent as path:
            absent = str(path)
    if not filled:
        raise WrongUse(f"{{{absent}}} is in no instance's plan", "a path with a capital begins at a manifest's kind, or Ask")
    if len(filled) == len(instances):
        return mark + markdown.tabs(filled)
    return mark + "\n\n".join(markdown.tab(name, way) for name, way in filled.items())


def marked(text: str) -> tuple[str, str]:
    """Return what is said first of who has confirmed a way, and the way without the line that says it."""
    found = MARK.match(text)
    said = MARKS[""] if not found else f"*Confirmed on {found['date']}.*" if found["date"] else MARKS[found["word"]]
    return said and said + "\n\n", text[found.end():] if found else text


def drawn(text: str, instance: Instance, plan: Sequence[Action]) -> str:
    """Return a way filled in for one instance, with its forms drawn and its values listed."""
    def fence(found: re.Match[str]) -> str:
        blanks, about = found["blanks"], found["about"]
        if found["kind"] == "values":
            return textwrap.indent(listed(value(about, instance, plan), about), blanks)
        lines = [line for written in found["body"].splitlines() for line in _lines(written.strip(), instance, plan)]
        return blanks + form(fill(about, instance, plan), lines)

    # A form's values may hold what looks like a placeholder, so text is filled in only between the fences.
    parts, end = [], 0
    for found in FENCE.finditer(text):
        parts += [fill(text[end:found.start()], instance, plan), fence(found)]
        end = found.end()
    return "".join([*parts, fill(text[end:], instance, plan)])


def _lines(line: str, instance: Instance, plan: Sequence[Action]) -> Iterator[str]:
    """Yield a form's line filled in; `Key / Value: {table}` becomes two lines for each entry of the table."""
    found = TWO_LABELS.fullmatch(line)
    if not found:
        yield fill(line, instance, plan)
        return
    for key, held in value(found["path"], instance, plan).items():
        yield from (f"{found['key']}: {key}", f"{found['value']}: {_said(held)}")


def listed(values: Any, about: str) -> str:
    """Return a list of a manifest's keys and values, or of a container's variables and the Secrets that they refer to."""
    if isinstance(values, Mapping):
        return "\n".join(f"- `{key}`: {_code(held)}" for key, held in values.items())
    if not isinstance(values, list):
        raise WrongUse(f"{{{about}}} is neither a table nor a list of variables", "give the path of one")
    plain = [f"- `{one['name']}`: {_code(one['value'])}" for one in values if "value" in one]
    secrets: dict[str, list[str]] = {}
    for one in values:
        if "valueFrom" in one:
            name, kept = one["name"], one["valueFrom"]["secretKeyRef"]
            secrets.setdefault(kept["name"], []).append(f"`{name}`" if name == kept["key"] else f"`{name}` (key `{kept['key']}`)")
    return "\n".join([*plain, *(f"- from the Secret `{secret}`: {', '.join(names)}" for secret, names in secrets.items())])


def _code(held: Any) -> str:
    if isinstance(held, Credential):
        return held.label + (", if you need it" if held.optional else "")
    return f"`{held}`" if held != "" else "empty"


def fill(text: str, instance: Instance, plan: Sequence[Action] = ()) -> str:
    """Return a text with its placeholders filled in; other braces stay."""
    return PLACEHOLDER.sub(lambda found: _said(value(found[1], instance, plan)), text)


def _said(held: Any) -> str:
    return f"<{held.label}>" if isinstance(held, Credential) else shown(held)


def value(path: str, instance: Instance, plan: Sequence[Action] = ()) -> Any:
    """Return what a dotted path names. Raises WrongUse when the instance has no such setting."""
    if path == "console":
        return CONSOLE
    head, _, rest = path.partition(".")
    if not head[0].isupper():
        found = _attribute(instance, path.split("."))
        if found is None:
            raise WrongUse(f"{{{path}}} is no setting of an instance", "write a key of the instance file, such as {database.host}")
        return found
    for manifest in _manifests(plan, head):
        found = _entry(manifest, rest)
        if found is not None:
            return found
    raise _Absent(path)


def _attribute(node: Any, names: Sequence[str]) -> Any:
    for name in names:
        node = None if name.startswith("_") else getattr(node, name, None)
    return None if callable(node) else node


def _manifests(plan: Sequence[Action], kind: str) -> Iterator[Mapping[str, Any]]:
    for action in plan:
        match action:
            case Ask() if kind == "Ask":
                yield {"deed": action.deed, "where": action.where, "values": action.values}
            case Apply() if action.object.kind == kind:
                yield action.manifest
            case Patch() if action.object.kind == kind:
                yield {"metadata": {"name": action.object.name} | action.fields.get("metadata", {})} | {
                    key: held for key, held in action.fields.items() if key != "metadata"}


def _entry(node: Any, path: str) -> Any:
    """Return an entry of a manifest; a key may have dots in it, and an item of a list is named by its place or its `name`."""
    if not path:
        return node
    words = path.split(".")
    if isinstance(node, Mapping):
        keys = (".".join(words[:length]) for length in range(len(words), 0, -1))
        return next((_entry(node[key], path[len(key) + 1:]) for key in keys if key in node), None)
    if isinstance(node, list | tuple):
        place, _, rest = path.partition(".")
        there = node[int(place):int(place) + 1] if place.isdigit() else \
            [one for one in node if isinstance(one, Mapping) and one.get("name") == place]
        return next((_entry(one, rest) for one in there), None)
    return None
