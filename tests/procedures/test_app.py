"""The app's own objects: what is applied, and what is left as the platform moved it."""

import dataclasses
import json

import pytest

from procedures import app
from runbook.plan import Credential, Object, Require, WaitFor

STREAM = Object("ImageStream", "python", "openshift")
PYTHON = {"status": {"tags": [{"tag": "3.12-ubi9"}, {"tag": "3.9-ubi9"}]}}
LATEST = "registry/dev-certhelper/certification-helper@sha256:new"


def deployed(image, replicas=1):
    return {"metadata": {"name": "certification-helper"}, "spec": {"replicas": replicas, "template": {"spec": {
        "containers": [{"name": "sidecar", "image": "other"}, {"name": "certification-helper", "image": image}]}}}}


def known(instance, *, deployment=None, tagged=""):
    items = [{"dockerImageReference": tagged, "image": tagged.partition("@")[2]}] if tagged else []
    return {STREAM: PYTHON, Object("Deployment", instance.app): deployment,
            Object("ImageStream", instance.app): {"status": {"tags": [{"tag": "latest", "items": items}]}}}


@pytest.mark.parametrize(("replicas", "refused"), [(0, True), (1, False)])
def test_a_stopped_app_is_not_restarted(plan, instance, replicas, refused):
    found = deployed(LATEST, replicas)
    found["metadata"]["generation"] = 1
    values = plan(app.restart, instance, {Object("Deployment", instance.app): found})
    assert [value.cure for value in values if isinstance(value, Require) and value.found] == \
        ["`invoke guide.run --build=dev` starts it"] * refused


def test_the_objects_of_an_app(plan, instance, named):
    values = plan(app.create, instance)
    assert [v.manifest["kind"] for v in values if hasattr(v, "manifest")] == [
        "ImageStream", "BuildConfig", "Service", "Route", "Deployment"]
    spec = named(values, "BuildConfig")["spec"]
    assert spec["source"] == {"type": "Git", "git": {"uri": "https://github.com/CMSTrackerDPG/certifier.git", "ref": "develop"}}
    assert spec["strategy"]["sourceStrategy"]["from"] == {
        "kind": "ImageStreamTag", "name": "python:3.12-ubi9", "namespace": "openshift"}
    assert spec["output"]["to"] == {"kind": "ImageStreamTag", "name": "certification-helper:latest"}
    assert spec["runPolicy"] == "Serial"
    assert spec["triggers"] == [], "an image trigger starts builds of itself"
    assert "env" not in spec["strategy"]["sourceStrategy"], "it would stay in the image"


def test_everything_carries_the_group(plan, instance):
    for value in plan(app.create, instance):
        if hasattr(value, "manifest"):
            assert value.manifest["metadata"]["labels"]["app.kubernetes.io/part-of"] == "certhelper"


@pytest.mark.fault(36)
def test_the_route_redirects_and_leaves_the_visitors_to_another_step(plan, instance, named):
    route = named(plan(app.create, instance), "Route")
    assert route["spec"]["host"] == "dev-certhelper.web.cern.ch"
    assert route["spec"]["tls"] == {"termination": "edge", "insecureEdgeTerminationPolicy": "Redirect"}
    assert route["metadata"]["annotations"] == {"haproxy.router.openshift.io/timeout": "5m"}


