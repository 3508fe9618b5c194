"""The whole guide on the local stack, as a reader runs it: from nothing to an app that answers, twice, mended, undone.

The tests stand in the order of an instance's life and share one; each says what it leaves behind.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from procedures import RUNBOOK
from runbook.clients.git import Git
from stack import binaries, commands
from stack.api import wait_until
from tests import canaries, ready
from tests.guide import EVERYTHING, Guide, laid_over, toml

ROOT = Path(__file__).parent.parent
STANDING = [step.name for step in RUNBOOK.standing]
pytestmark = pytest.mark.needs("cluster", "database", "redis", "portal", "sign-on", "node", "builder", "router")


@pytest.fixture(scope="module")
def deployed(guide: Guide) -> Guide:
    """The development instance, deployed once by the command that the README names."""
    done = guide("guide.run", "--build=dev")
    assert done.stdout.strip().splitlines()[-1] == guide.instance("dev").url + "/"
    return guide


@pytest.mark.fault(7, 8, 35)
def test_the_app_answers_over_https_with_its_data_in_postgresql_over_tls(deployed: Guide) -> None:
    instance = deployed.instance("dev")
    status, text = deployed.web().request("GET", f"{instance.url}/")
    assert status == 200 and "Sign on" in text
    status, text = deployed.web().request("GET", f"{instance.url}/database/")
    found = json.loads(text)
    assert (status, found["engine"], found["tls"], found["role"]) == (200, "postgresql", True, instance.database.role)
    tables = deployed.sql("dev", "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", instance.database.name)
    assert tables[0][0] > 5


def test_curl_knows_the_local_ca_after_what_the_runs_last_lines_say(deployed: Guide, tmp_path: Path) -> None:
    ca, url = deployed("guide.run", "--build=dev").stdout.strip().split("\n\n")[-2:]
    assert str(deployed.stack.state.ca) in ca
    (tmp_path / "invoke").write_text(f'#!/bin/sh\nexec {sys.executable} -m runbook "$@"\n')
    (tmp_path / "invoke").chmod(0o700)
    here = deployed.environment | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}

    def get(before: str) -> int:
        return subprocess.run(["sh", "-c", f"{before}\ncurl -fsS {url}"], env=here, capture_output=True, check=False, timeout=60).returncode

    assert get(ca.partition("after: ")[2]) == 0
    assert get(":") == 60, "curl's own word for a certificate that it cannot trust"


def test_the_example_of_kubectl_shows_the_pods(deployed: Guide) -> None:
    example = re.search(r"^kubectl .*", (ROOT / "docs" / "stack.md").read_text(), re.MULTILINE)
    assert example
    path = f"{binaries.find('kubectl').path.parent}{os.pathsep}{os.environ['PATH']}"
    shown = deployed.stack.run("sh", "-c", example[0], PATH=path)
    names = {pod["metadata"]["name"] for pod in deployed.stack.api.list("Pod", deployed.instance("dev").project)}
    assert shown.returncode == 0, shown.stderr
    assert names & {line.split()[0] for line in shown.stdout.splitlines()}
    assert "forbidden" in deployed.stack.run("sh", "-c", example[0].partition(" -n")[0], PATH=path).stderr.lower()


def test_the_local_git_server_is_asked_with_the_local_authority_and_another_with_the_systems_too(deployed: Guide, tmp_path: Path) -> None:
    trace, ca, url = tmp_path / "trace", deployed.stack.state.ca, deployed.instance("dev").source.repository
    git = Git(tmp_path, ca, {"GIT_TRACE_CURL": str(trace)})
    assert git.remote(url, "develop", "").commit
    assert str(ca) in trace.read_text() and "/etc/ssl" not in trace.read_text()
    for other, asked in ((git, url.replace("git.localhost", "127.0.0.1")), (Git(tmp_path), url)):
        assert other._own_ca_only(asked) == ()


@pytest.mark.fault(36)
def test_the_websocket_echoes_through_redis(deployed: Guide) -> None:
    instance = deployed.instance("dev")
    answer = deployed.web().echo(f"{instance.url}{instance.deploy.websocket}", "canary-4711")
    assert "canary-4711" in answer


@pytest.mark.needs("audit", "inside")
def test_the_second_run_changes_nothing_and_writes_nothing(deployed: Guide) -> None:
    place = deployed.audit_end()
    log = deployed.stack.state.databases / deployed.instance("dev").database.instance / "log"
    before = log.stat().st_size
    found = deployed.outcomes("guide.run", "--build=dev")
    assert {name: step["state"] for name, step in found.items()} == {
        step.name: "unchanged" if step.wanted(deployed.instance("dev")) else "skipped" for step in RUNBOOK.standing}
    assert deployed.writes(place) == []
    with log.open() as file:
        file.seek(before)
        assert [line for line in file if "statement:" in line and "admin@" in line] == []


def test_status_and_plan_say_that_nothing_is_to_do(deployed: Guide) -> None:
    assert {s["state"] for s in deployed.outcomes("guide.status", "--build=dev").values()} <= {"done", "not wanted"}
    assert {s["state"] for s in deployed.outcomes("guide.plan", "--build=dev").values()} <= {"done", "not wanted"}


@pytest.mark.needs("addresses")  # or the site is open to the world, which the doctor tells
def test_the_doctor_finds_nothing_wrong_with_what_is_well_and_looks_up_what_is_pasted(deployed: Guide) -> None:
    assert deployed("guide.doctor", "--build=dev").stdout.splitlines()[1:] == ["nothing is wrong that the guide knows of"]
    found = deployed("guide.doctor", '--text=FATAL: no pg_hba.conf entry for host "::1", user "a", database "b", no encryption')
    assert "invoke database.access --build=NAME" in found.stdout
    assert "the guide knows no such message" in deployed("guide.doctor", "--text=the kettle boils", code=1).stderr


def changed_by_hand(guide: Guide, kind: str, patch: dict[str, Any], content: str) -> None:
    instance = guide.instance("dev")
    guide.stack.member.patch(kind, instance.app, patch, instance.project, manager="kubectl-edit", content=content)


STRATEGIC = "application/strategic-merge-patch+json"


def test_a_variable_changed_by_hand_is_named_shown_and_repaired(deployed: Guide) -> None:
    app = deployed.instance("dev").app
    part = {"containers": [{"name": app, "env": [{"name": "DJANGO_DEBUG", "value": "True"}]}]}
    changed_by_hand(deployed, "Deployment", {"spec": {"template": {"spec": part}}}, STRATEGIC)
    status = deployed.outcomes("guide.status", "--build=dev", code=3)
    assert [name for name, step in status.items() if step["state"] != "done" and name.startswith("environment")] == ["environment.set"]
    fields = [f for d in status["environment.set"]["detail"] for f in d["fields"]]
    assert any("DJANGO_DEBUG" in f["path"] and (f["found"], f["wanted"]) == ("True", "False") and f["manager"] == "kubectl-edit"
               for f in fields), fields
    shown = deployed("guide.plan", "--build=dev", code=3).stdout
    assert re.search(r'DJANGO_DEBUG"\]\.value: True → False\s+\(kubectl-edit\)', shown)
    assert deployed.outcomes("guide.run", "--build=dev")["environment.set"]["state"] == "changed"
    assert {s["state"] for s in deployed.outcomes("guide.run", "--build=dev").values()} <= {"unchanged", "skipped"}


def planned(guide: Guide, step: str) -> str:
    """Return what `guide.plan` shows a reader of one step."""
    shown = guide("guide.plan", "--build=dev", code=3).stdout
    found = re.search(rf"^\w[\w ]* {re.escape(step)}\b.*\n(?:[ ]{{4,}}.*\n)*", shown, re.MULTILINE)
    assert found, shown
    return found[0]


def test_a_deleted_secret_is_named_shown_and_made_again(deployed: Guide) -> None:
    instance = deployed.instance("dev")
    before = deployed.stack.api.get("Secret", f"{instance.app}-sso", instance.project)
    deployed.stack.member.delete("Secret", f"{instance.app}-sso", instance.project)
    status = deployed.outcomes("guide.status", "--build=dev", code=3)
    assert status["sso.secret"]["state"] != "done"
    assert f"Secret {instance.app}-sso: is not there" in planned(deployed, "sso.secret")
    deployed("guide.run", "--build=dev")
    after = deployed.stack.api.get("Secret", f"{instance.app}-sso", instance.project)
    assert after["data"] == before["data"]
    assert deployed.web().request("GET", f"{instance.url}/")[0] == 200


def test_a_dropped_role_is_named_shown_and_made_again(deployed: Guide) -> None:
    db = deployed.instance("dev").database
    for statement in (f'REASSIGN OWNED BY "{db.role}" TO "{db.administrator}"', f'DROP OWNED BY "{db.role}"'):
        deployed.sql("dev", statement, db.name)
    deployed.sql("dev", f'ALTER DATABASE "{db.name}" OWNER TO "{db.administrator}"')
    deployed.sql("dev", f'DROP ROLE "{db.role}"')
    status = deployed.outcomes("guide.status", "--build=dev", code=3)
    assert status["database.role"]["state"] in {"missing", "drifted"}
    assert f'CREATE ROLE "{db.role}" LOGIN' in planned(deployed, "database.role")
    deployed("guide.run", "--build=dev")
    text = deployed.web().request("GET", f"{deployed.instance('dev').url}/database/")[1]
    assert json.loads(text)["role"] == db.role


def test_an_image_changed_by_hand_is_named_shown_and_repaired(deployed: Guide) -> None:
    instance = deployed.instance("dev")
    part = {"containers": [{"name": instance.app, "image": "docker.io/library/nginx:latest"}]}
    # With the trigger in place the platform itself puts the image back; so that goes first, as it would by hand.
    trigger = {"metadata": {"annotations": {"image.openshift.io/triggers": None}}}
    changed_by_hand(deployed, "Deployment", trigger | {"spec": {"template": {"spec": part}}}, STRATEGIC)
    status = deployed.outcomes("guide.status", "--build=dev", code=3)
    named = {name for name, step in status.items() if step["state"] != "done"}
    assert named & {"app.create", "deploy.build"}
    fields = [f["path"] for d in status["app.create"]["detail"] for f in d["fields"]]
    assert any(path.endswith("image") for path in fields), fields
    assert re.search(r"image: docker\.io/library/nginx:latest → image-registry\S+\s+\(kubectl-edit\)", planned(deployed, "app.create"))
    deployed("guide.run", "--build=dev")
    live = deployed.stack.api.get("Deployment", instance.app, instance.project)
    assert "nginx" not in live["spec"]["template"]["spec"]["containers"][0]["image"]
    assert deployed.web().request("GET", f"{instance.url}/")[0] == 200


def test_a_field_of_an_object_that_the_guide_never_touched_is_not_taken_without_force(deployed: Guide) -> None:
    """Somebody else's Service of that name stays as it is: nothing is forced, and the message names the manager."""
    instance = deployed.instance("dev")
    api = deployed.stack.member
    live = api.get("Service", instance.app, instance.project)
    api.delete("Service", instance.app, instance.project)
    api.create({"apiVersion": "v1", "kind": "Service", "metadata": {"name": instance.app, "namespace": instance.project},
                "spec": {"selector": {"app": "another"}, "ports": live["spec"]["ports"]}})
    refused = deployed("app.create", "--build=dev", code=1)
    assert "selector" in refused.stderr and "--force" in refused.stderr
    assert api.get("Service", instance.app, instance.project)["spec"]["selector"] == {"app": "another"}
    deployed("app.create", "--build=dev", "--force")
    assert api.get("Service", instance.app, instance.project)["spec"]["selector"] == {"app": instance.app}


