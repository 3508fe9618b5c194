"""The app's database on the stack: who is let in and as whom, passwords in turns, another server, and dumps."""

from __future__ import annotations

import base64
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from procedures import RUNBOOK
from runbook.doctor import recognized
from runbook.instance import Database
from runbook.plan import rolled_out
from stack import postgres
from stack.api import wait_until
from stack.compose import database as contained
from tests.guide import ROOT, Site

pytestmark = pytest.mark.needs("cluster", "database", "databases", "redis", "portal", "sign-on", "node", "builder", "router")


def sql(site: Site, statement: str) -> list[tuple[Any, ...]]:
    """Execute as the administrator, who is a member of the app's role, in the app's database."""
    db = site.instance.database
    connection = administrator(site)
    try:
        with connection.cursor() as cursor:
            cursor.execute(f'SET ROLE "{db.role}"')
            cursor.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []
    finally:
        connection.close()


def administrator(site: Site) -> Any:
    db, state = site.instance.database, site.guide.stack.state
    connection = psycopg2.connect(host=db.host, hostaddr="127.0.0.1", port=db.port, user=db.administrator, dbname=db.name,
                                  passfile=str(state.pgpass), sslmode="verify-full", sslrootcert=str(state.ca))
    connection.autocommit = True
    return connection


def folder(site: Site) -> Path:
    found: Path = site.guide.stack.state.path("data") / "certhelper-guide/backups" / f"{site.name}.local"
    return found


def files(site: Site) -> set[Path]:
    """Return every file in the folder of dumps, the hidden ones too."""
    return set(folder(site).iterdir()) if folder(site).exists() else set()


def backup(site: Site) -> Path:
    before = files(site)
    said = site("database.backup").stdout
    (made,) = files(site) - before
    assert str(made) in said
    return made


def pods(site: Site) -> set[str]:
    return {pod["metadata"]["uid"] for pod in site.guide.stack.api.list("Pod", site.instance.project)
            if pod["metadata"]["name"].startswith(site.instance.app)}


def domain(site: Site) -> str:
    return str(sql(site, "SELECT name FROM django_site")[0][0])


def log_in(site: Site) -> tuple[str, str]:
    """Return the role and the password that the project's Secret holds."""
    data = site.guide.stack.api.get("Secret", f"{site.instance.app}-database", site.instance.project)["data"]
    user, password = (base64.b64decode(data[f"DJANGO_DATABASE_{key}"]).decode() for key in ("USER", "PASSWORD"))
    return user, password


def connected(site: Site, user: str, password: str, database: str = "", at: Database | None = None) -> Any:
    """Return a connection as a role, in autocommit, to the site's server or another."""
    db, state = at or site.instance.database, site.guide.stack.state
    connection = psycopg2.connect(host=db.host, hostaddr="127.0.0.1", port=db.port, user=user, password=password,
                                  dbname=database or db.name, sslmode="verify-full", sslrootcert=str(state.ca))
    connection.autocommit = True
    return connection


def refused(site: Site, user: str, password: str) -> str:
    """Return the server's words when it refuses a log-in, "" when it does not."""
    try:
        connected(site, user, password).close()
    except psycopg2.OperationalError as error:
        return str(error)
    return ""


def all_is_well(site: Site) -> None:
    """Wait until fresh pods are there, which a step does not do for an app that did not run before, and see that it is so."""
    def settled() -> bool:
        found = site.guide.stack.api.get("Deployment", site.instance.app, site.instance.project)
        return not rolled_out.test(found) and database_answers(site) == 200

    wait_until(settled, "the app to be well again", 120, pause=0.3)
    assert {s["state"] for s in site.outcomes("guide.status").values()} <= {"done", "not wanted"}


