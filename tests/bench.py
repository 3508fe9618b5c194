"""Measures what `./inv bench` promises, on a stack of its own: a table for people, bench.json for machines.

The guide is run for an instance that wants each optional part, so that the requests of every step are listed.

A ratio is taken in one run with its counterpart, so that a slow or busy machine shows on both sides. A missed target is
said and is no failure: figures are looked at, not asserted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from invoke import Context

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import tasks
from procedures import RUNBOOK
from runbook import cli
from runbook.connections import Connections, Flags
from runbook.instance import load
from runbook.plan import Plan, Require
from runbook.run import Run, take_back
from runbook.step import Runbook, step
from stack import binaries, commands
from stack.state import State
from tests.guide import EVERYTHING, laid_over, toml
from tests.serving import Served, copied, served

IDLE = 20.0
"""Seconds over which the idle stack is watched."""
HERTZ = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Row:
    """One figure: what, how much, and the most it shall be; None is measured for the reader only."""

    name: str
    measured: float
    target: float | None
    unit: str = ""

    @property
    def ok(self) -> bool | None:
        return None if self.target is None else self.measured <= self.target

    def __str__(self) -> str:
        target = "" if self.target is None else f"<= {self.target:g} {self.unit}"
        verdict = {None: "", True: "ok", False: "MISSED"}[self.ok]
        return f"{self.name:<62} {self.measured:>9.3g} {self.unit:<5} {target:<14} {verdict}".rstrip()


def quiet(_line: str) -> None:
    """Take progress that nobody reads."""


def seconds(command: list[str], code: int | None = 0, **environment: str) -> float:
    """Return how long a command takes; it must end with the code, unless that is None."""
    started = time.perf_counter()
    done = subprocess.run(command, env=os.environ | environment, cwd="/", capture_output=True, text=True, check=False,
                          stdin=subprocess.DEVNULL)
    taken = time.perf_counter() - started
    if code is not None and done.returncode != code:
        raise SystemExit(f"bench: {shlex.join(command)} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return taken


def inv(*words: str) -> float:
    return seconds([str(ROOT / "inv"), *words])


def ratio(pairs: list[tuple[float, float]]) -> float:
    """Return the median of the ratios of what was measured in turns: the machine's speed changes from one turn to the next."""
    return statistics.median(ours / theirs for ours, theirs in pairs)


def listing() -> Iterator[Row]:
    """`./inv --list` beside invoke's own, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "tasks.py").touch()
        bare = [str(Path(sys.executable).with_name("invoke")), "--search-root", folder, "--list"]
        pairs = [(inv("--list"), seconds(bare, code=None)) for _ in range(7)]  # invoke says 1: there are no tasks
    yield Row("./inv --list", statistics.median(ours for ours, _ in pairs), None, "s")
    yield Row("  ratio to a bare `invoke --list` with an empty tasks.py", ratio(pairs), 1.3, "x")


def starts(state: State) -> Iterator[Row]:
    """The stack's start: in an empty folder, again, and while it runs."""
    yield Row("stack.up, empty state folder", inv("stack.up"), None, "s")
    warm = []
    for _ in range(3):
        inv("stack.down")
        warm.append(inv("stack.up"))
    yield Row("stack.up, warm, to all ready", statistics.median(warm), 6, "s")
    yield Row("stack.up on a running stack", statistics.median(inv("stack.up") for _ in range(5)), 0.5, "s")
    yield from idle(state)


def idle(state: State) -> Iterator[Row]:
    """Memory and processor of a stack in which no app runs, after it has settled."""
    top = int(state.path("run", "outer.pid").read_text())
    time.sleep(10)
    before, started = ticks(top), time.monotonic()
    time.sleep(IDLE)
    share = (ticks(top) - before) / HERTZ / (time.monotonic() - started)
    yield Row("idle stack, memory (PSS)", commands.status(state)["memory"] / 1e6, 750, "MB")
    yield Row(f"idle stack, share of one core over {IDLE:g} s", share * 100, 6, "%")


def ticks(top: int) -> int:
    """Return the processor time of a process, all below it, and those of them that ended and were waited for."""
    parents: dict[int, list[int]] = {}
    used: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            pid = int(path.parent.name)
            parents.setdefault(int(fields[1]), []).append(pid)
            used[pid] = sum(map(int, fields[11:15]))
    total, left = 0, [top]
    while left:
        pid = left.pop()
        total += used.get(pid, 0)
        left += parents.get(pid, [])
    return total


