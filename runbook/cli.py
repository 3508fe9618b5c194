"""The command line: one invoke task for every step, and the tasks of the whole guide.

Heavy modules are imported when a task runs, so that `--list`, `--help` and completion stay light. Errors become one
message and an exit code here and nowhere else.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from invoke import Collection, Context, Exit, Task

from runbook import errors
from runbook.errors import GuideError, WrongUse
from runbook.instance import Instance, builds, find, load
from runbook.step import LIST, Runbook, Step, suggestion
from runbook.target import Target, choose

if TYPE_CHECKING:
    from runbook.connections import Connections
    from runbook.report import Report

Local = Callable[[Callable[[str], None]], Target]
"""Gives the local target, starting the stack when none runs; told what to do with its progress."""

GUIDE = {"build": "", "target": "", "to": "", "text": "", "force": False, "data": False, "yes": False, "json": False,
         "debug": False}
"""The options of the guide's own tasks and their defaults."""
HELP = {"to": "The last step to do; those that it needs are done before.",
        "text": "A message that you saw, to be looked up; - reads it from standard input."}


def namespace(runbook: Runbook, folder: Path, local: Local) -> Collection:
    """Return the collection of all tasks that come from the runbook, in its order."""
    root = Collection()
    guide = Collection("guide")
    guide.__doc__ = "The whole guide."
    for name, allowed in (("run", "build target to force yes json debug"), ("plan", "build target to json debug"),
                          ("status", "build target json debug"), ("undo", "build target data yes json debug"),
                          ("doctor", "build target text json debug")):
        guide.add_task(_guide_task(name, allowed.split(), runbook, folder, local))
    root.add_collection(guide)
    known = functools.cache(lambda: _readable(folder))
    for module in runbook.procedures:
        procedure = Collection(module.__name__.rpartition(".")[2])
        procedure.__doc__ = module.__doc__
        for step in runbook.steps:
            if step.procedure == procedure.name:
                procedure.add_task(_step_task(step, known, folder, local))
        root.add_collection(procedure)
    return root


def _readable(folder: Path) -> list[Instance]:
    """Return the instances that can be read: what options a step has hangs on its plan, and a plan on an instance."""
    found = []
    for path in sorted(folder.glob("*.toml")):
        with suppress(WrongUse):  # Its own run says what is wrong.
            found.append(load(path))
    return found


Offered = Callable[[], Mapping[str, tuple[Any, str]]]
"""Gives a task's options when they are needed: the name, and its default and meaning."""


class _Task(Task):  # type: ignore[misc]
    """A task that works its options out when it is parsed: a list of the tasks needs none of them."""

    def __init__(self, body: Callable[..., None], name: str, doc: str, offered: Offered) -> None:
        body.__doc__ = doc
        super().__init__(body, name=name, auto_shortflags=False, positional=())
        self._offered: Offered | None = offered

    def get_arguments(self, ignore_unknown_help: bool | None = None) -> Any:
        """Return the arguments as invoke's parser wants them."""
        if self._offered:
            kind, found = inspect.Parameter.POSITIONAL_OR_KEYWORD, self._offered()
            self.body.__signature__ = inspect.Signature(
                [inspect.Parameter("c", kind), *(inspect.Parameter(p, kind, default=d) for p, (d, _) in found.items())])
            self.help = {name: meaning for name, (_, meaning) in found.items()}
            self._offered = None
        return super().get_arguments(ignore_unknown_help)


def _step_task(step: Step, known: Callable[[], list[Instance]], folder: Path, local: Local) -> Task:
    def offered() -> Mapping[str, tuple[Any, str]]:
        from runbook import options

        shared = options.offered(step, known())
        found: dict[str, tuple[Any, str]] = {option.name: (option.default, option.meaning) for option in shared}
        for name, parameter in step.options.items():
            about = next((a for a in get_args(parameter.annotation)[1:] if isinstance(a, str)), "")
            found[name] = ("" if parameter.default is parameter.empty else parameter.default, about)
        return found

    def body(_context: Context, **given: Any) -> None:
        own = {name: given.pop(name) for name in step.options}
        if "again" in step.options and "again" in given:
            own["again"] = given["again"]
        with reporting(given) as report:
            if step.everywhere and not given["build"]:
                _of_all(lambda build: opened({**given, "build": build}, step.name, folder, local, report),
                        lambda connections: _run_step(step, connections, given, own, report), folder, report)
                return
            with opened(given, step.name, folder, local, report, before_login=step.before_login) as connections:
                _run_step(step, connections, given, own, report)

    doc = f"{step.summary}\n\nExample: invoke {step.name} --build=dev"
    return _Task(body, step.function.__name__, doc, offered)


