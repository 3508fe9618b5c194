"""A new build: why one is needed, and how the app is looked at."""

import copy
import dataclasses
from decimal import Decimal

import pytest

from procedures import app, deploy, images, quota
from runbook.observed import File, Source
from runbook.plan import Apply, Confirm, Dump, Look, Object, Patch, Require, Scale, Show, StartBuild, WaitFor

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
    running[Object("ImageStream", NAME)] = {"metadata": {"annotations": {images.HELD: "by shifter, because of #12"}}}
    assert reason(running) == ""
    assert unmet(plan(deploy.build, instance, running)) == []
    assert unmet(plan(deploy.build, instance, running, again=True)) == ["it is held: by shifter, because of #12"]


def test_the_app_is_scaled_waited_for_and_looked_at(plan, local):
    values = plan(deploy.build, local)
    assert [type(value) for value in values if not isinstance(value, Require | Look)] == [StartBuild, Scale, WaitFor]
    assert Scale(NAME, 1) in values
    looks = [(value.path, value.websocket) for value in values if isinstance(value, Look)]
    assert looks == [("/", False), ("/static/home/style.css", False), ("/database/", False), ("/ws/echo/", True)]
    assert {value.url for value in values if isinstance(value, Look)} == {"https://dev-certhelper.localhost:8443"}


def test_only_what_the_instance_names_is_looked_at(plan, instance):
    quiet = dataclasses.replace(instance, deploy=dataclasses.replace(instance.deploy, static="", websocket="", proof="/"))
    assert [value.path for value in plan(deploy.build, quiet) if isinstance(value, Look)] == ["/"]


def test_an_app_without_pods_is_not_looked_at(plan, instance):
    none = dataclasses.replace(instance, deploy=dataclasses.replace(instance.deploy, replicas=0))
    assert not [value for value in plan(deploy.build, none) if isinstance(value, Look)]


# When to deploy

def changed(instance, **settings):
    return dataclasses.replace(instance, deploy=dataclasses.replace(instance.deploy, **settings))


def test_whoever_replaces_a_running_app_is_asked_what_the_policy_says(running, plan, instance):
    careful = changed(instance, when="on shift changes only", ask="the shift leader")
    assert not [value for value in plan(deploy.build, careful, running) if isinstance(value, Confirm)]
    running["source"] = Source("b" * 40)
    (asked,) = [value for value in plan(deploy.build, careful, running) if isinstance(value, Confirm)]
    for word in ("dev is deployed on shift changes only", "ask the shift leader first", "is at bbbbbbbb"):
        assert word in asked.question
    assert not [value for value in plan(deploy.build, instance, running) if isinstance(value, Confirm | Dump)]


def test_the_first_deployment_asks_nobody(plan, instance):
    careful = changed(instance, when="on shift changes only", backup=True)
    assert not [value for value in plan(deploy.build, careful) if isinstance(value, Confirm | Dump)]


def test_the_database_is_dumped_before_the_build_and_after_the_question(running, plan, instance):
    running["source"] = Source("b" * 40)
    values = [type(value) for value in plan(deploy.build, changed(instance, ask="me", backup=True), running)]
    assert values.index(Confirm) < values.index(Dump) < values.index(StartBuild)


# The quota

def limited(**used):
    hard = {"requests.cpu": "1", "requests.memory": "4Gi", "pods": "10", "count/secrets": "5"}
    named = {key.replace("_", "."): value for key, value in used.items()}
    return {"status": {"hard": hard, "used": {"requests.cpu": "0", "requests.memory": "0", "pods": "0"} | named}}


@pytest.mark.parametrize(("used", "said"), [
    ({"requests_cpu": "900m"}, []),
    ({"requests_cpu": "950m"}, ["the quota leaves 50m of requests.cpu, and 100m is needed"]),
    ({"requests_memory": "3500Mi"}, ["the quota leaves 596Mi of requests.memory, and 1Gi is needed"]),
    ({"pods": "10"}, ["the quota leaves 0 of pods, and 1 is needed"]),
    ({"requests_cpu": "1", "pods": "10"}, ["the quota leaves 0 of requests.cpu, and 100m is needed; 0 of pods, and 1 is needed"]),
])
def test_a_build_needs_room_in_the_quota(used, said, plan, instance, unmet):
    known = {Object("ResourceQuota", "*"): [limited(**used)], "source": Source(COMMIT)}
    assert unmet(plan(deploy.build, instance, known)) == said


def test_a_full_quota_is_no_matter_when_nothing_is_built(running, plan, instance, unmet):
    running[Object("ResourceQuota", "*")] = [limited(pods="10")]
    running[Object("Deployment", NAME)]["status"] = {"replicas": 1}
    assert unmet(plan(deploy.build, instance, running)) == []