@pytest.mark.fault(25)
def test_a_rotation_is_noticed_by_no_visitor_and_ends_the_former_password(site: Site) -> None:
    owner = site.instance.database.role
    for _ in range(2):  # There and back: each of the two roles gets the other's turn.
        former, (user, _) = log_in(site), log_in(site)
        with site.visited("/database/") as answers:
            site("database.role", "--rotate")
            site("database.role", "--rotate", code=1)  # The pods would be shut out.
            site("environment.set")
            assert not refused(site, *former), "the former log-in was taken away before the pods had another"
            site("deploy.retire")
            going = site.guide.stack.api.list("Pod", site.instance.project, labelSelector=f"app={site.instance.app}")
            assert not [pod for pod in going if "deletionTimestamp" in pod["metadata"]], "a pod with the former log-in is still asked"
        assert len(answers) > 10 and set(answers) == {200}
        now = log_in(site)
        assert now[0] != user and now[1] != former[1]
        assert not refused(site, *now)
        assert "not permitted to log in" in refused(site, *former)
        with closing(connected(site, *now)) as connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE made (); SELECT tableowner FROM pg_tables WHERE tablename = 'made'")
            assert cursor.fetchone() == (owner,)
            cursor.execute("DROP TABLE made")
        all_is_well(site)
        assert {s["state"] for s in site.outcomes("guide.run").values()} <= {"unchanged", "skipped"}
    assert log_in(site)[0] == owner


def test_a_password_changed_under_the_pods_would_be_noticed(site: Site) -> None:
    with site.visited("/database/") as answers, closing(administrator(site)) as connection, connection.cursor() as cursor:
        cursor.execute(f"ALTER ROLE \"{log_in(site)[0]}\" PASSWORD 'another'")
        wait_until(lambda: 500 in answers, "a visitor to notice")
    site("database.role")
    all_is_well(site)


def test_a_log_in_that_pods_have_is_not_taken_away(site: Site) -> None:
    former = log_in(site)
    site("database.role", "--rotate")
    asked = site("deploy.retire", code=1)
    assert "environment.set" in asked.stderr
    assert not refused(site, *former)
    assert site.outcomes("guide.status", code=3)["deploy.retire"]["state"] != "done"
    site("guide.run")  # Everything that is left to do is part of the guide.
    assert refused(site, *former)
    all_is_well(site)


def test_as_the_other_role_dumps_are_made_and_put_back_and_both_roles_go_with_the_data(site: Site) -> None:
    owner = site.instance.database.role
    assert log_in(site)[0] != owner
    made, former = backup(site), domain(site)
    sql(site, "UPDATE django_site SET name = 'changed'")
    site("database.restore", f"--file={made}", "--yes")
    assert domain(site) == former
    owners = "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    assert sql(site, owners) == [(owner,)]
    site("database.create", "--undo", "--data", "--yes")
    site("environment.set", "--undo")
    site("database.role", "--undo", "--data", "--yes")
    with closing(postgres_as_administrator(site)) as connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT rolname FROM pg_roles WHERE rolname LIKE '{owner}%'")
        assert cursor.fetchall() == []
    site("guide.run")
    assert log_in(site)[0] == owner
    all_is_well(site)


def postgres_as_administrator(site: Site) -> Any:
    """Return a connection to the database that is always there."""
    db, state = site.instance.database, site.guide.stack.state
    line = next(line for line in state.pgpass.read_text().splitlines() if line.startswith(f"{db.host}:{db.port}:"))
    return connected(site, db.administrator, line.rsplit(":", 1)[1], "postgres")


@pytest.mark.fault(26)
def test_the_app_makes_no_role_no_database_and_reads_nobody_elses(site: Site) -> None:
    beyond = ["CREATE ROLE beyond", "CREATE DATABASE beyond"]
    with closing(postgres_as_administrator(site)) as admin, admin.cursor() as cursor:
        cursor.execute("CREATE DATABASE others")
        try:
            with closing(connected(site, *log_in(site))) as app, app.cursor() as mine:
                for statement in beyond:
                    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                        mine.execute(statement)
            administrators = admin.info.password
            with closing(connected(site, site.instance.database.administrator, administrators, "others")) as theirs, \
                    theirs.cursor() as inside:
                inside.execute("CREATE TABLE theirs (); SELECT * FROM theirs")
            with closing(connected(site, *log_in(site), "others")) as app, app.cursor() as mine:
                for statement in ("SELECT * FROM theirs", "CREATE TABLE mine ()", "DROP TABLE theirs"):
                    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                        mine.execute(statement)
            for statement in beyond:  # The administrator may: what was refused is refused to the app.
                cursor.execute(statement)
        finally:
            cursor.execute("DROP DATABASE IF EXISTS others")
            cursor.execute("DROP DATABASE IF EXISTS beyond")
            cursor.execute("DROP ROLE IF EXISTS beyond")


