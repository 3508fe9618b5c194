"""The Redis server: the platform's own template, filled in on our side."""

import dataclasses
import json
from pathlib import Path

import pytest

from procedures import redis
from runbook.plan import Object, WaitFor

SHAPES = Path(__file__).parents[2] / "stack" / "openshift"
STREAM = {"status": {"tags": [{"tag": "7-el9", "items": [{"dockerImageReference": "quay.io/sclorg/redis-7-c9s@sha256:7"}]},
                              {"tag": "6-el9", "items": []}]}}
KNOWN = {Object("Template", "redis-ephemeral", "openshift"): json.loads((SHAPES / "template-redis-ephemeral.json").read_text()),
         Object("ImageStream", "redis", "openshift"): STREAM}


def wanting(instance, **changes):
    return dataclasses.replace(instance, redis=dataclasses.replace(instance.redis, **changes))


def test_the_templates_objects_are_filled_in(plan, instance, named):
    values = plan(redis.add, wanting(instance, name="cache", memory="256Mi"), KNOWN)
    assert named(values, "Service", "cache")["spec"]["selector"] == {"name": "cache"}
    (container,) = named(values, "Deployment", "cache")["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["memory"] == "256Mi"
    assert "${" not in json.dumps([v.manifest for v in values if hasattr(v, "manifest")], default=str)


def test_the_password_is_a_reference(plan, instance, named):
    secret = named(plan(redis.add, instance, KNOWN), "Secret", "redis")
    assert secret["stringData"] == {"database-password": redis.password(instance)}


def test_no_command_line_names_the_password(plan, instance, named):
    (container,) = named(plan(redis.add, instance, KNOWN), "Deployment")["spec"]["template"]["spec"]["containers"]
    assert " -a " in json.dumps(KNOWN[Object("Template", "redis-ephemeral", "openshift")]), "the template's own would show it"
    assert container["readinessProbe"] == {"timeoutSeconds": 1, "initialDelaySeconds": 5,
                                           "exec": {"command": ["/bin/sh", "-c", redis.ASKED]}}


def test_a_server_made_from_the_template_keeps_its_probe(plan, instance, named):
    template = KNOWN[Object("Template", "redis-ephemeral", "openshift")]
    theirs = next(each for each in template["objects"] if each["kind"] == "Deployment")
    values = plan(redis.add, instance, KNOWN | {Object("Deployment", "redis"): theirs})
    (container,) = named(values, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["readinessProbe"] == theirs["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]


def test_the_labels_of_the_template_are_kept(plan, instance, named):
    labels = named(plan(redis.add, instance, KNOWN), "Deployment")["metadata"]["labels"]
    assert labels["template"] == "redis-ephemeral-template"


def test_the_first_image_is_the_streams(plan, instance, named):
    (container,) = named(plan(redis.add, instance, KNOWN), "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "quay.io/sclorg/redis-7-c9s@sha256:7"


def test_the_image_that_the_trigger_set_stays(plan, instance, named):
    deployed = {"spec": {"template": {"spec": {"containers": [{"name": "redis", "image": "registry/redis@sha256:moved"}]}}}}
    values = plan(redis.add, instance, KNOWN | {Object("Deployment", "redis"): deployed})
    assert named(values, "Deployment")["spec"]["template"]["spec"]["containers"][0]["image"] == "registry/redis@sha256:moved"


@pytest.mark.fault(24)
def test_a_tag_that_is_gone_is_refused_with_those_there_are(plan, instance, unmet):
    assert unmet(plan(redis.add, wanting(instance, version="5-el8"), KNOWN)) == ["it has 6-el9, 7-el9"]
    assert unmet(plan(redis.add, instance, KNOWN)) == []


def test_no_image_stream_is_said(plan, instance, unmet):
    known = KNOWN | {Object("ImageStream", "redis", "openshift"): None}
    assert unmet(plan(redis.add, instance, known)) == ["there is no image stream redis in the namespace openshift"]


def test_the_roll_out_is_waited_for(plan, instance):
    assert plan(redis.add, instance, KNOWN)[-1] == WaitFor(Object("Deployment", "redis"), redis.rolled_out)


def test_a_parameter_that_is_a_whole_value_keeps_its_type():
    template = {"parameters": [{"name": "N", "value": "x"}], "objects": [
        {"metadata": {"name": "${N}-a"}, "spec": {"size": "${{SIZE}}", "gone": None}, "status": {}}]}
    assert redis.filled(template, {"SIZE": 3}) == [{"metadata": {"name": "x-a", "labels": {}}, "spec": {"size": 3}}]


@pytest.mark.parametrize(("pods", "found"), [
    (1, ["a DeploymentConfig redis runs 1 of it, and a Deployment beside it would be a second server of this name"]),
    (0, []), (None, [])])
def test_two_servers_never_share_a_name(plan, instance, unmet, pods, *, found):
    """The template made a DeploymentConfig until 2023: a Deployment beside it would answer every second question."""
    known = KNOWN | ({} if pods is None else {Object("DeploymentConfig", "redis"): {"spec": {"replicas": pods}}})
    values = plan(redis.add, instance, known)
    assert unmet(values) == found
    cures = [value.cure for value in values if getattr(value, "found", "")]
    assert all("oc scale dc/redis --replicas=0" in cure for cure in cures)
