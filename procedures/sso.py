"""Single sign-on: the app's registration, its Client ID and Client Secret, and whether people can sign on."""

import base64
import binascii
import dataclasses
import re
from urllib.parse import urlencode

from procedures import project
from runbook.instance import Instance, SignOn
from runbook.observed import Observed
from runbook.plan import Accepts, Apply, Ask, Credential, Former, Inside, Look, Manifest, Object, Plan, Require, WaitFor, exists
from runbook.plan import secret as secret_manifest
from runbook.step import RUN, step

PORTAL = "https://application-portal.web.cern.ch/"
ROLES = ("shifter", "shiftleader", "expert", "admin")
"""The roles that certhelper knows. It looks for a role inside these words, so one called `ad` would make administrators."""
MANAGED = "oidc-client-secret"
"""The Secret that the platform's authz-operator keeps in a project; what people change in it is put back."""
REGISTRATION = "guide/registration"
"""The annotation that says to which registration a pair belongs."""
FORMER_CALLBACK = "/accounts/cern/login/callback/"
ALLAUTH = re.compile(r'django-allauth(?:\[[^\]]*\])?(?:\s*==\s*|"\s*\nversion = ")(\d+)\.(\d+)', re.IGNORECASE)
"""Its version, as a list of requirements or a lock pins it."""
OIDC_PREFIX = "SOCIALACCOUNT_OPENID_CONNECT_URL_PREFIX"
"""The setting, since version 0.60, for what stands between /accounts/ and the provider; without it that is `oidc`."""


def client_id(instance: Instance) -> Credential:
    """The Client ID of the registration: its identifier."""
    if managed(instance):
        return Credential("cern-sso-registration-client-id", "Client ID of the project's own application", secret=MANAGED,
                          key="clientID")
    return Credential("cern-sso-registration-client-id", "Client ID of the registration",
                      secret=f"{instance.app}-sso", key="CERN_SSO_REGISTRATION_CLIENT_ID",
                      former=Former("CERN_SSO_REGISTRATION_CLIENT_ID"), must=instance.sso.identifier)


def client_secret(instance: Instance) -> Credential:
    """The Client Secret of the registration."""
    if managed(instance):
        return Credential("cern-sso-registration-client-secret", "Client Secret of the project's own application",
                          secret=MANAGED, key="clientSecret")
    return Credential("cern-sso-registration-client-secret", "Client Secret of the registration",
                      secret=f"{instance.app}-sso", key="CERN_SSO_REGISTRATION_CLIENT_SECRET",
                      former=Former("CERN_SSO_REGISTRATION_CLIENT_SECRET"))


