"""Builds by the clock, older images, promotion, policy and quota on the stack, with two commits that readers can tell apart."""

from __future__ import annotations

import calendar
import copy
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from procedures import deploy, images, quota
from stack import certificates
from stack.api import ApiError, Manifest, wait_until
from stack.state import State
from tests.guide import Guide, Site

pytestmark = pytest.mark.needs("cluster", "database", "databases", "redis", "portal", "sign-on", "node", "builder", "router")

BRANCH = "deploys"
SCHEDULED = "batch.kubernetes.io/cronjob-scheduled-timestamp"
MINUTE, NEW_YEAR = {"schedule": {"cron": "* * * * *"}}, {"schedule": {"cron": "0 0 1 1 *"}}


class Repository:
    """A checkout of the example's repository, pushed to a branch of its own."""

    def __init__(self, folder: Path, remote: Path) -> None:
        self.folder = folder
        self._git("clone", "--quiet", "--branch=develop", str(remote), str(folder))

    def _git(self, *words: str) -> None:
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@localhost", *words], check=True, capture_output=True,
                       cwd=self.folder if self.folder.exists() else self.folder.parent)

    def push(self, canary: str, migration: str = "", after: str = "0001_initial") -> None:
        """Commit a home page that says `canary`, and a migration that changes nothing."""
        page = self.folder / "home" / "templates" / "home" / "home.html"
        text = page.read_text().partition("<p id=canary>")[0].replace("{% endblock %}", "").rstrip()
        page.write_text(f"{text}\n<p id=canary>{canary}</p>{{% endblock %}}\n")
        if migration:
            (self.folder / "home" / "migrations" / f"{migration}.py").write_text(
                "from django.db import migrations\n\n\nclass Migration(migrations.Migration):\n"
                f"    dependencies = [('home', '{after}')]\n    operations = []\n")
        self._git("add", "--all")
        self._git("commit", "--quiet", f"--message={canary}")
        self._git("push", "--quiet", "--force", "origin", f"HEAD:refs/heads/{BRANCH}")


@pytest.fixture(scope="module")
def repository(guide: Guide, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    made = Repository(tmp_path_factory.mktemp("repository") / "clone", guide.stack.state.git / "example.git")
    made.push("the-first")
    return made


@pytest.fixture(scope="module")
def deployed(guide: Guide, repository: Repository) -> Iterator[Site]:
    """A site of the branch, deployed from its first commit, with a schedule for every minute, made suspended."""
    made = Site.written(guide, "deploy", port=5, changes=MINUTE | {"local": {"source": {"branch": BRANCH}}})
    made("guide.run")
    yield made
    made.remove()


def get(site: Site, kind: str, name: str = "") -> Manifest:
    found: Manifest = site.guide.stack.api.get(kind, name or site.instance.app, site.instance.project)
    return found


def canary(site: Site, wanted: str) -> None:
    """See that the site serves a commit; the router takes a moment to follow the pods."""
    seen: list[Any] = []

    def served() -> bool:
        seen[:] = site.guide.web().request("GET", f"{site.instance.url}/")
        return seen[0] == 200 and f"<p id=canary>{wanted}</p>" in seen[1]

    wait_until(served, f"the site to serve {wanted}", 120)


def builds(site: Site) -> list[Manifest]:
    return sorted(site.guide.stack.api.list("Build", site.instance.project), key=lambda one: int(one["metadata"]["name"].split("-")[-1]))


def digest(site: Site) -> str:
    return images.digest_in(get(site, "Deployment"), site.instance.app)


def schedule(site: Site) -> Manifest:
    return get(site, "CronJob", deploy.schedule_name(site.instance))


def job(site: Site, name: str) -> None:
    """Start the schedule's job now, as a project member does by hand."""
    done = site.guide.stack.run("kubectl", "-n", site.instance.project, "create", "job", name,
                                f"--from=cronjob/{deploy.schedule_name(site.instance)}")
    assert done.returncode == 0, done.stderr


def pod_of(site: Site, name: str, phase: str) -> str:
    """Wait until a pod of a job ended, and return its log."""
    ended: list[Manifest] = []

    def over() -> bool:
        ended[:] = [pod for pod in site.guide.stack.api.list("Pod", site.instance.project, labelSelector=f"job-name={name}")
                    if pod["status"].get("phase") in ("Succeeded", "Failed")]
        return bool(ended)

    wait_until(over, f"a pod of job {name} to end")
    log = site.guide.stack.run("kubectl", "-n", site.instance.project, "logs", ended[0]["metadata"]["name"]).stdout
    assert ended[0]["status"]["phase"] == phase, log
    return log


def may(site: Site, account: str, verb: str, resource: str, name: str = "", namespace: str = "") -> bool:
    """Ask the server what a ServiceAccount of the site may do."""
    group, _, resource = resource.rpartition("/") if resource.count("/") < 2 else resource.partition("/")
    resource, _, below = resource.partition("/")
    project = site.instance.project
    answer = site.guide.stack.api.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", {
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {
            "user": f"system:serviceaccount:{project}:{account}",
            "groups": ["system:serviceaccounts", f"system:serviceaccounts:{project}", "system:authenticated"],
            "resourceAttributes": {"namespace": namespace or project, "verb": verb, "group": group, "resource": resource,
                                   "subresource": below, "name": name}}})
    return bool(answer["status"]["allowed"])


