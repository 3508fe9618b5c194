"""Setup procedure: the app's own objects on OpenShift, complete but not yet running."""

import json
import re
from typing import Annotated

from procedures import project, source, sso
from runbook.instance import Instance
from runbook.observed import Observed
from runbook.plan import (
    Apply,
    Condition,
    Credential,
    Former,
    Inside,
    Log,
    Manifest,
    Object,
    Patch,
    Plan,
    Require,
    Shell,
    WaitFor,
    cloning,
    rolled_out,
    secret,
)
from runbook.step import RUN, step

REGISTRY = "image-registry.openshift-image-registry.svc:5000"
"""The platform's own registry, as pods name it."""
PORT = 8080
RESTARTED = "guide/restarted"
"""The annotation of the pods whose change makes them anew."""
GROUP = "certhelper"
"""The application group under which the console's topology shows what belongs together."""


def _admitted(found: Manifest | None) -> str:
    said = _admissions(found)
    if any(c["status"] == "True" for c in said):
        return ""
    if not said:
        return "no router has looked at it yet"
    return f"{said[0].get('reason', '')}: {said[0].get('message', '')}".strip(": ")


def _refused(found: Manifest | None) -> str:
    return _admitted(found) if _admissions(found) else ""


def _admissions(found: Manifest | None) -> list[Manifest]:
    """Return what the routers say of the host that the Route asks for now."""
    host = (found or {}).get("spec", {}).get("host")
    return [c for ingress in (found or {}).get("status", {}).get("ingress", []) if ingress.get("host", host) == host
            for c in ingress.get("conditions", []) if c["type"] == "Admitted"]


admitted = Condition("admitted by the router", _admitted,
                     'jsonpath={.status.ingress[0].conditions[?(@.type=="Admitted")].status}=True', _refused)


def package_credentials(instance: Instance) -> dict[str, Credential]:
    """The user and token for private Git packages: files beside `assemble`, for the time of a build."""
    host = instance.source.private_packages
    user, token = source.TOKEN_KEYS
    kept = f"{instance.app}-build"
    return {user: Credential("cern-gitlab-user", f"user of the deploy token at {host}", kept, user, former=Former(user)),
            token: Credential("cern-gitlab-token", f"deploy token with read_repository at {host}", kept, token,
                              former=Former(token))}


@step(
    needs=(project.request, source.check),
    see="The Route is admitted; the Deployment is there with no pod yet, because nothing was built.",
    otherwise=(
        ("`HostAlreadyClaimed`", ("Another Route has this host. Choose another one as `host` in the instance file, or "
                                  "ask the owner of the other site to give it up.")),
        ("`the image stream … has …`, `there is no image stream … in the namespace openshift`, `has no tag` or "
         "`exists: not so: it does not`",
         "The platform offers other versions of the builder image: write one that is there as `builder` below [source]."),
        ("`holds it, and its name cannot be changed`", "Another Route of the project has the host: the message says how it goes."),
        ("`… is reserved`", ("The platform keeps some names for itself. Ask for the name in a Service Now ticket, or "
                            "choose another one.")),
        ("The console says that a quota is exceeded.", ("The project's quota is used up (by default one CPU of requests). "
                                               "Lower `memory` below [deploy], or ask for more in a ticket.")),
    ),
    unconfirmed="Whether the platform lets server-side apply set build configs, image streams and routes: "
                "`oc apply --server-side --dry-run=server -f FILE` on each would tell.",
)
def create(instance: Instance, observed: Observed) -> Plan:
    """Create the app's image stream, build config, Service, Route and Deployment."""
    wanted = instance.source
    stream, _, tag = wanted.builder.partition(":")
    builders = observed.object("ImageStream", stream, "openshift")
    tags = sorted(known["tag"] for known in (builders or {}).get("status", {}).get("tags", []))
    yield Require(f"the builder image {wanted.builder} exists",
                  "" if tag in tags or observed.empty
                  else f"the image stream {stream} has {', '.join(tags)}" if tags
                  else f"there is no image stream {stream} in the namespace openshift",
                  "put one that exists into the instance file as `builder` below [source]")
    if wanted.private:
        kept = {each.key: each for each in cloning(instance.app, wanted.repository)}
        yield Apply(secret(f"{instance.app}-source", kept, labels(instance)) | {"type": "kubernetes.io/basic-auth"})
    if wanted.private_packages:
        yield Apply(secret(f"{instance.app}-build", package_credentials(instance), labels(instance)))
    others = [found["metadata"]["name"] for found in observed.objects("Route")
              if found["spec"].get("host") == instance.host and found["metadata"]["name"] != instance.app]
    yield Require(f"no other Route of the project holds {instance.host}",
                  f"the Route {', '.join(others)} holds it, and its name cannot be changed" if others else "",
                  f"`oc delete route {' '.join(others)}`, and run this again at once: in between the site does not answer")
    yield Apply(image_stream(instance))
    yield Apply(build_config(instance))
    yield Apply(service(instance, observed))
    yield Apply(route(instance, observed))
    yield WaitFor(Object("Route", instance.app), admitted, seconds=60)
    yield Apply(deployment(instance, observed))


