"""What the data plane knows of accounts: an interface with two questions.

The first is asked on every authenticated request and does no I/O; the second only where the first one
had no answer. Who provisions, and how, is not known here.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from shim.trust.identity import Identity
from shim.trust.reasons import Reason


@dataclass(frozen=True, slots=True)
class Account:
    """The account that an identity has at Navidrome. `user_name` is its name as Navidrome stores it, in
    UTF-8: what the user header says. `id` is its id at Navidrome, None where that is not known."""

    user_name: bytes
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an identity gets no account: `reason` gives the status, `detail` one sentence for the log.
    `retry_after` is in seconds, where trying again may help."""

    reason: Reason
    detail: str
    retry_after: int | None = None


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks: the peer's address as text, and the request's id, for the trail. `verified`: a token that
    was verified says what the identity says."""

    peer: str
    request_id: str
    verified: bool = False


class AccountGate(Protocol):
    """Answers whether the account behind an identity is ready."""

    def known(self, identity: Identity) -> Account | None:
        """The account, if it is known and nothing about it has changed. No I/O: a look-up."""

    def ensure(self, identity: Identity, asker: Asker) -> asyncio.Future[Account | Refusal]:
        """See to it that the account exists and is up to date. The future never raises; cancelling it
        is how a client that left is told."""

    def doubt(self, identity: Identity) -> None:
        """Navidrome's API answered 401 though it was told of this identity's account."""

    def upstream_changed(self) -> None:
        """Navidrome is away, or back: it may be another one than before."""
