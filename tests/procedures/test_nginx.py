"""The proxy before the app: what it hands on, and when the Route leads to it."""

import dataclasses

import pytest

from procedures import app, nginx
from runbook.plan import Apply, Look, Object, Patch, Revision

STREAM = {Object("ImageStream", "nginx", "openshift"): {"status": {"tags": [
    {"tag": "1.26-ubi9", "items": [{"dockerImageReference": "registry/nginx@sha256:1"}]}]}}}


def wanting(instance, **changes):
    return dataclasses.replace(instance, nginx=dataclasses.replace(instance.nginx, wanted=True, **changes))


def leading(instance, to):
    return {Object("Route", instance.app): {"spec": {"to": {"name": to}}}}


@pytest.mark.fault(16, 17)
def test_it_hands_on_what_the_app_needs(instance):
    text = nginx.configuration(instance)
    for line in (f"server {instance.app}:8080", "proxy_set_header Host $http_host", "X-Forwarded-Proto $scheme_of_browser",
                 "X-Forwarded-For $proxy_add_x_forwarded_for", "Upgrade $http_upgrade", "map $http_upgrade"):
        assert line in text
    assert "unix:" not in text


def test_the_image_is_pinned_to_what_the_tag_means(plan, instance, named):
    made = named(plan(nginx.add, wanting(instance), STREAM), "Deployment")
    assert made["spec"]["template"]["spec"]["containers"][0]["image"] == "registry/nginx@sha256:1"


def test_a_tag_that_is_gone_is_refused_with_those_there_are(plan, instance, unmet):
    assert unmet(plan(nginx.add, wanting(instance, version="1.8"), STREAM)) == ["the image stream nginx has 1.26-ubi9"]


def test_another_configuration_is_another_pod(plan, instance, named):
    template = named(plan(nginx.add, wanting(instance)), "Deployment")["spec"]["template"]
    assert template["metadata"]["annotations"] == {nginx.CONFIGURATION: Revision((Object("ConfigMap", app.proxy(instance)),))}


def test_the_route_is_switched_last_and_switched_back_first(plan, instance):
    values = plan(nginx.add, wanting(instance))
    switch = next(place for place, v in enumerate(values) if isinstance(v, Patch))
    assert all(isinstance(v, Look) for v in values[switch + 1:])
    assert [v.object.kind for v in values[:switch] if isinstance(v, Apply)] == ["ConfigMap", "Deployment", "Service"]
    assert values[switch].undo["spec"]["to"]["name"] == instance.app


@pytest.mark.parametrize(("wanted", "leads", "to"), [(True, "nginx", "nginx"), (True, "app", "app"), (False, "nginx", "app")])
def test_the_apps_own_step_leaves_the_route_where_it_was_put(plan, instance, named, wanted, leads, *, to):
    names = {"nginx": app.proxy(instance), "app": instance.app}
    changed = dataclasses.replace(instance, nginx=dataclasses.replace(instance.nginx, wanted=wanted))
    made = named(plan(app.create, changed, leading(instance, names[leads])), "Route")
    assert made["spec"]["to"]["name"] == names[to]