@contextmanager
def without_the_pods_line(site: Site) -> Iterator[None]:
    """Take the pods' network out of the server's pg_hba.conf, as somebody may in the file editor."""
    state = site.guide.stack.state
    hba = state.databases / site.instance.database.instance / "pg_hba.conf"
    before = hba.read_text()

    def write(text: str) -> None:
        state.write(str(hba.relative_to(state.root)), text)
        if state.kind == "compose":
            contained.reload(state)
            return
        with postgres._superuser(state, hba.parent) as cursor:
            cursor.execute("SELECT pg_reload_conf()")

    write("".join(line for line in before.splitlines(keepends=True) if site.instance.database.network not in line))
    assert hba.read_text() != before
    try:
        yield
    finally:
        write(before)


NOT_TRIED = "not tried, as no pod of the app runs; it may be done already"


def database_answers(site: Site) -> int:
    return site.guide.web().request("GET", f"{site.instance.url}/database/")[0]


def doctors(site: Site, words: str) -> dict[str, Any]:
    """Return what the doctor says of the evidence in which the words stand."""
    said = [json.loads(line) for line in site("guide.doctor", "--json", code=3).stdout.splitlines()]
    found: dict[str, Any] = next(one for one in said if words in one.get("symptom", ""))
    return found


@pytest.mark.fault(27)
def test_an_address_that_is_not_listed_is_named_by_the_server_and_cured_by_the_step(site: Site) -> None:
    with without_the_pods_line(site):
        wait_until(lambda: database_answers(site) != 200, "the server to shut the pods out")
        found = site.outcomes("guide.status", code=3)["database.access"]
        (note,) = [detail["note"] for detail in found["detail"]]
        assert found["state"] != "done"
        # The app's pod says it itself, as long as it is ready; later its log does, where the doctor finds it.
        words = r'no pg_hba.conf entry for host "[\d.]+", user "\w+", database "\w+", SSL encryption'
        assert re.fullmatch(f"{words}|{NOT_TRIED}", note), note
        known = doctors(site, "SSL encryption")
        assert known["command"] == f"invoke database.access --build={site.name}" and "is not listed" in known["cause"]
        assert site.outcomes("database.access")["database.access"]["state"] == "changed"
    all_is_well(site)


def test_an_app_without_a_pod_makes_nobody_add_the_line_again(site: Site) -> None:
    api, project = site.guide.stack.api, site.instance.project
    api.patch("Deployment", site.instance.app, {"spec": {"replicas": 0}}, project)
    wait_until(lambda: not api.list("Pod", project, labelSelector=f"app={site.instance.app}"), "the pods to go")
    (detail,) = site.outcomes("guide.status", code=3)["database.access"]["detail"]
    assert detail["note"] == NOT_TRIED
    assert site.outcomes("database.access")["database.access"]["state"] == "unchanged"
    site("guide.run")
    all_is_well(site)


@pytest.mark.fault(27)
def test_who_comes_without_tls_is_told_that_and_not_that_an_address_is_missing(site: Site) -> None:
    site.change({"environment": {"PGSSLMODE": "disable"}})
    try:
        failed = site("environment.set", code=1)
        assert re.search(r'no pg_hba.conf entry for host "[\d.]+", user "\w+", database "\w+", no encryption', failed.stderr)
        best = recognized(RUNBOOK, failed.stderr)[0]
        assert best.step and best.step.name == "database.access" and "PGSSLMODE=require" in best.cause
        known = doctors(site, "no encryption")
        assert "PGSSLMODE=require" in known["cause"]
        assert site.outcomes("guide.status", code=3)["database.access"]["state"] == "done", "the address is listed"
    finally:
        site.change({"environment": {"PGSSLMODE": None}})
        site("environment.set")
        site("guide.run")
    all_is_well(site)


