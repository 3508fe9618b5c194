"""A step as its section of the page: the command, what to see, what else to do, what it applies, and how to undo it.

Rendered from an instance and an empty `Observed`, so that the page shows the whole of what a first run does. Pure:
text comes out, nothing is asked of a cluster, and a credential shows as its label.
"""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import singledispatch
from typing import Any, get_args, get_origin

from runbook import console, options, shell
from runbook.instance import Instance
from runbook.observed import Observed
from runbook.plan import (
    Accepts,
    Action,
    Admitted,
    Answers,
    Apply,
    Ask,
    Confirm,
    Credential,
    Dump,
    Execute,
    Inside,
    Log,
    LoggedIn,
    LogIn,
    Look,
    Patch,
    Proof,
    Require,
    Restore,
    Scale,
    Shell,
    Show,
    StartBuild,
    WaitFor,
    Write,
    marked,
)
from runbook.step import Step


def section(step: Step, instances: Sequence[Instance], reason: str = "") -> str:
    """Return a step's section, with the values of each of the instances; the first one's manifests are shown.

    `reason` is the page's own text: prose, and after a line `=== web console` the way of that step in the web console.
    The first two paragraphs are the heading and the sentence that says what the step does.
    """
    plan = options.outline(step, instances[0], Observed())
    return "\n\n".join(part.strip("\n") for part in _parts(step, instances, plan, reason) if part) + "\n"


def _parts(step: Step, instances: Sequence[Instance], plan: Sequence[Action], reason: str) -> Iterator[str]:
    prose, by_console = console.split(reason)
    yield f"## {step.name} {{ #{step.name} }}"
    yield step.summary
    yield calls(step, instances)
    yield f"**You should see:** {step.see}"
    if step.otherwise:
        yield "**If you see something else:**"
        yield "\n\n".join(f"{symptom}\n:   {cure}" for symptom, cure, *_ in step.otherwise)
    if step.needs:
        yield "**Before it:** " + ", ".join(link(needed, step) for needed in step.needs) + "."
    if step.person:
        yield folded("info", "At CERN a person does this", _person(step, instances), open_=True)
    if step.unconfirmed:
        yield folded("warning", "Not confirmed at CERN", step.unconfirmed, open_=True)
    yield prose
    yield tab("invoke", _by_invoke(step, instances, plan))
    yield tab("oc", _by_hand(step, instances))
    if by_console:
        yield tab("web console", console.ways(by_console, instances, lambda each: options.outline(step, each, Observed())))


TARGETS = {"local": "local", "CERN": "cern"}
"""The tabs of the places where a command may run, and the words for them on the command line."""


def calls(step: Step, instances: Sequence[Instance], *flags: str) -> str:
    """Return the command of a step for each place and each instance, as tabs within tabs."""
    return "\n\n".join(tab(place, tabs({each.name: fence("sh", command(step, each, *_targeted(each, target), *flags))
                                        for each in instances})) for place, target in TARGETS.items())


def _targeted(instance: Instance, target: str) -> Iterator[str]:
    """Yield the option that names the target, unless the instance file does."""
    if instance.target != target:
        yield f"--target={target}"


def _by_invoke(step: Step, instances: Sequence[Instance], plan: Sequence[Action]) -> str:
    """Return what the command does, its options, and how it is taken back."""
    if step.undoes:
        return "\n\n".join([
            f"It is the same as `{command(step.undoes, instances[0], '--undo')}`.",
            folded("example", "What it does", "\n".join(f"- {deed}" for deed in taken_back(plan))),
            folded("abstract", "Options", option_table(step, plan))])
    return "\n\n".join([folded("example", "What it does", "\n\n".join(map(shown, _marked(plan, step)))),
                        folded("abstract", "Options", option_table(step, plan)),
                        folded("note", "Undo", _undo(step, instances, plan))])