@pytest.mark.parametrize(("text", "number"), [("100m", "0.1"), ("1", "1"), ("1Gi", "1073741824"), ("1k", "1000"), ("1500M", "1.5e9")])
def test_amounts_are_read_as_kubernetes_writes_them(text, number):
    assert quota.amount(text) == Decimal(number)


# Promotion

@pytest.fixture
def promoted(instance):
    return changed(instance, image="promote:training")


@pytest.fixture
def theirs(instance, running):
    """What is known when the training instance runs an image and this one another."""
    other = dataclasses.replace(instance, project="training-certhelper", name="training")
    runs = copy.deepcopy(running[Object("Deployment", NAME)])
    runs["spec"]["template"]["spec"]["containers"][0]["image"] = "registry/training-certhelper/app@sha256:abc"
    return {"instance:training": other, Object("Deployment", NAME, "training-certhelper"): runs,
            Object("ImageStream", NAME): stream("sha256:two"), **running}


def stream(*digests, held=""):
    items = [{"image": digest, "created": f"2026-01-0{len(digests) - n}T10:00:00Z",
              "dockerImageReference": f"{app.REGISTRY}/dev-certhelper/{NAME}@{digest}"} for n, digest in enumerate(digests)]
    return {"metadata": {"annotations": {images.HELD: held} if held else {}},
            "status": {"tags": [{"tag": "latest", "items": items}]}}


def test_promotion_points_the_tag_at_the_others_image(plan, promoted, theirs, unmet):
    values = plan(deploy.promote, promoted, theirs)
    assert unmet(values) == []
    assert not [value for value in values if isinstance(value, StartBuild)]
    (patch,) = [value for value in values if isinstance(value, Patch)]
    assert patch.fields["spec"]["tags"][0]["from"] == {
        "kind": "ImageStreamImage", "namespace": "training-certhelper", "name": f"{NAME}@sha256:abc"}
    (puller,) = [value for value in values if isinstance(value, Apply)]
    assert puller.object == Object("RoleBinding", "dev-certhelper-image-puller", "training-certhelper")
    assert puller.manifest["subjects"][0]["name"] == "system:serviceaccounts:dev-certhelper"


def test_promotion_is_done_when_the_same_digest_is_tagged(plan, promoted, theirs):
    theirs[Object("ImageStream", NAME)] = stream("sha256:abc", "sha256:two")
    assert not [value for value in plan(deploy.promote, promoted, theirs) if isinstance(value, Patch | Confirm)]


def test_promotion_leaves_a_held_image_alone(plan, promoted, theirs):
    theirs[Object("ImageStream", NAME)] = stream("sha256:two", held="by me")
    assert not [value for value in plan(deploy.promote, promoted, theirs) if isinstance(value, Patch)]


def test_an_instance_builds_or_promotes_and_never_both(plan, instance, promoted, running, theirs, unmet):
    assert deploy.build.wanted(instance)
    assert not deploy.promote.wanted(instance)
    assert deploy.promote.wanted(promoted)
    assert not deploy.build.wanted(promoted)
    assert unmet(plan(deploy.build, promoted, running)) == ["it takes the image that training runs"]
    assert unmet(plan(deploy.promote, instance, theirs)) == ["it builds its own"]
    clock = dataclasses.replace(promoted, schedule=dataclasses.replace(promoted.schedule, cron="0 0 * * *"))
    assert unmet(plan(deploy.schedule, clock, running)) == ["this instance takes the image that training runs"]


def test_another_instance_without_an_image_has_nothing_to_promote(plan, promoted, theirs, unmet):
    del theirs[Object("Deployment", NAME, "training-certhelper")]
    assert unmet(plan(deploy.promote, promoted, theirs)) == ["training runs no image that was built"]


# The schedule

@pytest.fixture
def cron(plan, instance):
    """Return the CronJob that is applied, for what is known."""
    def applied(known, instance=instance):
        return next(value.manifest for value in plan(deploy.schedule, instance, known)
                    if isinstance(value, Apply) and value.object.kind == "CronJob")
    return applied


def test_the_schedule_is_made_suspended_and_then_left_as_people_set_it(cron, running):
    made = cron(running)
    assert made["spec"]["suspend"] is True
    for suspended in (False, True):
        running[Object("CronJob", f"{NAME}-schedule")] = made | {"spec": made["spec"] | {"suspend": suspended}}
        assert cron(running)["spec"]["suspend"] is suspended