@pytest.mark.fault(6)
def test_a_wrong_port_is_found_before_anything_uses_it(site: Site) -> None:
    site.change({"local": {"database": {"port": "{database_port_6}"}}})
    try:
        found = site.outcomes("guide.status", code=3)["database.request"]
        db = site.instance.database
        assert found["state"] == "waiting"
        (note,) = [detail["note"] for detail in found["detail"]]
        assert note.startswith(f"{db.host}:{db.port} ")
        assert f"{db.host}:{db.port}" in site("database.create", code=1).stderr
    finally:
        site.change({"local": {"database": {"port": "{database_port_4}"}}})
    all_is_well(site)


@pytest.mark.fault(6)
def test_a_running_site_moves_to_another_server_with_its_data(site: Site) -> None:
    """By the commands of docs/database.md, "Another server"."""
    old = site.instance.database
    former, name = log_in(site), f"{site.name}moved"
    sql(site, "UPDATE django_site SET name = 'taken along'")
    made = backup(site)
    site.change({"database": {"instance": name, "host": f"dbod-{name}.cern.ch"},
                 "local": {"database": {"host": f"dbod-{name}.localhost", "port": "{database_port_6}"}}})
    try:
        assert site.outcomes("guide.status", code=3)["database.role"]["state"] != "done"
        site("guide.run", "--to=database.create")
        site("database.access")
        site("database.restore", f"--file={made}", "--yes")
        site("guide.run")
        new = site.instance.database
        assert (new.host, new.port) != (old.host, old.port)
        assert domain(site) == "taken along"
        assert not refused(site, *former), "the app has its password there too"
        all_is_well(site)
        # Whoever looks at the old server's data changes nothing that the site shows.
        with closing(connected(site, *former, at=old)) as connection, connection.cursor() as cursor:
            cursor.execute("UPDATE django_site SET name = 'left behind'")
        assert domain(site) == "taken along"
    finally:
        site.change({"database": {"instance": old.instance, "host": f"dbod-{old.instance}.cern.ch"},
                     "local": {"database": {"host": old.host, "port": "{database_port_4}"}}})
        site("guide.run")
        postgres.drop(site.guide.stack.state, name)
    assert domain(site) == "left behind"
    all_is_well(site)


def test_a_password_that_somebody_changed_on_the_server_is_given_by_a_file(site: Site, tmp_path: Path) -> None:
    user, former = log_in(site)
    with closing(administrator(site)) as connection, connection.cursor() as cursor:
        cursor.execute(f"ALTER ROLE \"{user}\" PASSWORD 'changed-elsewhere'")
    file = tmp_path / "password"
    file.write_text("changed-elsewhere\n")
    file.chmod(0o600)
    site("database.role", RUNBOOK_DATABASE_FILE=str(file))
    assert log_in(site) == (user, "changed-elsewhere")
    assert not refused(site, user, "changed-elsewhere")
    assert site.outcomes("guide.status", code=3)["environment.set"]["state"] == "drifted"
    site("environment.set")
    all_is_well(site)
    file.write_text(former)
    site("database.role", RUNBOOK_DATABASE_FILE=str(file))
    assert "password authentication failed" in refused(site, user, "changed-elsewhere")
    site("environment.set")
    all_is_well(site)


@pytest.fixture(scope="module")
def dump(site: Site) -> Iterator[Path]:
    """A dump of the site."""
    former = domain(site)
    sql(site, "UPDATE django_site SET name = 'as dumped'")
    yield backup(site)
    sql(site, f"UPDATE django_site SET name = '{former}'")


