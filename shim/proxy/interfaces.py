"""What the parts of the data plane know of each other: small interfaces, so that imports run one way.

An upstream connection serves a client and belongs to a pool, and all of them stand on the plane; none of
them needs to know the others' classes for that.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from shim.proxy.counters import Counters
from shim.proxy.gate import AccountGate
from shim.proxy.limits import Limits
from shim.trust.decide import Decision


class Observer(Protocol):
    """Hears of every request worth a line. Nothing here may block or raise."""

    @property
    def wants_access(self) -> bool:
        """Whether `accessed` is to be called."""

    def judged(self, decision: Decision, request_id: str) -> None:
        """A request was stripped or rejected."""

    def tokens_seen(self, decision: Decision, request_id: str) -> None:
        """A request brought a Navidrome token that was removed, or brought one to a protected path and no
        identity."""

    def failed(self, decision: Decision, request_id: str, word: str, status: int) -> None:
        """A request got one of the shim's own answers, since Navidrome gave none. `word` says why."""

    def accessed(
        self, decision: Decision, request_id: str, status: int, sent: int, seconds: float
    ) -> None:
        """An answer was given. `sent` is in bytes, as written to the client."""

    def upstream_up(self) -> None:
        """Navidrome answers again."""

    def upstream_down(self, why: str) -> None:
        """Navidrome can't be reached."""


class Timed(Protocol):
    """A connection with deadlines, in the plane's time."""

    deadline: float
    stall_deadline: float

    def expired(self) -> None:
        """The deadline of its phase has passed."""

    def stalled(self) -> None:
        """What was written has not been taken in time."""

    def check_account(self) -> None:
        """An account was revoked: end what is under way, if it is for that one."""


class KeyFetcher(Protocol):
    """Whoever fetches the keys that tokens are verified with."""

    def want(self) -> asyncio.Future[None] | None:
        """A future that is done when they have been fetched anew, and what came of it is in force; None
        where that is not to be waited for."""


class Ground(Protocol):
    """What every connection stands on: the plane, as far as they need it. `now` is in seconds."""

    counters: Counters
    gate: AccountGate | None
    limits: Limits
    now: float
    observer: Observer


class Client(Protocol):
    """Whom an upstream connection serves. The attributes are those of `ExchangingConnection`."""

    bodiless: bool
    keep_alive: bool
    old: bool
    request_sent: bool
    upgrading: bool
    write_paused: bool

    def pause_upload(self) -> None:
        """Navidrome takes no more of the request for now."""

    def resume_upload(self) -> None:
        """Navidrome takes more."""

    def answer_begins(self, status: int) -> None:
        """The head of the final answer is about to be sent."""

    def connection_line(self) -> bytes:
        """The line that tells the client whether the connection lasts."""

    def send(self, data: bytes) -> None:
        """Write to the client."""

    def send_pieces(self, pieces: tuple[bytes, memoryview]) -> None:
        """Write to the client, without putting the pieces together."""

    def tunnel(self, head: bytes) -> None:
        """Navidrome switched to WebSocket: from now on bytes pass as they are."""

    def answered(self) -> None:
        """The answer is whole."""

    def vanished(self, *, fresh: bool) -> None:
        """The connection went before a byte of the answer; `fresh`: it had carried none yet."""

    def failed(self, word: str, status: int) -> None:
        """There is no answer."""

    def cut(self) -> None:
        """The answer broke off."""
