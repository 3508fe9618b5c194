"""Deploying a new build: from the branch's newest commit to an app that answers; by the clock; back; from another instance."""

import re
from collections.abc import Iterator
from typing import Annotated

from procedures import app, database, environment, images, quota, source
from runbook.instance import Instance
from runbook.observed import Observed
from runbook.plan import (
    Apply,
    Confirm,
    Look,
    Manifest,
    Object,
    Patch,
    Plan,
    Require,
    Scale,
    Show,
    StartBuild,
    WaitFor,
    rolled_out,
)
from runbook.step import RUN, step


def builds(instance: Instance) -> bool:
    """Return whether the instance builds its own image."""
    return not promoted_from(instance)


def promoted_from(instance: Instance) -> str:
    """Return the name of the instance whose image this one takes over, "" when it builds its own."""
    return instance.deploy.image.partition("promote:")[2]


# Promotion

PULLER = "system:image-puller"
"""OpenShift's role for pulling images of another project."""


@step(
    needs=(environment.check, environment.set, database.access),
    wanted=lambda instance: bool(promoted_from(instance)),
    setting="`image` below [deploy]",
    see="The site answers over HTTPS, from the same image digest that the other instance runs.",
    otherwise=(
        ("`ErrImagePull` with `unauthorized: authentication required` or `requested access to the resource is denied`.",
         "The pods may not pull from the other project: run the step again, it makes the RoleBinding there."),
        ("`cannot get resource` for the other project.",
         "You need the role `admin` in both projects: ask the owner of the other one."),
        ("`it builds its own`", "This instance promotes nothing: `image` below [deploy] decides."),
        ("`runs no image`", "Deploy the other instance first: `deploy.build` with its name."),
    ),
    unconfirmed="That an image stream tag may follow an image of another project at CERN: "
                "`oc tag OTHER/NAME@DIGEST NAME:latest --dry-run=server` would tell.",
)
def promote(instance: Instance, observed: Observed) -> Plan:
    """Run the image that another instance runs, without building it again."""
    name, other = instance.app, promoted_from(instance) or "training"
    yield Require("this instance takes another one's image",
                  "" if promoted_from(instance) or observed.empty else "it builds its own",
                  'write image = "promote:NAME" below [deploy] in the instance file')
    if not promoted_from(instance) and not observed.empty:
        return
    theirs = observed.instance(other)
    project, stream = (theirs.project, theirs.app) if theirs else (f"project-of-{other}", name)
    digest = images.digest_in(observed.object("Deployment", stream, project), stream) if theirs else ""
    yield Require(f"{other} runs an image", "" if digest or observed.empty else f"{other} runs no image that was built",
                  f"deploy it first: `invoke deploy.build --build={other}`")
    # The image stays in the other project's registry, so this project's pods must be let in there.
    yield Apply({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
                 "metadata": {"name": f"{instance.project}-image-puller", "namespace": project},
                 "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": PULLER},
                 "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group",
                               "name": f"system:serviceaccounts:{instance.project}"}]})
    own = observed.object("ImageStream", name)
    if not images.holder(own):
        moves = "" if digest and digest == images.newest(own) else f"{other} runs {images.short(digest) or 'another image'}"
        if moves or not images.running_pods(instance, observed):
            yield quota.enough(instance, observed)
        yield from before(instance, observed, moves)
        if moves:
            yield Patch(Object("ImageStream", name), {"spec": {"tags": images.tags(own, {
                "kind": "ImageStreamImage", "namespace": project, "name": f"{stream}@{digest or 'DIGEST'}"})}},
                f"the tag latest is the image that {other} runs")
        yield WaitFor(Object("Deployment", name), images.runs(name, digest), seconds=120)
    yield from served(instance)


# Building