def _by_hand(step: Step, instances: Sequence[Instance]) -> str:
    """Return the commands for `oc` and `psql`: at CERN with each instance's values; a stack's ports only the stack knows."""
    local = tabs({each.name: fence("sh", 'eval "$(invoke stack.env)"\n'
                                   + command(step, each, *_targeted(each, "local"), "--commands") + " | bash")
                  for each in instances})
    at_cern = tabs({each.name: fence("bash", shell.block(step, each)) for each in instances})
    return "\n\n".join([OC_NOTE, tab("local", local), tab("CERN", at_cern)])


OC_NOTE = "The same by hand, for bash, with `oc` and `psql`, in your own log-in to the project."


def command(step: Step, instance: Instance, *flags: str) -> str:
    """Return the command that does a step."""
    return " ".join((f"invoke {step.name} --build={instance.name}", *flags))


def link(step: Step, page: Step | None = None) -> str:
    """Return a link to a step's section, from the page of another step or from elsewhere."""
    file = "" if page and page.procedure == step.procedure else f"{step.procedure}.md"
    return f"[{step.name}]({file}#{step.name})"


def fence(language: str, text: str) -> str:
    """Return a code block that no fence inside the text can end."""
    ticks = max((len(found) for found in re.findall(r"^`{3,}", text, re.MULTILINE)), default=2) + 1
    return f"{'`' * ticks}{language}\n{text.rstrip()}\n{'`' * ticks}"


def tab(title: str, text: str) -> str:
    """Return one tab; neighbours become one group, and a choice holds on every page."""
    return f'=== "{title}"\n\n{indented(text)}'


def tabs(texts: Mapping[str, str]) -> str:
    """Return a tab for each title, or the text alone when all are the same."""
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "\n\n".join(tab(title, text) for title, text in texts.items())


def folded(kind: str, title: str, text: str, *, open_: bool = False) -> str:
    """Return a block of one of the theme's kinds, folded unless open."""
    return f'{"!!!" if open_ else "???"} {kind} "{title}"\n\n{indented(text)}' if text else ""


def indented(text: str) -> str:
    """Indent a text by the four blanks of Python-Markdown."""
    return "\n".join("    " + line if line.strip() else "" for line in text.splitlines())


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; a bar inside a cell does not end it, and inside a code span it needs no escape."""
    def row(cells: Iterable[str]) -> str:
        flat = (re.sub(r"\s*\n\s*", " ", cell) for cell in cells)
        return "| " + " | ".join(re.sub(r"(`[^`]*`)|\|", lambda m: m[1] or "\\|", cell) for cell in flat) + " |"

    return "\n".join([row(head), row("---" for _ in head), *map(row, rows)])


def option_table(step: Step, plan: Sequence[Action]) -> str:
    """Return a step's options: its own first, then those that follow from its plan."""
    own = [(f"`--{name.replace('_', '-')}`", _about(parameter), _default(parameter.default))
           for name, parameter in step.options.items()]
    shared = [(f"`{option.written}`", option.meaning, _default(option.default))
              for option in options.of(step, plan) if option.name not in step.options]
    return table(("option", "meaning", "default"), own + shared)


def _about(parameter: inspect.Parameter) -> str:
    """Return the text of an `Annotated` parameter."""
    noted = parameter.annotation
    texts = getattr(noted, "__metadata__", None) or (get_args(noted) if get_origin(noted) else ())
    return next((text for text in texts if isinstance(text, str)), "")


def _default(default: Any) -> str:
    return "" if default in (False, "", None, inspect.Parameter.empty) else f"`{default}`"


def _marked(plan: Sequence[Action], step: Step) -> Iterator[Action]:
    for action in plan:
        yield Apply(marked(action, step.manager), action.part, action.data) if isinstance(action, Apply) else action


@singledispatch
def shown(action: Any) -> str:
    """Return what one value of a plan does: a sentence, then the manifest or the statement."""
    raise TypeError(f"no words for {type(action).__name__}")