def _run_step(step: Step, connections: Connections, given: Mapping[str, Any], own: Mapping[str, Any], report: Report) -> None:
    from runbook.run import Run, require_needs, stand, take_back

    if given.get("commands"):
        from runbook import shell

        sys.stdout.write(shell.block(step, connections.instance, connections.observed, undo=bool(given.get("undo")), **own))
        return
    report.begin(step.name)
    called = step.name
    if step.undoes:
        step, given, own = step.undoes, {**given, "undo": True}, {}
    if given.get("undo") and given.get("dry"):
        from runbook.markdown import taken_back

        report.line("\n".join(taken_back(list(step.plan(connections.instance, connections.observed)))))
        raise Exit(code=errors.TO_DO)
    if given.get("undo"):
        if given.get("data"):
            _confirm(connections.instance, given, "deletes data")
        report.outcome(_noted(take_back(step, connections, called), connections))
        return
    if given.get("dry"):
        standing = stand(step, connections, own)
        report.standing(standing, full=True)
        raise Exit(code=errors.DONE if standing.state in ("done", "not wanted") else errors.TO_DO)
    require_needs(step, connections)
    if not step.wanted(connections.instance):
        asks = f"; {step.setting} there asks for it" if step.setting else ""
        report.line(f"the instance file does not ask for {step.name}, so the next guide.run passes it over{asks}")
    run = Run(connections)
    outcome = _noted(run.step(step, own, report.tell), connections)
    if given.get("json") or not outcome.answered:
        report.outcome(outcome)


def _guide_task(name: str, allowed: list[str], runbook: Runbook, folder: Path, local: Local) -> Task:
    bodies = {"run": _guide_run, "plan": _guide_plan, "status": _guide_status, "undo": _guide_undo, "doctor": _guide_doctor}
    docs = {"run": "Run every step of the guide in order.", "plan": "Show what every step would change.",
            "status": "Show how every step stands.", "undo": "Take every step back, in reverse order.",
            "doctor": "Say what is wrong, why, and which command helps."}

    def body(_context: Context, **given: Any) -> None:
        with reporting(given) as report:
            if given.get("text"):
                _look_up(runbook, given, folder, report)
                return
            if name == "status" and not given["build"]:
                _of_all(lambda build: opened({**given, "build": build}, "guide.status", folder, local, report),
                        lambda connections: _guide_status(runbook, connections, given, report), folder, report)
                return
            with opened(given, f"guide.{name}", folder, local, report) as connections:
                bodies[name](runbook, connections, given, report)

    def offered() -> Mapping[str, tuple[Any, str]]:
        from runbook.options import OPTIONS

        meanings = HELP | {option.name: option.meaning for option in OPTIONS}
        return {key: (GUIDE[key], meanings[key]) for key in allowed}

    return _Task(body, name, f"{docs[name]}\n\nExample: invoke guide.{name} --build=dev", offered)


def _guide_run(runbook: Runbook, connections: Connections, given: Mapping[str, Any], report: Report) -> None:
    from runbook.run import Outcome, Run, order

    run = Run(connections, deferring=True)
    for step in order(runbook, given["to"]):
        if not step.wanted(connections.instance):
            report.outcome(Outcome(step.name, "skipped", 0.0))
            continue
        report.begin(step.name)
        report.outcome(_noted(run.step(step, {}, report.tell), connections))
    report.begin("guide.run")
    run.finish(report.tell)
    if connections.target.ca:
        report.line(f'\ncertificate by the local CA {connections.target.ca}; curl knows it after: eval "$(./inv stack.env)"')
    report.line(f"\n{connections.instance.url}/")


def _guide_plan(runbook: Runbook, connections: Connections, given: Mapping[str, Any], report: Report) -> None:
    from runbook.doctor import helps
    from runbook.run import order, stand

    standings = []
    for step in order(runbook, given["to"]):
        standings.append(stand(step, connections))
        report.standing(standings[-1], full=True)
    to = f" --to={given['to']}" if given["to"] else ""
    if command := helps(standings, connections.instance):
        report.next(command + to * command.startswith("invoke guide.run"))
    raise Exit(code=errors.DONE if all(s.state in ("done", "not wanted") for s in standings) else errors.TO_DO)


