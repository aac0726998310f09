"""Failures: why a request that the decision accepted got no complete response from Navidrome.

Each failure is one row: its name in the log and the metrics, the status of the response, and the text for the
client. Rejections are not failures; their reasons are in `shim/trust/reasons.py`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class Failure(StrEnum):
    """One row: name, `status` and `text`. A failure within a response keeps the status that was already
    sent."""

    status: int
    text: str

    def __new__(cls, name: str, status: int, text: str) -> Self:
        """Create a row of the table."""
        failure = str.__new__(cls, name)
        failure._value_ = name
        failure.status = status
        failure.text = text
        return failure

    # the client
    CLIENT_LEFT = ("client_left", 400, "The client closed the connection.")
    SEND_TIMEOUT = ("send_timeout", 408, "The client did not read the response in time.")
    BODY_TIMEOUT = ("body_timeout", 408, "The request took too long to arrive.")
    SENT_AHEAD = (
        "sent_ahead",
        400,
        "The client sent too much before it read the response to its last request.",
    )
    # the shim
    SHUTDOWN = ("shutdown", 503, "The service is stopping. Please try again in a moment.")
    DESCRIPTORS_EXHAUSTED = (
        "descriptors_exhausted",
        503,
        "The service is busy. Please try again in a moment.",
    )
    BUFFER_FULL = ("buffer_full", 503, "The service is busy. Please try again in a moment.")
    POOL_EXHAUSTED = ("pool_exhausted", 503, "The service is busy. Please try again in a moment.")
    # the account
    ACCOUNT_TIMEOUT = ("account_timeout", 503, "The service is busy. Please try again in a moment.")
    ACCOUNT_UNAVAILABLE = (
        "account_unavailable",
        503,
        "The service is busy. Please try again in a moment.",
    )
    ACCOUNT_REVOKED = ("account_revoked", 403, "You are not allowed to do this.")
    # Navidrome
    CONNECT_FAILED = ("connect_failed", 502, "Navidrome does not respond right now.")
    CONNECT_TIMEOUT = ("connect_timeout", 504, "Navidrome took too long to respond.")
    UPSTREAM_RESPONSE_TIMEOUT = (
        "upstream_response_timeout",
        504,
        "Navidrome took too long to respond.",
    )
    UPSTREAM_RESPONSE_MISSING = (
        "upstream_response_missing",
        502,
        "Navidrome does not respond right now.",
    )
    UPSTREAM_RESPONSE_MALFORMED = (
        "upstream_response_malformed",
        502,
        "Navidrome does not respond right now.",
    )
    UPSTREAM_RESPONSE_TRUNCATED = (
        "upstream_response_truncated",
        502,
        "Navidrome does not respond right now.",
    )


# Failures that the client or its account causes. All others are failures of Navidrome or of the shim.
CLIENT_FAILURES = frozenset(
    {
        Failure.CLIENT_LEFT,
        Failure.SEND_TIMEOUT,
        Failure.BODY_TIMEOUT,
        Failure.SENT_AHEAD,
        Failure.ACCOUNT_REVOKED,
    }
)
