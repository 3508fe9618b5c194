"""Who may use the portal and private repositories: the bearers of this stack's tokens."""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Iterable

from starlette.datastructures import Headers


def credentials(headers: Headers) -> tuple[str, str]:
    """Return the user and the password or token that a request carries; empty when it carries none.

    Bearer tokens are for programs, Basic for Git and for a person's browser.
    """
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return "", value.strip()
    if scheme.lower() == "basic":
        try:
            user, _, password = base64.b64decode(value, validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            return "", ""
        return user, password
    return "", ""


def is_one_of(given: str, accepted: Iterable[str]) -> bool:
    """Tell whether a secret is one of those accepted; the time it takes does not tell how much of it is right."""
    return any(secrets.compare_digest(given.encode(), each.encode()) for each in accepted)