@step(
    # An instance does one of the two; whoever needs a running app needs this step and so comes after both.
    needs=(environment.check, environment.set, source.check, database.access, promote),
    wanted=builds,
    see="The site answers over HTTPS, from an image that was built from the branch's newest commit.",
    otherwise=(
        ("The build's log ends with `Could not find a version`, `No matching distribution found` or `THESE PACKAGES DO NOT MATCH "
         "THE HASHES`.", "The lock does not fit: renew it in your checkout, commit, push."),
        ("`ended as Failed`, `ended as Error`, `ended as Cancelled` or `GenericS2IBuildFailed`",
         "The build's own log says why; the message has its last lines. The app that runs is left alone."),
        ("`it takes the image that … runs`", "This instance promotes: `deploy.promote` takes the other one's image."),
        ("`CrashLoopBackOff` or `Back-off restarting failed container`",
         "The last lines of the pod's log, which this step shows, name the cause: mostly a variable (`environment.check`) or "
         "the database (`database.access`)."),
        ("`0 of 1 pods`, and no pod appears, or the console says `0 pods scaling to 1`.",
         "The quota of the project is used up: `oc describe quota`."),
        ("`the quota leaves`", ("Stop what nobody needs, lower `memory` below [deploy], or ask for more in a Service Now "
                                "ticket.")),
        ("`OOMKilled`", "The app needs more memory: raise `memory` below [deploy]."),
        ("The site answers `Application is not available`.", ("No pod is ready: the readiness probe asks for / and "
                                                             "wants an answer below 400.")),
        ("A request ends after exactly 30 seconds.", "The Route lost its timeout annotation: run `app.create`."),
    ),
    unconfirmed="That a project has a quota of one CPU of requests: `oc describe quota` tells.",
)
def build(instance: Instance, observed: Observed, *,
          again: Annotated[bool, "Build even when nothing changed."] = False) -> Plan:
    """Build the app from its branch's newest commit, run it, and look at it."""
    name, other = instance.app, promoted_from(instance)
    held = images.holder(observed.object("ImageStream", name))
    yield Require("this instance builds its own image", f"it takes the image that {other} runs" if other else "",
                  "`invoke deploy.promote` takes it; `image` below [deploy] in the instance file decides")
    release = f"`invoke deploy.release --build={instance.name}` when its reason is gone"
    yield Require("no older image is held on purpose", f"it is held: {held}" if held and again else "", release,
                  aside=f"an older image is held, so nothing newer is built: {held}; {release}" if held else "")
    reason = "" if held else "you asked for it again" if again else images.because(instance, observed)
    if reason or not images.running_pods(instance, observed):
        yield quota.enough(instance, observed)
    yield from before(instance, observed, reason)
    yield StartBuild(name, name, name, reason)
    yield from served(instance)


@step(
    needs=(environment.set,),
    see="The server refuses the former password, and the site answers.",
    otherwise=(
        ("`have the former log-in to the database`",
         "The Secret has another password, and no pod was started since: `environment.set` starts fresh ones."),
    ),
)
def retire(instance: Instance, observed: Observed) -> Plan:
    """Take the database log-in from before a rotation away, once no pod has it."""
    yield database.retired(instance, observed)


def before(instance: Instance, observed: Observed, reason: str) -> Plan:
    """Yield what comes before an app that runs is replaced: the question that the instance's policy asks, and the dump."""
    wanted = instance.deploy
    if not reason or not images.running_digest(instance, observed):
        return  # Nobody is disturbed by a site that is not there yet.
    if said := policy(instance):
        yield Confirm(f"{said}. Deploy now ({reason})?")
    if wanted.backup:
        yield database.dumped(instance, observed, f"before a deployment: {reason}")


def policy(instance: Instance) -> str:
    """Return when the instance may be deployed and who is asked before, "" when it is deployed at will."""
    wanted = instance.deploy
    if not (wanted.when or wanted.ask):
        return ""
    when = f"{instance.name} is deployed {wanted.when}" if wanted.when else f"{instance.name} is not deployed at will"
    return when + (f"; ask {wanted.ask} first" if wanted.ask else "")


def served(instance: Instance) -> Plan:
    """Yield the pods, the wait for them, and the looks at the site."""
    name, wanted = instance.app, instance.deploy
    yield Scale(name, wanted.replicas)
    yield WaitFor(Object("Deployment", name), rolled_out, seconds=600)
    if not wanted.replicas:
        return
    yield Look(instance.url, "/", what="the home page")
    if wanted.static:
        yield Look(instance.url, wanted.static, what="a static file")
    if wanted.proof not in ("", "/"):
        yield Look(instance.url, wanted.proof, what="a page that needs the database")
    if wanted.websocket:
        yield Look(instance.url, wanted.websocket, websocket=True, what="the websocket, through Redis")


