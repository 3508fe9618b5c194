"""Single sign-on: the registration's client id and secret, where the app finds them."""

from procedures import project
from runbook.instance import Instance
from runbook.observed import Observed
from runbook.plan import Apply, Ask, Credential, Former, Plan
from runbook.plan import secret as secret_manifest
from runbook.step import step

PORTAL = "https://application-portal.web.cern.ch/"


def client_id(instance: Instance) -> Credential:
    """The Client ID of the registration."""
    return Credential("cern-sso-registration-client-id", "Client ID of the registration",
                      secret=f"{instance.app}-sso", key="CERN_SSO_REGISTRATION_CLIENT_ID",
                      former=Former("CERN_SSO_REGISTRATION_CLIENT_ID"))


def client_secret(instance: Instance) -> Credential:
    """The Client Secret of the registration."""
    return Credential("cern-sso-registration-client-secret", "Client Secret of the registration",
                      secret=f"{instance.app}-sso", key="CERN_SSO_REGISTRATION_CLIENT_SECRET",
                      former=Former("CERN_SSO_REGISTRATION_CLIENT_SECRET"))


@step(
    needs=(project.request,),
    person=True,
    see="The Secret holds the Client ID and the Client Secret of this instance's own registration.",
    otherwise=(("Sign-on answers `invalid_client`.", "The pair does not belong together: run the step with `--rotate` "
                                                     "and give both from the portal's page."),),
)
def secret(instance: Instance, _observed: Observed) -> Plan:
    """Put the sign-on registration's client id and secret into the project."""
    known, hidden = client_id(instance), client_secret(instance)
    yield Ask(
        deed=f"Register the application {instance.sso.identifier} for OpenID Connect and note Client ID and Client Secret.",
        where=PORTAL,
        form="registrations",
        values={"identifier": instance.sso.identifier, "name": f"Certification helper ({instance.name})",
                "category": instance.site.category, "redirect_uris": [instance.url + instance.sso.callback]},
        until=hidden,
        gives={"client_id": known, "client_secret": hidden},
        instead="Delete the registration in the application portal.",
    )
    yield Apply(secret_manifest(hidden.secret, {known.key: known, hidden.key: hidden}))
