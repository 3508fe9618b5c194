"""The site's pages: prose with fences, and what stands in place of each fence. From text to text, reading no cluster.

Any site generator can use it; `docs/_generate.py` is the one place that knows which.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from runbook import instance as instances
from runbook import pictures
from runbook.errors import WrongUse
from runbook.instance import Instance
from runbook.markdown import fence, link, section, table
from runbook.observed import Observed
from runbook.options import EXIT_CODES, OPTIONS, credentials, options, outline
from runbook.plan import Action, Ask, Credential
from runbook.stamps import SHORT, UNPROVED, Verified, page_stamp, stamp, state
from runbook.step import Runbook, Step, suggestion

Fence = Callable[[str, str], str]
"""What replaces a fence: from its argument and its body."""

NOTHING = Verified()
"""What is proved of a site that no test run came before."""

FENCE = re.compile(r"^(?P<ticks>`{3,})(?P<name>[a-z]+)(?: +(?P<argument>\S+))?[ \t]*\n(?P<body>.*?)^(?P=ticks)[ \t]*$",
                   re.MULTILINE | re.DOTALL)


def expand(text: str, fences: Mapping[str, Fence], name: str = "") -> str:
    """Return a page with every fence that has a name in `fences` replaced; other code blocks stay as they are.

    Raises WrongUse with the page's name and the line of a fence that cannot be replaced.
    """
    def replaced(found: re.Match[str]) -> str:
        make = fences.get(found["name"])
        try:
            return make(found["argument"] or "", found["body"].strip("\n")) if make else found[0]
        except WrongUse as error:
            line = text[:found.start()].count("\n") + 1
            raise WrongUse(f"{name}:{line}: {error.found}; {error.cure}") from error

    return FENCE.sub(replaced, text)


def steps_named(text: str) -> list[str]:
    """Return the names in the ```step fences of a page, in order."""
    return [found["argument"] or "" for found in FENCE.finditer(text) if found["name"] == "step"]


@dataclass
class Sections:
    """The steps' sections on their pages, each rendered once however often it is looked at."""

    runbook: Runbook
    instances: Sequence[Instance]
    """Those whose values the pages show."""
    verified: Verified = NOTHING
    """What the test run before this build proved."""
    edit: str = ""
    """Where the repository's files can be edited, with a slash at the end; "" is nowhere."""
    _plain: dict[tuple[Step, str], str] = field(default_factory=dict)

    def plain(self, step: Step, body: str) -> str:
        """Return a section as it is whatever was proved of it."""
        if (step, body) not in self._plain:
            self._plain[step, body] = section(step, self.instances, body)
        return self._plain[step, body]

    def stamped(self, step: Step, body: str) -> str:
        """Return a section with what was proved of it below its first sentence, and a link to its source."""
        text = self.plain(step, body)
        source = Path(step.function.__code__.co_filename)
        link_to_source = f" · [source]({self.edit}{source.parent.name}/{source.name})" if self.edit else ""
        heading, summary, rest = text.split("\n\n", 2)
        return "\n\n".join([heading, summary, stamp(step, self._plan(step), self.verified, text, link_to_source), rest])

    def states(self, docs: Path) -> dict[str, str]:
        """Return the word for what was proved of each step, by the step's name; `docs` has the pages."""
        if not self.verified.steps:
            return dict.fromkeys((step.name for step in self.runbook.steps), UNPROVED)
        return {step.name: state(step, self._plan(step), self.verified, self.plain(step, body(docs, step)))
                for step in self.runbook.steps}

    def _plan(self, step: Step) -> list[Action]:
        return outline(step, self.instances[0], Observed())


def fences(sections: Sections, root: Path, tasks: Any = None) -> dict[str, Fence]:
    """Return the fences that every site has; `tasks` is the command line's collection of tasks.

    `root` is the folder with `docs/`, `stack/` and `tests/`.
    A step's fence that names no step raises WrongUse.
    """
    runbook, verified, shown = sections.runbook, sections.verified, sections.instances[0]
    return {
        "step": lambda name, body: sections.stamped(runbook.find(name), body),
        "overview": lambda _, __: overview(runbook, sections.states(root / "docs"), verified),
        "reference": lambda _, __: reference(runbook, shown),
        "tasks": lambda name, __: task_table(tasks, name),
        "commands": lambda _, body: command_table(tasks, body, shown),
        "order": lambda _, __: ", ".join(link(step) + (" (you)" if step.person else "") for step in runbook.standing),
        "exitcodes": lambda _, __: table(("code", "meaning"), ((f"`{c}`", text) for c, text in EXIT_CODES.items())),
        "options": lambda _, __: table(("option", "meaning", "which steps"), (
            (f"`{o.written}`", o.meaning, "every step" if o.every else "where it applies") for o in OPTIONS)),
        "settings": lambda _, __: settings(Instance),
        "example": lambda _, __: fence("toml", shown.path.read_text(encoding="utf-8")),
        "differs": lambda _, __: differs(root / "stack"),
        "unconfirmed": lambda _, __: unconfirmed(runbook),
        "troubleshooting": lambda _, __: troubleshooting(runbook, shown, root / "docs"),
        "credentials": lambda _, __: credential_table(runbook, shown),
        "picture": lambda name, body: picture(name, body, runbook, shown),
        "faults": lambda name, __: faults(runbook, root / "docs" / name, root / "tests"),
    }


def body(docs: Path, step: Step) -> str:
    """Return what a step's fence holds on its page."""
    text = (docs / f"{step.procedure}.md").read_text(encoding="utf-8")
    return next((found["body"].strip("\n") for found in FENCE.finditer(text)
                 if found["name"] == "step" and found["argument"] == step.name), "")


def overview(runbook: Runbook, proved: Mapping[str, str], verified: Verified) -> str:
    """Return the table of all steps in the order in which `guide.run` takes them, operations after them, with what was proved."""
    standing = runbook.standing
    ordered = (*standing, *(step for step in runbook.steps if step not in standing))

    def proof(step: Step) -> str:
        found = verified.steps.get(step.name)
        return SHORT[proved[step.name]] + (f", {found.seconds:.1f} s" if found else "")

    rows = ((str(number), link(step), step.summary, _who(step), proof(step)) for number, step in enumerate(ordered, 1))
    return table(("", "step", "what it does", "who", "proof"), rows)


def _who(step: Step) -> str:
    return "you, once" if step.person else "when called" if step.operation else "the guide"


def reference(runbook: Runbook, instance: Instance) -> str:
    """Return every step with the options that not every step has."""
    def further(step: Step) -> str:
        names = [f"--{name.replace('_', '-')}" for name in step.options]
        names += [o.written for o in options(outline(step, instance, Observed())) if not o.every]
        return " ".join(f"`{name}`" for name in dict.fromkeys(names))

    return table(("step", "what it does", "options beside those of every step"),
                 ((link(step), step.summary, further(step)) for step in runbook.steps))


def task_table(collection: Any, prefix: str) -> str:
    """Return the tasks of one part of the command line, with their options; "-" names those that stand alone.

    `collection` is invoke's; it is only read.
    """
    found = collection if prefix == "-" else collection.collections[prefix]
    stem = "" if prefix == "-" else f"{prefix}."
    rows = []
    for name, task in found.tasks.items():
        given = (f"`--{a.name.replace('_', '-')}`" + (f" {a.help}" if a.help else "") for a in _arguments(task))
        rows.append((f"`invoke {stem}{name}`", (inspect.getdoc(task) or "").partition("\n")[0], "<br>".join(given)))
    return table(("command", "what it does", "options"), rows)


def _arguments(task: Any) -> list[Any]:
    """Return a task's arguments, from a copy: invoke takes the help out of the task that it asks."""
    asked = copy.copy(task)
    asked.help = dict(task.help)
    return list(asked.get_arguments())


def command_table(collection: Any, body: str, instance: Instance) -> str:
    """Return the commands that a fence's body names, one a line with its options, and what each does."""
    rows = []
    for line in body.splitlines():
        name, *given = line.split()
        if name not in collection.task_names:
            raise WrongUse(f"there is no task {name!r}", suggestion(name, collection.task_names))
        task = collection[name]
        known = {f"--{a.name.replace('_', '-')}": a for a in _arguments(task)}
        build = [f"--build={instance.name}"] if "--build" in known else []
        does = [(inspect.getdoc(task) or "").partition("\n")[0], *(known[option.partition("=")[0]].help for option in given)]
        rows.append((f"`{' '.join(['invoke', name, *build, *given])}`", " ".join(filter(None, does))))
    return table(("command", "what it does"), rows)


def settings(form: type, prefix: str = "") -> str:
    """Return the keys of an instance file, table by table, from the dataclasses that check it."""
    hints = get_type_hints(form)
    rows, tables = [], []
    for key in dataclasses.fields(form):
        if not key.metadata:
            continue
        hint, about = hints[key.name], key.metadata["about"]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            tables.append(f"### [{prefix}{key.name}]\n\n{about}\n\n{settings(hint, f'{prefix}{key.name}.')}")
        else:
            rows.append((f"`{key.name}`", about, _type(hint), _default(key)))
    return "\n\n".join([table(("key", "meaning", "type", "default"), rows), *tables])


def _type(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(f"`{value!r}`" for value in get_args(hint) if value)
    return {str: "text", int: "number", bool: "true or false"}.get(hint, "table of texts")


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return "**must be given**" if field.default_factory is dataclasses.MISSING else "none"
    return "empty" if field.default == "" else f"`{str(field.default).lower()}`" if isinstance(field.default, bool) \
        else f"`{field.default}`"


def differs(stack: Path) -> str:
    """Return what each module of the stack stands for and where it differs, from its docstring; nothing is imported."""
    rows = []
    for path in sorted(stack.rglob("*.py")):
        said = _statements(path)
        if said:
            name = path.relative_to(stack).with_suffix("").as_posix().removesuffix("/__init__")
            rows.append((f"`{name}`", said.get("Stands for", ""), said.get("Differs", "")))
    return table(("part of the stack", "stands for", "differs"), rows)


def _statements(path: Path) -> dict[str, str]:
    """Return the paragraphs of a module's docstring that say what it stands for and where it differs."""
    docstring = re.match(r'"""(.*?)"""', path.read_text(encoding="utf-8"), re.DOTALL)  # parsing every module takes its time
    found = {}
    for paragraph in re.split(r"\n\s*\n|\n(?=(?:Stands for|Differs)\b)", docstring[1] if docstring else ""):
        for word in ("Stands for", "Differs"):
            if paragraph.startswith(word):
                said = re.sub(r"\s+", " ", paragraph.removeprefix(word).lstrip(" :")).strip()
                found[word] = said[:1].upper() + said[1:]
    return found


def unconfirmed(runbook: Runbook) -> str:
    """Return what nobody has confirmed at CERN, step by step."""
    marked = (step for step in runbook.steps if step.unconfirmed)
    return table(("step", "not confirmed"), ((link(step), step.unconfirmed) for step in marked))


def troubleshooting(runbook: Runbook, instance: Instance, docs: Path) -> str:
    """Return every symptom that the guide knows, a heading each, so that the search finds it by its own words.

    `guide.doctor` reads the same.
    """
    named = {"build": instance.name, "project": instance.project, "api": instance.api}
    parts, above = [], ""
    for one in runbook.symptoms:
        part = title(docs / f"{one.step.procedure}.md") if one.step else "Anywhere"
        if part != above:
            parts.append(f"### {part}")
            above = part
        parts += [f"#### {one.seen.rstrip('.')}", one.cause, fence("sh", one.command.format(**named))]
        parts += [f"See {link(one.step)}."] if one.step else []
    return "\n\n".join(parts)


def title(page: Path) -> str:
    """Return the title of a page."""
    return page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def picture(name: str, body: str, runbook: Runbook, instance: Instance) -> str:
    """Return a picture: of the steps, of the instance's objects, or of the chain that the fence's body tells."""
    if name == "order":
        return pictures.order(runbook)
    if name == "topology":
        return pictures.topology(runbook, instance)
    return pictures.chain(name.replace("-", " "), body)


def faults(runbook: Runbook, listed: Path, tests: Path) -> str:
    """Return the former guide's faults: what it said, what is done now, in which step, and which tests prove it."""
    proofs = proved_faults(tests)
    rows = []
    for fault in tomllib.loads(listed.read_text(encoding="utf-8"))["fault"]:
        steps = ", ".join(link(runbook.find(name)) for name in fault["steps"])
        proof = "<br>".join(f"`{name}`" for name in proofs.get(fault["number"], []))
        rows.append((str(fault["number"]), fault["former"], fault["now"], steps, proof))
    return table(("", "the former guide", "this guide", "step", "proved by"), rows)


def proved_faults(tests: Path) -> dict[int, list[str]]:
    """Return the tests that carry the mark `fault(N, …)`, by number; nothing is imported."""
    found: dict[int, list[str]] = {}
    for path in sorted(tests.rglob("test_*.py")):
        marked: list[int] = []
        for mark in re.finditer(r"^@pytest\.mark\.fault\(([^)]*)\)|^def (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            if mark[1]:
                marked += map(int, mark[1].split(","))
                continue
            for number in marked:
                found.setdefault(number, []).append(f"{path.relative_to(tests).as_posix()}: {mark[2]}")
            marked = []
    return found


def credential_table(runbook: Runbook, instance: Instance) -> str:
    """Return every secret value that a step needs: what it is, where it comes from, where it lies, and how to renew it."""
    rows: dict[str, tuple[str, ...]] = {}
    for step in runbook.steps:
        if step.undoes or not step.wanted(instance):
            continue
        plan = outline(step, instance, Observed())
        places = {given.name: action.where for action in plan if isinstance(action, Ask) for given in action.gives.values()}
        for found in credentials(plan):
            known = rows.get(found.name)
            if known is None or (found.name in places and "<" not in known[1]):
                rows[found.name] = (found.label, _origin(found, places), _kept(found), f"`{found.variable}`", link(step))
    return table(("secret", "where it comes from", "where it lies", "given by hand as", "step"), rows.values())


def _origin(found: Credential, places: Mapping[str, str]) -> str:
    if found.name in places:
        return f"a person, at <{places[found.name]}>"
    return "the guide makes it" if found.generated else "whoever owns it; it may be empty" if found.optional else "whoever owns it"


def _kept(found: Credential) -> str:
    return f"Secret `{found.secret}`, key `{found.key}`" if found.secret else "not in the cluster"


def variable_table(variables: Any) -> str:
    """Return the table of the app's variables: anything with name, meaning, need, kind, read and source."""
    return table(("variable", "meaning", "need", "kind", "read by", "value from"),
                 ((f"`{v.name}`", v.meaning, v.need, v.kind, v.read, v.source) for v in variables))


BUILDS = ("dev", "training", "production")
"""The instances whose values the pages show, in the order in which a change of the app reaches them."""


def load(root: Path) -> tuple[Instance, ...]:
    """Return the instances that the pages show, as they are at CERN."""
    return tuple(instances.load(instances.find(root / "instances", build)) for build in BUILDS)


def page(path: Path, known: Mapping[str, Fence]) -> str:
    """Return a page of the site; an error names the file and the line of the fence."""
    return expand(path.read_text(encoding="utf-8"), known, path.name)


def stamped(path: Path, text: str, proved: Mapping[str, str], verified: Verified) -> str:
    """Return a page with the line below its title that says what was proved of it; `proved` has a word for each step."""
    source = path.read_text(encoding="utf-8")
    words = [proved[name] for name in steps_named(source)]
    title, rest = text.split("\n", 1)
    return f"{title}\n\n{page_stamp(path.name, source, words, verified)}\n{rest}"
