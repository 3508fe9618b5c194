"""Database instances: TLS only, an `admin` who is no superuser, networks let in one by one."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg2
import pytest

from stack import binaries, commands, postgres
from stack.api import wait_until
from stack.errors import StackError
from stack.state import State

pytestmark = pytest.mark.needs("database", "databases", "hba")


@pytest.fixture(scope="module")
def database(stack) -> Iterator[postgres.Database]:
    yield postgres.create(stack.state, "core_trial")
    postgres.drop(stack.state, "core_trial")


def ask(state: State, database: postgres.Database, sql: str, **changed: Any) -> list[tuple[Any, ...]]:
    wanted = {"host": database.host, "hostaddr": "127.0.0.1", "port": database.port, "user": "admin",
              "dbname": "postgres", "password": database.admin_password, "sslmode": "verify-full",
              "sslrootcert": str(state.ca)}
    with closing(psycopg2.connect(**wanted | changed)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall()) if cursor.description else []


def test_admin_makes_databases_and_roles_and_is_no_superuser(stack, database):
    assert ask(stack.state, database, "SELECT rolcreatedb, rolcreaterole, rolsuper FROM pg_roles"
                                      " WHERE rolname = 'admin'") == [(True, True, False)]
    ask(stack.state, database, "CREATE ROLE owner LOGIN")
    ask(stack.state, database, "GRANT owner TO admin")
    ask(stack.state, database, "CREATE DATABASE things OWNER owner")
    ask(stack.state, database, "DROP DATABASE things")
    ask(stack.state, database, "DROP ROLE owner")
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        ask(stack.state, database, "COPY (SELECT 1) TO PROGRAM 'true'")


def test_nobody_comes_in_without_tls(stack, database):
    with pytest.raises(psycopg2.OperationalError, match="no encryption"):
        ask(stack.state, database, "SELECT 1", sslmode="disable")


def test_a_wrong_password_and_a_wrong_authority_are_refused(stack, database, tmp_path):
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        ask(stack.state, database, "SELECT 1", password="wrong")
    with pytest.raises(psycopg2.OperationalError, match=r"certificate verify failed|root certificate"):
        ask(stack.state, database, "SELECT 1", sslrootcert=str(tmp_path / "none.crt"))


def test_the_superuser_is_out_of_reach(stack, database):
    with pytest.raises(psycopg2.OperationalError):
        ask(stack.state, database, "SELECT 1", user="postgres", password="x")


def test_the_password_file_that_the_person_keeps_is_enough(stack, database, monkeypatch):
    monkeypatch.setenv("PGPASSFILE", str(stack.state.pgpass))
    assert ask(stack.state, database, "SELECT 1", password=None) == [(1,)]
    for path in (stack.state.pgpass, stack.state.mail / "dbod-core_trial.txt"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_made_twice_is_made_once(stack, database):
    ask(stack.state, database, "ALTER ROLE admin CONNECTION LIMIT 50")
    assert postgres.create(stack.state, "core_trial") == database
    assert ask(stack.state, database, "SELECT rolconnlimit FROM pg_roles WHERE rolname = 'admin'") == [(50,)]
    assert stack.state.pgpass.read_text().count(database.host) == 1


def test_a_network_is_let_in_by_one_line(stack, database):
    hba = stack.state.databases / "core_trial" / "pg_hba.conf"
    assert "10.244.0.0/24" not in hba.read_text()
    for _ in range(2):
        postgres.admit(stack.state, "core_trial", "10.244.0.0/24")
    assert [line.split() for line in hba.read_text().splitlines()].count(
        ["hostssl", "all", "all", "10.244.0.0/24", "scram-sha-256"]) == 1
    with postgres._superuser(stack.state, hba.parent) as cursor:
        wait_until(lambda: cursor.execute("SELECT count(*) FROM pg_hba_file_rules WHERE address = '10.244.0.0'"
                                          " AND error IS NULL") or cursor.fetchone()[0], "the rule")


def test_the_log_tells_who_changed_what_and_no_password(stack, database):
    ask(stack.state, database, "SELECT 'canary-read'")
    ask(stack.state, database, "CREATE TEMPORARY TABLE canary_written (n int)")
    log = (stack.state.databases / "core_trial" / "log").read_text()
    assert "admin@postgres LOG:  statement: CREATE TEMPORARY TABLE canary_written" in log
    assert "canary-read" not in log
    assert database.admin_password not in log
    assert "contains errors" not in log
    assert list(commands.logs(stack.state, "database-core_trial"))


def test_a_server_that_is_killed_comes_back_with_its_data(stack, database):
    ask(stack.state, database, "CREATE ROLE kept")
    row = next(row for row in commands.status(stack.state)["parts"] if row["part"] == "database-core_trial")
    assert row["address"] == f"127.0.0.1:{database.port}"
    assert row["version"]
    import os
    import signal

    os.kill(row["pid"], signal.SIGKILL)

    def comes_back() -> list[tuple[Any, ...]]:
        try:
            return ask(stack.state, database, "SELECT 1 FROM pg_roles WHERE rolname = 'kept'")
        except psycopg2.OperationalError:
            return []
    wait_until(lambda: next((each["restarts"] for each in commands.status(stack.state)["parts"]
                             if each["part"] == row["part"]), 0), "a restart")
    assert wait_until(comes_back, "the server") == [(1,)]
    ask(stack.state, database, "DROP ROLE kept")


@pytest.mark.parametrize("kept", ["", "here", "quicker"])
def test_what_initdb_makes_is_kept_for_the_next_instance(stack, tmp_path, monkeypatch, kept):
    """`here`: from an earlier time. `quicker`: another stack's was put there while ours was made."""
    monkeypatch.setenv("RUNBOOK_CACHE", str(tmp_path))
    place = tmp_path / "databases" / f"initdb-{binaries.find('initdb').version}"
    if kept == "here":
        (place / "there").mkdir(parents=True)
    if kept == "quicker":
        begin = postgres._as_postgres
        monkeypatch.setattr(postgres, "_as_postgres", lambda state: (place / "there").mkdir(parents=True) or begin(state))
    assert postgres._fresh(stack.state) == place
    assert {path.name for path in place.parent.iterdir()} == {place.name}, "something half made is left"
    assert (place / "there").exists() == bool(kept) and (place / "PG_VERSION").exists() != bool(kept)
    assert postgres._fresh(stack.state) == place