WITHOUT = """
import sys
import procedures.environment as e
e.VARIABLES = tuple(v for v in e.VARIABLES if v.name != "OMS_CLIENT_ID")
sys.argv[1:] = ["environment.set", "--build=dev"]
from runbook.__main__ import main
main()
"""


@pytest.mark.fault(1, 35)
def test_a_missing_variable_crash_loops_and_the_error_names_it(deployed: Guide) -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], env=deployed.environment, capture_output=True, text=True,
                          timeout=300, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 1, done.stdout + done.stderr
    for word in ("OMS_CLIENT_ID", "environment.set", "docs/environment.md", "last lines of pod", "CrashLoopBackOff"):
        assert word in done.stderr, done.stderr
    ill = [json.loads(line) for line in deployed("guide.doctor", "--build=dev", "--json", code=3).stdout.splitlines()]
    named = next(found for found in ill if "UndefinedValueError" in found.get("symptom", ""))
    assert (named["origin"].startswith("log of pod"), named["command"]) == (True, "invoke environment.set --build=dev")
    # The old pod serves on until the guide repairs it.
    assert deployed.web().request("GET", f"{deployed.instance('dev').url}/")[0] == 200
    deployed("guide.run", "--build=dev")
    assert {s["state"] for s in deployed.outcomes("guide.status", "--build=dev").values()} <= {"done", "not wanted"}


