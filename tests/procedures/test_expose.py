"""Who may visit the site."""

import dataclasses

import pytest

from procedures import expose, prerequisites
from runbook.plan import Apply, Confirm, Look, Object, Patch


def wanting(instance, internet, category="Official"):
    site = dataclasses.replace(instance.site, category=category)
    return dataclasses.replace(instance, site=site, expose=dataclasses.replace(instance.expose, internet=internet))


def listed(instance, **annotations):
    return {Object("Route", instance.app): {"metadata": {"annotations": annotations}}}


def test_an_empty_list_is_everybody(plan, instance):
    (part,) = [v for v in plan(expose.open, wanting(instance, internet=True)) if isinstance(v, Apply)]
    assert part.part
    assert part.manifest["metadata"] == {"name": instance.app, "annotations": {expose.WHITELIST: "", expose.EXPOSED: "internet"}}


@pytest.mark.parametrize(("annotations", "closed"), [
    ({expose.DEFAULT: "10.1.0.0/16 10.2.0.0/16"}, "10.1.0.0/16 10.2.0.0/16"),
    ({}, prerequisites.NETWORKS), ({expose.DEFAULT: ""}, prerequisites.NETWORKS)])
def test_taken_back_the_route_has_the_projects_own_list_and_never_an_empty_one(plan, instance, annotations, closed):
    known = {Object("Namespace", instance.project): {"metadata": {"annotations": annotations}}}
    (patch,) = [v for v in plan(expose.open, wanting(instance, internet=True), known) if isinstance(v, Patch)]
    assert patch.undo == {"metadata": {"annotations": {expose.WHITELIST: closed}}}


def test_a_test_site_cannot_be_exposed(plan, instance, unmet):
    assert unmet(plan(expose.open, wanting(instance, internet=True, category="Test"))) == [
        "sites of the category Test cannot be exposed"]


@pytest.mark.parametrize(("internet", "value", "found"), [
    (True, "", []),
    (True, "10.0.0.0/8", ["its list of networks is 10.0.0.0/8"]),
    (False, "10.0.0.0/8", []),
    (False, "", ["its list of networks is empty: everybody may come"]),
    (False, None, ["there is no list of networks, so who may come is not known"]),
    (True, None, ["there is no list of networks, so not everybody may come"]),
])
def test_the_route_is_compared_with_the_setting(plan, instance, unmet, internet, value, *, found):
    known = listed(instance, **({} if value is None else {expose.WHITELIST: value}))
    assert unmet(plan(expose.verify, wanting(instance, internet=internet), known)) == found


def test_at_cern_a_person_looks_from_outside_and_here_the_stack_does(plan, instance, local):
    assert isinstance(plan(expose.verify, instance)[-1], Confirm)
    last = plan(expose.verify, local)[-1]
    assert isinstance(last, Look)
    assert (last.outside, last.refused) == (True, True)
