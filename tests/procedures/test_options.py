"""Which options a step's command takes: those that its plan can have for any instance."""

import dataclasses
import re

import pytest

from procedures import adopt, app, sso
from runbook import options
from runbook.observed import Observed
from runbook.plan import Object
from tasks import ns

CRON = {"metadata": {"name": "by-hand"}, "spec": {"jobTemplate": {"spec": {"template": {"spec": {"containers": [
    {"name": "c", "args": ["curl", "https://x/buildconfigs/certification-helper/webhooks/y/generic"]}]}}}}}}


@pytest.fixture
def managed(instance):
    return dataclasses.replace(instance, sso=dataclasses.replace(instance.sso, way="return-uri"))


def names(step, *instances):
    return [option.name for option in options.offered(step, instances)]


def test_what_one_instance_needs_is_offered_for_all(instance, managed):
    assert "force" in names(sso.register, instance, managed)
    assert "force" not in names(sso.register, instance)


def test_a_step_that_says_force_takes_it(instance):
    """What it changes is known only by looking, and the command line is read before that."""
    assert {"force", "undo"} <= set(names(adopt.suspend, instance))
    assert not {"force", "undo"} & set(names(app.logs, instance))


def test_what_is_observed_adds_no_option(instance):
    seen = options.outline(adopt.suspend, instance, Observed(known={Object("CronJob", "*"): [CRON]}))
    assert {option.name for option in options.of(adopt.suspend, seen)} <= set(names(adopt.suspend, instance))


def test_without_an_instance_every_option_is_taken():
    assert names(app.logs) == [option.name for option in options.OPTIONS]


def foreign(meanings):
    """Return the options that the meanings of a task's options speak of, and that the task does not have."""
    spoken = {word for meaning in meanings.values() for word in re.findall(r"--([a-z]+)", meaning)}
    return spoken - set(meanings)


def test_help_speaks_only_of_options_that_the_task_has():
    wrong = {name: foreign({argument.name: argument.help or "" for argument in ns[name].get_arguments()}) for name in ns.task_names}
    assert len(wrong) > 30
    assert {name: words for name, words in wrong.items() if words} == {}
    assert foreign({"data": "With --undo: delete it.", "yes": ""}) == {"undo"}  # the twin
