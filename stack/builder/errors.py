"""How a build ends when it does not end well."""

from __future__ import annotations


class BuildError(Exception):
    """The build failed: `reason` is OpenShift's word for it (`status.reason`), the text its `status.message`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class CancelledError(Exception):
    """Somebody set the build's `status.cancelled`, or deleted it."""
