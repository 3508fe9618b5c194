"""The database: requests to people, and SQL that knows when it is done."""

import dataclasses

import pytest

from procedures import database
from runbook.plan import Admitted, Answers, Apply, Credential, Execute, LogIn


def executed(values):
    return [value for value in values if isinstance(value, Execute)]


@pytest.mark.fault(6)
def test_the_request_is_proved_by_a_server_that_answers(plan, instance):
    (ask,) = plan(database.request, instance)
    assert ask.until == Answers("dbod-devcertdb.cern.ch", 6611)
    assert ask.values == {"name": "devcertdb", "type": "PostgreSQL", "owner": "tkdqmdoc"}


@pytest.mark.fault(6)
def test_only_the_local_portal_is_told_the_port(plan, local):
    """At CERN the service chooses it."""
    assert plan(database.request, local)[0].values["port"] == 5501


def test_access_is_proved_from_a_pod_with_tls(plan, instance):
    (ask,) = plan(database.access, instance)
    assert isinstance(ask.until, Admitted)
    assert (ask.until.role, ask.until.database) == ("certhelper", "certhelperdb")
    assert "hostssl all all 188.184.0.0/15 scram-sha-256" in ask.deed


def test_the_network_is_the_instances(plan, instance):
    instance = dataclasses.replace(instance, database=dataclasses.replace(instance.database, network="10.0.0.0/8"))
    assert plan(database.access, instance)[0].values == {"name": "devcertdb", "network": "10.0.0.0/8"}


@pytest.mark.fault(27)
def test_the_two_refusals_of_pg_hba_are_told_apart():
    symptoms = [symptom for symptom, _ in database.access.otherwise]
    assert any("no encryption" in symptom for symptom in symptoms)
    assert any("SSL encryption" in symptom for symptom in symptoms)


@pytest.mark.fault(25)
def test_a_password_is_never_in_a_statement(plan, instance):
    for step in (database.password, database.role):
        for value in executed(plan(step, instance)):
            if "PASSWORD" in value.statement:
                assert "'{verifier}'" in value.statement
                assert isinstance(value.credential, Credential)


def test_the_administrators_password_stays_out_of_the_cluster(plan, instance):
    values = plan(database.password, instance)
    assert not [value for value in values if isinstance(value, Apply)]
    assert values[0].keep == "administrator"
    assert values[0].credential.secret == ""


def test_a_changed_password_is_marked_on_the_role_itself(plan, instance):
    values = executed(plan(database.password, instance))
    assert "guide: password changed" in " ".join(value.statement for value in values)
    assert all("guide: password changed" in value.unless for value in values)


def test_the_secret_comes_before_the_role(plan, instance):
    """Killed in between, the next run must find the password that it set."""
    first, *rest = plan(database.role, instance)
    assert isinstance(first, Apply)
    assert first.manifest["metadata"]["name"] == "certification-helper-database"
    assert first.manifest["stringData"]["DJANGO_DATABASE_PASSWORD"] == database.app_password(instance)
    assert first.manifest["stringData"]["DJANGO_DATABASE_PORT"] == "6611"
    assert all(isinstance(value, Execute) for value in rest)


def test_the_apps_password_is_done_when_a_log_in_works(plan, instance):
    (change,) = [value for value in executed(plan(database.role, instance)) if value.credential]
    assert change.unless == LogIn("certhelper", database.app_password(instance))


@pytest.mark.fault(26)
def test_the_app_is_not_the_administrator(plan, instance):
    statements = " ".join(value.statement for value in executed(plan(database.role, instance)))
    assert 'CREATE ROLE "certhelper" LOGIN' in statements
    assert "SUPERUSER" not in statements
    assert "CREATEDB" not in statements


@pytest.mark.fault(7, 26)
def test_the_database_belongs_to_the_apps_role(plan, instance):
    create, owner, *_ = plan(database.create, instance)
    assert create.statement == 'CREATE DATABASE "certhelperdb" OWNER "certhelper"'
    assert "datname = 'certhelperdb'" in create.unless
    assert "certhelper" in owner.unless


def test_what_holds_data_is_taken_back_only_on_purpose(plan, instance):
    for step in (database.role, database.create):
        for value in executed(plan(step, instance)):
            if value.undo:
                assert value.data
                assert value.undo_unless


def test_every_statement_knows_when_it_is_done(plan, instance):
    for step in (database.password, database.role, database.create):
        assert all(value.unless for value in executed(plan(step, instance)))
