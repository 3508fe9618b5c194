"""A new build: why one is needed, and how the app is looked at."""

import copy
import dataclasses

import pytest

from procedures import app, deploy
from runbook.observed import Source
from runbook.plan import Look, Object, Scale, StartBuild, WaitFor

NAME = "certification-helper"
COMMIT = "a" * 40
BUILDER = "image-registry/openshift/python@sha256:py2"


@pytest.fixture
def running(instance):
    """What is known when the app runs the newest commit with today's settings."""
    config = app.build_config(instance)
    spec = {"source": copy.deepcopy(config["spec"]["source"]),
            "strategy": {"type": "Source", "sourceStrategy": {"from": {"kind": "DockerImage", "name": BUILDER}}},
            "revision": {"type": "Git", "git": {"commit": COMMIT}}}
    build = {"metadata": {"name": f"{NAME}-2"}, "spec": spec,
             "status": {"phase": "Complete", "output": {"to": {"imageDigest": "sha256:two"}}}}
    older = copy.deepcopy(build) | {"status": {"phase": "Complete", "output": {"to": {"imageDigest": "sha256:one"}}}}
    container = {"name": NAME, "image": f"registry/dev-certhelper/{NAME}@sha256:two"}
    tags = [{"tag": "3.12-ubi9", "items": [{"image": "sha256:py2", "dockerImageReference": "quay.io/python@sha256:py2"}]},
            {"tag": "3.9-ubi9", "items": [{"image": "sha256:py0", "dockerImageReference": "quay.io/python@sha256:py0"}]}]
    return {
        "source": Source(COMMIT),
        Object("Deployment", NAME): {"spec": {"replicas": 1, "template": {"spec": {"containers": [container]}}}},
        Object("Build", f"*buildconfig={NAME}"): [older, build],
        Object("BuildConfig", NAME): config,
        Object("ImageStream", "python", "openshift"): {"status": {"tags": tags}},
    }


@pytest.fixture
def reason(plan, instance):
    """Return why a build would be started; "" for none."""
    def because(known, instance=instance, **options):
        (start,) = [value for value in plan(deploy.build, instance, known, **options) if isinstance(value, StartBuild)]
        assert (start.config, start.deployment, start.container) == (NAME, NAME, NAME)
        return start.because
    return because


def test_nothing_is_built_when_the_newest_commit_runs(running, reason):
    assert reason(running) == ""


def test_the_first_build(running, reason):
    assert reason({"source": Source(COMMIT)}) == "nothing was built yet"
    container = running[Object("Deployment", NAME)]["spec"]["template"]["spec"]["containers"][0]
    container["image"] = f"registry/dev-certhelper/{NAME}:latest"
    assert reason(running) == "nothing was built yet"


def test_the_branch_has_moved(running, reason):
    running["source"] = Source("b" * 40)
    assert reason(running) == "the branch develop is at bbbbbbbb, what runs was built from aaaaaaaa"


def test_a_branch_that_cannot_be_read_is_no_reason(running, reason):
    running["source"] = Source("", error="no such branch")
    assert reason(running) == ""


def test_an_image_that_no_build_made(running, reason):
    running[Object("Deployment", NAME)]["spec"]["template"]["spec"]["containers"][0]["image"] = "other@sha256:0123456789abcdef"
    assert reason(running) == "the running image 0123456789ab is from no build that the project still knows"


def test_a_build_that_failed_made_nothing(running, reason):
    running[Object("Build", f"*buildconfig={NAME}")][1]["status"]["phase"] = "Failed"
    assert "no build" in reason(running)


@pytest.mark.parametrize(("change", "said"), [
    (lambda s: s["source"]["git"].update(ref="training"), "git.ref"),
    (lambda s: s["source"]["git"].update(uri="https://elsewhere/app.git"), "git.uri"),
    (lambda s: s["source"].update(contextDir="web"), "contextDir"),
    (lambda s: s["source"].update(sourceSecret={"name": "a"}), "sourceSecret.name"),
    (lambda s: s["source"].update(secrets=[{"secret": {"name": "a"}}]), "secrets"),
    (lambda s: s["strategy"]["sourceStrategy"].update(env=[{"name": "A", "value": "1"}]), "env"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_a_changed_setting_is_a_reason(change, said, running, reason):
    change(running[Object("BuildConfig", NAME)]["spec"])
    assert reason(running) == f"the build settings changed: {said}"


def test_another_builder_tag_is_a_reason_and_a_newer_image_behind_it_is_none(running, reason, instance):
    tags = running[Object("ImageStream", "python", "openshift")]["status"]["tags"]
    tags[0]["items"].insert(0, {"image": "sha256:py3", "dockerImageReference": "quay.io/python@sha256:py3"})
    assert reason(running) == ""
    older = dataclasses.replace(instance, source=dataclasses.replace(instance.source, builder="python:3.9-ubi9"))
    running[Object("BuildConfig", NAME)] = app.build_config(older)
    assert reason(running, older) == "the build settings changed: builder image"


def test_again_builds_though_nothing_changed(running, reason):
    assert reason(running, again=True) == "you asked for it again"


def test_a_held_image_is_respected(running, reason, plan, instance, unmet):
    running["source"] = Source("b" * 40)
    running[Object("ImageStream", NAME)] = {"metadata": {"annotations": {deploy.HELD: "by shifter, because of #12"}}}
    assert reason(running) == ""
    assert unmet(plan(deploy.build, instance, running)) == []
    assert unmet(plan(deploy.build, instance, running, again=True)) == ["it is held: by shifter, because of #12"]


def test_the_app_is_scaled_waited_for_and_looked_at(plan, local):
    values = plan(deploy.build, local)
    assert [type(value) for value in values[1:4]] == [StartBuild, Scale, WaitFor]
    assert values[2] == Scale(NAME, 1)
    looks = [(value.path, value.websocket) for value in values if isinstance(value, Look)]
    assert looks == [("/", False), ("/static/home/style.css", False), ("/database/", False), ("/ws/echo/", True)]
    assert {value.url for value in values if isinstance(value, Look)} == {"https://dev-certhelper.localhost:8443"}


def test_only_what_the_instance_names_is_looked_at(plan, instance):
    quiet = dataclasses.replace(instance, deploy=dataclasses.replace(instance.deploy, static="", websocket="", proof="/"))
    assert [value.path for value in plan(deploy.build, quiet) if isinstance(value, Look)] == ["/"]


def test_an_app_without_pods_is_not_looked_at(plan, instance):
    none = dataclasses.replace(instance, deploy=dataclasses.replace(instance.deploy, replicas=0))
    assert not [value for value in plan(deploy.build, none) if isinstance(value, Look)]
