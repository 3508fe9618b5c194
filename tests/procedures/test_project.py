"""The web site request: a person's step."""

import dataclasses

from procedures import project
from runbook.plan import Ask, Object


def test_the_form_is_filled_from_the_instance_file(plan, instance):
    (ask,) = plan(project.request, instance)
    assert isinstance(ask, Ask)
    assert ask.values == {
        "name": "dev-certhelper", "type": "PaaS Web Application", "category": "Official", "owner": "tkdqmdoc",
        "description": "Certification helper of the CMS tracker group, development",
        "administrators": "cms-tracker-certhelper-admins"}


def test_done_is_when_the_project_exists(plan, instance):
    (ask,) = plan(project.request, instance)
    assert ask.until == Object("Namespace", "dev-certhelper")


def test_a_test_site_is_asked_for_as_one(plan, instance):
    instance = dataclasses.replace(instance, site=dataclasses.replace(instance.site, category="Test"))
    assert plan(project.request, instance)[0].values["category"] == "Test"


def test_it_is_a_persons_step_and_the_first():
    assert project.request.person
    assert project.request.needs == ()