@step(
    needs=(project.request,),
    person=True,
    see="The sign-on's page for this application opens without an error.",
    otherwise=(
        ("`… is also the identifier of …`", "Each instance has a registration of its own. Choose another identifier."),
        ("`… names an account`", "An identifier must not be the name of a CERN account. Choose another one."),
        ("`since django-allauth 0.60`, or `the branch … serves …`",
         "Take `callback` out of [sso] in the instance file: the address then follows from what the branch holds."),
        ("`Invalid parameter: redirect_uri`, or `does not know … with the way back …`",
         "The registration lacks this instance's redirect address, or has it without `oidc`. Add it in the portal, with the "
         "slash at the end, and press the green plus behind it."),
        ("`Client not found`", "No registration has this identifier: the registration was not submitted, or was deleted."),
        ("`no matches for kind \"OidcReturnURI\"`", "This cluster has no authz-operator: take `way` out of [sso]."),
    ),
    unconfirmed="That the sign-on answers an unknown client or address with 400 and a known one with its log-in page: "
                "`curl -o /dev/null -w '%{http_code}' 'https://auth.cern.ch/auth/realms/cern/protocol/openid-connect/auth"
                "?client_id=x&redirect_uri=https://x.cern.ch/&response_type=code&scope=openid'` would tell, as would the same with "
                "a client that works.",
)
def register(instance: Instance, observed: Observed) -> Plan:
    """Register the app for single sign-on."""
    instance, known = serving(instance, observed), served(instance, observed)
    callback = instance.sso.callback
    found = f"the branch {instance.source.branch} serves {known}, and not {callback}" if known not in ("", callback) else \
        f"{callback} is answered with 404 since django-allauth 0.60" if callback == FORMER_CALLBACK != known else ""
    yield Require("the app serves the way back from sign-on", found, "take `callback` out of [sso] in the instance file")
    if managed(instance):
        yield Apply(return_uri(instance))
        yield WaitFor(Object("Secret", MANAGED), exists, seconds=120)
        return
    yield Require("the identifier belongs to this instance alone", shared(instance, observed),
                  "write another `identifier` below [sso] in one of the two files")
    yield Require("the identifier is no account", account(instance, observed),
                  "write another `identifier` below [sso] in the instance file")
    client = application(instance)
    yield Ask(
        deed=f"Register the application {client}: press *Add an Application* and fill in the form; then, below "
             "*SSO Registration*, choose OpenID Connect, give the redirect address, and press the green plus behind it; then, "
             "below *Roles*, add the four.",
        where=PORTAL, form="registrations", values=form(instance),
        until=Accepts(authorization(instance), f"the sign-on knows {client} with the way back {way_back(instance)}",
                      unknown(instance)),
        instead="Delete the registration in the application portal.",
    )


@step(
    needs=(register,),
    person=True,
    wanted=lambda instance: not managed(instance),
    see="The Secret holds the Client ID and the Client Secret of this instance's own registration.",
    otherwise=(
        ("Sign-on answers `invalid_client` or `unauthorized_client`, or the page says `Social Network Login Failure`.",
         "The pair does not belong together, or the secret was made anew in the portal: run the step with `--rotate`, give "
         "both from the portal's page, then run `environment.set`."),
        ("`the pair in the project is this instance's own: …`, `is the registration of`, or `the instance file says`",
         "The pair is that of another instance. Each instance has one of its own, or who may sign on to one may to the other."),
    ),
    unconfirmed="That a registration's Client ID is its identifier: the registration's page in the portal tells.",
)
def secret(instance: Instance, observed: Observed) -> Plan:
    """Put the registration's Client ID and Client Secret into the project."""
    instance = serving(instance, observed)
    known, hidden = client_id(instance), client_secret(instance)
    yield Require("the pair in the project is this instance's own", *foreign(instance, observed))
    yield Ask(
        deed=f"Open the application {application(instance)}, *SSO Registration*, and note Client ID and Client Secret.",
        where=PORTAL, form="registrations", values=form(instance), until=hidden,
        gives={"client_id": known, "client_secret": hidden},
    )
    manifest = secret_manifest(hidden.secret, {known.key: known, hidden.key: hidden})
    manifest["metadata"]["annotations"] = {REGISTRATION: application(instance)}
    yield Apply(manifest)


