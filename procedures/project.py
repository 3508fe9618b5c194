"""Requesting a website: the project on OpenShift in which everything else lives."""

from runbook.instance import Instance
from runbook.observed import Observed
from runbook.plan import Ask, Object, Plan
from runbook.step import step

PORTAL = "https://webservices.web.cern.ch/webservices/"


@step(
    person=True,
    see="The project exists and you may work in it.",
    otherwise=(
        ("The portal says that the name is taken.", "Choose another name and put it into the instance file as `project`."),
        ("`is forbidden: User` although the project exists.", "You are not among its administrators: ask the owner to add you "
                                                     "or your e-group in the portal."),
    ),
    unconfirmed="Whether `oc new-project` can set category and owner as the portal's form does: "
                "`oc new-project NAME --dry-run=server` would tell.",
)
def request(instance: Instance, _observed: Observed) -> Plan:
    """Request the web site, which makes the project on OpenShift."""
    site = instance.site
    yield Ask(
        deed=f"Request the site {instance.project} of type {site.type}: choose to create a site, fill in the form with these "
             "values, and submit it.",
        where=PORTAL,
        form="projects",
        values={"name": instance.project, "type": site.type, "category": site.category, "owner": site.owner,
                "description": site.description, "administrators": site.administrators},
        until=Object("Namespace", instance.project),
        instead="Delete the site in the same portal; that deletes the project with everything in it.",
    )
