"""Failures: why a request that the decision accepted got no complete response from Navidrome.

Each failure is one row with all texts about it. Rejections are not failures; their reasons are in
`shim/trust/reasons.py`.
"""

from __future__ import annotations

from typing import NamedTuple

from shim.trust.reasons import RowEnum

_BUSY = "The service is busy. Please try again in a moment."
_NO_RESPONSE = "Navidrome does not respond right now."
_TOO_LONG = "Navidrome took too long to respond."
_CHECK_NAVIDROME = "Check that Navidrome runs, and look at its log."


class _Row(NamedTuple):
    """The values of one failure: `name` in the log and the metrics, `status` of the response, `message` for
    the client, `cause` for the pages, and `remedy`: what an administrator can change."""

    name: str
    status: int
    message: str
    cause: str
    remedy: str = ""


class Failure(RowEnum):
    """One row each, see `_Row`. A failure within a response keeps the status that was already sent."""

    status: int
    message: str
    cause: str
    remedy: str

    # the client
    CLIENT_LEFT = _Row(
        "client_left",
        400,
        "The client closed the connection.",
        "the client closed the connection before the response was complete",
        "No change is needed: players do this with each track that is skipped.",
    )
    SEND_TIMEOUT = _Row(
        "send_timeout",
        408,
        "The client did not read the response in time.",
        "the client did not read the response in time",
    )
    BODY_TIMEOUT = _Row(
        "body_timeout",
        408,
        "The request took too long to arrive.",
        "the body of the request took too long to arrive",
    )
    SENT_AHEAD = _Row(
        "sent_ahead",
        400,
        "The client sent too much before it read the response to its last request.",
        "the client sent too much before it read the last response",
    )
    # the shim
    SHUTDOWN = _Row(
        "shutdown",
        503,
        "The service is stopping. Please try again in a moment.",
        "the shim was stopping",
    )
    DESCRIPTORS_EXHAUSTED = _Row(
        "descriptors_exhausted",
        503,
        _BUSY,
        "the limit of open files was reached",
        "Raise the limit of open files (ulimit -n).",
    )
    BUFFER_FULL = _Row(
        "buffer_full",
        503,
        _BUSY,
        "the memory for buffered request bodies was used up",
    )
    POOL_EXHAUSTED = _Row(
        "pool_exhausted",
        503,
        _BUSY,
        "all connections to Navidrome were in use",
        "If it happens often, raise SHIM_MAX_UPSTREAM_CONNECTIONS.",
    )
    # the account
    ACCOUNT_TIMEOUT = _Row(
        "account_timeout",
        503,
        _BUSY,
        "preparing the account took too long",
        "Check Navidrome and SHIM_PROVISIONING_TIMEOUT.",
    )
    ACCOUNT_UNAVAILABLE = _Row(
        "account_unavailable",
        503,
        _BUSY,
        "the account could not be prepared",
        "See the log.",
    )
    ACCOUNT_REVOKED = _Row(
        "account_revoked",
        403,
        "You are not allowed to do this.",
        "the account lost its rights during the request",
    )
    # Navidrome
    CONNECT_FAILED = _Row(
        "connect_failed",
        502,
        _NO_RESPONSE,
        "no connection to Navidrome",
        _CHECK_NAVIDROME,
    )
    CONNECT_TIMEOUT = _Row(
        "connect_timeout",
        504,
        _TOO_LONG,
        "Navidrome did not accept the connection in time",
        _CHECK_NAVIDROME,
    )
    UPSTREAM_RESPONSE_TIMEOUT = _Row(
        "upstream_response_timeout",
        504,
        _TOO_LONG,
        "Navidrome did not respond in time",
        _CHECK_NAVIDROME,
    )
    UPSTREAM_RESPONSE_MISSING = _Row(
        "upstream_response_missing",
        502,
        _NO_RESPONSE,
        "Navidrome closed the connection without a response",
        _CHECK_NAVIDROME,
    )
    UPSTREAM_RESPONSE_MALFORMED = _Row(
        "upstream_response_malformed",
        502,
        _NO_RESPONSE,
        "Navidrome's response was not valid HTTP",
        _CHECK_NAVIDROME,
    )
    UPSTREAM_RESPONSE_TRUNCATED = _Row(
        "upstream_response_truncated",
        502,
        _NO_RESPONSE,
        "Navidrome ended its response early",
        _CHECK_NAVIDROME,
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
