"""What becomes of a head: decided, and whatever has to be asked of others before the request goes on.

A token that was not seen before is looked at in its turn; one whose key is not known waits for the key set;
a person whom nobody knows yet waits for the account. Everything else is sent on at once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeAlias

from shim.proxy.connection import Phase
from shim.proxy.exchange import ExchangingConnection
from shim.proxy.gate import Account, Asker, Refusal
from shim.proxy.upstream import Upstream
from shim.trust.decide import Decision
from shim.trust.reasons import PathClass, Reason, Verdict
from shim.trust.refusal import Refused
from shim.trust.remember import RememberedDecisions, Standing, Unproven

if TYPE_CHECKING:
    from uvicorn.server import ServerState

    from shim.proxy.plane import DataPlane

# Members of an enumeration are dear to look up; what a request passes has them at hand.
_HEAD = Phase.HEAD
_AUTHENTICATED, _STRIPPED, _REJECTED = Verdict.AUTHENTICATED, Verdict.STRIPPED, Verdict.REJECTED
_OWN = PathClass.OWN
_UNKNOWN_KEY = Reason.JWT_UNKNOWN_KEY


# What was read of a head, the head, and whether the keys were fetched for it already.
_Undecided: TypeAlias = tuple[Unproven, bytes, bool]


class DecidingConnection(ExchangingConnection):
    """A connection whose whole heads are judged."""

    __slots__ = ("_decisions", "_future", "_keys_future", "_standing", "_undecided")

    def __init__(self, plane: DataPlane, server_state: ServerState) -> None:
        super().__init__(plane, server_state)
        self._decisions: RememberedDecisions | None = None
        self._standing: Standing
        self._undecided: _Undecided | None = None
        self._keys_future: asyncio.Future[None] | None = None
        self._future: asyncio.Future[Account | Refusal] | None = None

    def _consider(self, head: bytes, *, waited: bool = False) -> None:
        """Have a whole head decided, its empty line included, and do so; `waited`: the keys were fetched
        for it already."""
        line, _, block = head[:-2].partition(b"\r\n")
        plane = self._plane
        found = plane.decisions.weigh(line, block, self._stand(), None, plane.time)
        if isinstance(found, Unproven):
            self._await_proof(found, head, waited=waited)
        else:
            self._judge(found, head, waited=waited)

    def _judge(self, decision: Decision, head: bytes, *, waited: bool = False) -> None:
        """Do what was decided on this head."""
        plane = self._plane
        outcome = decision.outcome
        self._decision = decision
        self._user_name = None
        self._request_id = ""
        if plane.observer.wants_access:
            self._begin_access()
        verdict = outcome.verdict
        if verdict is _REJECTED:
            if outcome.reason is not _UNKNOWN_KEY or waited or not self._ask_keys(head):
                self._count(decision)
            return
        line = decision.line
        assert line is not None
        self._retried = False
        self._answer_begun = False
        self.request_sent = False
        self.keep_alive = self.keep_alive and decision.keep_alive
        self.old = line.version == 10
        self.bodiless = line.method == b"HEAD"
        self.upgrading = decision.upgrade
        if verdict is _AUTHENTICATED and plane.gate is not None:
            identity = decision.identity
            assert identity is not None
            account = plane.gate.known(identity)
            if account is not None:
                self._user_name = account.user_name
                if decision.tokens:
                    self._bind_tokens(account)
            elif (
                outcome.path_class is not _OWN
            ):  # what is shown there has to be seen without Navidrome
                self._ask_gate()
                return
        elif decision.tokens:
            self._bind_tokens(None)
        plane.counters.requests[outcome.index] += 1
        if verdict is _STRIPPED:
            plane.observer.judged(decision, self._identify())
        self._connect()

    def _stand(self) -> Standing:
        """Where the connection stands under the policy in force."""
        decisions = self._plane.decisions
        if self._decisions is not decisions:
            scheme = b"https" if self._transport.get_extra_info("sslcontext") else b"http"
            self._decisions = decisions
            self._standing = decisions.standing(self._peer, scheme)
        return self._standing

    # tokens that were not seen before

    def _await_proof(self, unproven: Unproven, head: bytes, *, waited: bool = False) -> None:
        self._phase = Phase.PROOF
        self.deadline = self._plane.now + self._plane.limits.answer_timeout
        if self._plane.observer.wants_access:
            self._begin_access()
        self._undecided = unproven, head, waited
        self._enqueue()

    def turn(self) -> None:
        """Go on with what was left for this turn: a token, chunks of a body, or heads."""
        self._queued = False
        phase = self._phase
        if self._undecided is not None:
            self._look_at_token(*self._undecided)
        elif phase is Phase.EXCHANGE and not self.request_sent and self._upstream is not None:
            self._upload_kept()
        elif phase is _HEAD:
            self._go_on()

    def _look_at_token(self, unproven: Unproven, head: bytes, waited: bool) -> None:
        self._undecided = None
        self._phase = _HEAD
        plane = self._plane
        if self._decisions is plane.decisions:
            self._judge(plane.decisions.prove(unproven, plane.time), head, waited=waited)
        else:  # another policy is in force by now
            self._consider(head, waited=waited)
        self._go_on()

    # keys

    def _ask_keys(self, head: bytes) -> bool:
        """Have the key set fetched anew for the token of this head. Whether that is waited for."""
        keys = self._plane.keys
        future = None if keys is None else keys.want()
        if future is None:
            return False
        self._phase = Phase.KEYS
        self.deadline = self._plane.now + self._plane.limits.answer_timeout
        self._keys_future = future
        future.add_done_callback(lambda done: self._keys_fetched(done, head))
        return True

    def _keys_fetched(self, future: asyncio.Future[None], head: bytes) -> None:
        if future is not self._keys_future or self._phase is not Phase.KEYS:
            return
        self._keys_future = None
        self._phase = _HEAD
        self._consider(head, waited=True)
        self._go_on()

    # tokens of Navidrome's own

    def _bind_tokens(self, account: Account | None) -> None:
        """Let no Navidrome token pass that names another account; without provisioning no account is
        known by its id, so none passes. Where nobody is named, it passes and is told of."""
        decision = self._decision
        if decision.identity is not None:
            name = decision.identity.username.encode() if account is None else account.user_name
            self._decision = decision.bound(name, None if account is None else account.id)
            if self._decision is decision:
                return
        self._plane.observer.tokens_seen(self._decision, self._identify())

    # accounts

    def _ask_gate(self) -> None:
        plane, identity = self._plane, self._decision.identity
        assert plane.gate is not None and identity is not None
        self._phase = Phase.ACCOUNT
        self.deadline = plane.now + plane.limits.answer_timeout
        verified = self._decision.outcome.reason is Reason.VERIFIED_JWT
        asker = Asker(self._standing.source.peer.text, self._identify(), verified)
        self._future = plane.gate.ensure(identity, asker)
        self._future.add_done_callback(self._account_ready)

    def _account_ready(self, future: asyncio.Future[Account | Refusal]) -> None:
        # The connection may have gone meanwhile, or carry another request by now.
        if future is not self._future or self._phase is not Phase.ACCOUNT:
            return
        self._future = None
        if future.cancelled():
            self.failed("account_unavailable", 503)
            return
        answer = future.result()
        decision = self._decision
        if isinstance(answer, Refusal):
            self._refuse(Refused(answer.reason, answer.detail), answer.retry_after)
            self._go_on()
            return
        if self._user_name is None:
            self._plane.counters.requests[decision.outcome.index] += 1
        self._user_name = answer.user_name
        if decision.tokens:
            self._bind_tokens(answer)
        self._connect()

    def _reconsider(self, upstream: Upstream) -> bool:
        # Navidrome may have become another one, with no users, while the connection was waited for.
        gate, identity = self._plane.gate, self._decision.identity
        if gate is None or identity is None or self._user_name is None:
            return False
        if gate.known(identity) is not None:
            return False
        self._phase = Phase.ACCOUNT
        # Not at once: it would be the next waiting client's turn to think again, within this one's.
        asyncio.get_running_loop().call_soon(self._pool().release, upstream)
        self._ask_gate()
        return True

    def _unauthorised(self) -> None:
        # From its API, to a request that named an account: that one may not be there any more.
        plane, decision = self._plane, self._decision
        gate, identity, line = plane.gate, decision.identity, decision.line
        if gate is None or identity is None or line is None or self._user_name is None:
            return
        if line.path.startswith(plane.decisions.policy.paths.base + b"api/"):
            gate.doubt(identity)

    def _abandon(self) -> None:
        super()._abandon()
        self._undecided = None
        future, self._future = self._future, None
        if future is not None:
            future.cancel()
        keys, self._keys_future = self._keys_future, None
        if keys is not None:
            keys.cancel()
