"""What the parts of the data plane know of each other: small interfaces, so that imports run one way.

An upstream connection serves a client and belongs to a pool, and all of them stand on the plane; none of
them needs to know the others' classes for that.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from shim.proxy.counters import Counters
from shim.proxy.failures import Failure
from shim.proxy.gate import AccountGate
from shim.proxy.limits import Limits
from shim.trust.decision import Decision


class Observer(Protocol):
    """Hears of every request worth a line. Nothing here may block or raise."""

    @property
    def logs_access(self) -> bool:
        """Whether `accessed` is to be called."""

    def request_decided(
        self, decision: Decision, request_id: str, status: int | None = None
    ) -> None:
        """A request was stripped or rejected. `status` is what the client got, where that is not the
        decision's own."""

    def navidrome_token_found(self, decision: Decision, request_id: str) -> None:
        """A request brought a Navidrome token that was removed, or brought one to a protected path and no
        identity."""

    def failed(
        self,
        decision: Decision,
        request_id: str,
        failure: Failure,
        status: int,
        sent: int | None = None,
    ) -> None:
        """A request got one of the shim's own responses, since Navidrome gave none, or its response did not
        become whole after `sent` bytes. `failure` says why; `status` is what the client got."""

    def request_completed(
        self,
        decision: Decision,
        request_id: str,
        status: int,
        sent: int,
        seconds: float,
        incomplete: Failure | None = None,
    ) -> None:
        """A response was given. `sent` is in bytes, as written to the client; `incomplete` is None where the
        response became whole."""

    def upstream_up(self) -> None:
        """Navidrome answers again."""

    def upstream_down(self, reason: str) -> None:
        """Navidrome can't be reached."""


class HasDeadlines(Protocol):
    """A connection with deadlines, in the plane's time."""

    deadline: float
    send_deadline: float

    def expired(self) -> None:
        """The deadline of its phase has passed."""

    def send_timed_out(self) -> None:
        """What was written has not been taken in time."""

    def check_account(self) -> None:
        """An account was revoked: end what is under way, if it is for that one."""


class Paused(Protocol):
    """A connection that nothing is read from for now."""

    def descriptor(self) -> int:
        """Return the file descriptor of its socket, -1 where it is closed."""

    def hung_up(self, *, reset: bool) -> None:
        """End it, since its client has left; `reset`: both directions ended."""


class KeyFetcher(Protocol):
    """Fetches the keys that tokens are verified with."""

    def request_refresh(self) -> asyncio.Future[None] | None:
        """Return a future that is done when the keys have been fetched again and are in force; None where the
        request must not wait for it."""


class ProxyContext(Protocol):
    """The data plane, as far as pools and upstream connections need it. `now` is in seconds."""

    counters: Counters
    gate: AccountGate | None
    limits: Limits
    now: float
    observer: Observer


class ResponseReceiver(Protocol):
    """The request that an upstream connection serves. The attributes are those of `RequestHandler`."""

    no_body: bool
    http10: bool
    request_sent: bool
    upgrading: bool

    def close_after_response(self) -> None:
        """Let no request follow on the client's connection."""

    def pause_upload(self) -> None:
        """Navidrome takes no more of the request for now."""

    def resume_upload(self) -> None:
        """Navidrome takes more."""

    def response_started(self, status: int, lines: bytes) -> None:
        """The head of the final response is about to be sent; `lines` are those of it that pass."""

    def connection_line(self) -> bytes:
        """The line that tells the client whether the connection lasts."""

    def send(self, data: bytes) -> None:
        """Write to the client."""

    def send_pieces(self, pieces: tuple[bytes, memoryview]) -> None:
        """Write to the client, without putting the pieces together."""

    def switch_to_tunnel(self, head: bytes) -> None:
        """Navidrome switched to WebSocket: from now on bytes pass as they are."""

    def response_complete(self) -> None:
        """The response is whole."""

    def upstream_closed_early(self, *, unused: bool) -> None:
        """The connection went before a byte of the response; `fresh`: it had carried none yet."""

    def fail(self, failure: Failure) -> None:
        """There is no response."""

    def response_truncated(self) -> None:
        """The response broke off."""