def test_service_and_route_and_pod_agree(plan, instance, named):
    values = plan(app.create, instance)
    service, deployment = named(values, "Service"), named(values, "Deployment")
    assert named(values, "Route")["spec"]["port"]["targetPort"] == service["spec"]["ports"][0]["name"]
    pod = deployment["spec"]["template"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert deployment["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert pod["spec"]["containers"][0]["ports"][0]["containerPort"] == service["spec"]["ports"][0]["targetPort"]


@pytest.mark.fault(37)
def test_the_probe_comes_with_a_host_that_django_knows(plan, instance, named):
    (container,) = named(plan(app.create, instance), "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["readinessProbe"]["httpGet"]["httpHeaders"] == [{"name": "Host", "value": "127.0.0.1"}]
    assert "tcpSocket" in container["livenessProbe"]
    assert "env" not in container, "environment.set owns it"


def test_the_trigger_names_the_container(plan, instance, named):
    deployment = named(plan(app.create, instance), "Deployment")
    (trigger,) = json.loads(deployment["metadata"]["annotations"]["image.openshift.io/triggers"])
    assert trigger["from"] == {"kind": "ImageStreamTag", "name": "certification-helper:latest"}
    name = deployment["spec"]["template"]["spec"]["containers"][0]["name"]
    assert trigger["fieldPath"] == f'spec.template.spec.containers[?(@.name=="{name}")].image'


@pytest.mark.fault(8)
def test_no_pod_before_the_first_build(plan, instance, named):
    deployment = named(plan(app.create, instance, known(instance)), "Deployment")
    assert deployment["spec"]["replicas"] == 0
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == (
        "image-registry.openshift-image-registry.svc:5000/dev-certhelper/certification-helper:latest")


def test_what_the_platform_moved_is_applied_as_observed(plan, instance, named):
    found = known(instance, deployment=deployed(LATEST, replicas=2), tagged=LATEST)
    spec = named(plan(app.create, instance, found), "Deployment")["spec"]
    assert (spec["replicas"], spec["template"]["spec"]["containers"][0]["image"]) == (2, LATEST)


def test_an_image_set_by_hand_is_put_back(plan, instance, named):
    found = known(instance, deployment=deployed("docker.io/somebody/else:1"), tagged=LATEST)
    assert named(plan(app.create, instance, found), "Deployment")["spec"]["template"]["spec"]["containers"][0]["image"] == LATEST


def test_the_same_image_by_another_name_is_no_difference(plan, instance, named):
    other = "elsewhere/app@sha256:new"
    found = known(instance, deployment=deployed(other), tagged=LATEST)
    assert named(plan(app.create, instance, found), "Deployment")["spec"]["template"]["spec"]["containers"][0]["image"] == other


@pytest.mark.fault(12)
def test_a_builder_image_that_is_gone_is_refused_with_those_there_are(plan, instance, unmet):
    instance = dataclasses.replace(instance, source=dataclasses.replace(instance.source, builder="python:3.8-ubi8"))
    assert unmet(plan(app.create, instance, known(instance))) == ["the image stream python has 3.12-ubi9, 3.9-ubi9"]
    found = known(instance) | {STREAM: None}
    assert unmet(plan(app.create, instance, found)) == ["there is no image stream python in the namespace openshift"]


def test_a_private_repository_is_cloned_with_a_secret_of_its_own(plan, instance, named):
    source = dataclasses.replace(instance.source, private=True, folder="web")
    values = plan(app.create, dataclasses.replace(instance, source=source))
    secret = named(values, "Secret")
    assert secret["type"] == "kubernetes.io/basic-auth"
    assert all(isinstance(value, Credential) for value in secret["stringData"].values())
    origin = named(values, "BuildConfig")["spec"]["source"]
    assert origin["sourceSecret"]["name"] == secret["metadata"]["name"]
    assert origin["contextDir"] == "web"


@pytest.mark.fault(10)
def test_private_packages_are_files_of_a_build_and_no_variables(plan, instance, named):
    source = dataclasses.replace(instance.source, private_packages="gitlab.cern.ch")
    values = plan(app.create, dataclasses.replace(instance, source=source))
    spec = named(values, "BuildConfig")["spec"]
    assert spec["source"]["secrets"] == [{"secret": {"name": "certification-helper-build"}}]
    assert sorted(named(values, "Secret")["stringData"]) == ["CERN_GITLAB_TOKEN", "CERN_GITLAB_USER"]
    assert "TOKEN" not in json.dumps(spec)


@pytest.mark.parametrize(("written", "canonical"), [
    ("1Gi", "1Gi"), ("1024Mi", "1Gi"), ("512Mi", "512Mi"), ("1048576Ki", "1Gi"), ("1536Mi", "1536Mi"),
    ("1073741824", "1Gi"), ("0", "0"), ("500M", "500M")])
def test_quantities_are_canonical(written, canonical):
    assert app.quantity(written) == canonical


def route(*conditions, host="h", asked="h"):
    return {"spec": {"host": host}, "status": {"ingress": [
        {"host": asked, "conditions": [{"type": "Admitted", "status": status} | more for status, more in conditions]}]}}


CLAIMED = {"reason": "HostAlreadyClaimed", "message": "route b already exposes h and is older"}


@pytest.mark.parametrize(("found", "seen", "failed"), [
    (None, "no router has looked at it yet", ""),
    ({"spec": {"host": "h"}}, "no router has looked at it yet", ""),
    (route(("True", {})), "", ""),
    (route(("False", CLAIMED)), "HostAlreadyClaimed: route b already exposes h and is older",
     "HostAlreadyClaimed: route b already exposes h and is older"),
    (route(("True", {}), host="new", asked="old"), "no router has looked at it yet", ""),
], ids=["absent", "new", "admitted", "claimed", "another host before"])
def test_the_routers_word_on_a_host(found, seen, failed):
    assert (app.admitted.test(found), app.admitted.failed(found)) == (seen, failed)


def test_the_route_is_waited_for(plan, instance):
    (wait,) = [value for value in plan(app.create, instance) if isinstance(value, WaitFor)]
    assert (wait.object, wait.condition) == (Object("Route", "certification-helper"), app.admitted)


def test_labels_by_which_pods_are_found_stay_as_a_deployment_by_hand_has_them(plan, instance, named):
    """They cannot be changed; the pods carry them, and the Service finds old and new pods alike."""
    chosen = {"app": "certification-helper", "deployment": "certification-helper"}
    there = {"metadata": {}, "spec": {"replicas": 1, "selector": {"matchLabels": chosen},
                                      "template": {"spec": {"containers": [{"name": "certification-helper", "image": "i"}]}}}}
    values = plan(app.create, instance, {Object("Deployment", "certification-helper"): there})
    deployment = named(values, "Deployment")
    assert deployment["spec"]["selector"]["matchLabels"] == chosen
    assert deployment["spec"]["template"]["metadata"]["labels"].items() >= chosen.items()
    assert named(values, "Service")["spec"]["selector"] == chosen


def test_a_host_that_another_route_of_the_project_holds_is_named(plan, instance, unmet):
    other = {"metadata": {"name": "dev-certhelper"}, "spec": {"host": instance.host}}
    (found,) = [f for f in unmet(plan(app.create, instance, {Object("Route", "*"): [other]})) if "Route" in f]
    assert "dev-certhelper" in found