@step(
    needs=(secret,),
    operation=True,
    see="Nothing is reported: a person who signs on now comes back to the app and is greeted by name.",
    otherwise=(
        ("`does not know … with the way back …`", "Run `sso.register`: the registration lacks this instance's redirect address."),
        ("`the app has no page for the way back`",
         "`callback` below [sso] is not what the app serves. With django-allauth 0.60 or newer it is "
         "`/accounts/oidc/cern/login/callback/`, unless the settings say `SOCIALACCOUNT_OPENID_CONNECT_URL_PREFIX`."),
        ("`a second SocialApp` or `MultipleObjectsReturned`",
         "Somebody entered the pair in Django's admin pages too, and every page that offers the sign-on answers 500. "
         "Delete it there, below Social applications; the settings are enough."),
        ("`the sign-on refuses the app's pair`",
         "Client ID and Client Secret do not belong together, or the running pod has an older pair: "
         "`sso.secret --rotate`, then `environment.set`."),
        ("`does not send the browser to`", "`CERN_SSO_SERVER_URL` or the app's settings name another issuer or client, or a pod "
                                           "cannot reach the issuer: the app's log tells."),
        ("`gives another issuer`", "`issuer` below [sso] is not, letter by letter, what the sign-on calls itself: the app would "
                                   "refuse every token. Take it out of the instance file: its default is CERN's."),
        ("`the settings have no provider`", "The app's settings name no provider of `openid_connect` with the `provider_id` that "
                                            "stands in `callback`: `deploy.build` of a branch that has it."),
        ("`signed on and none of them has a role`",
         "Add the people, or an e-group, to the roles of this application in the portal; a role counts from the next sign-on."),
        ("`gives rights by accident`", "certhelper looks for a role's identifier inside its own four words. "
                                       "Rename the role in the portal."),
        ("`ACCOUNT_EMAIL_VERIFICATION`", "Set it to `none` in the app's settings: the app sends no mail, so who signs on "
                                         "would wait for ever."),
        ("`there is no Site`", "Take `SITE_ID` out of [environment]: 2, the default, is the one that Django makes."),
        ("`does not answer from here as it does inside`", "The Route does not lead to the app, or no pod is ready: `deploy.build` "
                                                          "looks at both."),
        ("`no pod of … is ready`", "The app does not run: `guide.run` starts it; see `deploy.build` when it does not start.", RUN),
    ),
    unconfirmed="That the sign-on answers a wrong code with `invalid_grant` once the pair is right: "
                "`curl -d grant_type=authorization_code -d code=none -d client_id=ID -d client_secret@FILE "
                "https://auth.cern.ch/auth/realms/cern/protocol/openid-connect/token` would tell.",
)
def verify(instance: Instance, observed: Observed) -> Plan:
    """Verify that people can sign on, as far as that can be seen without an account of theirs."""
    instance = serving(instance, observed)
    issuer = instance.sso.issuer
    yield Look(issuer, "/.well-known/openid-configuration", contains=f'"issuer":"{issuer}"',
               what="the issuer describes itself under the name that the app expects",
               unlike=f"what answers for {issuer} is no sign-on, or gives another issuer")
    yield Look(*split(authorization(instance)), status=(200, 302, 303), what="the registration knows the app's way back",
               unlike=unknown(instance))
    # What is wrong with the sign-on may be why no pod is ready: the home page is what a pod is asked for.
    yield Inside(instance.app, instance.app, ("python", "manage.py", "shell", "-c", inquiry(instance)),
                 "the app's own side of the sign-on", contains="the sign-on is set up", seconds=60, unready=True)
    yield Look(instance.url, instance.sso.callback, status=(200, 302, 400, 401), what="the app serves the way back",
               unlike=f"the way back {instance.sso.callback} does not answer from here as it does inside")


def managed(instance: Instance) -> bool:
    """Whether the platform keeps the registration, so that nobody fills a form."""
    return instance.sso.way == "return-uri"


def application(instance: Instance) -> str:
    """Return the identifier of the application that people sign on to."""
    return f"webframeworks-paas-{instance.project}" if managed(instance) else instance.sso.identifier


def served(instance: Instance, observed: Observed) -> str:
    """Return the path of the way back that the app of this branch serves, "" when the branch does not tell."""
    source = observed.source()
    files = source.files if source and not source.error else {}
    versions = [(int(found[1]), int(found[2])) for path, file in files.items() if not path.endswith(".py")
                for found in ALLAUTH.finditer(file.text)]
    if not versions:
        return ""
    provider = instance.sso.callback.removesuffix("/login/callback/").rpartition("/")[2]
    if min(versions) < (0, 60):
        return f"/accounts/{provider}/login/callback/"
    lines = [found for path, file in files.items() if path.endswith(".py")
             for found in re.findall(rf"^{OIDC_PREFIX}\s*=\s*(.*?)\s*(?:#.*)?$", file.text, re.MULTILINE)]
    prefix = re.fullmatch(r"""(["'])([\w-]*)\1""", lines[-1]) if lines else re.fullmatch("()(.*)", "oidc")
    if not prefix:
        return ""  # It is computed when the app starts.
    return "/".join(("/accounts", *filter(None, [prefix[2]]), provider, "login/callback/"))


