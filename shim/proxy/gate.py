"""What the data plane knows of accounts: an interface.

`known` is asked on every authenticated request and does no I/O; `ensure` only where that had no response;
the others where a request carries a Navidrome token, may change users, or outlives a revocation. Who
provisions, and how, is not known here.
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


class AccountDenied(Exception):
    """Why an identity gets no account: `reason` gives the status, `detail` one sentence for the log.
    `retry_after` is in seconds, where trying again may help."""

    def __init__(self, reason: Reason, detail: str, retry_after: int | None = None) -> None:
        super().__init__(reason, detail, retry_after)
        self.reason = reason
        self.detail = detail
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """Who asks: the peer's address as text, and the request's id, for the trail. `verified`: a token that
    was verified says what the identity says."""

    peer: str
    request_id: str
    verified: bool = False


class AccountGate(Protocol):
    """Answers whether the account behind an identity is ready."""

    revocations: int
    """Rises whenever an account is locked, denied, unlinked, deleted or bound to another uid: responses under
    way are checked again."""

    @property
    def users_listed(self) -> bool:
        """Whether Navidrome's users were listed after the last request that can change them. No I/O."""

    def list_users(self) -> asyncio.Future[AccountDenied | None]:
        """Wait until Navidrome's users were listed after every request that can change them and that was
        sent before this call; the result says why that was not possible. The future never raises."""

    def navidrome_token_valid(
        self, username: str, user_id: str, issued_at: float, *, listed: bool = False
    ) -> bool:
        """Return whether a Navidrome token with these claims (`sub`, `uid`, `iat` in seconds since the
        epoch) may pass. No I/O. While the users are not listed, no token passes, except where `listed`
        says that they were since the token came (`list_users`), or that the token names a known account."""

    def may_continue(self, user_id: str, uid: str | None, issued_at: float) -> bool:
        """Return whether a response that was begun for the account `user_id` may go on: by the identity
        `uid`, or, if it is None, by a Navidrome token that was issued at `issued_at`. No I/O."""

    def users_may_have_changed(self) -> None:
        """A request that can change Navidrome's users was sent; read them again before a known name is
        used."""

    def user_write_started(self, account_ids: tuple[str, ...]) -> bool:
        """Count a request that can change Navidrome's users, just before it is sent whole for these accounts.
        Return whether it may be sent; False while one of them is locked or about to lose rights. No I/O."""

    def user_write_ended(self, account_ids: tuple[str, ...], *, answered: bool) -> None:
        """Count such a request no longer. `answered`: Navidrome's response began; without it, Navidrome may
        still carry the request out. No I/O."""

    def identity_current(self, identity: Identity) -> bool:
        """Return whether no later request of the same person brought other claims. No I/O."""

    def known(self, identity: Identity) -> Account | None:
        """The account, if it is known and nothing about it has changed. No I/O: a look-up."""

    def ensure(
        self, identity: Identity, request_info: RequestInfo
    ) -> asyncio.Future[Account | AccountDenied]:
        """See to it that the account exists and is up to date. The future never raises; cancelling it
        is how a client that left is told."""

    def report_unauthorized(self, identity: Identity) -> None:
        """Navidrome's API answered 401 though it was told of this identity's account."""

    def upstream_changed(self) -> None:
        """Navidrome is away, or back: it may be another one than before."""
