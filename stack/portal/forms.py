"""The forms that a person fills in, at `https://portal.localhost:PORT/FORM`.

Stands for the Web Services portal (`projects`), the Database on Demand portal (`databases`; `database-access` is its
file editor for pg_hba.conf), the Application portal (`registrations`; `roles` are an application's,
`client-secrets` is the button that makes a secret anew), with their rules for names and categories, and the owner of a
service account, who knows its password and may set another (`accounts`).

Differs: one address in place of three; JSON in place of web forms (the page at `/` only shows what was requested);
every request is granted at once; owners and e-groups are taken as they are given; only the project member's token may
use it. Every project gets the quota of one CPU of requests that users report of CERN; that containers without a request
get a small one is our own choice. Mails come as files into the state folder's `mail/`. The type of a site can only be a
PaaS web application.

POST a form: 201 with what was made, 200 with what was there already, 4xx with one sentence in `error`.
GET and DELETE `FORM/NAME`: look at it, and remove it with everything in it.
"""

from __future__ import annotations

import html
import ipaddress
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from stack import eos
from stack.api import Api, ApiError, Manifest, wait_until
from stack.errors import StackError
from stack.portal import authz
from stack.portal.access import credentials, is_one_of
from stack.portal.signon import Provider, Registration
from stack.state import MEMBER, OUTSIDE_ADDRESS, POD_NETWORK, State

WHITELIST = "custom-ingress.okd.cern.ch/default-route-ip-whitelist"
INSIDE_CERN = (f"127.0.0.0/8 {POD_NETWORK} {OUTSIDE_ADDRESS}/32"
               " 137.138.0.0/16 128.141.0.0/16 128.142.0.0/16 188.184.0.0/15")
"""Who reaches a Route that does not say who may: CERN's networks, and those of this machine that stand for them."""
MANAGED = "app.kubernetes.io/managed-by"
CATEGORIES = ("Official", "Personal", "Test")
QUOTA = "1"
"""CPUs that the pods of a project may request together; more by ticket."""
REQUEST = "20m"
"""The CPU that a container requests when it says nothing."""
REMOVAL = 150.0
"""Seconds that a project's removal may take: pods have their graces."""

Values = dict[str, Any]


