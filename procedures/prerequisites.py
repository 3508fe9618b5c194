"""Before you begin: what your machine, your log-in and your rights must be."""

from collections.abc import Iterator

from procedures import database, quota, sso
from runbook.instance import Instance
from runbook.observed import Machine, Observed
from runbook.plan import Ask, LoggedIn, Plan, Require, Show
from runbook.step import step

TOKENS = "https://oauth-openshift.paas.cern.ch/oauth/token/display"
NETWORKS = "137.138.0.0/16 128.141.0.0/16 128.142.0.0/16 188.184.0.0/15"
"""CERN's networks."""
TUNNEL = f"sshuttle -r USER@lxtunnel.cern.ch {NETWORKS}"
"""CERN's networks through a tunnel, from anywhere."""
RESOURCES = (("", "secrets"), ("", "configmaps"), ("", "services"), ("", "serviceaccounts"), ("", "persistentvolumeclaims"),
             ("apps", "deployments"), ("batch", "cronjobs"), ("build.openshift.io", "buildconfigs"),
             ("image.openshift.io", "imagestreams"), ("route.openshift.io", "routes"), ("coordination.k8s.io", "leases"),
             ("rbac.authorization.k8s.io", "roles"), ("rbac.authorization.k8s.io", "rolebindings"))
"""What the steps make in the project."""
WAY_BACK = ("webservices.cern.ch", "oidcreturnuris")
"""What `sso.register` makes in place of a form, where the instance file says so."""
VERBS = ("get", "list", "create", "patch", "delete")
FURTHER = (("", "pods", "list"), ("", "pods", "create"), ("", "pods", "delete"), ("", "pods/log", "get"),
           ("", "pods/exec", "create"), ("apps", "deployments/scale", "patch"),
           ("apps", "replicasets", "list"), ("", "events", "list"), ("", "resourcequotas", "list"),
           ("build.openshift.io", "buildconfigs/instantiate", "create"), ("build.openshift.io", "builds", "list"))
"""What they do besides."""


def resources(instance: Instance) -> list[tuple[str, str]]:
    """Return what the steps make for this instance: group and resource."""
    return [*RESOURCES, WAY_BACK] if sso.managed(instance) else [*RESOURCES]


def forbidden(instance: Instance, machine: Machine) -> list[str]:
    """Return what the steps do and whoever is logged in may not; nothing when there is no project yet."""
    if machine.rules is None:
        return []
    wanted = [(group, resource, verb) for group, resource in resources(instance) for verb in VERBS] + list(FURTHER)
    missing = [(f"{resource}.{group}".rstrip("."), verb) for group, resource, verb in wanted
               if not any(rule.allows(group, resource, verb) for rule in machine.rules)]
    return [f"{' '.join(verb for one, verb in missing if one == name)} {name}" for name in dict.fromkeys(n for n, _ in missing)]