def logged_in(guide: Guide, data: dict[str, str]) -> str:
    """Log in with what a Secret held; return the server's words when it refuses, else ""."""
    db = guide.instance("dev").database
    user, password = (base64.b64decode(data[f"DJANGO_DATABASE_{key}"]).decode() for key in ("USER", "PASSWORD"))
    try:
        psycopg2.connect(host=db.host, hostaddr="127.0.0.1", port=db.port, user=user, password=password, dbname=db.name).close()
    except psycopg2.OperationalError as error:
        return str(error)
    return ""


@pytest.mark.fault(25)
def test_rotated_password_works_and_the_former_does_not(deployed: Guide) -> None:
    instance = deployed.instance("dev")
    name = f"{instance.app}-database"
    before = deployed.stack.api.get("Secret", name, instance.project)["data"]
    assert logged_in(deployed, before) == "", "it would be refused in any case"
    deployed("database.role", "--build=dev", "--rotate")
    after = deployed.stack.api.get("Secret", name, instance.project)["data"]
    assert before["DJANGO_DATABASE_PASSWORD"] != after["DJANGO_DATABASE_PASSWORD"]
    deployed("guide.run", "--build=dev")
    assert logged_in(deployed, after) == ""
    assert "not permitted to log in" in logged_in(deployed, before)
    assert json.loads(deployed.web().request("GET", f"{instance.url}/database/")[1])["engine"] == "postgresql"


