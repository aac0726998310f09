"""A request that can change Navidrome's users, from its announcement to its response."""

from __future__ import annotations

from shim.proxy.gate import Account, AccountGate
from shim.trust.decision import Decision


class UserWrite:
    """The accounts of one such request. The gate locks none of them between `begin` and `end`."""

    __slots__ = ("_gate", "_ids")

    def __init__(self, gate: AccountGate, decision: Decision, account: Account | None) -> None:
        ids = {claims.user_id for claims in decision.claims}
        if account is not None and account.id is not None:
            ids.add(account.id)
        self._gate = gate
        self._ids = tuple(ids)

    def begin(self) -> bool:
        """Announce the request. Return whether it may be sent."""
        return self._gate.user_write_started(self._ids)

    def sent(self) -> None:
        """Note that the request is sent: what is known of the users may be old from now on."""
        self._gate.users_may_have_changed()

    def end(self, *, response_began: bool) -> None:
        """Note that the response has begun, or that it can no longer begin."""
        self._gate.user_write_ended(self._ids, response_began=response_began)
        self._gate.users_may_have_changed()
