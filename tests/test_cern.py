"""The whole guide with `--target=cern`, on a stack that plays CERN: no portal to ask, a log-in of one's own, one's own trust.

The runs know only what a reader at CERN knows: a kubeconfig of somebody with the role `admin` on the project, a password file, the
file of a CA, and an instance file. What a person does at CERN, the test does between two runs, through the portals' stand-in.
The one thing that is not as at CERN is the router's port, which is not 443 here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from procedures import RUNBOOK
from runbook.doctor import recognized
from runbook.instance import Instance, load
from runbook.observed import Observed
from runbook.plan import Ask
from tests.guide import ROOT, Guide, laid_over, toml

pytestmark = pytest.mark.needs("cluster", "database", "databases", "redis", "portal", "sign-on", "node", "builder", "router")

PLAYED = """
import dataclasses, sys
import runbook.cli as cli
load, port = cli.load, int(sys.argv.pop(1))
cli.load = lambda *words: dataclasses.replace(load(*words), port=port)
from runbook.__main__ import main
main()
"""
SECRETS = {"RUNBOOK_OMS_CLIENT_ID": "oms", "RUNBOOK_OMS_CLIENT_SECRET": "canary-oms-secret"}


class Cern:
    """A reader at CERN."""

    def __init__(self, guide: Guide, name: str = "played") -> None:
        self.guide, self.state, self.name = guide, guide.stack.state, name
        self.folder = Path(tempfile.mkdtemp(prefix="cern-"))
        self.environment = dict(SECRETS)
        self.kubeconfig = self.folder / "kubeconfig"
        self.kubeconfig.write_text(self.state.kubeconfig.read_text())
        facts, table = guide.facts, tomllib.loads((ROOT / "instances" / "dev.toml").read_text())
        host = f"{name}-certhelper"
        local = {key: {name: str(value).format(**facts) for name, value in inner.items()}
                 for key, inner in table.pop("local").items() if isinstance(inner, dict)}
        own = {"project": host, "host": f"{host}.localhost", "api": self.state.server, "target": "cern",
               "database": {"instance": f"{name}db", "host": f"dbod-{name}db.localhost", "port": self.state.ports.databases[5]},
               "sso": {"identifier": f"certhelper-{name}"}}
        self.write(laid_over(laid_over(table, local), own))

    def write(self, table: dict[str, Any]) -> None:
        (self.folder / f"{self.name}.toml").write_text("\n".join(toml(table)) + "\n")

    def change(self, changes: dict[str, Any]) -> None:
        self.write(laid_over(tomllib.loads((self.folder / f"{self.name}.toml").read_text()), changes))

    @property
    def instance(self) -> Instance:
        return replace(load(self.folder / f"{self.name}.toml"), port=self.state.ports.https)

    def __call__(self, *words: str, code: int | None = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        trust = {"SSL_CERT_FILE": str(self.state.ca), "GIT_SSL_CAINFO": str(self.state.ca), "PGSSLROOTCERT": str(self.state.ca)}
        # Nothing of the stack is known: a run that looked for it would start another in this empty folder.
        known = {"HOME": str(self.folder), "PATH": os.environ["PATH"], "KUBECONFIG": str(self.kubeconfig), **trust,
                 "PGPASSFILE": str(self.state.pgpass), "RUNBOOK_STATE": str(self.folder / "no-stack"),
                 "RUNBOOK_INSTANCES": str(self.folder)}
        done = subprocess.run([sys.executable, "-c", PLAYED, str(self.state.ports.https), *words], cwd=ROOT, capture_output=True,
                              text=True, timeout=600, check=False, stdin=subprocess.DEVNULL,
                              env=known | self.environment | environment)
        assert code is None or done.returncode == code, f"{' '.join(words)} ended with {done.returncode}\n{done.stdout}{done.stderr}"
        assert not (self.folder / "no-stack").exists()
        assert done.returncode not in {1, 75} or recognized(RUNBOOK, done.stderr), done.stderr
        return done

    def do(self, step: str, printed: str) -> None:
        """Do a person's deed with the values that were printed."""
        plan = next(found for found in RUNBOOK.steps if found.name == step).plan(self.instance, Observed())
        asks = [action for action in plan if isinstance(action, Ask) and action.deed in printed]
        assert len(asks) == 1, f"{step} prints what to do, once\n{printed}"
        ask = asks[0]
        for value in ask.values.values():
            assert str(value) in printed
        assert ask.where in printed
        extra = {"port": self.instance.database.port} if ask.form == "databases" else {}
        token = {"Authorization": f"Bearer {self.state.tokens.member}"}
        status, text = self.guide.web().request("POST", f"{self.guide.facts['portal']}/{ask.form}", {**ask.values, **extra}, token)
        assert status in (200, 201), text
        for key, credential in ask.gives.items():
            self.environment[credential.variable] = str(json.loads(text)[key])