@dataclass
class Recorder:
    """Wraps the clients of one run: what was asked, what was made, and the seconds spent in it."""

    connections: Connections
    repeated: list[str] = field(default_factory=list)
    applied: list[tuple[dict[str, Any], str]] = field(default_factory=list)
    executed: list[tuple[str, str]] = field(default_factory=list)
    posted: list[tuple[str, Any]] = field(default_factory=list)
    """What was made by a POST: the pod that tries the database, the build."""
    waited: float = 0.0
    """Seconds of requests that only waited for something."""
    database_seconds: float = 0.0
    _seen: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        cluster, database = self.connections.cluster, self.connections.database
        request, apply, execute = cluster.request, cluster.apply, database.execute

        def requesting(method: str, path: str, body: object = None, **rest: Any) -> Any:
            query = rest.get("query") or {}
            self._note(f"{method} {path} {query} {body}", f"{method} {path}")
            if method == "POST" and "dryRun" not in query:
                self.posted.append((path, body))
            return request(method, path, body, **rest)

        def applying(manifest: dict[str, Any], manager: str, *, dry: bool = False, force: bool = False) -> Any:
            if not dry:
                self.applied.append((manifest, manager))
            return apply(manifest, manager, dry=dry, force=force)

        def executing(connection: Any, sql: str) -> None:
            self.executed.append((connection.info.dbname, sql))
            execute(connection, sql)

        cluster.request, cluster.apply = requesting, applying
        cluster.wait = self._waiting(cluster.wait)
        for name, inner in (("query", database.query), ("execute", executing), ("log_in", database.log_in)):
            setattr(database, name, self._timed(inner, "" if name == "execute" else name))

    @property
    def asked(self) -> Counter[str]:
        """How often the cluster and the database were asked, by the kind of request."""
        return self.connections.cluster.counted + self.connections.database.counted

    @property
    def seconds(self) -> float:
        return self.connections.cluster.seconds - self.waited + self.database_seconds

    def _waiting(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            before = self.connections.cluster.seconds
            try:
                return inner(*given)
            finally:
                self.waited += self.connections.cluster.seconds - before
        return call

    def _timed(self, inner: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            if name == "query":
                self._note(f"{given[0].info.dbname} {given[1]}", given[1])
            started = time.perf_counter()
            try:
                return inner(*given)
            finally:
                self.database_seconds += time.perf_counter() - started
        return call

    def _note(self, whole: str, short: str) -> None:
        if whole in self._seen:
            self.repeated.append(short)
        self._seen.add(whole)

    def run(self) -> dict[str, Counter[str]]:
        """Run the guide as `guide.run` does; return what each step asked."""
        run, counts = Run(self.connections, deferring=True), {}
        for each in RUNBOOK.standing:
            if each.wanted(self.connections.instance):
                before = self.asked
                run.step(each, {}, quiet)
                counts[each.name] = self.asked - before
        run.finish(quiet)
        return counts


def connect(folder: Path, **flags: bool) -> Connections:
    target = tasks.local(quiet)
    return Connections(load(folder / "instances" / "dev.toml", "local", target.facts), target, Flags(**flags), folder / "cache")


def guide(state: State, folder: Path) -> tuple[list[Row], dict[str, dict[str, int]]]:
    """The first run beside kubectl and psql, the second run, and what it asks."""
    first = Recorder(connect(folder))
    started = time.perf_counter()
    first.run()
    rows = [Row("first guide.run, with the build and the roll-outs", time.perf_counter() - started, None, "s")]
    first.connections.close()

    rows.append(Row("second guide.run on a running stack", statistics.median(inv("guide.run", "--build=dev") for _ in range(5)),
                    2, "s"))
    second = Recorder(connect(folder))
    counts = second.run()
    second.connections.close()
    rows.append(Row("requests of a second run (API and database)", second.asked.total(), None))
    rows.append(Row("  of them sent twice", len(second.repeated), 0))
    for what in second.repeated:
        print(f"sent twice: {what}", file=sys.stderr)

    away = connect(folder, data=True, yes=True)
    for each in reversed(RUNBOOK.standing):
        take_back(each, away)
    away.close()
    by_hand = one_call_each(state, first)
    rows.append(Row(f"first guide.run, time in requests ({len(first.applied)} manifests, {len(first.executed)} statements)",
                    first.seconds, None, "s"))
    rows.append(Row("  ratio to one kubectl or psql call each", first.seconds / by_hand, 0.5, "x"))
    return rows, {name: dict(count) for name, count in counts.items()}


def one_call_each(state: State, made: Recorder) -> float:
    """Make the same objects, roles and databases with one call of a program each; return the seconds."""
    exports = dict(word.split("=", 1) for line in commands.env(state).splitlines() for word in shlex.split(line)[1:])
    db, project = made.connections.instance.database, made.connections.instance.project
    kubectl, psql = (str(binaries.find(name).path) for name in ("kubectl", "psql"))
    server = f"host={db.host} hostaddr=127.0.0.1 port={db.port} user={db.administrator} sslmode=verify-full"
    calls = [([psql, "-qwX", "-v", "ON_ERROR_STOP=1", "-f", "-", f"{server} dbname={name}"], sql) for name, sql in made.executed]
    calls += [([kubectl, "apply", "--server-side", f"--field-manager={manager}", "-n", project, "-f", "-"], json.dumps(manifest))
              for manifest, manager in made.applied]
    calls += [([kubectl, "create", "--raw", path, "-f", "-"], json.dumps(body)) for path, body in made.posted]
    started = time.perf_counter()
    for command, text in calls:
        done = subprocess.run(command, input=text, env=os.environ | exports, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"bench: {shlex.join(command)}: {done.stderr}")
    return time.perf_counter() - started


def engine(folder: Path) -> Iterator[Row]:
    """Trivial steps through the command line's own way: plan, comparison, report, journal."""
    taken = {count: statistics.median(trivial(count, folder / "instances") for _ in range(3)) for count in (1, 50, 500)}
    for count in (50, 500):
        yield Row(f"a trivial step through the engine, {count} of them",
                  1000 * (taken[count] - taken[1]) / (count - 1), 1, "ms")


def trivial(count: int, instances: Path) -> float:
    module = ModuleType("procedures.trivial")

    def holds(_instance: object, _observed: object) -> Plan:
        """See that nothing is to do."""
        yield Require("nothing is to do", "", "")

    for number in range(count):
        def function(_instance: object, _observed: object) -> Plan:
            yield from holds(_instance, _observed)
        function.__name__, function.__module__, function.__doc__ = f"step{number}", module.__name__, holds.__doc__
        setattr(module, function.__name__, step()(function))
    run = cli.namespace(Runbook((module,)), instances, tasks.local)["guide.run"]
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()) as said:
        run(Context(), **cli.GUIDE | {"build": "dev"})
    taken = time.perf_counter() - started
    if said.getvalue().count("unchanged") != count:
        raise SystemExit(f"bench: not {count} steps ran:\n{said.getvalue()}")
    return taken


def site(folder: Path) -> Iterator[Row]:
    """The site: built beside Material alone on the same pages, with ten times as many steps, and served while it changes."""
    one, ten = copied(made(folder / "one")), copied(made(folder / "ten"))
    multiply(ten, 10)
    for count, root, turns in ((1, one, 7), (10, ten, 3)):
        mkdocs(root, root / "mkdocs.yml")
        pairs = [(mkdocs(root, root / "mkdocs.yml"), mkdocs(root, alone(root))) for _ in range(turns)]
        yield Row("docs.build" if count == 1 else f"docs.build, {count} times as many steps",
                  statistics.median(ours for ours, _ in pairs), None, "s")
        yield Row("  ratio to Material alone on the same pages", ratio(pairs), 1.2, "x")
    pairs = [(generated(ten), generated(one)) for _ in range(7)]
    yield Row("  pages written for 10 times as many steps, per step", ratio(pairs) / 10, 1.1, "x")
    with served(one) as shown:
        page, procedure = one / "docs" / "eos.md", one / "procedures" / "redis.py"
        yield Row("docs.serve shows a changed page", shows(shown, page, "# EOS storage", "# EOS storage, changed", "eos.html"), 2, "s")
        yield Row("docs.serve shows a changed procedure",
                  shows(shown, procedure, "One pod named after", "One pod, named after", "redis.html"), 2, "s")


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def mkdocs(root: Path, config: Path) -> float:
    """Build a site from a configuration; not strict, because copied steps are not in the navigation."""
    return seconds([sys.executable, "-c", "import os, runpy, sys; os.chdir(sys.argv.pop()); runpy.run_module('mkdocs', run_name='__main__')",
                    "build", "--no-strict", "-f", str(config), "--site-dir", str(root / "built"), str(root)],
                   PYTHONPATH=str(root), **tasks.MKDOCS)


def alone(root: Path) -> Path:
    """Return a configuration of the same site, of the pages as they were written last, without what writes them."""
    for name in root.joinpath("docs").glob("extra.*"):
        (root / ".pages" / name.name).write_bytes(name.read_bytes())
    text = (root / "mkdocs.yml").read_text().replace("docs_dir: docs", "docs_dir: .pages")
    config = root / "alone.yml"
    config.write_text(text.replace("  - gen-files:\n      scripts: [docs/_generate.py]\n", ""))
    return config


def generated(root: Path) -> float:
    """Return the seconds in which the pages of a folder are written."""
    run = "import tasks, time; tasks.site_pages(); started = time.perf_counter(); tasks.site_pages(); print(time.perf_counter() - started)"
    done = subprocess.run([sys.executable, "-c", run], cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True,
                          check=True)
    return float(done.stdout)


def multiply(root: Path, times: int) -> None:
    """Copy every procedure and its page, so that the runbook has so many times its steps."""
    stems = [module.__name__.rpartition(".")[2] for module in RUNBOOK.procedures]
    copies = [f"{stem}{number}" for number in range(1, times) for stem in stems]
    for copy in copies:
        stem = copy.rstrip("0123456789")
        (root / "procedures" / f"{copy}.py").write_text((root / "procedures" / f"{stem}.py").read_text())
        (root / "docs" / f"{copy}.md").write_text((root / "docs" / f"{stem}.md").read_text().replace(f"```step {stem}.", f"```step {copy}."))
    listed = root / "procedures" / "__init__.py"
    listed.write_text(listed.read_text() + f"\nimport importlib\nRUNBOOK = Runbook((*RUNBOOK.procedures, *(importlib.import_module("
                      f"f'procedures.{{name}}') for name in {copies!r})), RUNBOOK._symptoms)\n")


def shows(site: Served, file: Path, before: str, after: str, page: str) -> float:
    """Change a file of a site that is being served; return the seconds until the page shows it."""
    text = file.read_text()
    if before not in text:
        raise SystemExit(f"bench: {file.name} does not say {before!r}")
    started = time.perf_counter()
    file.write_text(text.replace(before, after, 1))
    site.wait(page, after.removeprefix("# "))
    return time.perf_counter() - started


def cold(folder: Path) -> Iterator[Row]:
    """Build the control plane by our own chain and by `go build`, each with an empty build cache."""
    go = binaries.find("go").path
    # Nothing that was built or downloaded is found: only Go is on PATH, and no download answers.
    nowhere = {"RUNBOOK_KUBERNETES_DOWNLOADS": "http://127.0.0.1:9", "RUNBOOK_ETCD_DOWNLOADS": "http://127.0.0.1:9",
               "KUBEBUILDER_ASSETS": "", "PATH": f"{go.parent}:/usr/bin:/bin", "RUNBOOK_CACHE": str(folder / "ours"),
               "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off", "GOFLAGS": "-mod=readonly -modcacherw",
               "PYTHONPATH": str(ROOT)}
    fetched = [str(go), "-C", str(binaries.SOURCES), "list", "-deps", *(binaries.MODULES[n] for n in binaries.CONTROL_PLANE)]
    seconds(fetched, **nowhere)  # the modules are on this machine for both
    find = "from stack import binaries; [print(binaries.find(name).link) for name in binaries.CONTROL_PLANE]"
    ours = seconds([sys.executable, "-c", find], GOCACHE=str(folder / "cache-ours"), **nowhere)
    if not all(next((folder / "ours").glob(f"*/{name}"), None) for name in binaries.CONTROL_PLANE):
        raise SystemExit("bench: not everything was built: a program of the control plane lies in a folder of this system")
    (folder / "bare").mkdir()
    command = binaries.build_command(go, list(binaries.CONTROL_PLANE), folder / "bare")
    bare = seconds([command[0], "-C", str(binaries.SOURCES), *(word for word in command[1:] if word != "-v")],
                   GOCACHE=str(folder / "cache-bare"), **nowhere)
    yield Row("control plane built", ours, None, "s")
    yield Row("  ratio to a bare `go build` of the same packages", ours / bare, 1.1, "x")


def main() -> None:
    """Measure everything; the stack and the folder are gone afterwards."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # a shell that sets it compiles our modules anew at every start
    inv("--list")
    rows: list[Row] = []

    def show(found: Iterator[Row] | list[Row]) -> None:
        for row in found:
            rows.append(row)
            print(row, flush=True)

    # Short: the paths of the Unix sockets below it have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder, state = Path(name), State(Path(name, "state"))
        os.environ |= {"RUNBOOK_STATE": str(state.root), "RUNBOOK_JOURNAL": str(folder / "journal"),
                       "RUNBOOK_INSTANCES": str(folder / "instances")}
        (folder / "instances").mkdir()
        plain = tomllib.loads((ROOT / "instances" / "dev.toml").read_text())
        (folder / "instances" / "dev.toml").write_text("\n".join(toml(laid_over(plain, EVERYTHING))) + "\n")
        try:
            show(listing())
            show(starts(state))
            show(engine(folder))
            found, requests = guide(state, folder)
            show(found)
            show(site(folder))
        finally:
            commands.down(state, wipe=True, progress=quiet)
        if "--cold" in sys.argv:
            show(cold(folder))
    print("\nrequests per step of a second run")
    for each, counted in requests.items():
        print(f"  {each:<22} " + (", ".join(f"{number} {kind}" for kind, number in sorted(counted.items())) or "none"))
    missed = [row.name.strip() for row in rows if row.ok is False]
    print("\n" + (f"missed: {'; '.join(missed)}" if missed else "every target is met")
          + f"   (load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores)")
    result = {"figures": [dataclasses.asdict(row) | {"ok": row.ok} for row in rows], "requests": requests,
              "load": os.getloadavg(), "cores": os.cpu_count()}
    (ROOT / "bench.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