def _guide_status(runbook: Runbook, connections: Connections, _given: Mapping[str, Any], report: Report) -> None:
    from runbook.doctor import helps
    from runbook.run import order, orphans, stand

    standings = []
    for step in order(runbook, ""):
        standings.append(stand(step, connections))
        report.standing(standings[-1])
    if standings[0].state == "done":  # Without a project there is nothing that could be left over.
        for orphan in orphans(runbook, connections):
            standings.append(orphan)
            report.standing(orphan, full=True)
    if command := helps(standings, connections.instance):
        report.next(command)
    raise Exit(code=errors.DONE if all(s.state in ("done", "not wanted") for s in standings) else errors.TO_DO)


def _of_all(opening: Callable[[str], AbstractContextManager[Connections]], look: Callable[[Connections], None], folder: Path,
            report: Report) -> None:
    """Look at every instance, one after the other; one that cannot be looked at is one line, and the others go on.

    Ends with 1 when one could not be looked at, else with 3 when there is something to do.
    """
    to_do, passed_over = False, []
    for build in builds(folder):
        report.about(build)
        try:
            with opening(build) as connections:
                look(connections)
        except Exit as ended:
            to_do |= ended.code != errors.DONE
        except GuideError as error:
            passed_over.append(build)
            report.passed_over(build, error)
    if passed_over:
        raise GuideError(f"not every instance could be looked at: {', '.join(passed_over)}", "its line says why and what helps")
    raise Exit(code=errors.TO_DO if to_do else errors.DONE)


def _guide_undo(runbook: Runbook, connections: Connections, given: Mapping[str, Any], report: Report) -> None:
    from runbook.run import take_back

    if given["data"]:
        _confirm(connections.instance, given, "deletes the data of this instance")
    for step in reversed(runbook.standing):
        report.begin(step.name)
        report.outcome(_noted(take_back(step, connections), connections))


def _guide_doctor(runbook: Runbook, connections: Connections, _given: Mapping[str, Any], report: Report) -> None:
    from runbook import doctor
    from runbook.run import stand

    project = stand(runbook.standing[0], connections)
    # Without a project all that follows from it would be said too, and hide that nothing is there yet.
    begun = project.state not in ("missing", "new", "waiting")
    ill = [standing for standing in doctor.looked_at(runbook, connections) if standing.state not in ("done", "not wanted")] \
        if begun else [project]
    for standing in ill:
        report.standing(standing, full=True)
    evidence = [doctor.Evidence(standing.name, f"{difference.what}: {difference.note}")
                for standing in ill for difference in standing.differences if difference.state != "done"]
    found = doctor.diagnoses(runbook, [*(doctor.evidence(connections) if begun else ()), *evidence])
    for one in found:
        report.diagnosis(one.symptom, connections.instance, one.evidence.origin)
    command = doctor.helps((standing for standing in ill if not runbook.find(standing.name).operation), connections.instance)
    said = any(one.symptom.command.startswith("invoke guide.run") for one in found)
    if not begun:
        report.next(f"invoke guide.run --build={connections.instance.name}")
    elif command.startswith("invoke guide.run") and not said:
        report.next(command)
    if not ill and not found:
        report.line("nothing is wrong that the guide knows of")
    raise Exit(code=errors.TO_DO if ill or found else errors.DONE)


def _look_up(runbook: Runbook, given: Mapping[str, Any], folder: Path, report: Report) -> None:
    """Look a message up; no instance and no connection is needed for that."""
    from runbook.doctor import recognized

    instance = load(find(folder, given["build"])) if given["build"] else None
    text = sys.stdin.read() if given["text"] == "-" else given["text"]
    found = recognized(runbook, text)
    if not found:
        raise GuideError("the guide knows no such message",
                         f"`invoke guide.doctor --build={given['build'] or 'NAME'}` looks at the instance itself; the page "
                         "`When something is wrong` can be searched by a single word")
    for symptom in found[:3]:
        report.diagnosis(symptom, instance)


def _noted(outcome: Any, connections: Connections) -> Any:
    from runbook import journal

    journal.write(build=connections.instance.name, target=connections.target.name, project=connections.instance.project,
                  step=outcome.name, state=outcome.state, seconds=round(outcome.seconds, 2))
    return outcome