# Builds by the clock

SCRIPT = '''\
import json, ssl, sys, urllib.error, urllib.request
from pathlib import Path

config, schedule = sys.argv[1:3]
account = Path("/var/run/secrets/kubernetes.io/serviceaccount")
project, token = (account / "namespace").read_text(), (account / "token").read_text()
trust = ssl.create_default_context(cafile=str(account / "ca.crt"))

def ask(method, path, body, kind="application/json"):
    request = urllib.request.Request("https://kubernetes.default.svc/apis/" + path, json.dumps(body).encode(), method=method,
                                     headers={"Authorization": "Bearer " + token, "Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=30, context=trust) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        text = error.read().decode(errors="replace")
        try:
            text = json.loads(text)["message"]
        except (ValueError, KeyError):
            pass
        sys.exit(f"refused ({error.code}): {text}")
    except OSError as error:
        sys.exit(f"the API server cannot be reached: {error}")

# The right to suspend the schedule is there for one time only: it says that this is the one.
right = {"namespace": project, "group": "batch", "resource": "cronjobs", "name": schedule, "verb": "patch"}
review = ask("POST", "authorization.k8s.io/v1/selfsubjectaccessreviews", {
    "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": right}})
if review["status"]["allowed"]:
    merge = "application/merge-patch+json"
    ask("PATCH", f"batch/v1/namespaces/{project}/cronjobs/{schedule}", {"spec": {"suspend": True}}, merge)
    ask("PATCH", f"rbac.authorization.k8s.io/v1/namespaces/{project}/rolebindings/{schedule}-once", {"subjects": None}, merge)
    print("this was the one time: the schedule is suspended")
made = ask("POST", f"build.openshift.io/v1/namespaces/{project}/buildconfigs/{config}/instantiate", {
    "apiVersion": "build.openshift.io/v1", "kind": "BuildRequest", "metadata": {"name": config},
    "triggeredBy": [{"message": "the schedule " + schedule}]})
print("started", made["metadata"]["name"])
'''
"""What the scheduled pod runs: only the standard library, TLS checked against the cluster's own authority."""

EXAMPLE = "0 0 * * 1,5"


def schedule_name(instance: Instance) -> str:
    """Return the name of the CronJob and of what belongs to it."""
    return f"{instance.app}-schedule"


@step(
    needs=(app.create,),
    wanted=lambda instance: bool(instance.schedule.cron),
    setting="`cron` below [schedule]",
    see="`oc get cronjob` shows the schedule with SUSPEND True.",
    otherwise=(
        ("The job's log says `refused (403)`.", "Its ServiceAccount lost its right: run `deploy.schedule` again."),
        ("The job's log says `refused (404)`.", "There is no build config: run `app.create`."),
        ("`this instance takes the image that … runs`", "It builds nothing, so there is nothing to schedule."),
        ("`unknown time zone`", "Write a name as `Europe/Zurich` as `zone` below [schedule]."),
        ("`Invalid value` for `spec.schedule`", "`cron` below [schedule] has five fields: minute hour day month weekday."),
        ("Nothing starts at the time.", ("The schedule is suspended until `deploy.resume`; `oc describe cronjob` shows what "
                                         "became of each time.")),
    ),
    unconfirmed="That the platform takes a CronJob's `timeZone` (Kubernetes 1.27 or newer): `oc version` tells.",
)
def schedule(instance: Instance, observed: Observed) -> Plan:
    """Make a CronJob that starts builds by the clock, suspended at first."""
    name, other = schedule_name(instance), promoted_from(instance)
    yield Require("the schedule has something to build", f"this instance takes the image that {other} runs" if other else "",
                  "take `cron` out of [schedule], or write image = \"build\" below [deploy]")
    found = observed.object("CronJob", name)
    image = pinned(instance, observed, found)
    yield Require(f"the builder image {instance.source.builder} exists", "" if image or observed.empty else "it does not",
                  "`invoke app.create` lists the tags that are there")
    about: Manifest = {"name": name, "labels": app.labels(instance)}
    rbac = {"apiVersion": "rbac.authorization.k8s.io/v1"}
    account = [{"kind": "ServiceAccount", "name": name}]
    yield Apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": about, "automountServiceAccountToken": False})
    yield Apply(rbac | {"kind": "Role", "metadata": about, "rules": [
        {"apiGroups": ["build.openshift.io"], "resources": ["buildconfigs/instantiate"], "verbs": ["create"],
         "resourceNames": [instance.app]}]})
    yield Apply(rbac | {"kind": "RoleBinding", "metadata": about, "roleRef": role(name), "subjects": account})
    # What one time needs; nobody has it until `deploy.resume --once` names the account, and the pod gives it back.
    once: Manifest = about | {"name": f"{name}-once"}
    yield Apply(rbac | {"kind": "Role", "metadata": once, "rules": [
        {"apiGroups": ["batch"], "resources": ["cronjobs"], "verbs": ["patch"], "resourceNames": [name]},
        {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["rolebindings"], "verbs": ["patch"],
         "resourceNames": [f"{name}-once"]}]})
    yield Apply(rbac | {"kind": "RoleBinding", "metadata": once, "roleRef": role(f"{name}-once")})
    yield Apply(cron_job(instance, image, suspend=found["spec"].get("suspend", False) if found else True))