@step(
    operation=True,
    see="The app's last lines.",
    otherwise=(("`… has no pod`", "The app is stopped or was never started: `guide.run` starts it.", RUN),
               ("`previous terminated container … not found`",
                "No container of the pod ended before this one: leave `--previous` out.")),
)
def logs(instance: Instance, _observed: Observed, *, follow: Annotated[bool, "Go on as lines come; Ctrl-C ends it."] = False,
         lines: Annotated[int, "How many lines of each pod."] = 100,
         previous: Annotated[bool, "Of the container before the last restart: why it crashed."] = False) -> Plan:
    """Print the app's log."""
    yield Log(instance.app, instance.app, lines, follow, previous)


@step(
    operation=True,
    see="A prompt inside the pod; `exit` leaves it.",
    otherwise=(("`a shell needs a terminal`", "The command was started by a script: run it in a terminal."),
               ("`no pod of … is ready`",
                "The app does not run: `guide.run` starts it; `app.logs --previous` says why one that starts ends.", RUN)),
)
def shell(instance: Instance, _observed: Observed) -> Plan:
    """Open a shell in a pod of the app."""
    yield Shell(instance.app, instance.app)


IS_SUPERUSER = """\
import sys
from django.contrib.auth import get_user_model
wanted = {{get_user_model().USERNAME_FIELD: {name!r}}}
sys.exit(not get_user_model().objects.filter(is_superuser=True, is_staff=True, is_active=True, **wanted).exists())"""
MAKE_SUPERUSER = """\
import sys
from django.contrib.auth import get_user_model
wanted, password = {{get_user_model().USERNAME_FIELD: {name!r}}}, sys.stdin.readline().rstrip()
user = get_user_model().objects.filter(**wanted).first()
if user is None and not password:
    sys.exit("there is no user {name}: let {name} sign in at the site once, or name a file with a password in "
             "RUNBOOK_ADMIN_PASSWORD_FILE")
user = user or get_user_model()(**wanted)
user.is_active = user.is_staff = user.is_superuser = True
if password:
    user.set_password(password)
user.save()"""


HAS_ROLE = """\
import sys
from django.contrib.auth import get_user_model
model = get_user_model()
level = getattr(model, {role!r}.upper(), None)
wanted = {{model.USERNAME_FIELD: {name!r}}}
sys.exit(level is None or not model.objects.filter(user_privilege=level, is_staff=level >= model.SHIFTLEADER,
                                                   is_superuser=level >= model.ADMIN, **wanted).exists())"""
GIVE_ROLE = """\
import sys
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
model = get_user_model()
if not any(field.name == "user_privilege" for field in model._meta.get_fields()):
    sys.exit("the app keeps no roles: give {name} the role {role} in the application portal")
user = model.objects.filter(**{{model.USERNAME_FIELD: {name!r}}}).first()
if user is None:
    sys.exit("there is no user {name}: let {name} sign in at the site once")
user.user_privilege = level = getattr(model, {role!r}.upper())
user.is_staff, user.is_superuser = level >= model.SHIFTLEADER, level >= model.ADMIN
user.save()
user.groups.set(Group.objects.filter(name=user.get_user_privilege_display()))"""
"""What certhelper does when a sign-on brings a role, and also downwards, which it never does by itself."""