class Refused(Exception):
    """A form is not accepted: the HTTP status and one sentence for the person."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True)
class Form:
    """A form: what it is for, its fields, and what its three buttons do."""

    title: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    submit: Callable[[Values], tuple[bool, Values]]
    """Takes the filled form; returns whether something was made, and what there is now."""
    look: Callable[[str], Values | None]
    remove: Callable[[str], bool]
    shown: Callable[[], list[Values]]


class Portal:
    """The forms of one stack."""

    def __init__(self, state: State, provider: Provider) -> None:
        self._state, self._provider = state, provider
        self._api = Api(state.inside, state.tokens.admin, state.ca)
        self.forms = {
            "projects": Form("Request a web site, which makes a project on PaaS",
                             ("name", "type", "category", "owner", "description"), ("administrators",),
                             self._request_project, self._project, self._remove_project, self._projects),
            "databases": Form("Request a database instance", ("name", "type", "owner"),
                              ("category", "description", "port"),
                              self._request_database, self._database, self._remove_database, self._databases),
            "database-access": Form("Let a network in to a database instance", ("name", "network"), (),
                                    self._admit, self._database, self._keep_access, list),
            "registrations": Form("Register an application for sign-on", ("identifier", "name", "redirect_uris"),
                                  ("category", "description", "owner", "administrators", "base_url", "protocol", "roles"),
                                  self._register, self._registration, self._remove_registration, self._registrations),
            "client-secrets": Form("Make the client secret of a registration anew", ("identifier",), (),
                                   self._renew, self._registration, self._keep_secret, list),
            "roles": Form("Say which roles an application has", ("identifier", "roles"), (),
                          self._set_roles, self._registration, self._keep_secret, list),
            "accounts": Form("Be told the password of a service account, or set it", ("name",), ("password",),
                             self._account_password, self._account, partial(eos.remove_account, self._state),
                             self._accounts),
        }

    # Projects: what the web services portal and OpenShift make together of a request.

    def _request_project(self, filled: Values) -> tuple[bool, Values]:
        name = _name(filled["name"], r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", "A project's name",
                     "small letters, digits and hyphens, at most 63, no hyphen at either end")
        _one_of(filled["type"], ("PaaS Web Application",), "type")
        _one_of(filled["category"], CATEGORIES, "category")
        for key in ("owner", "description"):
            _text(filled, key)
        owner, administrators = filled["owner"], filled.get("administrators") or ""
        found = self._api.get("Namespace", name)
        if found and not _is_ours(found):
            raise Refused(409, f"The name {name} is taken: it is not a project of yours.")
        if found and "deletionTimestamp" in found["metadata"]:
            raise Refused(409, f"The project {name} is still being deleted; request it again in a minute.")
        wanted = {"type": filled["type"], "category": filled["category"], "owner": owner,
                  "administrators": administrators}
        manifest: Manifest = {
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": {MANAGED: "portal"}, "annotations": {
                "openshift.io/display-name": name, "openshift.io/description": filled["description"],
                "openshift.io/requester": MEMBER, WHITELIST: INSIDE_CERN,
                **{f"portal.localhost/{key}": value for key, value in wanted.items()}}},
        }
        if not found:
            self._api.create(manifest)
        # Also for a project that is there: killed in between, a project without administrators would stay so.
        users = [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}
                 for user in dict.fromkeys([MEMBER, owner])]
        groups = [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": administrators}]
        self._api.apply({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": "admin", "namespace": name, "labels": {MANAGED: "portal"}},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "admin"},
            "subjects": users + (groups if administrators else []),
        }, "portal")
        self._limit(name)
        return not found, self._project(name) or {}

    def _limit(self, name: str) -> None:
        """Give a project its quota, and containers that ask for no CPU a small request, or the quota would refuse them."""
        about = {"name": "default", "namespace": name, "labels": {MANAGED: "portal"}}
        self._api.apply({"apiVersion": "v1", "kind": "LimitRange", "metadata": about, "spec": {"limits": [
            {"type": "Container", "defaultRequest": {"cpu": REQUEST}}]}}, "portal")
        self._api.apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": about,
                         "spec": {"hard": {"requests.cpu": QUOTA}}}, "portal")

        def counted() -> bool:
            found = self._api.get("ResourceQuota", "default", name)
            return bool(found and found.get("status", {}).get("hard"))

        # Until the controller has counted, the server refuses every pod.
        wait_until(counted, f"the quota of project {name}", 30)

    def _project(self, name: str) -> Values | None:
        found = self._api.get("Namespace", name)
        return _shown(found) if found and _is_ours(found) else None

    def _projects(self) -> list[Values]:
        return [_shown(each) for each in self._api.list("Namespace", labelSelector=f"{MANAGED}=portal")]

    def _remove_project(self, name: str) -> bool:
        if not self._project(name):
            return False
        self._api.delete("Namespace", name)
        try:
            wait_until(lambda: not self._api.get("Namespace", name), f"the end of project {name}", REMOVAL, pause=0.2)
        except TimeoutError as error:
            raise Refused(504, f"The project {name} is being deleted and was not gone after {REMOVAL:g} s; "
                               "look at what is left in it.") from error
        return True

    # Databases. The module is imported when it is first wanted: it brings libpq into memory.

    def _request_database(self, filled: Values) -> tuple[bool, Values]:
        from stack import postgres

        name = _name(filled["name"], r"[a-z][a-z0-9_-]{0,30}", "An instance's name",
                     "a small letter first, then small letters, digits, hyphens and underscores, at most 31")
        _one_of(filled["type"], ("PostgreSQL",), "type")
        _text(filled, "owner")
        port = filled.get("port") or 0
        if not isinstance(port, int):
            raise Refused(400, f"The port is a number, not {port!r}.")
        there = self._database(name)
        if there and port and port != there["port"]:
            raise Refused(409, f"The instance {name} has the port {there['port']}, not {port}.")
        try:
            made = postgres.create(self._state, name, port)
        except StackError as error:
            raise Refused(409, _sentence(error)) from error
        return not there, self._database(made.name) or {}

    def _database(self, name: str) -> Values | None:
        folder = self._state.databases / name
        # A name comes from the address: it must not lead out of the folder.
        if not re.fullmatch(r"[a-z0-9_-]+", name) or not (folder / "server.json").exists():
            return None
        port = json.loads((folder / "server.json").read_text())["port"]
        networks = [words[3] for words in map(str.split, (folder / "pg_hba.conf").read_text().splitlines())
                    if words[:1] == ["hostssl"]]
        return {"name": name, "host": f"dbod-{name.replace('_', '-')}.localhost", "port": port, "user": "admin",
                "type": "PostgreSQL", "networks": networks}

    def _databases(self) -> list[Values]:
        names = sorted(path.parent.name for path in self._state.databases.glob("*/server.json"))
        return [found for name in names if (found := self._database(name))]

    def _remove_database(self, name: str) -> bool:
        from stack import postgres

        if not self._database(name):
            return False
        postgres.drop(self._state, name)
        return True

    def _admit(self, filled: Values) -> tuple[bool, Values]:
        from stack import postgres

        there = self._database(str(filled["name"]))
        if not there:
            raise Refused(404, f"There is no database instance {filled['name']!r}; request it first.")
        try:
            network = str(ipaddress.ip_network(filled["network"]))
        except ValueError as error:
            raise Refused(400, f"This is no network: {error}; write it as {POD_NETWORK}.") from error
        if network in there["networks"]:
            return False, there
        postgres.admit(self._state, there["name"], network)
        return True, self._database(there["name"]) or {}

    def _keep_access(self, name: str) -> bool:
        raise Refused(405, f"Access to {name} ends with the instance: DELETE databases/{name}.")

    # Registrations for sign-on.

    def _register(self, filled: Values) -> tuple[bool, Values]:
        identifier = _name(filled["identifier"], r"[a-z][a-z0-9_-]{2,31}", "An application identifier",
                           "a small letter first, then small letters, digits, hyphens and underscores, 3 to 32 in all")
        name = _text(filled, "name")
        if identifier in self._provider.users():
            raise Refused(409, f"The identifier {identifier} is the name of a user; choose another.")
        if "category" in filled:
            _one_of(filled["category"], CATEGORIES, "category")
        if "protocol" in filled:
            _one_of(filled["protocol"], ("OIDC",), "protocol")
        if identifier.startswith(authz.PREFIX):
            raise Refused(409, f"The platform itself keeps the applications {authz.PREFIX}…: choose another identifier.")
        _roles(filled.get("roles", []))
        redirects = filled["redirect_uris"]
        if not isinstance(redirects, list) or not redirects:
            raise Refused(400, "redirect_uris is a list of at least one address.")
        for address in redirects:
            parts = urlsplit(address) if isinstance(address, str) else None
            if not parts or parts.scheme != "https" or not parts.hostname or parts.fragment or "*" in address:
                raise Refused(400, f"The redirect address {address!r} must be a whole https address without * and #.")
        known = self._provider.registrations()
        if any(each.name == name and each.identifier != identifier for each in known.values()):
            raise Refused(409, f"There is an application named {name!r} already; names are unique.")
        details = {key: value for key, value in filled.items() if key not in ("identifier", "name", "redirect_uris")}
        wanted = (name, redirects, details)
        there = known.get(identifier)
        if there and (there.name, there.redirect_uris, there.details) == wanted:
            return False, self._with_secret(there)
        registration = self._provider.register(identifier, name, redirects, details)
        self._state.write(f"mail/registration-{identifier}.txt",
                          f"The application {name} is registered.\nclient id: {identifier}\n"
                          f"client secret: {registration.secret}\nissuer: {self._state.issuer}\n")
        return not there, self._with_secret(registration)

    def _renew(self, filled: Values) -> tuple[bool, Values]:
        if str(filled["identifier"]).startswith(authz.PREFIX):
            raise Refused(409, "The platform itself keeps this application and its secret.")
        if not self._registration(str(filled["identifier"])):
            raise Refused(404, f"There is no registration {filled['identifier']!r}.")
        return True, self._with_secret(self._provider.renew(filled["identifier"]))

    def _keep_secret(self, identifier: str) -> bool:
        raise Refused(405, f"The client secret of {identifier} ends with the registration: DELETE registrations/{identifier}.")

    def _set_roles(self, filled: Values) -> tuple[bool, Values]:
        known = self._provider.registrations().get(str(filled["identifier"]))
        if known is None:
            raise Refused(404, f"There is no registration {filled['identifier']!r}.")
        details = known.details | {"roles": _roles(filled["roles"])}
        if details == known.details:
            return False, known.shown()
        return True, self._provider.register(known.identifier, known.name, known.redirect_uris, details).shown()

    def _with_secret(self, registration: Registration) -> Values:
        """Return what the person reads on the registration's page: the secret too, each time it is asked for."""
        return {**registration.shown(), "client_id": registration.identifier, "client_secret": registration.secret,
                "issuer": self._state.issuer}

    def _registration(self, identifier: str) -> Values | None:
        found = self._provider.registrations().get(identifier)
        return found.shown() if found else None

    def _registrations(self) -> list[Values]:
        return [each.shown() for each in self._provider.registrations().values()]

    def _remove_registration(self, identifier: str) -> bool:
        removed = self._provider.remove(identifier)
        if removed:
            self._state.path("mail", f"registration-{identifier}.txt").unlink(missing_ok=True)
        return removed

    # Service accounts.

    def _account_password(self, filled: Values) -> tuple[bool, Values]:
        name = _name(filled["name"], r"[a-z][a-z0-9]{0,19}", "An account's name", "small letters and digits, at most 20")
        there = eos.accounts(self._state).get(name)
        password = _text(filled, "password") if "password" in filled else there or ""
        if there and password == there:
            return False, {"name": name, "password": there}
        return not there, {"name": name, "password": eos.set_password(self._state, name, password)}

    def _account(self, name: str) -> Values | None:
        return {"name": name} if name in eos.accounts(self._state) else None

    def _accounts(self) -> list[Values]:
        return [{"name": name} for name in eos.accounts(self._state)]


