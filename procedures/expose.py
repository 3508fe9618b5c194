"""Exposing the app: who may visit the site, only CERN or the whole Internet."""

from procedures import app, deploy, prerequisites
from runbook.instance import Instance
from runbook.observed import Observed
from runbook.plan import Apply, Confirm, Look, Object, Patch, Plan, Require
from runbook.step import step

WHITELIST = "haproxy.router.openshift.io/ip_whitelist"
"""The networks that the router lets in. Empty: all. Absent: nobody promises what the platform makes of that."""

DEFAULT = "custom-ingress.okd.cern.ch/default-route-ip-whitelist"
"""The annotation of a project with the list that the platform gives to its new Routes: CERN's networks."""

EXPOSED = "guide/exposed"
"""A field that nobody else sets: by it the step is known to have been here when somebody changed the other one."""


@step(
    needs=(app.create,),
    wanted=lambda instance: instance.expose.internet,
    setting="`internet = true` below [expose]",
    see="The Route carries an empty list of networks, so the router lets everybody in.",
    otherwise=(
        ("`sites of the category Test cannot be exposed`",
         "Ask for the category Official at the Web Services portal, and put it into the instance file."),
        ("`its list of networks is …` or `so not everybody may come`", "Somebody changed the Route: run this step again."),
        ("From outside: `Empty reply from server`, or the browser says `ERR_EMPTY_RESPONSE`",
         "The router lets only CERN in: `expose.open` has not been run, or somebody put a list on the Route."),
    ),
    unconfirmed=f"That the project has its default list as the annotation `{DEFAULT}`: `oc get project NAME -o yaml` would tell.",
)
def open(instance: Instance, observed: Observed) -> Plan:  # noqa: A001
    """Let the whole Internet visit the site."""
    yield Require("the site may be exposed",
                  "sites of the category Test cannot be exposed" if instance.site.category == "Test" else "",
                  "ask for the category Official at the Web Services portal, then change `category` below [site]")
    # The name of the Route is enough: only who may visit it is this step's.
    yield Apply({"apiVersion": "route.openshift.io/v1", "kind": "Route",
                 "metadata": {"name": instance.app, "annotations": {WHITELIST: "", EXPOSED: "internet"}}}, part=True)
    yield Patch(Object("Route", instance.app), {"metadata": {"annotations": {WHITELIST: ""}}}, "who may visit the site",
                undo={"metadata": {"annotations": {WHITELIST: inside(instance, observed)}}})


def inside(instance: Instance, observed: Observed) -> str:
    """Return the list of networks that closes a Route: the project's default, and CERN's networks when it has none."""
    project = observed.object("Namespace", instance.project) or {"metadata": {}}
    found: str = (project["metadata"].get("annotations") or {}).get(DEFAULT, "")
    return found or prerequisites.NETWORKS


@step(
    undoes=open,
    see="The Route carries the project's own list of networks.",
    otherwise=(("`its list of networks is empty: everybody may come`, `so who may come is not known`, or from outside: "
                "`… answers 200, and should not`",
                "Somebody changed the Route: run this step again. Where `internet = true` stands below [expose], the next "
                "`guide.run` opens it."),),
)
def close(instance: Instance, observed: Observed) -> Plan:
    """Let only CERN visit the site."""
    yield from open.plan(instance, observed)


@step(
    needs=(deploy.build,),
    operation=True,
    see="From outside, the site answers exactly when the instance file says so.",
    otherwise=(("Nothing answers from outside.", "The Route is not open, or the site itself is down: look from inside first."),),
)
def verify(instance: Instance, observed: Observed) -> Plan:
    """Look at the site from outside CERN."""
    wanted = instance.expose.internet
    route = observed.object("Route", instance.app) or {"metadata": {}}
    allowed = (route["metadata"].get("annotations") or {}).get(WHITELIST)
    missing = "there is no list of networks, so " + ("not everybody may come" if wanted else "who may come is not known")
    said = missing if allowed is None else \
        f"its list of networks is {allowed}" if allowed else "its list of networks is empty: everybody may come"
    right = allowed == "" if wanted else bool(allowed)
    yield Require(f"the Route lets in {'everybody' if wanted else 'CERN only'}", "" if observed.empty or right else said,
                  f"`invoke expose.{'open' if wanted else 'close'} --build={instance.name}`")
    yield Look(instance.url, "/", what="the home page, from here")
    if instance.at == "local":
        yield Look(instance.url, "/", what="the home page, from outside", outside=True, refused=not wanted)
        return
    yield Confirm(f"Open {instance.url}/ on a phone that is not in CERN's network. "
                  f"Does it {'show the site' if wanted else 'show no answer'}?",
                  cure=f"`invoke expose.{'open' if wanted else 'close'} --build={instance.name}`, then look again")