@step(
    operation=True,
    see="The user sees the site's administration at `/admin/`, or has the role.",
    back="`--role=guest` takes every right of a person away; so does an administrator at `/admin/`, below Users.",
    otherwise=(
        ("`there is no role …`", "It is one of guest, shifter, shiftleader, expert and admin."),
        ("`which user?` or `is no user's name`", "Name one with `--user=NAME`, as the site shows it."),
        ("`there is no role '…'`", "The message lists the roles that the app knows."),
        ("`the app keeps no roles`", "Its users bring theirs from the sign-on: give the role in the application portal, to the "
                                     "person or to an e-group; it counts from the next sign-on."),
        ("`there is no user`", "Let the user sign in at the site once, which makes it; then run this again. For an app that takes "
                               "passwords, give one: `RUNBOOK_ADMIN_PASSWORD_FILE` names a file that holds it."),
        ("`no pod of … is ready`", "The app does not run: `guide.run` starts it; `app.logs` says why one that starts ends.", RUN),
    ),
)
def admin(instance: Instance, observed: Observed, *, user: Annotated[str, "The user's name in the app."] = "",
          role: Annotated[str, "A role to give instead: guest, shifter, shiftleader, expert or admin."] = "") -> Plan:
    """Make a user of the app a superuser, or give one a role."""
    yield Require("a user is named", "" if observed.empty or re.fullmatch(r"[\w.@+-]{1,150}", user) else
                  f"{user!r} is no user's name" if user else "which user?",
                  f"`invoke app.admin --build={instance.name} --user=NAME`", given=True)
    yield Require("the role is one that the app knows", "" if role in ("", "guest", *sso.ROLES) else f"there is no role {role!r}",
                  f"one of guest, {', '.join(sso.ROLES)}", given=True)
    name = user or "NAME"
    manage = ("python", "manage.py", "shell", "-c")
    if role:
        yield Inside(instance.app, instance.app, (*manage, GIVE_ROLE.format(name=name, role=role)), f"{name} has the role {role}",
                     unless=(*manage, HAS_ROLE.format(name=name, role=role)), seconds=90)
        return
    # With single sign-on nobody logs in by password, so none is asked for; the pod's process reads it from its input.
    password = Credential("admin-password", f"password of {name}, empty for none", optional=True)
    yield Inside(instance.app, instance.app, (*manage, MAKE_SUPERUSER.format(name=name)), f"{name} is a superuser",
                 unless=(*manage, IS_SUPERUSER.format(name=name)), input=password, seconds=90)


@step(
    operation=True,
    see="All pods of the app were made anew; the site answered all the time.",
    back="Only its pods are new, so there is nothing to take back.",
    otherwise=(("The wait ends with an error, or `there is no Deployment`.",
                "The fresh pod does not start, and the former one goes on. `app.logs --previous` says why."),
               ("`the app is stopped`", "There is no pod to make anew: `guide.run` starts the app.", RUN)),
)
def restart(instance: Instance, observed: Observed) -> Plan:
    """Restart the app: fresh pods first, then the former ones go."""
    found = observed.object("Deployment", instance.app)
    yield Require("there is an app to restart", "" if found or observed.empty else f"there is no Deployment {instance.app}",
                  f"`invoke guide.run --build={instance.name}` makes it")
    stopped = found is not None and found["spec"].get("replicas") == 0
    yield Require("the app has pods", "the app is stopped: its Deployment is scaled to 0" if stopped else "",
                  f"`invoke guide.run --build={instance.name}` starts it")
    # Any other text than the one before makes fresh pods; the generation differs after every change.
    mark = f"after generation {found['metadata']['generation']}" if found else "after generation N"
    yield Patch(Object("Deployment", instance.app), {"spec": {"template": {"metadata": {"annotations": {RESTARTED: mark}}}}},
                "its pods are made anew", owner="deploy.build")
    yield WaitFor(Object("Deployment", instance.app), rolled_out, seconds=600)