@pytest.mark.fault(28, 29, 31, 32)
def test_the_schedule_has_what_the_former_guide_lacked(cron, running):
    spec = cron(running)["spec"]
    assert (spec["timeZone"], spec["concurrencyPolicy"]) == ("Europe/Zurich", "Forbid")
    assert {"startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"} <= spec.keys()
    job = spec["jobTemplate"]["spec"]
    assert {"backoffLimit", "activeDeadlineSeconds"} <= job.keys()
    (container,) = job["template"]["spec"]["containers"]
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    assert container["image"] == "quay.io/python@sha256:py2"
    words = " ".join(container["command"])
    assert "webhook" not in words
    assert "curl" not in words
    assert "create_default_context(cafile" in words
    assert "app" not in job["template"]["metadata"]["labels"], "the Service would send requests to this pod"


def test_the_pinned_image_stays_while_its_tag_knows_it(cron, running):
    running[Object("CronJob", f"{NAME}-schedule")] = cron(running)
    items = running[Object("ImageStream", "python", "openshift")]["status"]["tags"][0]["items"]
    items.insert(0, {"image": "sha256:py3", "dockerImageReference": "quay.io/python@sha256:py3"})
    assert cron(running)["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["image"].endswith("py2")
    del items[1]
    assert cron(running)["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["image"].endswith("py3")


@pytest.mark.fault(29, 30)
def test_the_account_may_start_this_build_and_nothing_else(plan, instance, running):
    roles = {value.object.name: value.manifest["rules"] for value in plan(deploy.schedule, instance, running)
             if isinstance(value, Apply) and value.object.kind == "Role"}
    assert roles[f"{NAME}-schedule"] == [{"apiGroups": ["build.openshift.io"], "resources": ["buildconfigs/instantiate"],
                                          "verbs": ["create"], "resourceNames": [NAME]}]
    assert all(rule["resourceNames"] and rule["verbs"] == ["patch"] for rule in roles[f"{NAME}-schedule-once"])
    bound = {value.object.name: value.manifest.get("subjects") for value in plan(deploy.schedule, instance, running)
             if isinstance(value, Apply) and value.object.kind == "RoleBinding"}
    assert bound[f"{NAME}-schedule-once"] is None


def test_resume_needs_a_schedule_and_no_held_image(plan, instance, running, unmet):
    assert unmet(plan(deploy.resume, instance, running)) == ["there is no schedule"]
    running[Object("CronJob", f"{NAME}-schedule")] = {"spec": {"suspend": True}}
    assert unmet(plan(deploy.resume, instance, running)) == []
    running[Object("ImageStream", NAME)] = stream("sha256:two", held="by me, since then: why")
    assert unmet(plan(deploy.resume, instance, running)) == ["it is held: by me, since then: why"]


def policied(instance, **policy):
    return dataclasses.replace(instance, deploy=dataclasses.replace(instance.deploy, **policy))


def test_whoever_lets_the_clock_build_is_asked_what_a_build_asks(plan, instance, running, unmet):
    running[Object("CronJob", f"{NAME}-schedule")] = {"spec": {"suspend": True}}

    def made(**policy):
        values = plan(deploy.resume, policied(instance, **policy), running, once=True)
        return [v.question for v in values if isinstance(v, Confirm)], [v for v in values if isinstance(v, Dump)]

    assert made() == ([], [])
    (question,), dumps = made(when="on shift changes only", ask="the shift leader", backup=True)
    assert question.startswith("dev is deployed on shift changes only; ask the shift leader first. Let builds start at")
    assert len(dumps) == 1
    guarded = policied(instance, backup=True)
    assert unmet(plan(deploy.resume, guarded, running)) == ["a build by the clock makes no dump"]
    assert unmet(plan(deploy.resume, guarded, running, once=True)) == []
    running[Object("CronJob", f"{NAME}-schedule")] = {"spec": {"suspend": False}}
    assert made(when="at night", backup=True) == ([], []), "it goes on already: that was asked"


def test_once_gives_the_account_one_more_right_and_without_it_takes_it_away(plan, instance, running):
    running[Object("CronJob", f"{NAME}-schedule")] = {"spec": {"suspend": True}}
    for once, subjects in ((True, f"{NAME}-schedule"), (False, None)):
        given = [value.fields for value in plan(deploy.resume, instance, running, once=once) if isinstance(value, Patch)]
        assert given[1] == {"spec": {"suspend": False}}
        assert (given[0]["subjects"] or [{"name": None}])[0]["name"] == subjects


# An older image

@pytest.fixture
def back(plan, instance, running):
    """Return the tag that a rollback makes, and what is asked; None when it is refused."""
    running[Object("ImageStream", NAME)] = stream("sha256:two", "sha256:one")
    running[Object("Build", f"*buildconfig={NAME}")][0]["metadata"] = {"name": f"{NAME}-1"}
    running |= {"user": "shifter", "now": "2026-01-01 10:00 UTC",
                f"source:{COMMIT}": Source(COMMIT, {"home/migrations/0001_initial.py": File("a")})}

    def gone(**options):
        values = plan(deploy.rollback, instance, running, **options)
        (patch,) = [v for v in values if isinstance(v, Patch) and v.object.kind == "ImageStream"]
        return (patch.fields["spec"]["tags"][0]["from"]["name"], patch.fields["metadata"]["annotations"][images.HELD],
                [v.question for v in values if isinstance(v, Confirm)])
    return gone


@pytest.mark.parametrize("to", ["", "1", f"{NAME}-1"])
def test_going_back_names_the_older_image_and_who_holds_it(to, back):
    assert back(to=to, why="it fails") == (f"{NAME}@sha256:one", "by shifter since 2026-01-01 10:00 UTC: it fails", [])


def test_going_back_is_refused_without_a_reason_and_without_an_image(plan, back, instance, running, unmet):
    assert unmet(plan(deploy.rollback, instance, running)) == ["why is it held?"]
    (said,) = unmet(plan(deploy.rollback, instance, running, to="7", why="x"))
    assert said == f"there is no image '7'; there are one ({NAME}-1), two ({NAME}-2)"
    running[Object("ImageStream", NAME)] = stream("sha256:one")
    assert unmet(plan(deploy.rollback, instance, running, why="x")) == ["there is no image older than the one that runs"]


def test_migrations_between_are_named_and_asked_about(back, running):
    late = "b" * 40
    running[Object("Build", f"*buildconfig={NAME}")][1]["spec"]["revision"]["git"]["commit"] = late
    files = running[f"source:{COMMIT}"].files
    running[f"source:{late}"] = Source(late, files | {"home/migrations/0002_more.py": File("b"), "home/x.py": File("c")})
    assert "home/migrations/0002_more.py" in back(why="x")[2][0]
    running[f"source:{late}"] = Source(late, files | {"home/x.py": File("c")})
    assert back(why="x")[2] == []
    running[f"source:{late}"] = Source("", error="the repository is gone")
    assert "cannot be known: the repository is gone" in back(why="x")[2][0]
    running[Object("Build", f"*buildconfig={NAME}")] = []
    assert "no build is known" in back(why="x")[2][0]


def test_going_back_suspends_the_schedule_before_it_moves_the_tag(plan, back, instance, running):
    running[Object("CronJob", f"{NAME}-schedule")] = {"spec": {"suspend": False}}
    patched = [v for v in plan(deploy.rollback, instance, running, why="x") if isinstance(v, Patch)]
    assert [v.object.kind for v in patched] == ["CronJob", "ImageStream"]
    assert patched[0].fields == {"spec": {"suspend": True}}


def test_going_back_again_to_what_is_held_changes_nothing(plan, back, instance, running):
    running[Object("ImageStream", NAME)] = stream("sha256:one", "sha256:two", "sha256:one", held="by me")
    values = plan(deploy.rollback, instance, running, to="1", why="x")
    assert not [v for v in values if isinstance(v, Patch | Confirm)]


def test_release_takes_off_the_mark_and_leaves_other_tags(plan, instance, running):
    assert plan(deploy.release, instance, running | {Object("ImageStream", NAME): stream("sha256:one")}) == []
    held = stream("sha256:one", held="by me") | {"spec": {"tags": [{"name": "latest"}, {"name": "other"}]}}
    (patch,) = plan(deploy.release, instance, running | {Object("ImageStream", NAME): held})
    assert patch.fields == {"metadata": {"annotations": {images.HELD: None}}, "spec": {"tags": [{"name": "other"}]}}


def test_history_has_a_line_for_each_time_the_tag_was_moved(plan, instance, running):
    running[Object("ImageStream", NAME)] = stream("sha256:two", "sha256:one", "sha256:two", held="by me since then: why")
    running[Object("Build", f"*buildconfig={NAME}")][1]["spec"]["triggeredBy"] = [{"message": "shifter, by the guide: x"}]
    (show,) = plan(deploy.history, instance, running)
    assert isinstance(show, Show)
    assert show.rows == (
        ("2026-01-03 10:00:00", "two", "aaaaaaaa", f"{NAME}-2", "by me since then: why", "runs, held"),
        ("2026-01-02 10:00:00", "one", "aaaaaaaa", f"{NAME}-2", "not said", ""),
        ("2026-01-01 10:00:00", "two", "aaaaaaaa", f"{NAME}-2", "shifter, by the guide: x", ""))
    assert plan(deploy.history, instance)[0].rows == ()