def serving(instance: Instance, observed: Observed) -> Instance:
    """Return the instance with the way back that its branch serves, unless its file names one."""
    known = served(instance, observed) if instance.sso.callback == SignOn.callback else ""
    return dataclasses.replace(instance, sso=dataclasses.replace(instance.sso, callback=known)) if known else instance


def way_back(instance: Instance) -> str:
    """Return the redirect address: where the sign-on sends the browser back to."""
    return instance.url + instance.sso.callback


def authorization(instance: Instance) -> str:
    """Return the address to which the app sends a browser; without a person's cookie the sign-on shows its page there."""
    asked = {"client_id": application(instance), "redirect_uri": way_back(instance), "response_type": "code", "scope": "openid"}
    return f"{instance.sso.issuer}/protocol/openid-connect/auth?{urlencode(asked)}"


def split(address: str) -> tuple[str, str]:
    """Return an address as host with scheme, and path."""
    scheme, _, rest = address.partition("://")
    host, _, path = rest.partition("/")
    return f"{scheme}://{host}", f"/{path}"


def unknown(instance: Instance) -> str:
    """Return what it means when the sign-on refuses the address."""
    return f"the sign-on does not know {application(instance)} with the way back {way_back(instance)}"


def form(instance: Instance) -> Manifest:
    """Return the portal's form as this instance fills it."""
    return {"identifier": instance.sso.identifier, "name": f"Certification helper ({instance.name})",
            "category": instance.site.category, "administrators": instance.site.administrators,
            "redirect_uris": [way_back(instance)], "roles": list(ROLES)}


def return_uri(instance: Instance) -> Manifest:
    """Return the object by which a project adds a redirect address to the application that the platform made for it."""
    return {"apiVersion": "webservices.cern.ch/v1alpha1", "kind": "OidcReturnURI",
            "metadata": {"name": f"{instance.app}-return-uri"}, "spec": {"redirectURI": way_back(instance)}}


def shared(instance: Instance, observed: Observed) -> str:
    """Return which other instance has the same identifier, "" when none has."""
    others = [other for other in observed.other_instances()
              if not managed(other) and other.sso.identifier == instance.sso.identifier]
    files = " and ".join(other.path.name for other in others)
    return f"{instance.sso.identifier} in {instance.path.name} is also the identifier of {files}" if others else ""


def account(instance: Instance, observed: Observed) -> str:
    """Return which account has the identifier as its name, "" when none is known that has."""
    known = {instance.site.owner: "the owner of the site", instance.eos.account: "the account for EOS",
             observed.user(): "you"}
    name = instance.sso.identifier
    return f"{name} names an account: {known[name]}" if name in known else ""


def foreign(instance: Instance, observed: Observed) -> tuple[str, str]:
    """Return why the pair that the project has is another registration's, and the cure; "" and the cure when it is not."""
    wanted, credential, cure = instance.sso.identifier, client_id(instance), ""
    kept = observed.object("Secret", credential.secret) or {}
    found, where = decoded((kept.get("data") or {}).get(credential.key, "")), f"the Secret {credential.secret}"
    cure = f"`oc delete secret {credential.secret}`, and run this again: it asks for the pair of {wanted}"
    if not found:
        found, where = str(observed.former(instance.app).get(credential.key, {}).get("value") or ""), "the build config"
        cure = f'if it is this instance\'s own registration, write identifier = "{found}" below [sso] in the instance file'
    if found in ("", wanted):
        return "", cure
    owner = next((other.path.name for other in observed.other_instances() if other.sso.identifier == found), "")
    return (f"{where} has the Client ID {found}" + (f", which is the registration of {owner}" if owner else "")
            + f", and not {wanted}"), cure