@shown.register
def _(action: Apply) -> str:
    verb = "Adds to" if action.part else "Applies"
    return f"{verb} **{action.object}**.\n\n" + fence("yaml", shell.yaml_text(action.manifest))


@shown.register
def _(action: Execute) -> str:
    password = f"<verifier of the {action.credential.label}>" if action.credential else ""
    statement = action.statement.replace("{verifier}", password)
    if isinstance(action.unless, LogIn):
        return f"Unless {action.unless.role} can log in with the {action.unless.credential.label}:\n\n" \
            + fence("sql", statement + ";")
    first = f"Before it: {shown(action.after)[0].lower()}{shown(action.after)[1:]}\n\n" if action.after else ""
    return first + "Unless the first finds a row, executes the second.\n\n" + fence("sql", f"{action.unless};\n{statement};")


@shown.register
def _(action: WaitFor) -> str:
    alone = " and its pods of before have ended" if action.alone else ""
    return f"Waits until {action.object} is {action.condition.name}{alone}, at most {action.seconds:.0f} seconds."


@shown.register
def _(action: Ask) -> str:
    rows = [(name, f"`{shell.shown(value)}`") for name, value in action.values.items() if value not in ("", [])]
    gives = ", ".join(f"the {credential.label}" for credential in action.gives.values())
    return "\n\n".join(part for part in (
        f"Asks a person, at <{action.where}>: {action.deed}", table(("field", "value"), rows),
        f"You note {gives}." if gives else "", f"Then it waits until {proof(action.until)}.") if part)


def proof(until: Proof) -> str:
    """Return how the effect of a person's deed is seen."""
    match until:
        case Answers():
            return f"PostgreSQL answers with TLS at `{until.host}:{until.port}`"
        case Admitted():
            return f"`{until.host}:{until.port}` lets a pod of the project in"
        case Accepts():
            return until.what
        case LoggedIn():
            return f"somebody is logged in to `{until.api}`"
        case Credential():
            return f"the {until.label} is known"
    return f"{until} is there"


@shown.register
def _(action: StartBuild) -> str:
    return (f"Starts a build of **BuildConfig {action.config}** when the running image is not from the newest commit "
            f"and today's build settings, shows its log, and waits until **Deployment {action.deployment}** "
            "has the new image.")


@shown.register
def _(action: Scale) -> str:
    return f"Sets **Deployment {action.deployment}** to {action.replicas} pod{'s' * (action.replicas != 1)}."


@shown.register
def _(action: Look) -> str:
    how = "Opens the websocket" if action.websocket else "Looks at"
    what = f" ({action.what})" if action.what else ""
    wants = "sends a text and sees it come back" if action.websocket else \
        "wants the answer " + " or ".join(map(str, action.status))
    if action.outside:
        how += " from outside CERN"
    if action.refused:
        wants = "wants no answer at all"
    return f"{how} `{action.url}/{action.path.lstrip('/')}`{what} and {wants}."


@shown.register
def _(action: Patch) -> str:
    return f"Sets on **{action.object}**: {action.what}.\n\n" + fence("yaml", shell.yaml_text(action.fields))


@shown.register
def _(action: Inside) -> str:
    how = "Runs in a ready pod" + (", unless the first of the two succeeds" if action.unless else "")
    late = f" It tries again for {action.retry:.0f} seconds." if action.retry else ""
    lines = [shlex.join(command) for command in (action.unless, action.command) if command]
    return f"{how}: {action.what}.{late}\n\n" + fence("sh", "\n".join(lines))


@shown.register
def _(action: Show) -> str:
    return f"Shows a table: {', '.join(action.head)}."


@shown.register
def _(action: Log) -> str:
    return f"Prints the last {action.lines} lines of the log of every pod of **Deployment {action.deployment}**."


@shown.register
def _(action: Shell) -> str:
    return f"Opens `{shlex.join(action.command)}` in a ready pod of **Deployment {action.deployment}**."


