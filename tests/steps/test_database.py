"""Dumps of the app's database on the stack: made, put back, and what happens when something is in the way."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stack.api import wait_until
from tests.guide import ROOT, Site


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
    import psycopg2

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
    failed = site("database.restore", *words, "--yes", code=1)
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
            wait_until(lambda: bool(child(run.pid)), "pg_dump to run", 30)
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


def test_only_the_newest_are_kept(site: Site) -> None:
    site.change({"database": {"keep": 2}})
    made = [backup(site)]
    assert made[-1] in files(site) and len(files(site)) <= 2
    site.change({"database": {"keep": None}})
