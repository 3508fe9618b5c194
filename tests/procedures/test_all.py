"""What holds of all steps together: no field in two steps, an order, a page's worth of words."""

import dataclasses
import itertools

import pytest

from procedures import RUNBOOK
from runbook import markdown, options
from runbook.apply import undo
from runbook.observed import Observed
from runbook.plan import Apply, Ask, Execute, Inside, Object, Patch, Require, Restore, Scale, StartBuild, Write, marked
from runbook.step import step as make

STEPS = pytest.mark.parametrize("step", RUNBOOK.steps, ids=lambda step: step.name)
MERGE_KEYS = ("containerPort", "mountPath", "name", "port", "type")
"""The merge keys of the lists that the plans use; a list without one belongs to one step whole."""


def leaves(node, path=()):
    """Yield the path of every field, and of every list without merge key as one field."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from leaves(value, (*path, key))
    elif isinstance(node, list) and (key := merge_key(node)):
        for item in node:
            rest = {name: value for name, value in item.items() if name != key}
            yield from leaves(rest, (*path, f"{key}={item[key]}")) if rest else [(*path, f"{key}={item[key]}")]
    else:
        yield path


def merge_key(items):
    return next((key for key in MERGE_KEYS if items and all(isinstance(i, dict) and key in i for i in items)), None)


def fields(step, instance):
    """Return the fields that a step applies, by object; the object's own name is no field."""
    applied = set()
    for value in step.plan(instance, Observed()):
        if isinstance(value, Apply):
            manifest = marked(value, step.manager)
            for path in leaves(manifest):
                if path not in (("apiVersion",), ("kind",), ("metadata", "name"), ("metadata", "namespace")):
                    applied.add((str(value.object), *path))
    return applied


def everything(instance):
    """Return the instance with every optional part switched on."""
    clock = dataclasses.replace(instance.schedule, cron="0 0 * * 1,5")
    source = dataclasses.replace(instance.source, private=True, private_packages="gitlab.cern.ch")
    volume = dataclasses.replace(instance.volume, mount="/shared")
    return dataclasses.replace(instance, schedule=clock, source=source, volume=volume, environment={"SITE_ID": "1"},
                               secrets={"SCRIPT_PASSWORD": "password of a remote script"})


@pytest.mark.parametrize("where", ["instance", "local"])
def test_no_field_is_applied_by_two_steps(where, request):
    instance = everything(request.getfixturevalue(where))
    applied = {step: fields(step, instance) for step in RUNBOOK.steps if not step.undoes}
    for one, other in itertools.combinations(applied, 2):
        for path, mine in itertools.product(applied[one], applied[other]):
            shared = path[:len(mine)] == mine or mine[:len(path)] == path
            assert not shared, f"{one.name} and {other.name} both apply {'.'.join(max(path, mine, key=len))}"


def test_two_steps_with_one_field_would_be_seen(instance):
    assert ("Deployment a", "spec", "replicas") in {("Deployment a", *p) for p in leaves({"spec": {"replicas": 1}})}
    assert list(leaves({"env": [{"name": "A", "value": "1"}], "command": ["a", "b"]})) == [
        ("env", "name=A", "value"), ("command",)]


def test_the_needs_give_an_order():
    names = [step.name for step in RUNBOOK.standing]
    assert len(names) == len([s for s in RUNBOOK.steps if not s.operation])
    for step in RUNBOOK.standing:
        assert all(names.index(need.name) < names.index(step.name) for need in step.needs if not need.operation)


def test_every_need_is_a_step_of_the_runbook():
    assert {need for step in RUNBOOK.steps for need in step.needs} <= set(RUNBOOK.steps)


def test_names_are_unique():
    names = [step.name for step in RUNBOOK.steps]
    assert sorted(set(names)) == sorted(names)


@STEPS
def test_a_step_says_what_it_does_and_what_to_see(step):
    assert step.summary[0].isupper()
    assert step.summary.endswith(".")
    assert step.see.endswith(".")
    assert step.otherwise, "the reader is not told what to do when it is not seen"
    for symptom, cure, *_ in step.otherwise:
        assert symptom
        assert cure.endswith(".")


CHANGING = (Apply, Execute, Patch, Restore, Scale, StartBuild, Write)


def untold(step, instance):
    """Return whether a step's page leaves out how it is taken back, or tells it of a step that changes nothing."""
    values = list(step.plan(instance, Observed()))
    changes = any(isinstance(value, CHANGING) or (isinstance(value, Inside) and value.unless) for value in values)
    return bool(step.back) if not changes else not (step.back or markdown.taken_back(values))


@STEPS
def test_a_page_that_says_that_nothing_changes_tells_the_truth(step, instance):
    assert not untold(step, instance)


def test_a_way_back_that_is_left_out_would_be_seen(instance):
    def moved(_instance, _observed):
        yield Patch(Object("Route", "a"), {"spec": {}}, "it leads elsewhere")

    def looked(_instance, _observed):
        yield Require("all is well", "", "")

    assert untold(make(operation=True)(moved), instance)
    assert not untold(make(operation=True, back="Move it back.")(moved), instance)
    assert untold(make(operation=True, back="Move it back.")(looked), instance)


@STEPS
@pytest.mark.parametrize("where", ["instance", "local"])
def test_a_plan_can_be_made_from_nothing(step, where, request):
    """As the page does it: nothing is known, nothing is wrong, something is said."""
    values = list(step.plan(request.getfixturevalue(where), Observed()))
    assert values
    assert not [value for value in values if getattr(value, "found", "")]


@STEPS
def test_a_plan_is_the_same_each_time(step, instance):
    assert repr(list(step.plan(instance, Observed()))) == repr(list(step.plan(instance, Observed())))


@STEPS
def test_every_option_has_a_default_and_a_meaning(step):
    for option in step.options.values():
        assert option.default is not option.empty
        assert option.annotation.__metadata__[0].endswith(".")


def test_what_a_person_did_is_said_not_to_be_undone(instance):
    asked = [action for step in RUNBOOK.standing for action in options.outline(step, instance, Observed())
             if isinstance(action, Ask) and action.instead]
    assert asked
    for action in asked:
        assert undo(action, None, "") == (False, f"not undone: {action.instead}")