@shown.register
def _(action: Confirm) -> str:
    return f"Asks you: {action.question}"


@shown.register
def _(action: Dump) -> str:
    return (f"Writes a dump of the database `{action.database}`, made as the role {action.role}, to a file on your machine. "
            "Only you can read it, and it is there when it is complete.")


@shown.register
def _(action: Restore) -> str:
    return (f"Sets **Deployment {action.deployment}** to 0 pods, puts the dump `{action.file}` in the place of all that the role "
            f"{action.role} owns in the database `{action.database}`, in one transaction, and gives the pods back.")


@shown.register
def _(action: Write) -> str:
    kind = "executable file" if action.executable else "file"
    return f"Writes the {kind} `{action.path}` in your checkout.\n\n" + fence("text", action.text)


@shown.register
def _(action: Require) -> str:
    return f"Checks that {action.what}."


def _person(step: Step, instances: Sequence[Instance]) -> str:
    """Say that at CERN only a person can do it, and list what to do with each instance's values, to be ticked off."""
    return "\n\n".join([
        "The command prints what to click and what to fill in, waits, and sees for itself when it is done. "
        "Without a terminal it ends with exit code 75 and the line that resumes. "
        "On the local stack a stand-in plays you: the tests prove the waiting and the seeing, not CERN's form.",
        tabs({each.name: _deeds(step, each) for each in instances})])


def _deeds(step: Step, instance: Instance) -> str:
    """Return a list of boxes; a ticked one stays ticked in this browser (docs/extra.js)."""
    deeds = [deed for action in options.outline(step, instance, Observed()) if isinstance(action, Ask) for deed in _asked(action)]
    return "\n".join(f'- <label><input type="checkbox" data-tick="{step.name}/{instance.name}/{number}"> {deed}</label>'
                     for number, deed in enumerate(deeds, 1))


def _asked(action: Ask) -> Iterator[str]:
    yield f"At <{action.where}>: {action.deed}"
    if not action.gives:  # there is nothing to fill in where a value is only read off
        yield from (f"{name}: `{shell.shown(value)}`" for name, value in action.values.items() if value not in ("", []))
    yield from (f"Note the {credential.label}." for credential in action.gives.values())


def _undo(step: Step, instances: Sequence[Instance], plan: Sequence[Action]) -> str:
    deeds = taken_back(plan)
    if not deeds:
        return step.back or "It changes nothing, so there is nothing to undo."
    with_undo = any(option.name == "undo" for option in options.options(plan))
    return (calls(step, instances, "--undo") + "\n\n" if with_undo else "") + "\n".join(f"- {deed}" for deed in deeds)


def taken_back(plan: Sequence[Action]) -> list[str]:
    """Return what the undo of a plan does, a sentence each."""
    return list(dict.fromkeys(deed for action in reversed(plan) for deed in _taken_back(action)))


def _taken_back(action: Action) -> Iterator[str]:
    match action:
        case Apply(part=True):
            yield f"Takes its fields out of {action.object} again."
        case Apply():
            kept = " It holds data: only with `--data`." if action.data else ""
            yield f"Deletes {action.object}, once no other step has fields in it.{kept}"
        case Execute(undo="") | Ask() if action.instead:
            yield f"Not undone. {action.instead}"
        case Execute() if action.undo:
            yield f"Executes `{action.undo}`" + (", only with `--data`." if action.data else ".")
        case Patch() if action.undo is not None:
            yield f"Takes back on {action.object}: {action.what}."
        case Restore():
            yield "Not undone. Make a dump before it (`database.backup`): restoring that one brings back what was there."
        case Scale():
            yield f"Sets Deployment {action.deployment} to 0 pods."
        case StartBuild():
            yield "Keeps builds and images: they go with the build config and the image stream."
        case Write():
            yield f"Not undone: `git restore {action.path}` in your checkout, or delete the file."
