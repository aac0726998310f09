"""Interfaces between the parts of the data plane, so that imports run in one direction.

An upstream connection serves a client and belongs to a pool, and all of them use the plane; none of them
needs to import the others' classes.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from shim.proxy.counters import Counters
from shim.proxy.device_gate import DeviceMatch
from shim.proxy.failures import Failure
from shim.proxy.gate import Account, AccountGate
from shim.proxy.limits import Limits
from shim.trust.decision import Decision


class Observer(Protocol):
    """Receives every request that may be logged. No method may block or raise."""

    @property
    def logs_access(self) -> bool:
        """Return whether `request_completed` must be called."""

    def request_decided(
        self, decision: Decision, request_id: str, status: int | None = None
    ) -> None:
        """Record a request that was stripped or rejected. `status` is the status that the client got, if it
        differs from the decision's."""

    def identity_used(self, decision: Decision, request_id: str, account: str | None) -> None:
        """Handle a trusted identity, not more often than needed to know that it is in use. `account` is the
        name of its account, None if it is not known."""

    def navidrome_token_found(
        self, decision: Decision, request_id: str, account: str | None = None
    ) -> None:
        """Record a Navidrome token that was removed, or that came to a protected path without an identity."""

    def failed(
        self,
        decision: Decision,
        request_id: str,
        failure: Failure,
        status: int,
        sent: int | None = None,
        *,
        account: str | None = None,
    ) -> None:
        """Record a request that got one of the shim's own responses, since Navidrome sent none, or whose
        response broke off after `sent` bytes. `failure` is the reason; `status` is the status that the client
        got."""

    def request_completed(
        self,
        decision: Decision,
        request_id: str,
        status: int,
        sent: int,
        seconds: float,
        incomplete: Failure | None = None,
        *,
        account: str | None = None,
    ) -> None:
        """Record a response. `sent` is in bytes, as written to the client; `incomplete` is None if the
        response is complete."""

    def upstream_up(self) -> None:
        """Record that Navidrome responds again."""

    def upstream_down(self, reason: str) -> None:
        """Record that Navidrome can't be reached."""


class HasDeadlines(Protocol):
    """A connection with deadlines, in the plane's time (seconds)."""

    deadline: float
    send_deadline: float

    def expired(self) -> None:
        """Handle the deadline of the state."""

    def send_timed_out(self) -> None:
        """Handle written bytes that were not read in time."""

    def check_account(self) -> None:
        """Cancel the current request if its account was revoked."""


class PausedConnection(Protocol):
    """A connection on which reading is paused."""

    def descriptor(self) -> int:
        """Return the file descriptor of its socket, -1 if it is closed."""

    def client_disconnected(self, *, reset: bool) -> None:
        """Close the connection, since its client has disconnected; `reset`: both directions ended."""


class KeyFetcher(Protocol):
    """Fetches the keys that verify tokens."""

    def request_refresh(self) -> asyncio.Future[None] | None:
        """Return a future that is done when the keys have been fetched again and are in force; None if the
        request must not wait for it."""


class ProxyContext(Protocol):
    """The data plane, as pools and upstream connections need it. `now` is in seconds."""

    counters: Counters
    gate: AccountGate | None
    limits: Limits
    now: float
    observer: Observer


class RequestState(Protocol):
    """A request, as checks and reports need it. `RequestHandler` implements it.

    `account` is the one that the request is sent as, None if it is not known; `device` is the device whose
    password the request has. `arrived` is when its head was complete, in seconds of `perf_counter`.
    `response_status` is set once the response has begun; `bytes_sent` is the length of what was written.
    """

    decision: Decision
    account: Account | None
    device: DeviceMatch | None
    arrived: float
    response_status: int
    bytes_sent: int

    def ensure_request_id(self) -> str:
        """Return the request's id, which is created when it is needed."""


class ResponseReceiver(Protocol):
    """The request that an upstream connection serves. `RequestHandler` implements it."""

    no_body: bool
    http10: bool
    request_sent: bool
    upgrading: bool

    def close_after_response(self) -> None:
        """Close the client's connection after this response."""

    def pause_upload(self) -> None:
        """Pause the request body, since Navidrome does not read."""

    def resume_upload(self) -> None:
        """Resume the request body, since Navidrome reads again."""

    def response_started(self, status: int, lines: bytes) -> bytes:
        """Handle the start of the final response, just before its head is sent; `lines` are the header lines
        that are forwarded. Return the `Connection` header line for the client, empty if it needs none."""

    def send(self, data: bytes) -> None:
        """Write to the client."""

    def send_pieces(self, pieces: tuple[bytes, memoryview]) -> None:
        """Write to the client, without joining the pieces."""

    def switch_to_tunnel(self, head: bytes) -> None:
        """Switch to a tunnel, since Navidrome switched to WebSocket: bytes are forwarded unchanged from now
        on."""

    def response_complete(self) -> None:
        """Handle the end of a complete response."""

    def upstream_closed_early(self, *, unused: bool) -> None:
        """Handle a connection that closed before the first byte of the response; `unused`: it had carried no
        response yet."""

    def fail(self, failure: Failure) -> None:
        """End the request without a response from Navidrome."""

    def response_truncated(self) -> None:
        """Handle a response that broke off."""