@pytest.mark.needs("inside")
@pytest.mark.fault(9, 10, 22, 25, 29)
def test_no_secret_leaves_its_place(deployed: Guide, tmp_path: Path) -> None:
    """Commands that make, use and show secrets print none, pass none on, and leave none outside the files that are for them."""
    state, home = deployed.stack.state, tmp_path / "home"
    home.mkdir()
    here = {"HOME": str(home), "TMPDIR": str(home), "XDG_CACHE_HOME": str(home / ".cache")}
    before = canaries.of(deployed, "dev")
    with canaries.watched() as words:
        printed = [deployed(*line.split(), "--build=dev", code=None, **here) for line in (
            "database.role --rotate", "guide.plan", "guide.run --json", "database.backup", "guide.status --json", "guide.doctor")]
        printed.append(deployed("stack.status", "--json", **here))
    known = before | canaries.of(deployed, "dev")
    assert len(known) > len(before) >= 9, "one password is new"
    assert not canaries.inside("".join(done.stdout + done.stderr for done in printed).encode(), known)
    assert [line for line in words if canaries.inside(line, known)] == []
    parts = [row["pid"] for row in commands.status(state)["parts"] if row["pid"]]
    assert len(parts) > 5
    assert [pid for pid in parts if canaries.inside(Path(f"/proc/{pid}/environ").read_bytes(), known)] == []
    assert canaries.strays(known, state) == set()
    assert canaries.files(known, state.root), "they are somewhere"
    # What is built and reported in a place where the secrets are known carries none away.
    site, reports = tmp_path / "site", tmp_path / "reports"
    kept = deployed.environment | here | {"RUNBOOK_TEST_STATE": str(state.root), "DISABLE_MKDOCS_2_WARNING": "true",
                                          "NO_MKDOCS_2_WARNING": "true"}
    for command in (["mkdocs", "build", "--strict", "--site-dir", str(site)],
                    ["pytest", "tests/test_guide.py", "-k", "status_and_plan", "-p", "no:cacheprovider", "-o", "junit_logging=all",
                     f"--junitxml={reports}/junit.xml", f"--verified={reports}/verified.json"]):
        done = subprocess.run([sys.executable, "-m", *command], env=kept, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in reports.iterdir()} == {"junit.xml", "verified.json"} and (site / "index.html").exists()
    assert canaries.files(known, home, site, reports) == set()


