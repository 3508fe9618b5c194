"""What must hold before the guide can work: each lack has its line, its cure, and none of them hides another."""

import dataclasses

import pytest

from procedures import RUNBOOK, prerequisites, quota
from runbook.clients.cluster import KINDS
from runbook.observed import Machine, Rule
from runbook.plan import Apply, Ask, LoggedIn, Patch, Require, Show
from tests.procedures.test_all import everything

GOOD = Machine(programs={"python": "3.12.1", "git": "2.45", "oc": "", "pg_dump": "17.2"}, network="", login="", user="ann",
               database="", rules=(Rule(("*",), ("*",), ("*",)),), quota=("requests.cpu: 100m of 1",),
               applies={"ImageStream": "", "BuildConfig": "", "Route": ""})


def seen(plan, instance, machine):
    """Return the table as a mapping, and what does not hold."""
    values = plan(prerequisites.check, instance, {"machine": machine})
    (table,) = [value for value in values if isinstance(value, Show)]
    return {row[0]: row[1:] for row in table.rows}, {v.what: v.cure for v in values if isinstance(v, Require) and v.found}


def test_oc_is_optional_and_the_table_says_where_it_is(plan, instance):
    table, missing = seen(plan, instance, GOOD)
    assert missing == {}
    found, cure = table["oc, which the guide does not need"]
    assert found == "missing" and "lxplus" in cure and "Command Line Tools" in cure


@pytest.mark.parametrize(("lack", "what", "cure"), [
    ({"programs": GOOD.programs | {"git": ""}}, "git is there", "install git"),
    ({"network": "api:443 does not answer"}, "the API server can be reached", "sshuttle"),
    ({"login": "no log-in to a cluster"}, "somebody is logged in", "prerequisites.login"),
    ({"rules": (Rule(("",), ("secrets",), ("get",)),)}, "you may do what the steps do", "administrator"),
    ({"applies": {"Route": "unsupported media type"}}, "server-side apply is taken", "looks after the guide"),
])
def test_each_lack_is_named_with_its_cure(plan, instance, lack, what, cure):
    _, missing = seen(plan, instance, dataclasses.replace(GOOD, **lack))
    assert list(missing) == [what]
    assert cure in missing[what]


def test_before_there_is_a_project_nothing_is_asked_of_it(plan, instance):
    fresh = dataclasses.replace(GOOD, rules=None, quota=(), applies={}, database="dbod:6611 does not answer")
    table, missing = seen(plan, instance, fresh)
    assert missing == {}
    assert "project.request" in table["project"][1]
    assert "database.request" in table["database server"][1]


def test_rights_are_named_by_verb_and_resource(instance):
    machine = dataclasses.replace(GOOD, rules=(Rule(("*",), ("*",), ("get", "list", "create", "patch")),))
    assert "delete deployments.apps" in prerequisites.forbidden(instance, machine)
    assert prerequisites.forbidden(instance, GOOD) == []


@pytest.mark.parametrize("way", ["portal", "return-uri"])
def test_the_rights_are_those_that_the_plans_of_all_steps_take(plan, instance, way):
    wanted = everything(dataclasses.replace(instance, sso=dataclasses.replace(instance.sso, way=way)))
    made = set()
    for value in (value for step in RUNBOOK.steps for value in plan(step, wanted) if isinstance(value, Apply | Patch)):
        served, kind = KINDS[value.object.kind], value.object.kind.lower()
        made.add((served.removeprefix("apis/").partition("/")[0] if served.startswith("apis/") else "", f"{kind}s"))
    assert made <= set(prerequisites.resources(wanted))
    # Leases hold a run, and nobody's plan names them.
    assert set(prerequisites.resources(wanted)) - made == {("coordination.k8s.io", "leases")}


@pytest.mark.parametrize(("line", "room"), [
    ("requests.cpu: 100m of 1", True), ("requests.cpu: 950m of 1", False), ("pods: 10 of 10", False), ("pods: 9 of 10", True),
    ("persistentvolumeclaims: 4 of 4", False), ("persistentvolumeclaims: 3 of 4", True)])
def test_a_quota_that_leaves_no_room_has_a_cure(plan, instance, line, room):
    table, missing = seen(plan, instance, dataclasses.replace(GOOD, quota=(line,)))
    assert table["quota"] == (line, "" if room else quota.MORE)
    assert missing == {}


def test_at_cern_a_person_logs_in_and_on_the_stack_nobody_has_to(plan, instance, local):
    (ask,) = plan(prerequisites.login, instance)
    assert isinstance(ask, Ask) and ask.until == LoggedIn(instance.api)
    assert "oc sso-login" in ask.deed and "oc login --web" in ask.deed and "token" in ask.where
    assert not [value for value in plan(prerequisites.login, local) if isinstance(value, Ask)]