def test_a_dump_brings_back_what_was_changed_and_takes_away_what_came_later(site: Site, dump: Path) -> None:
    assert stat.S_IMODE(dump.stat().st_mode) == 0o600
    assert stat.S_IMODE(dump.parent.stat().st_mode) == 0o700
    sql(site, "UPDATE django_site SET name = 'changed'")
    sql(site, "CREATE TABLE later (site integer REFERENCES django_site (id))")
    replicas = site.guide.stack.api.get("Deployment", site.instance.app, site.instance.project)["spec"]["replicas"]
    site("database.restore", f"--file={dump}", "--yes")
    assert domain(site) == "as dumped"
    assert sql(site, "SELECT to_regclass('later')") == [(None,)]
    owners = "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    assert sql(site, owners) == [(site.instance.database.role,)]
    live = site.guide.stack.api.get("Deployment", site.instance.app, site.instance.project)
    assert (live["spec"]["replicas"], live["status"]["readyReplicas"]) == (replicas, replicas)
    assert site.guide.web().request("GET", f"{site.instance.url}/database/")[0] == 200
    assert {s["state"] for s in site.outcomes("guide.status").values()} <= {"done", "not wanted"}


def test_without_an_answer_nothing_is_replaced(site: Site, dump: Path) -> None:
    sql(site, "UPDATE django_site SET name = 'changed'")
    asked = site("database.restore", f"--file={dump}", code=75)
    assert "Everything in the database" in asked.stderr
    assert domain(site) == "changed"