@pytest.mark.needs("inside")
def test_a_secret_that_leaves_its_place_would_be_seen(deployed: Guide, tmp_path: Path) -> None:
    state, known = deployed.stack.state, canaries.of(deployed, "dev")
    planted = base64.b64encode(state.tokens.member.encode()).decode()
    # `read` is the shell's own: it stays what was started, with these words, until it is told to end.
    with canaries.watched() as words, subprocess.Popen(["sh", "-c", "read -r _", "sh", planted], stdin=subprocess.PIPE) as shown:
        wait_until(lambda: canaries.inside(b"\n".join(set(words)), known), "the planted secret to be seen")
        shown.communicate(b"end\n", timeout=60)
    (tmp_path / "planted").write_text(f"password={state.tokens.member}")
    assert canaries.files(known, tmp_path) == {tmp_path / "planted"}
    log, mode = state.logs / "planted.log", state.pgpass.stat().st_mode
    try:
        log.write_text(planted)
        state.pgpass.chmod(0o644)
        assert canaries.strays(known, state) == {"logs/planted.log", "pgpass"}
    finally:
        log.unlink()
        state.pgpass.chmod(mode)


@pytest.mark.parametrize(("words", "code", "says"), [
    (["guide.run", "--build=devv"], 2, "did you mean dev?"),
    (["app.create", "--build=dev", "--data"], 2, "app.create has no option '--data'; did you mean --target"),
    (["guide.run"], 2, "which instance?"),
    (["guide.run", "--build=training"], 2, "--target=cern"),
    (["guide.run", "--build=dev", "--to=redis.ad"], 2, "redis.add"),
    (["redis.ad", "--build=dev"], 2, "redis.add"),
    (["redis.add", "--bild=dev"], 2, "--build"),
    (["guide.run", "--build=dev", "--target=mars"], 2, "local or cern"),
    (["redis.add", "dev"], 2, "`invoke redis.add --build=dev`"),
    (["dev"], 2, "`invoke guide.status --build=dev`"),
    (["redis.add", "--build=dev", "mars"], 2, "there is no task 'mars'; `invoke --list`"),
    (["redis.add", "--build"], 2, "--build needs a value\n  next: `invoke redis.add --build=NAME`; there are: dev,"),
    (["guide.run", "--build=dev", "--to"], 2, "`invoke guide.run --build=dev --to=VALUE`"),
    (["guide.run", "--build=dev", "--to=mars"], 2, "there is no step 'mars'\n  next: `invoke --list`"),
])
def test_wrong_words_get_one_sentence(deployed: Guide, words: list[str], code: int, says: str) -> None:
    done = deployed(*words, code=code)
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_the_administrators_wrong_password_is_unknown_and_not_an_error_of_status(deployed: Guide) -> None:
    pgpass = deployed.stack.state.pgpass
    kept = pgpass.read_text()
    pgpass.write_text(re.sub(r":admin:.*", ":admin:wrong", kept))
    try:
        status = deployed.outcomes("guide.status", "--build=dev", code=3)
        assert status["database.role"]["state"] == "unknown"
        failed = deployed("database.create", "--build=dev", code=1)
        assert "password authentication failed" in failed.stderr and "PGPASSFILE" in failed.stderr
    finally:
        pgpass.write_text(kept)


def variant(guide: Guide, tmp_path: Path, **changes: str) -> str:
    """Return a folder of instance files whose dev.toml has lines replaced."""
    text = (guide.folder / "dev.toml").read_text()
    for old, new in changes.values():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "dev.toml").write_text(text)
    return str(tmp_path)


@pytest.mark.needs("audit")
@pytest.mark.parametrize(("old", "new", "code", "says"), [
    ('repository = "{git}/example.git"', 'repository = "{git}/nothing.git"', 1, "nothing.git"),
    ('branch = "develop"', 'branch = "nowhere"', 1, "has no branch 'nowhere'"),
    ('port = 6611', 'port = "6611"', 2, "must be a whole number"),
    ('port = 6611', 'port = 6611\nprot = 1', 2, "did you mean port"),
    ('app = "certification-helper"', '', 2, "app is missing"),
    ('port = 6611', 'port = = 6611', 2, "not valid TOML"),
])
def test_a_wrong_instance_file_gets_one_sentence_with_its_line(deployed: Guide, tmp_path: Path, old: str, new: str,
                                                               code: int, says: str) -> None:
    folder = variant(deployed, tmp_path, change=(old, new))
    place = deployed.audit_end()
    done = deployed("guide.run", "--build=dev", "--to=app.create", code=code, RUNBOOK_INSTANCES=folder)
    assert says in done.stderr and "Traceback" not in done.stderr
    if code == 2:
        assert re.search(r"dev\.toml:\d+", done.stderr)
    assert deployed.writes(place) == []