def application(state: State, provider: Provider) -> ASGIApp:
    """Return the portal as an application; see the module."""
    portal = Portal(state, provider)

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        body = await request.body()
        answer = await run_in_threadpool(_answer, portal, state, request, body)
        await answer(scope, receive, send)

    return serve


def _answer(portal: Portal, state: State, request: Request, body: bytes) -> Response:
    if not is_one_of(credentials(request.headers)[1], [state.tokens.member]):
        return JSONResponse({"error": "Only the project member may use the portal: send his token as bearer, or as the "
                                      "password in a browser."}, 401,
                            {"WWW-Authenticate": 'Basic realm="portal.localhost"'})
    try:
        return _carried_out(portal, request, body)
    except Refused as refusal:
        return JSONResponse({"error": str(refusal)}, refusal.status)
    except ApiError as error:
        return JSONResponse({"error": f"The cluster refuses: {error.message}."}, error.status or 503)
    except StackError as error:
        return JSONResponse({"error": _sentence(error)}, 409)


def _carried_out(portal: Portal, request: Request, body: bytes) -> Response:
    _, name, *rest = request.url.path.split("/")
    if not name:
        return HTMLResponse(_page(portal))
    form = portal.forms.get(name)
    if not form or len(rest) > 1:
        raise Refused(404, f"There is no form {request.url.path}; there are {', '.join(portal.forms)}.")
    match request.method, rest:
        case "GET", []:
            return JSONResponse(form.shown())
        case "POST", []:
            made, values = form.submit(_filled(form, request, body))
            return JSONResponse(values, 201 if made else 200)
        case "GET", [key]:
            if found := form.look(key):
                return JSONResponse(found)
        case "DELETE", [key]:
            if form.remove(key):
                return JSONResponse({"removed": key})
        case _:
            raise Refused(405, "POST sends a form; GET and DELETE look at and remove what was requested.")
    raise Refused(404, f"There is no {rest[0]!r} among the {name}.")