@step(
    operation=True,
    before_login=True,
    see="A table whose last column is empty, but for what you can do without.",
    otherwise=(
        ("`there is no git on PATH`", "`dnf install git` or `apt install git`."),
        ("`you may not …`", "Ask the owner of the site to make you, or your e-group, an administrator."),
        ("`the API server can be reached: …`",
         f"You are outside CERN. Work on lxplus, or through a tunnel: `{TUNNEL}`."),
        ("`somebody is logged in: …`", "Log in: `invoke prerequisites.login --build=dev` says how."),
        ("`server-side apply is taken: …`",
         "The cluster does not take for this kind what the guide builds on. Send the table to whoever looks after the guide."),
    ),
    unconfirmed="What the servers of ImageStream, BuildConfig and Route at CERN say to server-side apply: this step tries it by "
                "dry run, so that its table would tell.",
)
def check(instance: Instance, observed: Observed) -> Plan:
    """Check your machine, the network, your log-in and your rights, and say what cures what is missing."""
    machine = observed.machine()
    if machine is None:
        yield Show(("what", "found", "cure"), ())
        yield Require("the API server can be reached", "", f"work on lxplus, or through a tunnel: `{TUNNEL}`")
        yield Require("somebody is logged in", "", f"`invoke prerequisites.login --build={instance.name}`")
        return
    lacking = ", ".join(forbidden(instance, machine))
    held = list(required(instance, observed, machine))
    cures = {one.what: one.cure for one in held if one.found}
    yield Show(("what", "found", "cure"), (
        ("Python", machine.programs["python"], ""),
        ("git", machine.programs["git"] or "missing", cures.get("git is there", "")),
        ("oc, which the guide does not need", machine.programs["oc"] or "missing", "" if machine.programs["oc"] else
         "only for the copied commands: it is on lxplus; elsewhere https://paas.cern.ch, question mark, Command Line Tools"),
        ("pg_dump, for backups", machine.programs["pg_dump"] or "missing", "" if machine.programs["pg_dump"] else
         "`dnf install postgresql` or `apt install postgresql-client`"),
        ("API server", machine.network or "reached", cures.get("the API server can be reached", "")),
        ("log-in", machine.login or machine.user, cures.get("somebody is logged in", "")),
        ("database server", machine.database or "reached", "" if not machine.database else
         f"inside CERN or through a tunnel only; before `invoke database.request --build={instance.name}` there is none"),
        ("project", instance.project if machine.rules is not None else "not there yet",
         "" if machine.rules is not None else f"`invoke project.request --build={instance.name}`"),
        ("rights", ("all that the steps need" if machine.rules is not None else "known once the project is there")
         if not lacking else f"may not {lacking}", cures.get("you may do what the steps do", "")),
        *(("quota", line, "" if quota.leaves_room(instance, line) else quota.MORE) for line in machine.quota),
        *((f"server-side apply, {kind}", said or "taken", "") for kind, said in machine.applies.items()),
    ))
    yield from held


def required(instance: Instance, observed: Observed, machine: Machine) -> Iterator[Require]:
    """Yield what must hold before the guide can do its work."""
    tunnel = f"work on lxplus, or through a tunnel: `{TUNNEL}`"
    yield Require("git is there", "" if machine.programs["git"] else "there is no git on PATH",
                  "`dnf install git` or `apt install git`")
    yield Require("the API server can be reached", machine.network, tunnel)
    yield Require("somebody is logged in", machine.login, f"`invoke prerequisites.login --build={instance.name}`")
    set_up = machine.rules is not None and observed.object("Secret", database.app_password(instance).secret)
    yield Require("the database server can be reached", machine.database if set_up else "", tunnel)
    lacking = ", ".join(forbidden(instance, machine))
    yield Require("you may do what the steps do", f"you may not {lacking}" if lacking else "",
                  "ask the owner of the site to make you, or your e-group, an administrator")
    refused = "; ".join(f"{kind}: {said}" for kind, said in machine.applies.items() if said)
    yield Require("server-side apply is taken", refused, "send this table to whoever looks after the guide")


@step(
    operation=True,
    person=True,
    before_login=True,
    see="Your name, as the cluster knows it.",
    otherwise=(
        ("`no log-in to a cluster`", "There is no kubeconfig yet: log in once, and it is made."),
        ("`you are logged in to …, and …`", "That is another cluster: log in with the `--server` that the message names."),
        ("`the API server … does not answer` or `Unable to connect to the server`",
         f"The API server is reached from inside CERN only. Work on lxplus, or through a tunnel: `{TUNNEL}`."),
    ),
    unconfirmed="That `oc login --web` works from outside lxplus with today's `oc`: trying it would tell.",
)
def login(instance: Instance, observed: Observed) -> Plan:
    """Log in to the cluster."""
    if instance.at == "local":
        machine = observed.machine()
        yield Require("somebody is logged in", machine.login if machine else "", "`invoke stack.up` makes the stack's own log-in")
        return
    yield Ask(
        deed=f"Log in with the real `oc` (not run here): `oc login --web --server={instance.api}`; on lxplus (not run here) "
             f"`oc sso-login --server={instance.api}`; without a browser, the command that the token page shows.",
        where=TOKENS,
        form="",
        values={},
        until=LoggedIn(instance.api),
        instead="`oc logout` ends the log-in; by itself it lasts a day.",
    )