def test_a_cache_that_cannot_be_used_is_one_sentence(stack, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RUNBOOK_CACHE", str(tmp_path / "file"))
    with pytest.raises(StackError, match=r"the cache folder .*/file/databases cannot be used: Not a directory; .*RUNBOOK_CACHE$"):
        postgres._fresh(stack.state)


def test_an_instance_that_cannot_be_copied_is_one_sentence(stack, tmp_path, monkeypatch):
    monkeypatch.setattr(postgres, "_fresh", lambda _: tmp_path / "gone")
    with pytest.raises(StackError, match=r"the database instance never cannot be made: .*gone.*No such file"):
        postgres.create(stack.state, "never")
    assert "database-never" not in {row["part"] for row in commands.status(stack.state)["parts"]}


def test_a_dropped_instance_leaves_nothing(stack):
    state = stack.state
    made = postgres.create(state, "short-lived")
    assert made.host == "dbod-short-lived.localhost"
    slot = state.ports.databases.index(made.port)
    postgres.drop(state, "short-lived")
    postgres.drop(state, "short-lived")
    assert not (state.databases / "short-lived").exists()
    assert not (state.mail / "dbod-short-lived.txt").exists()
    assert made.host not in state.pgpass.read_text()
    assert not list(state.path("run", f"db{slot}").iterdir())
    again = postgres.create(state, "short-lived")
    assert again.port == made.port
    assert again.admin_password != made.admin_password
    postgres.drop(state, "short-lived")


@pytest.mark.parametrize("name", ["", "Big", "../up", "a" * 40, "a b", "1st"])
def test_a_name_that_cannot_be_one(stack, name):
    with pytest.raises(StackError, match="cannot be the name of a database instance"):
        postgres.create(stack.state, name)


def test_what_is_no_network_or_no_instance(stack, database):
    with pytest.raises(StackError, match="is not a network"):
        postgres.admit(stack.state, "core_trial", "everywhere")
    with pytest.raises(StackError, match="there is no database instance nowhere"):
        postgres.admit(stack.state, "nowhere", "10.0.0.0/8")
