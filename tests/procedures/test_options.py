"""Which options a step's command takes: those that its plan can have for any instance."""

import dataclasses

import pytest

from procedures import adopt, app, sso
from runbook import options
from runbook.observed import Observed
from runbook.plan import Object

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
