"""The sign-on: an OpenID Connect provider at `https://auth.localhost:PORT/auth/realms/cern`.

Stands for auth.cern.ch, CERN's Keycloak: discovery, the authorization code flow and signed tokens, by the package
oidc-provider-mock (Authlib), at the addresses that Keycloak has below its realm, with CERN's claims (`cern_upn`,
`cern_roles`, …). Clients are those registered in the portal: only their redirect addresses, their secret and the
methods `client_secret_basic` and `client_secret_post` are accepted, and each user must be known here.

Differs: a person picks one of the users instead of giving a password and a second factor, and is asked each time; who
belongs to a role does so in every application that defines it, where CERN's portal adds people and e-groups to each
application's role; redirect addresses take no `*`; no single sign-out, no API access tokens.
The users are in `signon/users.json` of the state folder and can be changed there; a restart of the portal reads them.
"""

from __future__ import annotations

import html
import importlib
import json
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from stack.state import MEMBER, State

if TYPE_CHECKING:
    import flask

REALM = "/auth/realms/cern"
ENDPOINTS = {
    "authorization_endpoint": ("auth", "/oauth2/authorize"),
    "token_endpoint": ("token", "/oauth2/token"),
    "userinfo_endpoint": ("userinfo", "/userinfo"),
    "end_session_endpoint": ("logout", "/oauth2/end_session"),
    "jwks_uri": ("certs", "/jwks"),
}
"""By their names in the discovery document: Keycloak's path below `protocol/openid-connect`, the package's own path.

Nothing else of the package is reachable: not its open registration, not its changing of users, not its test client.
"""
PATHS = {f"{REALM}/protocol/openid-connect/{ours}": theirs for ours, theirs in ENDPOINTS.values()} | {
    f"{REALM}/.well-known/openid-configuration": "/.well-known/openid-configuration",
    "/oauth2/end_session/confirm": "/oauth2/end_session/confirm",
}

AT = "\n"
"""Between a user's name and the client that he signs on to: in no name."""

ROLES = {MEMBER: ["shifter"], "shiftleader": ["shiftleader"], "expert": ["expert"], "admin": ["admin"], "guest": []}
"""The first users, with their roles: one for each role that certhelper knows, and one without any."""


@dataclass(frozen=True)
class Registration:
    """An application that may ask who somebody is."""

    identifier: str
    name: str
    secret: str
    redirect_uris: list[str]
    details: dict[str, Any]
    """What else stood in the form."""

    def shown(self) -> dict[str, Any]:
        """Return it as JSON for people: without the secret."""
        return {"identifier": self.identifier, "name": self.name, "redirect_uris": self.redirect_uris, **self.details}


