"""Every task: those of the guide, made from the runbook, and the project's own (stack, docs, test, check, bench)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from invoke import Collection, Context, Exit, task

from procedures import RUNBOOK
from runbook.cli import namespace
from runbook.errors import GuideError
from runbook.instance import folder_of_instances
from runbook.target import Target

ROOT = Path(__file__).parent


def local(tell: Callable[[str], None]) -> Target:
    """Give the local target; the stack is started when none runs."""
    from stack import commands, state

    with _sentences():
        here = state.State(state.default_root())
        known = commands.up(here, tell)
        named = ("https_port", "http_port", "outside_port", "portal", "git", "issuer", "pod_network", "postgresql_programs")
        if missing := [key for key in named if key not in known]:
            raise commands.StackError(f"the stack that runs was started by another version of this checkout (it does not tell "
                                      f"{', '.join(missing)}); stop it, the next command starts it anew: stack.down")
    facts = {key: known[key] for key in named}
    facts |= {f"database_port_{place}": port for place, port in enumerate(here.ports.databases, 1)}
    return Target("local", Path(known["kubeconfig"]), Path(known["ca"]), known["portal"], here.tokens.member,
                  Path(known["pgpass"]), lambda: commands.ailing(here), facts)


@contextmanager
def _sentences() -> Iterator[None]:
    """Pass the stack's sentences on as the guide's errors."""
    from stack.errors import StackError

    try:
        yield
    except StackError as error:
        raise GuideError(str(error)) from error


def _stack(given: dict[str, Any], do: Callable[[Any, Any], None]) -> None:
    from runbook.cli import reporting
    from stack.state import State, default_root

    with reporting(given) as report, _sentences():
        do(State(default_root()), report)


@task(name="up", auto_shortflags=False, help={"stack": "embedded (at first) or compose, which needs a container engine."})
def stack_up(_c: Context, *, stack: str = "", debug: bool = False) -> None:
    """Start the local stack: a small CERN on this machine.

    Example: invoke stack.up --stack=compose
    """
    def do(state: Any, report: Any) -> None:
        from stack import commands

        known = commands.up(state, report.line, stack)
        report.line(f"ready: {known['server']}  (portal {known['portal']}, local CA {known['ca']})")

    _stack({"debug": debug}, do)


@task(name="down", auto_shortflags=False, help={"wipe": "Remove also everything that it kept."})
def stack_down(_c: Context, *, wipe: bool = False, debug: bool = False) -> None:
    """Stop the local stack.

    Example: invoke stack.down --wipe
    """
    def do(state: Any, report: Any) -> None:
        from stack import commands

        commands.down(state, wipe=wipe, progress=report.line)

    _stack({"debug": debug}, do)


@task(name="status", auto_shortflags=False, help={"json": "Print JSON."})
def stack_status(_c: Context, *, json: bool = False, debug: bool = False) -> None:
    """Show the parts of the local stack: state, version, and where each program came from.

    Example: invoke stack.status --json
    """
    def do(state: Any, report: Any) -> None:
        from stack import commands

        found = commands.status(state)
        if json:
            print_json(found)
        else:
            for row in found["parts"]:
                memory = f"{row['memory'] / 1e6:5.0f} MB" if row.get("memory") else ""
                report.line(f"{row['state']:<10} {row['part']:<26} {row.get('version') or '':<12} {row.get('link') or '':<22} "
                            f"{row.get('address') or '':<24} {memory}".rstrip())
            if not found["running"]:
                report.line(f"no stack runs in {found['state']}; `invoke stack.up` starts it")
        raise Exit(code=0 if found["ready"] else 3)

    _stack({"debug": debug}, do)


def print_json(value: object) -> None:
    """Print a value as JSON."""
    sys.stdout.write(json.dumps(value, indent=1, default=str) + "\n")


@task(name="logs", auto_shortflags=False, positional=["name"], help={"name": "The part.", "follow": "Go on as lines come."})
def stack_logs(_c: Context, name: str, *, follow: bool = False, debug: bool = False) -> None:
    """Print the log of a part of the local stack.

    Example: invoke stack.logs kube-apiserver
    """
    def do(state: Any, report: Any) -> None:
        from stack import commands

        for line in commands.logs(state, name, follow=follow):
            report.line(line)

    _stack({"debug": debug}, do)


@task(name="env", auto_shortflags=False)
def stack_env(_c: Context, *, debug: bool = False) -> None:
    """Print shell exports to use the local stack with kubectl, oc and psql as a project member.

    Example: eval "$(invoke stack.env)"
    """
    def do(state: Any, _report: Any) -> None:
        from stack import commands

        sys.stdout.write(commands.env(state))

    _stack({"debug": debug}, do)


MKDOCS = {"DISABLE_MKDOCS_2_WARNING": "true", "NO_MKDOCS_2_WARNING": "1"}
"""Silences the banners of the theme and its plug-ins."""


def site_pages(edit: str = "") -> dict[str, str]:
    """Return every page of the site, by its file's name; `edit` is where the repository's files can be edited."""
    from procedures import environment
    from runbook import pages
    from runbook.markdown import table
    from runbook.stamps import Verified
    from stack import gives

    docs = ROOT / "docs"
    sections = pages.Sections(RUNBOOK, pages.load(ROOT), Verified.read(ROOT / "verified.json"), edit)
    fences = pages.fences(sections, ROOT, ns)
    fences["gives"] = lambda _, __: table(("", "what", "embedded stack", "compose stack"), gives.rows())
    fences["variables"] = lambda _, __: pages.variable_table(environment.VARIABLES)
    proved = sections.states(docs)
    return {path.name: pages.stamped(path, pages.page(path, fences), proved, sections.verified)
            for path in sorted(docs.glob("*.md"))}


def edit_address(environment: Mapping[str, str]) -> str:
    """Return where the repository's files can be edited in a browser, with a slash at the end; "" when nobody knows.

    `RUNBOOK_EDIT` names it; else it follows from the address that the checkout was cloned from, and its branch.
    """
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    if named := environment.get("RUNBOOK_EDIT", ""):
        return named
    # A service's checkout may carry a token before the host.
    origin = re.fullmatch(r"(?:https://|ssh://)?(?:[^@/]*@)?([\w.-]+\.[a-z]+)(?::\d+)?[:/](.+?)(?:\.git)?/?",
                          git("remote", "get-url", "origin"))
    branch = environment.get("GITHUB_REF_NAME") or environment.get("CI_COMMIT_REF_NAME") or git("branch", "--show-current")
    if not origin or not branch:
        return ""
    return f"https://{origin[1]}/{origin[2]}/{'-/' * ('gitlab' in origin[1])}edit/{branch}/"


@task(name="build", auto_shortflags=False)
def docs_build(_c: Context) -> None:
    """Build the site into site/; any warning fails.

    Example: invoke docs.build
    """
    _run([sys.executable, "-m", "mkdocs", "build", "--strict"], MKDOCS | {"RUNBOOK_EDIT": edit_address(os.environ)})


@task(name="serve", auto_shortflags=False, help={"address": "Where to serve it: host and port."})
def docs_serve(_c: Context, *, address: str = "127.0.0.1:8000") -> None:
    """Serve the site on this machine and renew what changes; the log says what `docs.build` would refuse.

    Example: invoke docs.serve
    """
    os.chdir(ROOT)
    command = [sys.executable, "-m", "mkdocs", "serve", "--no-strict", "--dirty", f"--dev-addr={address}"]
    # In place of this process: whoever ends the command ends the server.
    os.execve(sys.executable, command, os.environ | MKDOCS)  # noqa: S606 - by list, as everywhere


CHECKS = (("ruff", "check", "."), ("mypy",), ("lint-imports", "--no-cache"))


@task(auto_shortflags=False)
def check(_c: Context) -> None:
    """Check the code: ruff, mypy strict, and the walls between the folders.

    Example: invoke check
    """
    for program, *words in CHECKS:
        _run([str(Path(sys.executable).parent / program), *words])


@task(auto_shortflags=False, help={"only": "Only the tests whose names match (pytest's -k).",
                                                "stack": "embedded, or compose: the guide end to end on containers."})
def test(_c: Context, *, only: str = "", stack: str = "embedded") -> None:
    """Check everything: code, units, pages, and the guide end to end on the local stack.

    Example: invoke test
    """
    from stack import binaries
    from stack.state import cache_root
    from tests import browser, memory

    if stack != "embedded":
        _run([sys.executable, "-m", "pytest", f"--stack={stack}", "tests/test_guide.py", *(["-k", only] if only else [])])
        return
    with _sentences_of_tests():
        for name in ("kubectl", "etcd", "kube-apiserver", "kube-controller-manager"):
            binaries.find(name, _tell)
    browser.find()
    chosen = ["-k", only] if only else []
    # The command line is started some thousand times: a shell that forbids it to keep its bytecode would double the time.
    # The API servers collect their garbage when it is four times what they hold, which takes them less of the processor.
    # What mypy knows of the libraries is as true for the next checkout.
    with memory.folder() as temporary:
        _run([sys.executable, "-m", "pytest", "--durations=15", *_workers(), f"--verified={ROOT / 'verified.json'}", *chosen],
             {"PYTHONDONTWRITEBYTECODE": "", "GOGC": os.environ.get("GOGC", "400"), "TMPDIR": temporary,
              "MYPY_CACHE_DIR": str(cache_root() / "mypy")})


@task(auto_shortflags=False, help={"cold": "Also build the control plane, beside a bare go build."})
def bench(_c: Context, *, cold: bool = False) -> None:
    """Measure: start, second run, memory, engine; printed as a table and written to bench.json.

    Example: invoke bench
    """
    _run([sys.executable, str(ROOT / "tests" / "bench.py"), *(["--cold"] if cold else [])])


def _workers() -> list[str]:
    """Return the options for four workers, each with a stack of its own; a file's tests share one, in order.

    The tests also wait: two cores that carry three workers are idle for an eighth to a fifth of the time.
    """
    return ["--numprocesses=4", "--dist=loadfile", "--no-loadscope-reorder"] if (os.cpu_count() or 1) > 1 else []


def _tell(line: str) -> None:
    """Say on a terminal what is going on, elsewhere only every tenth percent."""
    if sys.stderr.isatty() or "0 %" in line or "%" not in line:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


@contextmanager
def _sentences_of_tests() -> Iterator[None]:
    """What the tests need from the network or the compiler may be missing: one message instead of many failures."""
    from runbook.cli import reporting

    with reporting({}), _sentences():
        yield


def _run(command: list[str], environment: dict[str, str] | None = None) -> None:
    """Run a program of the project from its root; its exit code is ours."""
    code = subprocess.run(command, cwd=ROOT, env=os.environ | (environment or {}), check=False).returncode
    if code:
        raise Exit(code=code)


ns = namespace(RUNBOOK, folder_of_instances(), local)
ns.add_collection(Collection("stack", stack_up, stack_down, stack_status, stack_logs, stack_env))
ns.add_collection(Collection("docs", docs_build, docs_serve))
for _each in (check, test, bench):
    ns.add_task(_each)
