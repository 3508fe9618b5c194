"""The platform's side of sign-on: an application and a Secret for each project that asks by an `OidcReturnURI`.

Stands for CERN's authz-operator: it makes the application `webframeworks-paas-PROJECT`, lets it send people back to the
addresses of the project's OidcReturnURI objects, and writes Client ID and Client Secret into the Secret
`oidc-client-secret`. What somebody changes in that Secret by hand is put back, and so is the Secret itself.

Differs: application and Secret come with the first OidcReturnURI and not with the project; addresses take no `*`; the
objects that the operator works with besides (ApplicationRegistration, AuthzOidcSecretImport) are left out, and an
OidcReturnURI gets no status.
"""

from __future__ import annotations

import base64
import logging
import threading
from collections import defaultdict

from stack.api import Api, ApiError, Manifest
from stack.portal.signon import Provider
from stack.state import State

SECRET = "oidc-client-secret"  # noqa: S105 - the name of an object
PREFIX = "webframeworks-paas-"
"""How the identifiers of the platform's own applications begin; nobody else may register one."""

_log = logging.getLogger(__name__)


class Operator:
    """Keeps the applications of the projects as their OidcReturnURI objects ask."""

    def __init__(self, state: State, provider: Provider) -> None:
        self._provider, self._issuer = provider, state.issuer
        self._api = Api(state.inside, state.tokens.admin, state.ca)
        self._wanted: dict[str, dict[str, str]] = defaultdict(dict)
        self._one = threading.Lock()

    def start(self) -> None:
        """Watch in two threads until the process ends."""
        for each in (self._watch_addresses, self._watch_secrets):
            threading.Thread(target=each, daemon=True, name=each.__name__).start()

    def _watch_addresses(self) -> None:
        synced = False
        for event, found in self._api.watch("OidcReturnURI"):
            if event == "SYNCED":  # Before that not every address is known, and one that is missing would be taken out.
                synced = True
                for project in list(self._wanted):
                    self._keep(project)
                continue
            project, name = found["metadata"]["namespace"], found["metadata"]["name"]
            if event == "DELETED":
                self._wanted[project].pop(name, None)
            else:
                self._wanted[project][name] = found["spec"]["redirectURI"]
            if synced:
                self._keep(project)

    def _watch_secrets(self) -> None:
        for event, found in self._api.watch("Secret", fieldSelector=f"metadata.name={SECRET}"):
            if event != "SYNCED" and found["metadata"]["namespace"] in self._wanted:
                self._keep(found["metadata"]["namespace"])

    def _keep(self, project: str) -> None:
        """Make application and Secret of a project what they should be."""
        with self._one:
            try:
                self._reconcile(project)
            except ApiError as error:  # The next event tries again; a project that is going refuses everything.
                _log.warning("sign-on of %s: %s", project, error.message)

    def _reconcile(self, project: str) -> None:
        identifier, addresses = PREFIX + project, sorted(set(self._wanted[project].values()))
        known = self._provider.registrations().get(identifier)
        namespace = self._api.get("Namespace", project)
        if namespace is None or "deletionTimestamp" in namespace["metadata"]:
            self._provider.remove(identifier)
            return
        if known is None and not addresses:
            return
        if known is None or known.redirect_uris != addresses:
            known = self._provider.register(identifier, f"Application of {project}", addresses, known.details if known else {})
        values = {"clientID": identifier, "clientSecret": known.secret, "issuerURL": self._issuer}
        data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
        found = self._api.get("Secret", SECRET, project)
        if found and found.get("data") == data:
            return
        wanted: Manifest = {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "data": data, "metadata": {
            "name": SECRET, "namespace": project, "labels": {"app.kubernetes.io/managed-by": "authz-operator"}}}
        if found:
            self._api.request("PUT", f"/api/v1/namespaces/{project}/secrets/{SECRET}", wanted)
        else:
            self._api.create(wanted)