class Provider:
    """The provider as an ASGI application, and its registrations. Heavy imports wait for the first request."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._served: ASGIApp | None = None
        self._changing = threading.Lock()

    def registrations(self) -> dict[str, Registration]:
        """Return the registrations by identifier."""
        path = self._state.path("signon", "registrations.json")
        known = json.loads(path.read_text()) if path.exists() else {}
        return {identifier: Registration(**values) for identifier, values in known.items()}

    def register(self, identifier: str, name: str, redirect_uris: list[str], details: dict[str, Any]) -> Registration:
        """Register an application, or change what is registered; the secret is made once and stays."""
        with self._changing:
            known = self.registrations()
            secret = known[identifier].secret if identifier in known else secrets.token_urlsafe(24)
            known[identifier] = Registration(identifier, name, secret, redirect_uris, details)
            self._keep(known)
        return known[identifier]

    def renew(self, identifier: str) -> Registration:
        """Give a registration another secret; the former one is worth nothing from now on."""
        with self._changing:
            known = self.registrations()
            known[identifier] = replace(known[identifier], secret=secrets.token_urlsafe(24))
            self._keep(known)
        return known[identifier]

    def remove(self, identifier: str) -> bool:
        """Remove a registration; return whether there was one."""
        with self._changing:
            known = self.registrations()
            if identifier not in known:
                return False
            del known[identifier]
            self._keep(known)
        return True

    def _keep(self, registrations: Mapping[str, Registration]) -> None:
        self._state.write_json("signon/registrations.json", {key: asdict(each) for key, each in registrations.items()})
        # The next request makes the provider anew: its package has no way to change or forget a client.
        self._served = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, at Keycloak's addresses only."""
        theirs = PATHS.get(scope["path"])
        if theirs is None:
            text = f"The sign-on is at {self._state.issuer}/.well-known/openid-configuration\n"
            await PlainTextResponse(text, 404)(scope, receive, send)
            return
        if theirs.startswith("/.well-known"):
            await JSONResponse(self._discovery())(scope, receive, send)
            return
        if theirs == "/oauth2/authorize":
            asked = {key: values[-1] for key, values in parse_qs(scope["query_string"].decode()).items()}
            wrong = self._refusal(asked)
            if wrong or scope["method"] == "GET":
                page = _error(wrong) if wrong else self._choice(asked["client_id"])
                await HTMLResponse(page, 400 if wrong else 200)(scope, receive, send)
                return
        if self._served is None:
            self._served = self._make()
        await self._served({**scope, "root_path": "", "path": theirs, "raw_path": theirs.encode()}, receive, send)

    def _refusal(self, asked: Mapping[str, str]) -> str:
        """Return why a browser is not let go on, in Keycloak's words, "" when it is."""
        client = self.registrations().get(asked.get("client_id", ""))
        if client is None:
            return "Client not found."
        return "" if asked.get("redirect_uri") in client.redirect_uris else "Invalid parameter: redirect_uri"

    def _choice(self, identifier: str) -> str:
        """Return the page on which a person signs on."""
        buttons = "".join(f"<li><button name=sub value={html.escape(name)}>{html.escape(str(user['name']))}</button></li>"
                          for name, user in self.users().items())
        application = html.escape(self.registrations()[identifier].name)
        return (f"<!doctype html><html lang=en><meta charset=utf-8><title>Sign on</title><h1>Sign on</h1>"
                f"<p>to {application}, as</p><form method=post><ul>{buttons}</ul></form>")

    def _discovery(self) -> dict[str, Any]:
        below = f"{self._state.issuer}/protocol/openid-connect/"
        return {"issuer": self._state.issuer, **{name: below + ours for name, (ours, _) in ENDPOINTS.items()},
                "response_types_supported": ["code"], "response_modes_supported": ["query"],
                "grant_types_supported": ["authorization_code", "refresh_token"],
                "scopes_supported": ["openid", "profile", "email"], "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["RS256"],
                "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"]}

    def users(self) -> dict[str, dict[str, Any]]:
        """Return the users with their claims, by name."""
        path = self._state.path("signon", "users.json")
        if not path.exists():
            self._state.write_json("signon/users.json", {
                name: {"name": name.capitalize() + " Example", "given_name": name.capitalize(),
                       "family_name": "Example", "email": f"{name}@cern.localhost", "cern_person_id": number,
                       "cern_roles": roles}
                for number, (name, roles) in enumerate(ROLES.items(), start=900001)})
        users: dict[str, dict[str, Any]] = json.loads(path.read_text())
        return {name: {"cern_upn": name, "preferred_username": name, **claims} for name, claims in users.items()}

    def _make(self) -> ASGIApp:
        """Return the package's provider, filled with our registrations, users and signing key."""
        import warnings

        from a2wsgi import WSGIMiddleware
        from werkzeug.datastructures import ImmutableMultiDict

        importlib.import_module("authlib.deprecate")  # turns its warnings on, so it comes before they are ignored
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations within the package, which is pinned
            import flask
            import oidc_provider_mock
            from oidc_provider_mock import _app as package
            from oidc_provider_mock._storage import Client, jose, storage

        issuer = self._state.issuer

        class Request(flask.Request):
            """A request to the realm: the package takes the issuer of its tokens from here, and who signs on."""

            @property
            def host_url(self) -> str:
                return issuer + "/"

            @cached_property
            def form(self) -> ImmutableMultiDict[str, str]:
                """Return the form; its user is the one of this client, because roles are given by application."""
                filled = super().form
                if self.path != "/oauth2/authorize" or "sub" not in filled:
                    return filled
                return ImmutableMultiDict({**filled, "sub": _one_of(filled["sub"], self.args.get("client_id", ""))})

        class Registered(Client):  # type: ignore[misc]
            """A client that must show its secret, by either method; the package knows only one or any, even none."""

            def check_endpoint_auth_method(self, method: str, _endpoint: object) -> bool:
                return method in ("client_secret_basic", "client_secret_post")

            def check_client_secret(self, client_secret: str) -> bool:
                return secrets.compare_digest(client_secret.encode(), self.secret.encode())

        registrations = self.registrations().values()
        users = {_one_of(name, each.identifier): claims | {"cern_roles": [
            role for role in claims.get("cern_roles", []) if role in each.details.get("roles", [])]}
            for each in registrations for name, claims in self.users().items()}
        # The package's own function makes the claims of both the token and the user's page.
        claims_for = package._user_claims_for_scope  # noqa: SLF001
        package._user_claims_for_scope = _claims_for(getattr(claims_for, "__wrapped__", claims_for))  # noqa: SLF001
        app: flask.Flask = oidc_provider_mock.app(
            require_client_registration=True,
            user_claims=[oidc_provider_mock.User(sub=name, claims=claims) for name, claims in users.items()])
        app.request_class = Request
        app.debug = False
        with app.test_request_context(base_url=issuer):
            app.preprocess_request()
            storage.jwk = self._key(jose)
            for each in registrations:
                storage.store_client(Registered(
                    id=each.identifier, secret=each.secret, redirect_uris=each.redirect_uris,
                    allowed_scopes=Client.SCOPES_SUPPORTED, token_endpoint_auth_method=None))  # check_endpoint_auth_method decides

        @app.before_request
        def only_known_users() -> flask.typing.ResponseReturnValue | None:
            sub = flask.request.form.get("sub")
            if flask.request.path == "/oauth2/authorize" and sub is not None and sub not in users:
                known = ", ".join(self.users())
                return f"There is no user {sub.partition(AT)[0]!r}; there are: {known}.", 403, {"Content-Type": "text/plain"}
            return None

        del app.wsgi_app  # the package's wrapping in a debugger; Flask's own is below it
        return WSGIMiddleware(app.wsgi_app, workers=4)  # type: ignore[no-any-return]

    def _key(self, jose: Any) -> Any:
        """Return the key that signs tokens; kept, so that a restart does not make applications distrust it."""
        path = self._state.path("signon", "key.json")
        if not path.exists():
            key = jose.RSAKey.generate_key(is_private=True)
            self._state.write_json("signon/key.json", key.as_dict(is_private=True))
        return jose.RSAKey.import_key(json.loads(path.read_text()))


def _one_of(user: str, client: str) -> str:
    return f"{user}{AT}{client}"


def _claims_for(theirs: Callable[..., dict[str, object]]) -> Callable[..., dict[str, object]]:
    """Return the package's function of a user's claims, with the name that the user really has."""
    @wraps(theirs)
    def claims(user: Any, scope: str) -> dict[str, object]:
        return theirs(user, scope) | {"sub": user.sub.partition(AT)[0]}

    return claims


def _error(sentence: str) -> str:
    """Return the page that Keycloak shows for a wrong request; it names neither client nor address."""
    return (f"<!doctype html><html lang=en><meta charset=utf-8><title>Sign on</title><h1>We are sorry...</h1>"
            f"<p>{html.escape(sentence)}</p>")