def role(name: str) -> Manifest:
    """Return the reference to a Role of the project."""
    return {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}


def pinned(instance: Instance, observed: Observed, found: Manifest | None) -> str:
    """Return the builder image by its digest; the one that the CronJob has stays while the tag still knows it."""
    pods = ((found or {}).get("spec") or {}).get("jobTemplate", {}).get("spec", {}).get("template", {}).get("spec", {})
    now: str = next((c["image"] for c in pods.get("containers", []) if c["name"] == "start"), "")
    if now.partition("@")[2] in images.builder_images(instance, observed):
        return now
    name, _, tag = instance.source.builder.partition(":")
    stream = observed.object("ImageStream", name, "openshift") or {}
    image: str = next((items[0]["dockerImageReference"] for known in (stream.get("status") or {}).get("tags", [])
                       if known["tag"] == tag and (items := known.get("items"))), "")
    return image


def cron_job(instance: Instance, image: str, *, suspend: bool) -> Manifest:
    """Return the CronJob; people move `suspend`, so it is applied as observed."""
    name = schedule_name(instance)
    labels = {"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": app.GROUP}
    container = {"name": "start", "image": image or f"{app.REGISTRY}/openshift/{instance.source.builder}",
                 "command": ["python3", "-c", SCRIPT, instance.app, name],
                 "resources": {"limits": {"cpu": "100m", "memory": "128Mi"}, "requests": {"cpu": "10m", "memory": "64Mi"}}}
    # Not the app's own labels: its Service would send requests to this pod.
    pod = {"metadata": {"labels": labels},
           "spec": {"serviceAccountName": name, "automountServiceAccountToken": True, "restartPolicy": "Never",
                    "containers": [container]}}
    return {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": name, "labels": app.labels(instance)},
            "spec": {"schedule": instance.schedule.cron or EXAMPLE, "timeZone": instance.schedule.zone, "suspend": suspend,
                     "concurrencyPolicy": "Forbid", "startingDeadlineSeconds": 120,
                     "successfulJobsHistoryLimit": 3, "failedJobsHistoryLimit": 3,
                     "jobTemplate": {"spec": {"backoffLimit": 2, "activeDeadlineSeconds": 300, "template": pod}}}}