@pytest.mark.parametrize("broken", ["text", "cut", "gone", "none"])
def test_a_broken_file_leaves_everything_as_it_was(site: Site, dump: Path, tmp_path: Path, broken: str) -> None:
    sql(site, "UPDATE django_site SET name = 'changed'")
    before, file = pods(site), tmp_path / "broken.dump"
    if broken == "text":
        file.write_text("no dump\n")
    if broken == "cut":
        whole = dump.read_bytes()
        file.write_bytes(whole[:len(whole) * 2 // 3])
    words = [] if broken == "none" else [f"--file={file}"]
    failed = site("database.restore", *words, "--yes", code=2)
    assert str(dump if broken == "none" else file) in failed.stderr
    assert domain(site) == "changed"
    assert pods(site) == before


def test_a_restore_that_the_server_refuses_is_taken_back_whole_and_the_app_runs_again(site: Site, dump: Path) -> None:
    sql(site, "UPDATE django_site SET name = 'changed'")
    connection = administrator(site)
    name = site.instance.database.role
    with connection.cursor() as cursor:  # A thing in the way: it is not the app's, so it is not dropped.
        cursor.execute('CREATE SCHEMA another; ALTER TABLE django_session SET SCHEMA another')
        cursor.execute("CREATE TABLE public.django_session ()")
        try:
            failed = site("database.restore", f"--file={dump}", "--yes", code=1)
            assert "the restore was taken back whole" in failed.stderr and "django_session" in failed.stderr
            assert domain(site) == "changed"
            live = site.guide.stack.api.get("Deployment", site.instance.app, site.instance.project)
            assert live["spec"]["replicas"] == site.instance.deploy.replicas
        finally:
            cursor.execute("DROP TABLE public.django_session")
            cursor.execute(f'ALTER TABLE another.django_session SET SCHEMA public; DROP SCHEMA another; SET ROLE "{name}"')
    connection.close()


def test_a_wrong_password_is_one_sentence_and_no_file(site: Site) -> None:
    before, db = files(site), site.instance.database
    connection = administrator(site)
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER ROLE \"{db.role}\" PASSWORD 'another'")
    connection.close()
    failed = site("database.backup", code=1)
    assert "password authentication failed" in failed.stderr and "database.create" in failed.stderr
    assert files(site) == before
    site("database.role")
    backup(site)


def test_a_killed_pg_dump_leaves_no_file_and_its_arguments_no_password(site: Site) -> None:
    before = files(site)
    connection = administrator(site)
    connection.autocommit = False
    with connection.cursor() as cursor:  # The dump waits for this table, so that there is time to look.
        cursor.execute(f'SET ROLE "{site.instance.database.role}"; LOCK TABLE django_site IN ACCESS EXCLUSIVE MODE')
        command = [sys.executable, "-m", "runbook", "database.backup", f"--build={site.name}"]
        with subprocess.Popen(command, env=site.guide.environment | site.environment, cwd=ROOT, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
            wait_until(lambda: bool(child(run.pid)), "pg_dump to run")
            pid, words = child(run.pid)[0]
            assert words == ["--format=custom", "--no-password"]
            os.kill(pid, 9)
            error = run.communicate(timeout=60)[1]
    connection.rollback()
    connection.close()
    assert run.returncode == 1
    assert "it was killed by signal 9" in error
    assert files(site) == before


def child(parent: int) -> list[tuple[int, list[str]]]:
    """Return the pg_dump of a process that writes a dump, and its arguments."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_text().rstrip("\0").split("\0")
            mine = int((process / "stat").read_text().rpartition(")")[2].split()[1]) == parent
        except OSError:
            continue
        if mine and words[0].endswith("pg_dump") and "--format=custom" in words:
            found.append((int(process.name), words[1:]))
    return found


def test_a_missing_or_older_pg_dump_is_one_sentence(site: Site, tmp_path: Path) -> None:
    before = files(site)
    missing = site("database.backup", code=1, RUNBOOK_POSTGRESQL_PROGRAMS=str(tmp_path))
    assert "there is no pg_dump" in missing.stderr and "dnf install postgresql" in missing.stderr
    old = tmp_path / "pg_dump"
    old.write_text("#!/bin/sh\necho 'pg_dump (PostgreSQL) 9.6.24'\n")
    old.chmod(0o755)
    refused = site("database.backup", code=1, RUNBOOK_POSTGRESQL_PROGRAMS=str(tmp_path))
    assert "is of version 9, and the server of" in refused.stderr
    assert files(site) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a small disk")
def test_a_full_disk_is_one_sentence_and_no_half_file(site: Site, tmp_path: Path) -> None:
    guide = f"{sys.executable} -m runbook database.backup --build={site.name}"
    command = f"mount -t tmpfs -o size=16k none {tmp_path} && {guide}; code=$?; find {tmp_path} -type f; exit $code"
    done = subprocess.run(["unshare", "-m", "sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False,
                          env=site.guide.environment | site.environment | {"XDG_DATA_HOME": str(tmp_path)}, timeout=120)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr and "name another folder" in done.stderr
    assert str(tmp_path) not in done.stdout, "a half file is left"


def builds(site: Site) -> dict[str, str]:
    """Return the builds and when each was made."""
    return {build["metadata"]["name"]: str(build["metadata"]["creationTimestamp"])
            for build in site.guide.stack.api.list("Build", site.instance.project)}


def test_a_dump_is_made_before_a_running_app_is_replaced_or_nothing_is(site: Site, tmp_path: Path) -> None:
    site.change({"deploy": {"backup": True}})
    try:
        before, started, there = files(site), builds(site), pods(site)
        failed = site("deploy.build", "--again", "--yes", code=1, RUNBOOK_POSTGRESQL_PROGRAMS=str(tmp_path))
        assert "there is no pg_dump" in failed.stderr
        assert (files(site), builds(site), pods(site)) == (before, started, there)
        site("deploy.build", "--again", "--yes")
        (made,) = files(site) - before
        (began,) = (builds(site)[name] for name in builds(site).keys() - started.keys())
        stamp = re.search(r"-(\d{8})-(\d{6})Z", made.name)
        assert stamp and stamp[1] + stamp[2] <= re.sub(r"\D", "", began)
    finally:
        site.change({"deploy": {"backup": None}})
    before = files(site)
    site("deploy.build", "--again", RUNBOOK_POSTGRESQL_PROGRAMS=str(tmp_path))  # Without the setting no dump is needed.
    assert files(site) == before


def test_only_the_newest_are_kept(site: Site) -> None:
    site.change({"database": {"keep": 2}})
    made = [backup(site)]
    assert made[-1] in files(site) and len(files(site)) <= 2
    site.change({"database": {"keep": None}})