def test_a_build_whose_assemble_fails_says_so_and_the_old_app_serves_on(deployed: Guide, tmp_path: Path) -> None:
    state, instance = deployed.stack.state, deployed.instance("dev")
    trust = {"GIT_SSL_CAINFO": str(state.ca), "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "credential.helper",
             "GIT_CONFIG_VALUE_0": "!f() { echo username=git; echo \"password=$GIT_TOKEN\"; }; f", "GIT_TOKEN": state.tokens.member}
    clone = tmp_path / "clone"

    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@localhost", *words], check=True, capture_output=True,
                       env=os.environ | trust, cwd=clone if clone.exists() else tmp_path)

    git("clone", "--branch=develop", instance.source.repository, str(clone))
    script = clone / ".s2i" / "bin" / "assemble"
    script.write_text(script.read_text().replace("set -euo pipefail", "set -euo pipefail\necho the-planted-failure >&2; exit 9"))
    git("commit", "--all", "--message=break the build")
    git("push", "origin", "HEAD:refs/heads/broken")
    folder = variant(deployed, tmp_path, change=('branch = "develop"', 'branch = "broken"'))
    failed = deployed("guide.run", "--build=dev", code=1, RUNBOOK_INSTANCES=folder)
    for word in ("deploy.build", "docs/deploy.md", "the-planted-failure", "Failed"):
        assert word in failed.stderr, failed.stderr
    assert deployed.web().request("GET", f"{instance.url}/")[0] == 200
    deployed("guide.run", "--build=dev")
    assert {s["state"] for s in deployed.outcomes("guide.status", "--build=dev").values()} <= {"done", "not wanted"}


def test_what_no_step_names_any_more_is_an_orphan(deployed: Guide, tmp_path: Path) -> None:
    folder = variant(deployed, tmp_path, change=("[sso]", '[redis]\nname = "redis2"\n\n[sso]'))
    deployed("redis.add", "--build=dev", RUNBOOK_INSTANCES=folder)
    said = deployed("guide.status", "--build=dev", code=3).stdout
    assert re.findall(r"(\w+) redis2: no step names it", said) == ["Deployment", "Secret", "Service"]
    undone = deployed("redis.add", "--build=dev", "--undo", RUNBOOK_INSTANCES=folder)
    assert "Deployment redis2: what this step set is taken back" in undone.stdout
    deployed("guide.status", "--build=dev")


KILLED = """
import os, signal
from runbook import run

carry_out, whole = run.carry_out, run.Run.step

def end(*_words):
    os.kill(os.getpid(), signal.SIGKILL)

def carried_out(action, difference, connections, manager, tell):
    inside = manager == f"guide/{name}"
    done = carry_out(action, difference, connections, manager, end if inside else tell)
    return end() if inside else done

def step(self, wanted, options, tell):
    done = whole(self, wanted, options, tell)
    return end() if wanted.name == name else done

run.carry_out, run.Run.step = carried_out, step
"""
"""A run that ends itself by signal 9 inside a step: at its first sign of progress, after the first value that it carries out,
or, when it has nothing to do, before it is reported. A signal from outside would fall wherever the machine happens to be."""


def killed(guide: Guide, build: str, step: str) -> list[str]:
    """Run the guide until it is killed inside a step; return what that run wrote."""
    place = guide.audit_end()
    done = ready.run(("guide.run", f"--build={build}", "--target=local", "--json"), guide.environment, 600,
                     before=f"name = {step!r}\n{KILLED}")
    assert done.returncode == -signal.SIGKILL, f"{step}: {done.returncode}\n{done.stdout}{done.stderr}"
    reported = [json.loads(line)["step"] for line in done.stdout.splitlines()]
    assert reported == STANDING[:STANDING.index(step)], "every step before is through, and this one is not"
    return guide.writes(place)


FOLLOWING = {"deploy": {"image": "promote:training"}, "sso": {"way": "return-uri"}}
"""What an instance can want instead: another one's image, and the platform's own registration."""
HALF = {"redis.add": ("Secret redis", "Deployment redis"),
        "app.create": ("ImageStream {app}", "Deployment {app}"),
        "eos.mount": ("PersistentVolumeClaim eos-volume", ""),
        "volume.share": ("PersistentVolumeClaim shared", ""),
        "deploy.schedule": ("ServiceAccount {app}-schedule", "CronJob {app}-schedule"),
        "nginx.add": ("ConfigMap {app}-nginx", "Deployment {app}-nginx"),
        "deploy.promote": ("ImageStream {app}", "")}