@step(
    needs=(app.create,),
    operation=True,
    see="`oc get cronjob` shows SUSPEND False.",
    otherwise=(
        ("`there is no schedule`", "Set `cron` below [schedule] in the instance file and run `deploy.schedule`."),
        ("`it is held`", "An older image runs on purpose; `deploy.release` ends that."),
        ("`a build by the clock makes no dump`", "`backup` below [deploy] asks for a dump before each deployment. With `--once` "
                                                 "it is made now, for one build."),
    ),
)
def resume(instance: Instance, observed: Observed, *,
           once: Annotated[bool, "Suspend the schedule again when it has started one build."] = False) -> Plan:
    """Let the schedule start builds."""
    name = schedule_name(instance)
    held = images.holder(observed.object("ImageStream", instance.app))
    yield Require("no older image is held on purpose", f"it is held: {held}" if held else "",
                  f"`invoke deploy.release --build={instance.name}` when its reason is gone")
    found = observed.object("CronJob", name)
    yield Require("there is a schedule", "" if found or observed.empty else "there is no schedule",
                  "set `cron` below [schedule] in the instance file, then `invoke deploy.schedule`")
    # Nobody can be asked when the clock strikes, so whoever lets it strike is.
    yield Require("each deployment has its dump", "a build by the clock makes no dump"
                  if instance.deploy.backup and not once and not observed.empty else "",
                  "`--once` dumps now and lets one build start; `deploy.build` dumps each time")
    if found is None or found["spec"].get("suspend"):
        if said := policy(instance):
            yield Confirm(f"{said}. Let builds start at `{instance.schedule.cron}` ({instance.schedule.zone}) without asking?")
        if instance.deploy.backup:
            yield database.dumped(instance, observed, "before a build by the clock")
    account = [{"kind": "ServiceAccount", "name": name, "namespace": instance.project}]
    yield Patch(Object("RoleBinding", f"{name}-once"), {"subjects": account if once else None},
                "it suspends itself after one build" if once else "it goes on after each build", {"subjects": None})
    yield Patch(Object("CronJob", name), {"spec": {"suspend": False}}, "the schedule starts builds", {"spec": {"suspend": True}})


@step(
    undoes=resume,
    see="`oc get cronjob` shows SUSPEND True.",
    otherwise=(("A build starts all the same.", "It was started before, or by hand: `deploy.history` says by whom."),),
)
def suspend(instance: Instance, observed: Observed) -> Plan:
    """Keep the schedule from starting builds."""
    yield from resume.plan(instance, observed)


# An older image

@step(
    needs=(app.create,),
    operation=True,
    see="The site answers from the older image, and `deploy.history` marks it as held.",
    back="`deploy.release` holds the image no longer; then `deploy.build` runs the newest commit again.",
    otherwise=(
        ("`there is no image '…'`, `there is no image at all` or `there is no image older than`",
         "`deploy.history` lists the images that the project still has."),
        ("The older app fails with `column … does not exist` or `relation … already exists`, or the command "
         "asks because `Migrations lie between`.",
         "Migrations lie between: put the dump back (`database.restore`), or release and mend the newest commit."),
        ("`why is it held?`", "Say it in a few words for whoever comes next: --why=\"…\"."),
    ),
    unconfirmed="That the image trigger at CERN follows a tag that is moved by its spec: "
                "`oc get is NAME -o yaml` after `oc tag NAME@DIGEST NAME:latest` would tell.",
)
def rollback(instance: Instance, observed: Observed, *,
             to: Annotated[str, "The image: a build's name or number, or a digest; else the one before."] = "",
             why: Annotated[str, "Why, for whoever comes next."] = "") -> Plan:
    """Run an older image and hold it until somebody releases it."""
    name = instance.app
    stream = observed.object("ImageStream", name)
    made = images.made(instance, observed)
    wanted, problem = images.older(stream, made, to, name)
    yield Require("it is said why", "" if why or observed.empty else "why is it held?", 'add --why="…"', given=True)
    yield Require("the older image is there", "" if observed.empty else problem,
                  f"`invoke deploy.history --build={instance.name}` lists the images", given=bool(to))
    now = images.newest(stream)
    held = images.holder(stream)
    if now and now != wanted:
        between = question(observed, made.get(now), made.get(wanted))
        if between:
            yield Confirm(between)
        if instance.deploy.backup:
            yield database.dumped(instance, observed, f"before going back to the image {images.short(wanted)}")
    if observed.object("CronJob", schedule_name(instance)):
        yield Patch(Object("CronJob", schedule_name(instance)), {"spec": {"suspend": True}}, "the schedule starts no build")
    if not (held and now == wanted):
        note = f"by {observed.user() or 'YOU'} since {observed.now() or 'NOW'}: {why or 'WHY'}"
        image = {"kind": "ImageStreamImage", "name": f"{name}@{wanted or 'DIGEST'}"}
        yield Patch(Object("ImageStream", name), {
            "metadata": {"annotations": {images.HELD: note}}, "spec": {"tags": images.tags(stream, image, {images.HELD: note})}},
            "the tag latest is the older image, and it is held")
    yield WaitFor(Object("Deployment", name), images.runs(name, wanted), seconds=120)
    yield WaitFor(Object("Deployment", name), rolled_out, seconds=600)
    if instance.deploy.replicas:
        yield Look(instance.url, "/", what="the home page")