def _confirm(instance: Instance, given: Mapping[str, Any], what: str) -> None:
    """Ask for the instance's name. On production `--yes` does not stand for it when data would be lost."""
    loses = bool(given.get("data"))
    if given.get("yes") and not (loses and instance.name == "production" and instance.at != "local"):
        return
    if not sys.stdin.isatty():
        raise errors.WaitingForPerson(f"this {what} and nobody is at a terminal to confirm",
                                      "run it in a terminal" if loses and instance.name == "production" else
                                      "run it in a terminal, or add --yes")
    if input(f"This {what}. Type the instance's name to go on: ").strip() != instance.name:
        raise WrongUse("that is not the instance's name; nothing was changed")


@contextmanager
def opened(given: Mapping[str, Any], command: str, folder: Path, local: Local, report: Report, *,
           before_login: bool = False) -> Iterator[Connections]:
    """Give the connections of a run: instance and target chosen, the stack started, the first line said."""
    from runbook.connections import Connections, Flags, same

    build = given.get("build") or ""
    if not build:
        raise WrongUse("which instance?", f"`invoke {command} --build=NAME`; there are: {', '.join(builds(folder))}")
    path = find(folder, build)
    plain = load(path)
    name = choose(given.get("target") or "", os.environ.get("RUNBOOK_TARGET", ""), plain.target, build, command)
    report.aim(build, name if given.get("target") and name != plain.target else "")
    if name == "local":
        report.begin("stack")
        target = local(report.tell)
        report.quiet()
        instance = load(path, "local", target.facts)
    else:
        target, instance = Target("cern"), plain
    flags = Flags(**{key: bool(given.get(key)) for key in ("force", "rotate", "data", "yes")})
    connections = Connections(instance, target, flags, _cache(), report.line, report.table, command)
    try:
        server = instance.api if before_login and name == "cern" else connections.cluster.server
        if name == "cern" and not same(server, instance.api):
            raise WrongUse(f"you are logged in to {server}, and {build} lives at {instance.api}",
                           f"`oc login --web --server={instance.api}`")
        looking = before_login or given.get("dry") or given.get("commands") or command in ("guide.plan", "guide.status")
        if name == "cern" and instance.name == "production" and not looking:
            _confirm(instance, given, "changes production")
        header = report.tell if given.get("commands") else report.header  # what is printed then is for a shell
        header(f"{name} · {server} · project {instance.project} · instance {instance.name}")
        try:
            yield connections
        except GuideError as error:
            # An ill stack is the cause of whatever fails on it, and the failed step's own cure would mislead.
            if error.code == errors.FAILED and (why := target.ailing()):
                raise _with_notes(errors.Unreachable(f"{why} ({error.found})", "then run the same command again: it goes on where "
                                                     "this one stopped"), error) from error
            raise
    finally:
        connections.close()


def _with_notes(error: GuideError, of: GuideError) -> GuideError:
    for note in getattr(of, "__notes__", []):
        error.add_note(note)
    return error


def _cache() -> Path:
    named = os.environ.get("RUNBOOK_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "certhelper-guide"


@contextmanager
def reporting(given: Mapping[str, Any]) -> Iterator[Report]:
    """Turn what went wrong into one message and an exit code; a traceback only with `--debug`."""
    from runbook.report import Report

    report = Report(as_json=bool(given.get("json")))
    try:
        yield report
    except GuideError as error:
        report.error(error, ", ".join(f"{name} ({page(name)})" for name in getattr(error, "__notes__", [])))
        if given.get("debug"):
            raise
        raise Exit(code=error.code) from None
    except KeyboardInterrupt:
        report.quiet()
        sys.stderr.write("\ninterrupted; the same command goes on where this one stopped\n")
        raise Exit(code=errors.INTERRUPTED) from None
    except BrokenPipeError:
        raise Exit(code=errors.FAILED) from None
    except OSError as error:
        report.error(GuideError(f"{error.filename or 'the system'}: {error.strerror or error}",
                                "is there space on the disk, and is the file yours?"))
        if given.get("debug"):
            raise
        raise Exit(code=errors.FAILED) from None
    finally:
        report.quiet()


def page(name: str) -> str:
    """Return the page and line where a step stands: `docs/eos.md:12`."""
    stem = name.partition(".")[0]
    path = Path(__file__).parent.parent / "docs" / f"{stem}.md"
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return f"docs/{stem}.md"
    return f"docs/{stem}.md:" + str(next((n for n, line in enumerate(lines, 1) if line.strip() == f"```step {name}"), 1))


def unknown_task(name: str, known: list[str]) -> str:
    """Return the message for a mistyped task."""
    return f"there is no task {name!r}; {suggestion(name, known, LIST)}"