# The schedule

def test_the_schedule_is_there_suspended_and_the_second_run_changes_nothing(deployed: Site) -> None:
    assert schedule(deployed)["spec"]["suspend"] is True
    assert "@sha256:" in schedule(deployed)["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["image"]
    assert {step["state"] for step in deployed.outcomes("guide.run").values()} == {"unchanged", "skipped"}
    deployed("guide.status")


START = "build.openshift.io/buildconfigs/instantiate"


@pytest.mark.fault(29)
def test_the_account_may_start_this_build_and_nothing_else(deployed: Site) -> None:
    app, account = deployed.instance.app, deploy.schedule_name(deployed.instance)
    assert may(deployed, account, "create", START, app)
    for verb, resource, name in (("create", START, "another"), ("get", "build.openshift.io/buildconfigs", app), ("get", "/secrets", ""),
                                 ("list", "/pods", ""), ("create", "build.openshift.io/builds", ""), ("patch", "batch/cronjobs", account),
                                 ("patch", "rbac.authorization.k8s.io/rolebindings", f"{account}-once"), ("create", "/pods", "")):
        assert not may(deployed, account, verb, resource, name), f"it may {verb} {resource} {name}"
    assert not may(deployed, "default", "create", START, app), "another account may start builds: the check above proves nothing"


def test_a_job_without_its_right_fails_with_the_servers_words(deployed: Site) -> None:
    """Twin of the next test: the right is what starts the build."""
    name = deploy.schedule_name(deployed.instance)
    before = len(builds(deployed))
    deployed.guide.stack.member.delete("RoleBinding", name, deployed.instance.project)
    job(deployed, "forbidden")
    log = pod_of(deployed, "forbidden", "Failed")
    assert "refused (403)" in log and "cannot create resource" in log, log
    assert len(builds(deployed)) == before
    deployed.guide.stack.member.delete("Job", "forbidden", deployed.instance.project)
    status = deployed.outcomes("guide.status", code=3)
    assert [step for step, found in status.items() if found["state"] != "done" and found["state"] != "not wanted"] == ["deploy.schedule"]
    deployed("deploy.schedule")
    assert may(deployed, name, "create", START, deployed.instance.app)


def test_a_job_starts_a_build_and_the_app_rolls_out(deployed: Site, repository: Repository) -> None:
    canary(deployed, "the-first")
    repository.push("the-second", migration="0002_more")
    job(deployed, "by-hand")
    log = pod_of(deployed, "by-hand", "Succeeded")
    assert "started" in log
    canary(deployed, "the-second")
    last = builds(deployed)[-1]
    assert last["metadata"]["name"] in log
    assert last["spec"]["triggeredBy"][0]["message"] == f"the schedule {deploy.schedule_name(deployed.instance)}"
    deployed("guide.run")
    assert builds(deployed)[-1]["metadata"]["name"] == last["metadata"]["name"], "guide.run built it again"


def test_a_member_may_cancel_a_build(deployed: Site) -> None:
    """By a change of its status, which is a subresource here."""
    def asked(*words: str) -> str:
        return deployed.guide.stack.run("kubectl", "-n", deployed.instance.project, "auth", "can-i", "patch", *words).stdout.strip()

    assert asked("builds.build.openshift.io", "--subresource=status") == "yes"
    assert asked("routes.route.openshift.io", "--subresource=status") == "no", "whatever is asked is allowed"


def test_history_says_which_commit_runs_since_when_and_by_whom(deployed: Site) -> None:
    said = deployed("deploy.history").stdout.splitlines()
    first, second = builds(deployed)
    assert len(said) == 4, said
    for word in (images.commit_of(second)[:8], second["metadata"]["name"], "the schedule", "runs"):
        assert word in said[2], said
    for word in (images.commit_of(first)[:8], "shifter, by the guide: nothing was built yet"):
        assert word in said[3], said


# An older image

def test_going_back_needs_a_reason_and_an_image_and_asks_about_migrations(deployed: Site) -> None:
    now = digest(deployed)
    assert "why is it held?" in deployed("deploy.rollback", code=2).stderr
    assert "there is no image '77'" in deployed("deploy.rollback", "--to=77", "--why=x", code=2).stderr
    asked = deployed("deploy.rollback", "--why=it fails", code=75)
    assert "home/migrations/0002_more.py" in asked.stderr and "--yes" in asked.stderr
    assert digest(deployed) == now
    assert images.HELD not in (get(deployed, "ImageStream")["metadata"].get("annotations") or {})


def test_an_older_image_is_served_held_and_left_alone_until_it_is_released(deployed: Site) -> None:
    number = len(builds(deployed))
    deployed("deploy.rollback", "--why=it fails", "--yes")
    canary(deployed, "the-first")
    held = get(deployed, "ImageStream")["metadata"]["annotations"][images.HELD]
    assert held.startswith("by shifter since 20") and held.endswith(": it fails")
    # Nothing moves it: not the whole guide, not a build that somebody asks for, not the schedule.
    assert deployed.outcomes("guide.run")["deploy.build"]["state"] == "unchanged"
    for said in (deployed("deploy.build").stdout, deployed("guide.status").stdout):
        assert "an older image is held, so nothing newer is built: by shifter" in said and "`invoke deploy.release" in said
    assert "it is held: by shifter" in deployed("deploy.build", "--again", code=1).stderr
    assert "it is held: by shifter" in deployed("deploy.resume", "--once", code=1).stderr
    assert schedule(deployed)["spec"]["suspend"] is True
    assert deployed.outcomes("deploy.rollback", "--to=1", "--why=once more")["deploy.rollback"]["state"] == "unchanged"
    assert "held" in deployed("deploy.history").stdout.splitlines()[2]
    canary(deployed, "the-first")
    deployed("deploy.release")
    assert deployed.outcomes("deploy.release")["deploy.release"]["state"] == "unchanged"
    canary(deployed, "the-first")
    assert len(builds(deployed)) == number


# The policy, and what is newest after a release

def test_the_policy_is_asked_and_yes_answers(deployed: Site) -> None:
    number = len(builds(deployed))
    deployed.change({"deploy": {"when": "on shift changes only", "ask": "the shift leader"}})
    asked = deployed("guide.run", code=75)
    assert "deploy is deployed on shift changes only; ask the shift leader first" in asked.stderr
    assert len(builds(deployed)) == number
    assert deployed.outcomes("guide.run", "--yes")["deploy.build"]["state"] == "changed"
    canary(deployed, "the-second")
    deployed("guide.run")  # Nothing to build, so nothing to ask.
    deployed.change({"deploy": None})


def test_the_schedule_is_resumed_by_the_same_policy(deployed: Site, tmp_path: Path) -> None:
    policy = {"deploy": {"when": "on shift changes only", "backup": True}, "database": {"backups": str(tmp_path)}}
    deployed.change(NEW_YEAR | policy)  # so that nothing starts meanwhile
    deployed("deploy.schedule")
    try:
        assert "a build by the clock makes no dump" in deployed("deploy.resume", code=1).stderr
        assert "deploy is deployed on shift changes only" in deployed("deploy.resume", "--once", code=75).stderr
        assert schedule(deployed)["spec"]["suspend"] is True
        assert list(tmp_path.iterdir()) == []
        deployed("deploy.resume", "--once", "--yes")
        assert schedule(deployed)["spec"]["suspend"] is False
        (dump,) = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert dump.stat().st_size > 1000
        deployed("deploy.suspend")
    finally:
        deployed.change(MINUTE | {"deploy": None, "database": {"backups": None}})
    deployed("deploy.schedule")


# The quota

@pytest.fixture
def full(deployed: Site) -> Iterator[None]:
    """A project whose quota is used up."""
    api, project = deployed.guide.stack.api, deployed.instance.project

    def counted(wanted: str) -> bool:
        return bool(get(deployed, "ResourceQuota", "default")["status"]["hard"]["requests.cpu"] == wanted)

    api.patch("ResourceQuota", "default", {"spec": {"hard": {"requests.cpu": "50m"}}}, project)
    wait_until(lambda: counted("50m"), "the smaller quota to count")
    yield
    api.patch("ResourceQuota", "default", {"spec": {"hard": {"requests.cpu": "1"}}}, project)
    wait_until(lambda: counted("1"), "the quota to count")


def test_a_full_quota_is_said_before_a_build_starts(deployed: Site, full: None) -> None:
    number = len(builds(deployed))
    refused = deployed("deploy.build", "--again", code=1)
    assert "the quota leaves 0 of requests.cpu, and 100m is needed" in refused.stderr
    assert "oc describe quota" in refused.stderr
    assert len(builds(deployed)) == number
    deployed("guide.run")  # Nothing is to build: a full quota is no matter.
    with pytest.raises(ApiError, match="exceeded quota"):  # The cluster honours it: that is what would hang.
        deployed.guide.stack.member.create({"apiVersion": "v1", "kind": "Pod", "metadata": {
            "name": "one-more", "namespace": deployed.instance.project}, "spec": {"containers": [{"name": "a", "image": "none"}]}})


def test_what_the_guide_makes_fits_into_the_quota_with_room_for_a_second_pod(deployed: Site) -> None:
    status = get(deployed, "ResourceQuota", "default")["status"]
    assert status["hard"]["requests.cpu"] == "1"
    assert quota.amount("1") - quota.amount(status["used"]["requests.cpu"]) > quota.amount("500m")


# Promotion

@pytest.fixture(scope="module")
def promoted(deployed: Site) -> Iterator[Site]:
    """A second site, deployed by promotion from the first."""
    made = Site.written(deployed.guide, "promoted", port=6,
                        changes={"deploy": {"image": "promote:deploy"}, "local": {"source": {"branch": BRANCH}}})
    shutil.copy(deployed.folder / "deploy.toml", made.folder)
    made("guide.run")
    yield made
    made.remove()


@pytest.mark.fault(34)
def test_the_same_digest_runs_in_both_and_nothing_was_built_twice(deployed: Site, promoted: Site) -> None:
    assert digest(promoted) == digest(deployed)
    assert builds(promoted) == []
    canary(promoted, "the-second")
    states = {name: step["state"] for name, step in promoted.outcomes("guide.run").items()}
    assert set(states.values()) == {"unchanged", "skipped"}
    assert (states["deploy.build"], states["deploy.promote"]) == ("skipped", "unchanged")
    promoted("guide.status")
    assert "promoted from deploy-certhelper" in promoted("deploy.history").stdout
    assert "it takes the image that deploy runs" in promoted("deploy.build", code=1).stderr
    assert "it builds its own" in deployed("deploy.promote", code=1).stderr


def test_another_image_there_is_found_and_taken_over_here(deployed: Site, promoted: Site) -> None:
    # The same image for the second time: the tag moves again.
    deployed("deploy.rollback", "--to=1", "--why=promote an older one", "--yes")
    canary(deployed, "the-first")
    found = promoted.outcomes("guide.status", code=3)
    assert found["deploy.promote"]["state"] == "drifted"
    promoted("deploy.promote")
    assert digest(promoted) == digest(deployed)
    canary(promoted, "the-first")
    deployed("deploy.release")


def test_the_pods_may_pull_there_until_that_is_taken_back(deployed: Site, promoted: Site) -> None:
    pull = ("default", "get", "image.openshift.io/imagestreams/layers", deployed.instance.app, deployed.instance.project)
    assert may(promoted, *pull)
    name = f"{promoted.instance.project}-image-puller"
    deployed.guide.stack.member.delete("RoleBinding", name, deployed.instance.project)
    assert not may(promoted, *pull)
    assert promoted.outcomes("guide.status", code=3)["deploy.promote"]["state"] in ("missing", "drifted")
    promoted("deploy.promote")
    assert may(promoted, *pull)


def test_an_instance_that_is_not_there_is_named(promoted: Site) -> None:
    promoted.change({"deploy": {"image": "promote:deply"}})
    said = promoted("deploy.promote", code=2).stderr
    assert "there is no build 'deply'" in said and "deploy" in said
    promoted.change({"deploy": {"image": "promote"}})
    said = promoted("deploy.promote", code=2).stderr
    assert "promoted.toml:" in said and "deploy.image must be 'build' or 'promote:NAME'" in said
    promoted.change({"deploy": {"image": "promote:deploy"}})


# The clock itself comes last: by now more than a minute has gone by, in which a suspended schedule started nothing.

def scheduled(site: Site) -> list[Manifest]:
    return [one for one in site.guide.stack.api.list("Job", site.instance.project)
            if SCHEDULED in (one["metadata"].get("annotations") or {})]


@pytest.mark.parametrize(("change", "says"), [
    ({"schedule": {"cron": "61 * * * *"}}, "61"), ({"schedule": {"zone": "Mars/Olympus"}}, "unknown time zone")])
def test_a_wrong_time_is_refused_in_the_servers_words(deployed: Site, change: dict[str, Any], says: str) -> None:
    before = schedule(deployed)["spec"]
    deployed.change(change)
    try:
        said = deployed("deploy.schedule", code=1).stderr
        assert says in said and "Traceback" not in said
        assert schedule(deployed)["spec"] == before
    finally:
        deployed.change({"schedule": None})
        deployed.change(MINUTE)


@pytest.mark.fault(28)
def test_a_job_that_trusts_another_authority_starts_nothing(deployed: Site, tmp_path: Path) -> None:
    """The job as the schedule makes it, but for the file of the authority that it trusts."""
    other = certificates.ensure_ca(State(tmp_path)).read_text()
    number = len(builds(deployed))
    ended, said = started_by_hand(deployed, "other", other)
    assert ended.get("failed") == 1 and "CERTIFICATE_VERIFY_FAILED" in said
    assert len(builds(deployed)) == number
    ended, said = started_by_hand(deployed, "own", deployed.guide.stack.state.ca.read_text())
    assert ended.get("succeeded") == 1, said
    assert len(builds(deployed)) == number + 1
    wait_until(lambda: builds(deployed)[-1]["status"].get("phase") == "Complete", "the build", 120)


def started_by_hand(site: Site, name: str, authority: str) -> tuple[Manifest, str]:
    """Run the schedule's job once, trusting an authority; return its status and its log."""
    api, project = site.guide.stack.api, site.instance.project
    api.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": project}, "data": {"ca.crt": authority}})
    spec = copy.deepcopy(schedule(site)["spec"]["jobTemplate"]["spec"]) | {"backoffLimit": 0}
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    script = container["command"][2].replace('str(account / "ca.crt")', '"/authority/ca.crt"')
    assert script != container["command"][2]
    container["command"][2] = script
    container["volumeMounts"] = [{"name": "authority", "mountPath": "/authority"}]
    pod["volumes"] = [{"name": "authority", "configMap": {"name": name}}]
    api.create({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": project}, "spec": spec})
    try:
        ended = wait_until(lambda: (s := api.get("Job", name, project).get("status", {})) and (s.get("failed") or s.get("succeeded")) and s,
                           "the job to end", 120)
        (pod,) = api.list("Pod", project, labelSelector=f"job-name={name}")
        done = site.guide.stack.run("kubectl", "logs", "-n", project, pod["metadata"]["name"])
        return ended, done.stdout + done.stderr
    finally:
        api.delete("Job", name, project)
        api.delete("ConfigMap", name, project)


@pytest.mark.fault(30, 33)
def test_the_clock_starts_one_build_and_the_schedule_suspends_itself(deployed: Site, repository: Repository) -> None:
    name = deploy.schedule_name(deployed.instance)
    made = calendar.timegm(time.strptime(schedule(deployed)["metadata"]["creationTimestamp"], "%Y-%m-%dT%H:%M:%SZ"))
    wait_until(lambda: time.time() - made > 70, "the schedule to be old enough to have missed a minute", 75)
    assert scheduled(deployed) == [], "a suspended schedule started a job"
    number = len(builds(deployed))
    # A minute that a suspended schedule missed counts: without this the job would start before one can look.
    deployed.change(NEW_YEAR)
    deployed("deploy.schedule")
    deployed("deploy.resume", "--once")
    assert schedule(deployed)["spec"]["suspend"] is False
    assert may(deployed, name, "patch", "batch/cronjobs", name)
    assert not may(deployed, name, "patch", "batch/cronjobs", "another")
    repository.push("the-third")
    deployed.change(MINUTE)
    deployed("deploy.schedule")
    wait_until(lambda: len(builds(deployed)) > number, "the clock to start a build", 100)
    wait_until(lambda: schedule(deployed)["spec"]["suspend"], "the schedule to suspend itself")
    assert not may(deployed, name, "patch", "batch/cronjobs", name), "the right is still there"
    assert len(scheduled(deployed)) == 1
    wait_until(lambda: builds(deployed)[-1]["status"].get("phase") == "Complete", "the build", 120)
    canary(deployed, "the-third")
    assert deployed.outcomes("guide.status", code=None)["deploy.schedule"]["state"] == "done", "a fired schedule is no drift"


def test_resume_and_suspend_and_back_leave_what_the_guide_wants(deployed: Site) -> None:
    deployed.change(NEW_YEAR)
    deployed("deploy.schedule")
    deployed("deploy.resume")
    assert deployed.outcomes("deploy.resume")["deploy.resume"]["state"] == "unchanged"
    name = deploy.schedule_name(deployed.instance)
    assert schedule(deployed)["spec"]["suspend"] is False
    assert not may(deployed, name, "patch", "batch/cronjobs", name)
    assert deployed.outcomes("guide.run")["deploy.schedule"]["state"] == "unchanged"
    assert schedule(deployed)["spec"]["suspend"] is False, "guide.run suspended what somebody resumed"
    deployed("deploy.suspend")
    assert schedule(deployed)["spec"]["suspend"] is True
    deployed("deploy.schedule", "--undo")
    api, project = deployed.guide.stack.api, deployed.instance.project
    assert [found["metadata"]["name"] for kind in ("CronJob", "Role", "RoleBinding", "ServiceAccount")
            for found in api.list(kind, project) if found["metadata"]["name"].startswith(name)] == []
    assert "there is no schedule" in deployed("deploy.resume", code=1).stderr