def decoded(value: str) -> str:
    """Return a value of a Secret, "" when it is no text."""
    try:
        return base64.b64decode(value).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""


def inquiry(instance: Instance) -> str:
    """Return the Python lines that the app's own Django runs: they change nothing, and say in one line what is wrong."""
    callback = instance.sso.callback
    provider = callback.removesuffix("/login/callback/").rpartition("/")[2]
    values = {"issuer": instance.sso.issuer, "client": application(instance), "back": way_back(instance),
              "callback": callback, "login": callback.removesuffix("callback/"),
              "host": instance.url.removeprefix("https://"), "provider": provider,
              "roles": ROLES}
    return "\n".join(f"{name} = {value!r}" for name, value in values.items()) + INQUIRY


INQUIRY = '''
import sys
from urllib.parse import parse_qs, urlsplit
import requests
from allauth.account import app_settings
from allauth.socialaccount.adapter import get_adapter
from allauth.socialaccount.models import SocialAccount
from django.conf import settings
from django.contrib.sites.models import Site
from django.test import Client, override_settings
from django.urls import Resolver404, resolve
wrong = []
try:
    resolve(callback)
except Resolver404:
    wrong.append(f"the app has no page for the way back {callback}")
if app_settings.EMAIL_VERIFICATION != "none":
    wrong.append("ACCOUNT_EMAIL_VERIFICATION is not none")
if not Site.objects.filter(pk=settings.SITE_ID).exists():
    wrong.append(f"there is no Site with the SITE_ID {settings.SITE_ID}")
apps = get_adapter().list_apps(None, provider=provider)
if len(apps) > 1:
    wrong.append(f"a second SocialApp for {provider} stands in the admin pages")
elif not apps:
    wrong.append(f"the settings have no provider {provider}")
else:
    with override_settings(SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies"):  # no row for a look
        answer = Client(raise_request_exception=False).post(login, secure=True, HTTP_HOST=host)
    sent = answer.headers.get("Location", "")
    asked = parse_qs(urlsplit(sent).query)
    if not sent.startswith(issuer):
        wrong.append(f"the app does not send the browser to {issuer}, it answers {answer.status_code} {sent}")
    elif asked.get("client_id") != [client] or asked.get("redirect_uri") != [back]:
        wrong.append(f"the app does not send the browser to {issuer} as {client} for {back}, but {sent}")
    else:
        tokens = requests.get(issuer + "/.well-known/openid-configuration", timeout=10).json()["token_endpoint"]
        pair = {"client_id": apps[0].client_id, "client_secret": apps[0].secret}
        # With the right pair only the code is wrong.
        said = requests.post(tokens, {"grant_type": "authorization_code", "code": "none", "redirect_uri": back, **pair}, timeout=10)
        if (error := said.json().get("error")) != "invalid_grant":
            wrong.append(f"the sign-on refuses the app's pair of Client ID and Client Secret: {error}")
accounts = [one.extra_data for one in SocialAccount.objects.filter(provider=provider)]
seen = {role for data in accounts for role in data.get("userinfo", data).get("cern_roles", [])}
if accounts and not seen & set(roles):
    wrong.append(f"{len(accounts)} signed on and none of them has a role of {', '.join(roles)}")
for role in sorted(seen - set(roles)):
    if any(role in known for known in roles):
        wrong.append(f"the role {role} gives rights by accident")
if wrong:
    sys.exit("; ".join(wrong))
print("the sign-on is set up")
'''
"""Run by `manage.py shell`, so that the app's own settings answer: a page of Django's that shows them would be a leak."""
