"""Errors of Navidrome's API, by what can be done about them.

Messages are for the log: the call, and Navidrome's response, shortened. They contain no password, token or
request body.
"""

from __future__ import annotations


class NavidromeError(Exception):
    """A call without a usable response."""


class Unavailable(NavidromeError):
    """Navidrome did not respond, or not as its API does. A later retry may succeed.

    `retry_after` is in seconds. `sent` is whether Navidrome may have executed the call anyway.
    """

    def __init__(self, message: str, *, retry_after: float = 5.0, sent: bool = True) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.sent = sent


class ResponseTooLarge(NavidromeError):
    """Navidrome's response exceeds the limit. This concerns only the requested record, not Navidrome as a
    whole."""


class ApiError(NavidromeError):
    """Navidrome rejected the call with `status`."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class NotAuthenticated(ApiError):
    """401: Navidrome does not accept the shim's credentials."""


class PermissionDenied(ApiError):
    """403: the shim's account is not an admin."""


class NameTaken(ApiError):
    """400: another user has this name."""
