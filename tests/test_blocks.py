"""The commands that every step's page shows, run as a reader pastes them: the guide then finds everything done."""

from __future__ import annotations

import functools
import json
import os
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from procedures import RUNBOOK
from runbook import markdown, options, shell
from runbook.instance import Instance
from runbook.observed import Observed
from runbook.plan import Apply, Plan
from runbook.step import step
from stack import binaries
from stack.api import Manifest
from tests.guide import EVERYTHING, Guide, laid_over, toml

pytestmark = pytest.mark.needs("cluster", "database", "databases", "redis", "portal", "sign-on", "node", "builder", "router", "eos")

ROOT = Path(__file__).parent.parent
BUILD = ["--build=production", "--target=local"]
LOG_IN = 'eval "$(invoke stack.env)"\n'


@dataclass
class Reader:
    """Somebody at a terminal with `oc`, `psql`, `curl` and what `stack.env` prints; nobody answers questions."""

    guide: Guide
    folder: Path
    instance: Instance

    @property
    def environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(self.folder), str(binaries.find("psql").path.parent), os.environ["PATH"]])
        return self.guide.environment | {"PATH": path, "RUNBOOK_JOURNAL": str(self.folder / "journal")}

    def invoke(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self._run(["invoke", *words])

    def paste(self, block: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return self._run(["bash", "-c", block], **variables)

    def do(self, name: str, *more: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Paste the line of the page's tab `local` after logging in, with options of the step; a command that fails ends it."""
        plain = markdown.command(RUNBOOK.find(name), self.instance, "--target=local", "--commands")
        assert f"{plain} | bash" in markdown.section(RUNBOOK.find(name), [self.instance]), "the page shows what is pasted here"
        lines = f"{' '.join([plain, *map(shlex.quote, more)])} | bash"
        done = self.paste(f"set -euo pipefail\n{lines}", **self.logged_in | variables)
        assert done.returncode == 0, f"{name} ended with {done.returncode}\n{self.paste(lines.removesuffix('| bash'), **self.logged_in).stdout}{done.stderr}"
        return done

    @functools.cached_property
    def logged_in(self) -> dict[str, str]:
        """What the page's first line leaves in a terminal, for all that is pasted after it."""
        said = self.paste(f"set -euo pipefail\n{LOG_IN}env -0").stdout
        return {name: value for name, _, value in (line.partition("=") for line in said.split("\0")) if value != os.environ.get(name)}

    def _run(self, command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=self.environment | variables, cwd=self.folder, capture_output=True, text=True, timeout=600,
                              check=False, stdin=subprocess.DEVNULL)

    def object(self, kind: str, name: str) -> Manifest:
        found: Manifest = self.guide.stack.api.get(kind, name, self.instance.project)
        return found

    def made(self) -> set[str]:
        """Return the objects of the project that carry the guide's mark and stay."""
        about = self.guide.seen("production", lambda found: found["metadata"])["objects"]
        return {name for name, meta in about.items() if "guide/step" in (meta.get("annotations") or {})
                and "deletionTimestamp" not in meta}

    def differing(self) -> set[tuple[str, str]]:
        """Return the steps that are not done, each with every field that differs."""
        status = self.invoke("guide.status", *BUILD, "--json")
        standings = [json.loads(line) for line in status.stdout.splitlines()]
        assert {found["step"] for found in standings} >= {each.name for each in RUNBOOK.standing}, status.stderr
        return {(found["step"], field["path"] if field else str(detail)) for found in standings
                if found["state"] not in ("done", "not wanted")
                for detail in found["detail"] for field in detail["fields"] or [None]}


@pytest.fixture(scope="module")
def reader(guide: Guide, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """A reader whose instance wants every optional part; afterwards nothing of it is left."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "oc").symlink_to(binaries.find("kubectl").path)
    (folder / "invoke").write_text(f'#!/bin/sh\nexec {sys.executable} -m runbook "$@"\n')
    (folder / "invoke").chmod(0o700)
    (folder / "instances").mkdir()
    table = tomllib.loads((ROOT / "instances" / "production.toml").read_text())
    (folder / "instances" / "production.toml").write_text("\n".join(toml(laid_over(table, EVERYTHING))) + "\n")
    own = replace(guide, folder=folder / "instances")
    found = Reader(own, folder, own.instance("production"))
    yield found
    found.invoke("guide.undo", *BUILD, "--data", "--yes")


def test_the_pages_commands_alone_reach_what_the_guide_reaches(reader: Reader) -> None:
    assert [each.name for each in RUNBOOK.standing if not each.wanted(reader.instance)] == ["deploy.promote"]
    for each in (found for found in RUNBOOK.standing if found.wanted(reader.instance)):
        if each.person:  # At CERN a person fills a form; here the portal plays that person.
            done = reader.invoke(each.name, *BUILD)
            assert done.returncode == 0, f"{each.name}\n{done.stdout}{done.stderr}"
        reader.do(each.name)
    assert reader.differing() == set()


def suspended(reader: Reader) -> bool:
    return bool(reader.object("CronJob", f"{reader.instance.app}-schedule")["spec"]["suspend"])


def test_the_commands_of_what_is_done_every_day_do_it(reader: Reader) -> None:
    """Those operations that need no terminal, each seen by what it leaves."""
    instance, app = reader.instance, reader.instance.app
    assert "GET /" in reader.do("app.logs").stdout
    reader.do("deploy.resume")
    assert not suspended(reader)
    reader.do("deploy.suspend")
    assert suspended(reader)
    reader.do("app.admin", "--user=ada", RUNBOOK_ADMIN_PASSWORD="canary-of-ada")
    assert "unchanged" in reader.invoke("app.admin", *BUILD, "--user=ada").stdout
    before = reader.object("Deployment", app)["metadata"]["generation"]
    reader.do("app.restart")
    assert reader.object("Deployment", app)["metadata"]["generation"] > before
    dumps = set(reader.folder.glob("*.dump"))
    reader.do("database.backup")
    (dump,) = set(reader.folder.glob("*.dump")) - dumps
    reader.guide.sql("production", "DELETE FROM auth_user WHERE username = 'ada'", instance.database.name)
    reader.do("database.restore", f"--file={dump}")
    assert reader.guide.sql("production", "SELECT 1 FROM auth_user WHERE username = 'ada'", instance.database.name) == [(1,)]
    held = reader.object("Deployment", app)["spec"]["template"]["spec"]["containers"][0]["image"].rpartition("@")[2]
    reader.do("deploy.rollback", f"--to={held}", "--why=to see it")
    assert "to see it" in reader.object("ImageStream", app)["metadata"]["annotations"]["guide/held"]
    reader.do("deploy.release")
    assert "guide/held" not in reader.object("ImageStream", app)["metadata"].get("annotations", {})
    for look in ("sso.verify", "expose.verify", "prerequisites.login"):
        reader.do(look)
    assert reader.differing() == set()


def test_the_commands_that_take_back_leave_nothing_that_the_guide_made(reader: Reader) -> None:
    for name in ("nginx.remove", "expose.close", "eos.unmount"):  # Each is an undo under a name that people look for.
        reader.do(name)
    kept = {f"{kind} {name}" for kind, name in (("Deployment", reader.instance.app), ("Route", reader.instance.app))}
    gone = {f"Deployment {reader.instance.app}-nginx", f"Service {reader.instance.app}-nginx", "PersistentVolumeClaim eos-volume"}
    assert kept <= reader.made() and not gone & reader.made()
    assert {name for name, _ in reader.differing()} >= {"nginx.add", "expose.open", "eos.mount"}
    taken_back = []
    for each in reversed(RUNBOOK.standing):
        if each.wanted(reader.instance) and "undo" in {one.name for one in options.of(each, options.outline(each, reader.instance, Observed()))}:
            reader.do(each.name, "--undo")
            taken_back.append(each.name)
    assert len(taken_back) > 8
    assert reader.made() == set()


def test_a_block_whose_manifest_is_refused_ends_with_an_error(reader: Reader) -> None:
    def broken(instance: Instance, _observed: Observed) -> Plan:
        """Make a Service that no server takes."""
        yield Apply({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "broken"},
                     "spec": {"ports": [{"port": "no port"}]}})

    done = reader.paste(LOG_IN + shell.block(step()(broken), reader.instance))
    assert done.returncode != 0
    assert "broken" in done.stderr or "port" in done.stderr


def test_a_block_ends_at_the_first_command_that_fails(reader: Reader) -> None:
    """`psql` is refused: nothing after it runs, and the shell that it was pasted into goes on."""
    block = shell.block(RUNBOOK.find("database.create"), reader.instance)
    done = reader.paste(f"{LOG_IN}export PGPASSFILE=/dev/null\n{block}echo \"ended $?\"")
    assert "ended 0" not in done.stdout and "ended" in done.stdout, done.stdout + done.stderr
