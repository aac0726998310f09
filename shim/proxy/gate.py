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
    UTF-8: what the user header says."""

    user_name: bytes


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an identity gets no account: `reason` gives the status, `detail` one sentence for the log.
    `retry_after` is in seconds, where trying again may help."""

    reason: Reason
    detail: str
    retry_after: int | None = None


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks: the peer's address as text, and the request's id, for the trail."""

    peer: str
    request_id: str


class AccountGate(Protocol):
    """Answers whether the account behind an identity is ready."""

    def known(self, identity: Identity) -> Account | None:
        """The account, if it is known and nothing about it has changed. No I/O: a look-up."""

    def ensure(self, identity: Identity, asker: Asker) -> asyncio.Future[Account | Refusal]:
        """See to it that the account exists and is up to date. The future never raises; cancelling it
        is how a client that left is told."""