def question(observed: Observed, now: Manifest | None, then: Manifest | None) -> str:
    """Return what to ask when migrations lie between two builds or when that cannot be known, "" when none do."""
    late, early = (observed.source(images.commit_of(one)) if one and images.commit_of(one) else None for one in (now, then))
    if late is None or early is None or late.error or early.error:
        why = next((one.error for one in (late, early) if one and one.error), "no build is known for one of the two images")
        return (f"Whether migrations lie between the two images cannot be known: {why}. "
                "The older app would meet the tables as they are now. Go back all the same?")
    between = sorted(path for path, file in late.files.items() if re.search(r"(^|/)migrations/[^/]+\.py$", path)
                     and (path not in early.files or early.files[path].text != file.text))
    return (f"Migrations lie between the two images: {', '.join(between)}. They are not taken back, and the older app "
            "may fail on the tables that they changed. Go back all the same?") if between else ""


@step(
    needs=(app.create,),
    operation=True,
    see="`deploy.history` holds nothing any more.",
    back="`deploy.rollback` holds an older image again.",
    otherwise=(("The older image still runs.", "That is right: the next `deploy.build` or `guide.run` replaces it when the branch "
                "has another commit, and `deploy.build --again` in any case."),),
    unconfirmed="That the tag keeps its image when its entry in the spec is taken out: "
                "`oc get is NAME -o yaml` before and after `oc patch is NAME --type=merge -p '{\"spec\":{\"tags\":null}}'` "
                "would tell.",
)
def release(instance: Instance, observed: Observed) -> Plan:
    """Hold an older image no longer."""
    stream = observed.object("ImageStream", instance.app)
    if images.holder(stream) or observed.empty:
        yield Patch(Object("ImageStream", instance.app), {
            "metadata": {"annotations": {images.HELD: None}}, "spec": {"tags": images.tags(stream, None)}}, "no image is held")


@step(
    needs=(app.create,),
    operation=True,
    everywhere=True,
    see="One line for each image that the tag had, the newest first; the one that runs is marked.",
    otherwise=(("`nothing was built yet`", "The app has no image: `guide.run` makes what is missing, and builds.", RUN),),
)
def history(instance: Instance, observed: Observed) -> Plan:
    """Show which commit runs, since when, and who deployed it."""
    name = instance.app
    stream = observed.object("ImageStream", name)
    made = images.made(instance, observed)
    now = images.running_digest(instance, observed)
    yield Show(("since (UTC)", "image", "commit", "build", "by", ""), tuple(rows(instance, stream, made, now)),
               "nothing was built yet")


def rows(instance: Instance, stream: Manifest | None, made: dict[str, Manifest], now: str) -> Iterator[tuple[str, ...]]:
    """Yield a line for each time that the tag was moved."""
    items, held = images.all_of(stream), images.holder(stream)
    for place, item in enumerate(items):
        digest = item["image"]
        one = made.get(digest)
        moved_back = any(earlier["image"] == digest for earlier in items[place + 1:])
        project = images.app_project(item["dockerImageReference"])
        by = "moved back" if moved_back else images.triggered(one) if one else \
            f"promoted from {project}" if project not in ("", instance.project) else "not known any more"
        mark = "runs" if digest == now and digest not in {i["image"] for i in items[:place]} else ""
        if place == 0 and held:
            mark, by = f"{mark}, held".strip(", "), held
        yield (item["created"].removesuffix("Z").replace("T", " "), images.short(digest), images.commit_of(one)[:8] if one else "",
               images.build_name(one), by, mark)
