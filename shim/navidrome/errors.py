"""How Navidrome's API fails, told apart by what can be done about it.

Messages are made to be read in the log: what was asked, and what Navidrome said, clipped. None holds a
password, a token or a body that was sent.
"""

from __future__ import annotations


class NavidromeError(Exception):
    """A call that gave no usable answer."""


class Unavailable(NavidromeError):
    """Navidrome did not answer, or not in a way that its API does: trying again later may help.

    `retry_after` is in seconds. `sent` says whether the call may have been carried out all the same.
    """

    def __init__(self, message: str, *, retry_after: float = 5.0, sent: bool = True) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.sent = sent


class ResponseTooLarge(NavidromeError):
    """Navidrome's response is larger than the shim reads. It concerns what was asked for alone, so it says
    nothing about Navidrome as a whole."""


class ApiError(NavidromeError):
    """Navidrome understood and said no, with `status`."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class NotAuthenticated(ApiError):
    """401: it does not know whom the shim speaks as."""


class PermissionDenied(ApiError):
    """403: whom the shim speaks as is no admin."""


class NameTaken(ApiError):
    """400: another user has that name."""