@pytest.fixture(scope="module")
def cern(guide: Guide) -> Iterator[Cern]:
    made = Cern(guide)
    yield made
    guide.stack.api.delete("Namespace", made.instance.project)
    token = {"Authorization": f"Bearer {made.state.tokens.member}"}
    for form, name in (("databases", made.instance.database.instance), ("registrations", made.instance.sso.identifier)):
        guide.web().request("DELETE", f"{guide.facts['portal']}/{form}/{name}", headers=token)


def test_the_whole_guide_with_a_person_between_the_runs(cern: Cern) -> None:
    build = ["--build=played", "--target=cern"]
    acted = []
    for _ in range(12):
        done = cern("guide.run", *build, code=None)
        if done.returncode != 75:
            break
        step = re.search(r"error: ([a-z]+\.[a-z]+) ", done.stderr)
        assert step, done.stderr
        assert "when it is done: `invoke guide.run --build=played --target=cern`" in done.stderr
        assert step[1] not in acted, f"{step[1]} was done, and is asked for again\n{done.stdout}{done.stderr}"
        acted.append(step[1])
        cern.do(step[1], done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    assert acted[:3] == ["project.request", "database.request", "database.access"]
    assert done.stdout.splitlines()[0].startswith(f"cern · {cern.state.server} · project played-certhelper · instance played")
    status, text = cern.guide.web().request("GET", f"{cern.instance.url}/database/")
    assert status == 200 and json.loads(text)["tls"] is True
    assert not [value for value in cern.environment.values() if len(value) > 12 and value in done.stdout + done.stderr]


def test_the_second_run_is_unchanged_and_writes_nothing(cern: Cern) -> None:
    place = cern.guide.audit_end()
    done = cern("guide.run", "--build=played", "--json")
    assert {json.loads(line)["state"] for line in done.stdout.splitlines()} <= {"unchanged", "skipped"}
    assert cern.guide.writes(place) == []


def test_dry_shows_the_difference_and_stores_nothing(cern: Cern) -> None:
    project, app = cern.instance.project, cern.instance.app
    patch = {"spec": {"template": {"spec": {"containers": [{"name": app, "env": [{"name": "DJANGO_DEBUG", "value": "True"}]}]}}}}
    cern.guide.stack.member.patch("Deployment", app, patch, project, manager="kubectl-edit",
                                  content="application/strategic-merge-patch+json")
    place = cern.guide.audit_end()
    shown = cern("environment.set", "--build=played", "--dry", code=3).stdout
    assert re.search(r'DJANGO_DEBUG"\]\.value: True → False\s+\(kubectl-edit\)', shown)
    assert cern.guide.writes(place) == []
    cern("guide.run", "--build=played")


def test_the_wrong_log_in_is_refused_with_both_addresses(cern: Cern) -> None:
    place = cern.guide.audit_end()
    cern.change({"api": "https://api.paas.okd.cern.ch:443"})
    try:
        refused = cern("guide.run", "--build=played", code=2)
    finally:
        cern.change({"api": cern.state.server})
    assert cern.state.server in refused.stderr and "https://api.paas.okd.cern.ch:443" in refused.stderr
    assert "oc login" in refused.stderr and cern.guide.writes(place) == []


def test_without_a_log_in_it_says_how(cern: Cern) -> None:
    refused = cern("guide.run", "--build=played", code=1, KUBECONFIG=str(cern.folder / "none"))
    assert "oc login" in refused.stderr and "Traceback" not in refused.stderr


def test_somebody_without_rights_is_told_whom_to_ask(cern: Cern) -> None:
    about = yaml.safe_load(cern.kubeconfig.read_text())
    about["users"][0]["user"] = {"token": cern.state.tokens.stranger}
    other = cern.folder / "stranger"
    other.write_text(yaml.safe_dump(about))
    refused = cern("redis.add", "--build=played", code=1, KUBECONFIG=str(other))
    assert "role `admin`" in refused.stderr or "project.request" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_production_asks_for_its_name(cern: Cern) -> None:
    production = cern.folder / "production.toml"
    production.write_text((cern.folder / "played.toml").read_text())
    place = cern.guide.audit_end()
    try:
        refused = cern("redis.add", "--build=production", code=75)
        assert "--yes" in refused.stderr or "terminal" in refused.stderr
        assert cern.guide.writes(place) == []
        cern("redis.add", "--build=production", "--yes")
        # What loses data is confirmed at a terminal, whatever else is said.
        assert "run it in a terminal" in cern("guide.undo", "--build=production", "--data", "--yes", code=75).stderr
        cern("guide.status", "--build=production", code=None)
    finally:
        production.unlink()