def labels(instance: Instance) -> dict[str, str]:
    """Return the labels of everything that belongs to the app."""
    return {"app": instance.app, "app.kubernetes.io/name": instance.app, "app.kubernetes.io/part-of": GROUP}


def _meta(instance: Instance, annotations: dict[str, str] | None = None) -> Manifest:
    return {"name": instance.app, "labels": labels(instance)} | ({"annotations": annotations} if annotations else {})


def image_stream(instance: Instance) -> Manifest:
    """Return the image stream that builds push to."""
    return {"apiVersion": "image.openshift.io/v1", "kind": "ImageStream", "metadata": _meta(instance),
            "spec": {"lookupPolicy": {"local": False}}}


def build_config(instance: Instance) -> Manifest:
    """Return the build config.

    Its list of triggers is empty: a re-applied one with an image trigger has started builds of itself (openshift/origin#23696),
    and an unattended build of unpinned parts is what the guide warns of. `deploy.build` starts builds.
    """
    wanted = instance.source
    origin: Manifest = {"type": "Git", "git": {"uri": wanted.repository, "ref": wanted.branch}}
    if wanted.folder:
        origin["contextDir"] = wanted.folder
    if wanted.private:
        origin["sourceSecret"] = {"name": f"{instance.app}-source"}
    if wanted.private_packages:
        # A build secret is a file for the time of the build; a variable of the strategy would stay in the image.
        origin["secrets"] = [{"secret": {"name": f"{instance.app}-build"}}]
    return {
        "apiVersion": "build.openshift.io/v1", "kind": "BuildConfig", "metadata": _meta(instance),
        "spec": {
            "source": origin,
            "strategy": {"type": "Source", "sourceStrategy": {
                "from": {"kind": "ImageStreamTag", "name": wanted.builder, "namespace": "openshift"}}},
            "output": {"to": {"kind": "ImageStreamTag", "name": f"{instance.app}:latest"}},
            "triggers": [],
            "runPolicy": "Serial",
            "successfulBuildsHistoryLimit": 5,
            "failedBuildsHistoryLimit": 5,
            "resources": {"limits": {"cpu": "1", "memory": "2Gi"}, "requests": {"cpu": "100m", "memory": "512Mi"}},
        },
    }


def selector(instance: Instance, observed: Observed) -> dict[str, str]:
    """Return the labels by which pods are found: those of a Deployment that is there, which cannot change, else our own."""
    found = observed.object("Deployment", instance.app)
    labels: dict[str, str] = (found or {"spec": {}})["spec"].get("selector", {}).get("matchLabels", {})
    return labels or {"app": instance.app}


def service(instance: Instance, observed: Observed) -> Manifest:
    """Return the Service, with the port name that the console gives.

    Its pods are those of the Deployment, also of one that was there before and whose pods do not carry our labels yet.
    """
    return {"apiVersion": "v1", "kind": "Service", "metadata": _meta(instance),
            "spec": {"selector": selector(instance, observed),
                     "ports": [{"name": f"{PORT}-tcp", "port": PORT, "protocol": "TCP", "targetPort": PORT}]}}


def proxy(instance: Instance) -> str:
    """Return the name of the objects of the proxy before the app, which `nginx.add` makes."""
    return f"{instance.app}-nginx"


def target(name: str) -> Manifest:
    """Return where a Route leads."""
    return {"kind": "Service", "name": name, "weight": 100}


def route(instance: Instance, observed: Observed) -> Manifest:
    """Return the Route: TLS ends at the router, plain HTTP is redirected.

    It leads to the app, unless a proxy is wanted and has been put before it. It never sets
    `haproxy.router.openshift.io/ip_whitelist`: who may visit the site is another step's field.
    """
    leads = (observed.object("Route", instance.app) or {"spec": {}})["spec"].get("to", {}).get("name")
    through = instance.nginx.wanted and leads == proxy(instance)
    return {"apiVersion": "route.openshift.io/v1", "kind": "Route",
            "metadata": _meta(instance, {"haproxy.router.openshift.io/timeout": instance.deploy.timeout}),
            "spec": {"host": instance.host, "to": target(proxy(instance) if through else instance.app),
                     "port": {"targetPort": f"{PORT}-tcp"},
                     "tls": {"termination": "edge", "insecureEdgeTerminationPolicy": "Redirect"}}}


