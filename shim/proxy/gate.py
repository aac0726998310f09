"""The interface between the data plane and provisioning.

The data plane calls `known` on every authenticated request; it does no I/O. It calls `ensure` only where
`known` returns None, and the other methods where a request carries a Navidrome token, may change users, or is
in progress during a revocation. This module does not depend on provisioning.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from shim.trust.identity import Identity
from shim.trust.reasons import Reason


@dataclass(frozen=True, slots=True)
class Account:
    """The account that an identity has at Navidrome.

    `user_name` is its name as Navidrome stores it, in UTF-8; it is the value of the user header. `id` is its
    id at Navidrome, None if unknown.
    """

    user_name: bytes
    id: str | None = None


class AccountDenied(Exception):
    """Why an identity gets no account.

    `reason` gives the status; `detail` is one sentence for the log. `retry_after` is in seconds, if a retry
    may help.
    """

    def __init__(self, reason: Reason, detail: str, retry_after: int | None = None) -> None:
        super().__init__(reason, detail, retry_after)
        self.reason = reason
        self.detail = detail
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """Data of a request for the audit trail: the addresses of the peer and the client as text, and the
    request's id. `verified`: a verified token states the identity."""

    peer: str
    request_id: str
    verified: bool = False
    client: str | None = None


class AccountGate(Protocol):
    """Decides whether the account of an identity is ready."""

    revocations: int
    """Rises whenever an account is locked, denied, unlinked, deleted or bound to another uid. The data plane
    then checks responses in progress again."""

    @property
    def users_listed(self) -> bool:
        """Return whether Navidrome's users were listed after the last request that can change them. No
        I/O."""

    def list_users(self) -> asyncio.Future[AccountDenied | None]:
        """Wait until Navidrome's users have been listed after every request that can change them and that was
        sent before this call. The result is the reason if that was not possible, else None. The future never
        raises."""

    def navidrome_token_valid(
        self, username: str, user_id: str, issued_at: float, *, listed: bool = False
    ) -> bool:
        """Return whether a Navidrome token with these claims (`sub`, `uid`, `iat` in seconds since the epoch)
        is valid. No I/O.

        While the users are not listed, no token is valid, unless `listed` states that they were listed after
        the token arrived (`list_users`), or that the token names a known account.
        """

    def may_continue(self, user_id: str, uid: str | None, issued_at: float) -> bool:
        """Return whether a response in progress for the account `user_id` may continue: for the identity
        `uid`, or, if it is None, for a Navidrome token that was issued at `issued_at`. No I/O."""

    def users_may_have_changed(self) -> None:
        """Record that a request that can change Navidrome's users was sent, so that the users are read again
        before a known name is used."""

    def user_write_started(self, account_ids: tuple[str, ...]) -> bool:
        """Count a request that can change Navidrome's users, just before it is sent whole for these accounts.
        Return whether it may be sent; False while one of them is locked or about to lose rights. No I/O."""

    def user_write_ended(self, account_ids: tuple[str, ...], *, answered: bool) -> None:
        """Stop counting such a request. `answered`: Navidrome's response began; if not, Navidrome may still
        carry out the request. No I/O."""

    def identity_current(self, identity: Identity) -> bool:
        """Return whether no later request of the same person had different claims. No I/O."""

    def known(self, identity: Identity) -> Account | None:
        """Return the account if it is known and unchanged, else None. No I/O: a look-up."""

    def ensure(
        self, identity: Identity, request_info: RequestInfo
    ) -> asyncio.Future[Account | AccountDenied]:
        """Create or update the account if needed. The future never raises. The caller cancels it when the
        client has disconnected."""

    def report_unauthorized(self, identity: Identity) -> None:
        """Report that Navidrome's API responded 401 to a request that named this identity's account."""

    def upstream_changed(self) -> None:
        """Report that Navidrome went down or came back: it may be a different instance."""