def _filled(form: Form, request: Request, body: bytes) -> Values:
    """Return the form as it was filled in; raises Refused when fields are missing or not on it."""
    # A page of another site can make a signed-on browser send text, not JSON.
    if not request.headers.get("content-type", "").startswith("application/json"):
        raise Refused(415, "A form is sent as application/json.")
    try:
        filled = json.loads(body)
    except ValueError as error:
        raise Refused(400, f"The form is not JSON: {error}.") from error
    if not isinstance(filled, dict):
        raise Refused(400, "The form is a JSON object with one key for each field.")
    if missing := [key for key in form.required if filled.get(key) in (None, "")]:
        raise Refused(400, f"The form lacks {', '.join(missing)}.")
    if unknown := filled.keys() - {*form.required, *form.optional}:
        raise Refused(400, f"The form has no field {', '.join(sorted(unknown))}; it has "
                           f"{', '.join(form.required + form.optional)}.")
    return {key: value for key, value in filled.items() if value is not None}


def _name(value: object, pattern: str, what: str, rule: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        raise Refused(400, f"{what} cannot be {value!r}: {rule}.")
    return value


def _roles(wanted: object) -> list[str]:
    if not isinstance(wanted, list):
        raise Refused(400, "roles is a list of identifiers.")
    return [_name(role, r"[a-z][a-z0-9_-]*", "A role's identifier",
                  "a small letter first, then small letters, digits, hyphens and underscores") for role in wanted]


def _text(filled: Mapping[str, Any], key: str) -> str:
    value = filled[key]
    if not isinstance(value, str) or not value.strip():
        raise Refused(400, f"The field {key} is a text.")
    return value


def _one_of(value: object, allowed: tuple[str, ...], what: str) -> None:
    if value not in allowed:
        raise Refused(400, f"The {what} cannot be {value!r}; it is {' or '.join(allowed)}.")


def _sentence(error: StackError) -> str:
    text = str(error)
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _is_ours(namespace: Manifest) -> bool:
    labels: dict[str, str] = namespace["metadata"].get("labels", {})
    return labels.get(MANAGED) == "portal"


def _shown(namespace: Manifest) -> Values:
    notes: dict[str, str] = namespace["metadata"]["annotations"]
    return {"name": namespace["metadata"]["name"], "description": notes.get("openshift.io/description", ""),
            **{key: notes.get(f"portal.localhost/{key}", "") for key in ("type", "category", "owner",
                                                                         "administrators")},
            "status": namespace["status"]["phase"]}


def _page(portal: Portal) -> str:
    """Return the page for people: each form, its fields, and what was requested with it."""
    parts = []
    for name, form in portal.forms.items():
        fields = ", ".join([*form.required, *(f"({field})" for field in form.optional)])
        requested = "".join(f"<li><code>{html.escape(json.dumps(each))}</code></li>" for each in form.shown())
        parts.append(f"<h2>{form.title}</h2><p><code>POST /{name}</code> {fields}</p><ul>{requested}</ul>")
    return ("<!doctype html><meta charset=utf-8><title>Portal</title><h1>Portal</h1>"
            "<p>Stands for CERN's portals on this machine. Fields in brackets are optional.</p>" + "".join(parts))
