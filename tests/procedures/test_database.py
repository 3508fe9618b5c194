"""The database: requests to people, and SQL that knows when it is done."""

import base64
import dataclasses

import pytest

from procedures import database, deploy
from runbook.plan import Admitted, Answers, Apply, Credential, Execute, LogIn, Object, Require


def executed(values):
    return [value for value in values if isinstance(value, Execute)]


def test_the_request_is_proved_by_a_server_that_answers(plan, instance):
    (ask,) = plan(database.request, instance)
    assert ask.until == Answers("dbod-devcertdb.cern.ch", 6611)
    assert ask.values == {"name": "devcertdb", "type": "PostgreSQL", "owner": "tkdqmdoc"}


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


def test_the_secret_comes_before_the_password(plan, instance):
    """Killed in between, the next run must find the password that it set."""
    values = plan(database.role, instance)
    (kept,) = [value for value in values if isinstance(value, Apply)]
    assert kept.manifest["metadata"]["name"] == "certification-helper-database"
    assert kept.manifest["stringData"]["DJANGO_DATABASE_PASSWORD"] == database.app_password(instance)
    assert kept.manifest["stringData"]["DJANGO_DATABASE_PORT"] == "6611"
    (last,) = values[values.index(kept) + 1:]
    assert last.credential == database.app_password(instance)


def test_the_apps_password_is_done_when_a_log_in_works(plan, instance):
    (change,) = [value for value in executed(plan(database.role, instance)) if value.credential]
    assert change.unless == LogIn("certhelper", database.app_password(instance))


def held(user, *, revision="7", marked="7", updated=1):
    """What is there when the Secret holds a log-in and the pods were started with one of its revisions."""
    app = "certification-helper"
    mark = {"guide/secrets": f"{app}-database={marked},redis=1"}
    return {Object("Secret", f"{app}-database"): {"metadata": {"resourceVersion": revision},
                                                  "data": {"DJANGO_DATABASE_USER": base64.b64encode(user.encode()).decode()}},
            Object("Deployment", app): {"metadata": {"generation": 1},
                                        "spec": {"replicas": 1, "template": {"metadata": {"annotations": mark}}},
                                        "status": {"observedGeneration": 1, "replicas": 1, "readyReplicas": 1,
                                                   "updatedReplicas": updated}}}


@pytest.mark.parametrize(("user", "rotate", "then"), [
    ("certhelper", False, "certhelper"), ("certhelper_b", False, "certhelper_b"),
    ("certhelper", True, "certhelper_b"), ("certhelper_b", True, "certhelper")])
def test_two_roles_take_turns_and_only_a_rotation_changes_the_turn(plan, instance, user, rotate, then):
    values = plan(database.role, instance, held(user) | {"rotate": rotate})
    (kept,) = [value for value in values if isinstance(value, Apply)]
    assert kept.manifest["stringData"]["DJANGO_DATABASE_USER"] == then
    assert values[-1].statement.startswith(f'ALTER ROLE "{then}" LOGIN PASSWORD')
    assert not [value for value in values if isinstance(value, Require) and value.found]


@pytest.mark.parametrize("there", [{"marked": "6"}, {"updated": 0}], ids=["not begun", "going on"])
def test_a_rotation_waits_for_the_pods_of_the_one_before(plan, instance, there):
    asked = [value for value in plan(database.role, instance, held("certhelper", **there) | {"rotate": True})
             if isinstance(value, Require)]
    assert asked[0].found and "environment.set" in asked[0].cure


def test_the_log_in_that_the_pods_have_is_never_taken_away(plan, instance):
    for user, other in (("certhelper", "certhelper_b"), ("certhelper_b", "certhelper")):
        known = held(user, marked="6")
        (order,) = plan(deploy.retire, instance, known)
        assert order.statement == f'ALTER ROLE "{other}" NOLOGIN'
        live = known[Object("Deployment", "certification-helper")]
        assert order.after.condition.test(live) and order.after.condition.failed(live)
        known = held(user)
        (order,) = plan(deploy.retire, instance, known)
        assert not order.after.condition.test(known[Object("Deployment", "certification-helper")])


def test_the_app_is_not_the_administrator(plan, instance):
    statements = " ".join(value.statement for value in executed(plan(database.role, instance)))
    assert 'CREATE ROLE "certhelper" LOGIN' in statements
    assert "SUPERUSER" not in statements
    assert "CREATEDB" not in statements


@pytest.mark.fault(7)
def test_what_goes_without_a_statement_says_whose_it_is(plan, instance):
    said = [value.instead for value in executed(plan(database.role, instance)) if value.instead]
    assert said
    assert sorted(set(said)) == sorted(said)
    assert all("certhelper" in each for each in said)


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