def deployment(instance: Instance, observed: Observed) -> Manifest:
    """Return the Deployment without its environment, which `environment.set` owns.

    Image and replicas are moved by the platform and by `deploy.build`: they are applied as observed.
    """
    name = instance.app
    trigger = [{"from": {"kind": "ImageStreamTag", "name": f"{name}:latest"},
                "fieldPath": f'spec.template.spec.containers[?(@.name=="{name}")].image'}]
    found, chosen = observed.object("Deployment", name), selector(instance, observed)
    container = {
        "name": name,
        "image": image(instance, found, observed.object("ImageStream", name)),
        "imagePullPolicy": "IfNotPresent",
        "ports": [{"containerPort": PORT, "protocol": "TCP"}],
        # Django answers 400 to a host that it does not know, and a probe would come with the pod's address.
        "readinessProbe": {"httpGet": {"path": "/", "port": PORT,
                                       "httpHeaders": [{"name": "Host", "value": "127.0.0.1"}]},
                           "periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 3},
        # The port opens only after the migrations, and nobody wants a pod killed in the middle of one.
        "livenessProbe": {"tcpSocket": {"port": PORT}, "initialDelaySeconds": 300, "periodSeconds": 20,
                          "timeoutSeconds": 5, "failureThreshold": 3},
        # The router hears that a pod goes when the pod does: what it still sends there meanwhile is answered.
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", "3"]}}},
        "resources": {"limits": {"memory": quantity(instance.deploy.memory)}, "requests": {"cpu": "100m"}},
    }
    return {
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": _meta(instance, {"image.openshift.io/triggers": json.dumps(trigger)}),
        "spec": {
            "replicas": found["spec"].get("replicas", 1) if found else 0,
            "selector": {"matchLabels": chosen},
            # Rolling, so that a build that does not start leaves the old pod serving. The old pod does not migrate
            # while the new one does; it may meet the new tables for some seconds, which is the smaller harm.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {"metadata": {"labels": labels(instance) | chosen},
                         "spec": {"containers": [container], "terminationGracePeriodSeconds": 15}},
        },
    }


def image(instance: Instance, deployed: Manifest | None, stream: Manifest | None) -> str:
    """Return the image to apply: the one that runs, unless the image stream's tag says another.

    Before the first build it is a name that the image trigger replaces.
    """
    runs = running(deployed, instance.app)
    tagged = latest(stream)
    if tagged and tagged.rpartition("@")[2] not in runs:
        return tagged
    return runs or f"{REGISTRY}/{instance.project}/{instance.app}:latest"


def running(deployment: Manifest | None, container: str) -> str:
    """Return the image that a Deployment's container runs, "" when there is none."""
    return next((c["image"] for c in deployment["spec"]["template"]["spec"]["containers"] if c["name"] == container),
                "") if deployment else ""


def latest(stream: Manifest | None) -> str:
    """Return the reference of the image that the tag latest names, "" when nothing was built."""
    return next((items[0]["dockerImageReference"] for tag in (stream or {}).get("status", {}).get("tags", [])
                 if tag["tag"] == "latest" and (items := tag.get("items"))), "")


def quantity(text: str) -> str:
    """Return a memory size as the API server writes it, so that `1024Mi` and `1Gi` are no difference."""
    units = ["", "Ki", "Mi", "Gi", "Ti"]
    found = re.fullmatch(r"(\d+)([KMGT]i)?", text)
    if not found:
        return text
    number, place = int(found[1]), units.index(found[2] or "")
    while number and number % 1024 == 0 and place < len(units) - 1:
        number, place = number // 1024, place + 1
    return f"{number}{units[place]}"
