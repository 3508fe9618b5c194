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
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from procedures import RUNBOOK
from stack.api import wait_until
from tests.guide import Guide

ROOT = Path(__file__).parent.parent
STANDING = [step.name for step in RUNBOOK.standing]


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


@pytest.mark.fault(36)
def test_the_websocket_echoes_through_redis(deployed: Guide) -> None:
    instance = deployed.instance("dev")
    answer = deployed.web().echo(f"{instance.url}{instance.deploy.websocket}", "canary-4711")
    assert "canary-4711" in answer


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


def test_a_deleted_secret_is_named_and_made_again(deployed: Guide) -> None:
    instance = deployed.instance("dev")
    before = deployed.stack.api.get("Secret", f"{instance.app}-sso", instance.project)
    deployed.stack.member.delete("Secret", f"{instance.app}-sso", instance.project)
    status = deployed.outcomes("guide.status", "--build=dev", code=3)
    assert status["sso.secret"]["state"] != "done"
    deployed("guide.run", "--build=dev")
    after = deployed.stack.api.get("Secret", f"{instance.app}-sso", instance.project)
    assert after["data"] == before["data"]
    assert deployed.web().request("GET", f"{instance.url}/")[0] == 200


def test_a_dropped_role_is_named_and_made_again(deployed: Guide) -> None:
    db = deployed.instance("dev").database
    for statement in (f'REASSIGN OWNED BY "{db.role}" TO "{db.administrator}"', f'DROP OWNED BY "{db.role}"'):
        deployed.sql("dev", statement, db.name)
    deployed.sql("dev", f'ALTER DATABASE "{db.name}" OWNER TO "{db.administrator}"')
    deployed.sql("dev", f'DROP ROLE "{db.role}"')
    status = deployed.outcomes("guide.status", "--build=dev", code=3)
    assert status["database.role"]["state"] in {"missing", "drifted"}
    deployed("guide.run", "--build=dev")
    text = deployed.web().request("GET", f"{deployed.instance('dev').url}/database/")[1]
    assert json.loads(text)["role"] == db.role


def test_an_image_changed_by_hand_is_named_and_repaired(deployed: Guide) -> None:
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


@pytest.mark.fault(9, 10, 22, 25, 29)
def test_no_secret_leaves_its_place(deployed: Guide) -> None:
    """Every value of every Secret is a canary: none is in a log, the journal, an image, or what commands print."""
    project = deployed.instance("dev").project
    canaries = {base64.b64decode(value).decode() for found in deployed.stack.api.list("Secret", project)
                for key, value in (found.get("data") or {}).items() if re.search("PASS|SECRET|password|secret", key)}
    canaries |= {line.rsplit(":", 1)[1] for line in deployed.stack.state.pgpass.read_text().splitlines()}
    canaries = {value for value in canaries if len(value) >= 16}
    assert len(canaries) >= 5
    printed = [deployed(*words.split(), code=None) for words in
               ("guide.plan --build=dev", "guide.status --build=dev --json", "guide.run --build=dev --json", "stack.status --json")]
    texts = {"output": "".join(p.stdout + p.stderr for p in printed)}
    places = [deployed.stack.state.logs, deployed.stack.state.images, deployed.stack.state.path("journal")]
    for place in places:
        for path in [place] if place.is_file() else place.rglob("*"):
            if path.is_file() and not path.is_symlink() and path.stat().st_size < 5_000_000:
                texts[str(path)] = path.read_bytes().decode(errors="replace")
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            texts[str(path)] = path.read_text(errors="replace")
    leaks = {name for name, text in texts.items() for value in canaries if value in text}
    assert leaks == set()


@pytest.mark.parametrize(("words", "code", "says"), [
    (["guide.run", "--build=devv"], 2, "did you mean dev?"),
    (["app.create", "--build=dev", "--data"], 2, "app.create has no option '--data'; did you mean --target"),
    (["guide.run"], 2, "which instance?"),
    (["guide.run", "--build=training"], 2, "--target=cern"),
    (["guide.run", "--build=dev", "--to=redis.ad"], 2, "redis.add"),
    (["redis.ad", "--build=dev"], 2, "redis.add"),
    (["redis.add", "--bild=dev"], 2, "--build"),
    (["guide.run", "--build=dev", "--target=mars"], 2, "local or cern"),
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


def variant(tmp_path: Path, **changes: str) -> str:
    """Return a folder of instance files whose dev.toml has lines replaced."""
    text = (ROOT / "instances" / "dev.toml").read_text()
    for old, new in changes.values():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "dev.toml").write_text(text)
    return str(tmp_path)


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
    folder = variant(tmp_path, change=(old, new))
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
    folder = variant(tmp_path, change=('branch = "develop"', 'branch = "broken"'))
    failed = deployed("guide.run", "--build=dev", code=1, RUNBOOK_INSTANCES=folder)
    for word in ("deploy.build", "docs/deploy.md", "the-planted-failure", "Failed"):
        assert word in failed.stderr, failed.stderr
    assert deployed.web().request("GET", f"{instance.url}/")[0] == 200
    deployed("guide.run", "--build=dev")
    assert {s["state"] for s in deployed.outcomes("guide.status", "--build=dev").values()} <= {"done", "not wanted"}


def test_what_no_step_names_any_more_is_an_orphan(deployed: Guide, tmp_path: Path) -> None:
    folder = variant(tmp_path, change=("[sso]", '[redis]\nname = "redis2"\n\n[sso]'))
    deployed("redis.add", "--build=dev", RUNBOOK_INSTANCES=folder)
    said = deployed("guide.status", "--build=dev", code=3).stdout
    assert re.findall(r"(\w+) redis2: no step names it", said) == ["Deployment", "Secret", "Service"]
    deployed("redis.add", "--build=dev", "--undo", RUNBOOK_INSTANCES=folder)
    deployed("guide.status", "--build=dev")


def test_killed_inside_every_step_and_run_once_more_it_is_complete_and_undo_leaves_nothing(guide: Guide) -> None:
    """One pass over the training instance: run k is killed with -9 inside step k, the last run completes, undo cleans up."""
    build = ["--build=training", "--target=local"]
    for person in ("database.access", "database.password"):  # What a person did is not taken back by undo.
        guide("guide.run", *build, f"--to={person}")
    project = guide.instance("training").project
    before = guide.snapshot("training")
    for step in STANDING[STANDING.index("database.password") + 1:]:
        with subprocess.Popen([sys.executable, "-m", "runbook", "guide.run", *build, "--json"], env=guide.environment,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd="/") as run:
            assert run.stdout is not None
            wanted = STANDING[STANDING.index(step) - 1]
            for line in run.stdout:
                if json.loads(line)["step"] == wanted:
                    break
            with contextlib.suppress(subprocess.TimeoutExpired):
                run.wait(0.05)  # Somewhere inside the next step; a step that is through by then was safe to kill as well.
            run.send_signal(signal.SIGKILL)
    guide("guide.run", *build)
    assert {s["state"] for s in guide.outcomes("guide.run", *build).values()} <= {"unchanged", "skipped"}
    assert guide.web().request("GET", f"{guide.instance('training').url}/")[0] == 200

    kept = guide("guide.undo", *build)
    assert "kept, it holds data" in kept.stdout
    db = guide.instance("training").database
    assert guide.sql("training", f"SELECT 1 FROM pg_database WHERE datname = '{db.name}'")
    said = guide("guide.undo", *build, "--data", "--yes").stdout
    assert "The former password is not known any more" in said
    wait_until(lambda: not guide.stack.api.list("Pod", project), "the pods to end: they take their grace period", 60)
    assert guide.snapshot("training") == before