"""What is there after a step was killed inside, and what is not there yet."""


@pytest.fixture(scope="module")
def whole(guide: Guide, tmp_path_factory: pytest.TempPathFactory) -> Guide:
    """The guide with two instances that together want every standing step: training, and production that follows it."""
    folder = tmp_path_factory.mktemp("instances")
    for build, changes in (("training", EVERYTHING), ("production", FOLLOWING)):
        table = tomllib.loads((ROOT / "instances" / f"{build}.toml").read_text())
        (folder / f"{build}.toml").write_text("\n".join(toml(laid_over(table, changes))) + "\n")
    return replace(guide, folder=folder)


@pytest.mark.needs("databases", "audit", "inside")
def test_killed_inside_every_step_and_run_once_more_it_is_complete_and_undo_leaves_nothing(whole: Guide) -> None:
    """Run k is killed with -9 inside step k, one more run completes, the next writes nothing, undo leaves things as they were."""
    builds, before, reached = ("training", "production"), {}, set[str]()
    for build in builds:
        instance, options = whole.instance(build), [f"--build={build}", "--target=local"]
        wanted = [step.name for step in RUNBOOK.standing if step.wanted(instance)]
        to_kill, last = [name for name in wanted if name not in reached], STANDING.index("database.password")
        for step in (name for name in to_kill if STANDING.index(name) <= last):
            killed(whole, build, step)
            reached.add(step)
        whole("guide.run", *options, "--to=database.password")
        whole("project.request", *options)  # which the password does not need
        if instance.sso.way == "portal":
            whole("sso.register", *options)
        before[build] = whole.snapshot(build)  # What a person did before is not taken back by undo.
        before[build]["objects"].pop("Lease guide", None)  # It was the killed run's.
        for step in (name for name in to_kill if STANDING.index(name) > last):
            written = killed(whole, build, step)
            seen = whole.seen(build)
            objects = seen["objects"]
            if step in HALF:
                there, missing = (name.format(app=instance.app) for name in HALF[step])
                assert (there in objects, missing in objects) == (True, False), step
                assert any(f"guide%2F{step}" in write for write in written), (step, written)
            if step == "deploy.build":
                assert [name for name in objects if name.startswith(f"Build {instance.app}-")], "it was killed while it built"
            if step == "database.role":
                assert instance.database.role in {row[0] for row in seen["roles"]} and f"Secret {instance.app}-database" not in objects
            if step == "database.create":
                assert instance.database.name in dict(seen["databases"])
            reached.add(step)
        whole("guide.run", *options)
        place, log = whole.audit_end(), whole.stack.state.databases / instance.database.instance / "log"
        end = log.stat().st_size
        states = {name: found["state"] for name, found in whole.outcomes("guide.run", *options).items()}
        assert states == {name: "unchanged" if name in wanted else "skipped" for name in STANDING}
        assert whole.writes(place) == []
        assert [line for line in log.read_text()[end:].splitlines() if "statement:" in line and "admin@" in line] == []
        assert whole.web().request("GET", f"{instance.url}/")[0] == 200
    assert reached == set(STANDING), "together they want every step"

    for build in reversed(builds):
        options, db = [f"--build={build}", "--target=local"], whole.instance(build).database
        kept = whole("guide.undo", *options)
        assert "kept, it holds data" in kept.stdout
        assert whole.sql(build, f"SELECT 1 FROM pg_database WHERE datname = '{db.name}'")
        assert "PersistentVolumeClaim shared" in whole.seen(build)["objects"] or not whole.instance(build).volume.mount
        said = whole("guide.undo", *options, "--data", "--yes").stdout
        assert "The former password is not known any more" in said
        if whole.instance(build).sso.way == "return-uri":  # Where nobody asked for it before, the platform keeps it from then on.
            managed = whole.snapshot(build)["objects"]["Secret oidc-client-secret"]
            before[build]["objects"]["Secret oidc-client-secret"] = managed
        with contextlib.suppress(TimeoutError):  # Pods take their grace period, and the platform clears up behind them.
            wait_until(lambda build=build: whole.snapshot(build) == before[build], "the platform to clear up", 120, pause=1)
        assert whole.snapshot(build) == before[build]
