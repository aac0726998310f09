"""What becomes of a head: decided, and whatever has to be asked of others before the request goes on.

A token that was not seen before is looked at in its turn; one whose key is not known waits for the key set;
a person whom nobody knows yet waits for the account. Everything else is sent on at once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeAlias

from shim.proxy.chunked import ChunkedError
from shim.proxy.connection import Phase
from shim.proxy.exchange import CONTINUE, ExchangingConnection
from shim.proxy.gate import Account, Asker, Refusal
from shim.proxy.request_body import BodyBuffer, BodyTooLarge, BufferFull
from shim.proxy.upstream import Upstream
from shim.trust.decide import Decision
from shim.trust.reasons import PathClass, Reason, Verdict
from shim.trust.refusal import Refused
from shim.trust.remember import RememberedDecisions, Standing, Unproven
from shim.trust.tokens import NavidromeClaims, filter_form

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
        self._account = None
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
                self._account = account
            elif (
                outcome.path_class is not _OWN
            ):  # what is shown there has to be seen without Navidrome
                self._ask_gate()
                return
            if decision.tokens:
                self._check_tokens(account)
        elif decision.tokens:
            self._check_tokens(None)
        if decision.form and plane.gate is not None:
            self._begin_form()
            return
        plane.counters.requests[self._decision.outcome.index] += 1
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
        self._plane.lane.join(self)

    def turn(self) -> None:
        """Look at the token that the request hangs on."""
        if self._undecided is None:  # whoever sent it has gone
            return
        (unproven, head, waited), self._undecided = self._undecided, None
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

    def _check_tokens(self, account: Account | None) -> None:
        """Remove the Navidrome tokens that are void, and, where somebody is named, those of other accounts.
        Without provisioning no account is known by its id, so then nobody's is theirs; where nobody is
        named, none is known to be void."""
        before = decision = self._decision
        if self._plane.gate is not None:
            decision = decision.without_void_tokens(self._is_valid)
        identity = decision.identity
        if identity is not None:
            name = identity.username.encode() if account is None else account.user_name
            decision = decision.bound(name, None if account is None else account.id)
        self._decision = decision
        removed = decision.void != before.void or decision.loosed != before.loosed
        if removed or decision.token_without_identity:
            self._plane.observer.tokens_seen(decision, self._identify())

    def _is_valid(self, claims: NavidromeClaims) -> bool:
        gate = self._plane.gate
        assert gate is not None
        return gate.navidrome_token_valid(claims.username, claims.user_id, claims.issued_at)

    def check_account(self) -> None:
        """An account was revoked: end what is under way, if it is for that one."""
        under_way = self._phase is Phase.EXCHANGE or self._phase is Phase.TUNNEL
        if under_way and not self._may_continue():
            self.failed("account_revoked", 403)

    def _may_continue(self) -> bool:
        gate, decision, account = self._plane.gate, self._decision, self._account
        if gate is None:
            return True
        if account is not None:
            identity = decision.identity
            uid = None if identity is None else identity.uid
            if account.id is None or not gate.may_continue(account.id, uid, 0.0):
                return False
        return all(
            gate.may_continue(claims.user_id, None, claims.issued_at) for claims in decision.claims
        )

    # forms that may carry one

    def _begin_form(self) -> None:
        """Read the body before the request is sent on."""
        plane, block = self._plane, self._decision.block
        assert block is not None
        self._phase = Phase.BODY
        self.deadline = plane.now + plane.limits.form_timeout
        trusted = self._decision.source.listed
        try:
            self._buffer = BodyBuffer(
                block.envelope.length, plane.limits.form_bytes, plane.body_budget, trusted=trusted
            )
        except BodyTooLarge:
            self._reject_form()
            return
        self._unfinished = True
        data = bytes(self._kept)
        self._kept.clear()
        if block.envelope.expects and not data and not self.old:
            self._transport.write(CONTINUE)
        self._resume_reading()
        self._read_form(data)

    def _read_form(self, data: bytes) -> None:
        """Take a piece of the body; send the request on once it is whole."""
        buffer = self._buffer
        assert buffer is not None
        try:
            rest = buffer.feed(data)
        except BodyTooLarge:
            self._reject_form()
        except BufferFull:
            self.failed("buffer_full", 503)
        except ChunkedError as error:
            self._refuse(Refused(Reason.AMBIGUOUS_FRAMING, str(error)))
        else:
            if buffer.done:
                self._form_read(buffer.take(), rest)

    def _reject_form(self) -> None:
        limit = self._plane.limits.form_bytes
        self._refuse(Refused(Reason.BODY_TOO_LARGE, f"the form has more than {limit} bytes"))

    def _form_read(self, body: bytes, rest: bytes) -> None:
        plane, account = self._plane, self._account
        if account is None:
            accept = self._is_valid
        else:
            name, user_id = account.user_name, account.id

            def accept(claims: NavidromeClaims) -> bool:
                return claims.names(name, user_id) and self._is_valid(claims)

        body, removed, claims = filter_form(body, accept)
        self._decision = decision = self._decision.with_form(len(body), claims, void=removed)
        if removed:
            plane.observer.tokens_seen(decision, self._identify())
        plane.counters.requests[decision.outcome.index] += 1
        if decision.outcome.verdict is _STRIPPED and not removed:
            plane.observer.judged(decision, self._identify())
        self._keep(body + rest)
        if self._recheck():
            self._connect()

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
        first, self._account = self._account is None, answer
        if not first and not all(
            claims.names(answer.user_name, answer.id) for claims in decision.claims
        ):
            self.failed("account_revoked", 403)
            return
        if first and decision.tokens:
            self._check_tokens(answer)
        if decision.form:
            self._begin_form()
            return
        if first:
            self._plane.counters.requests[decision.outcome.index] += 1
        self._connect()

    def _reconsider(self, upstream: Upstream) -> bool:
        if self._recheck():
            return False
        # Not at once: it would be the next waiting client's turn to think again, within this one's.
        asyncio.get_running_loop().call_soon(self._pool().release, upstream)
        return True

    def _recheck(self) -> bool:
        """Return whether a request that waited may be sent as it is. If not, it is rejected, or the gate is
        asked again: an account may have been revoked meanwhile, or Navidrome have become another one, with
        no users."""
        gate, decision = self._plane.gate, self._decision
        if gate is None or (self._account is None and not decision.claims):
            return True
        if decision.claims and not self._may_continue():
            self._phase = Phase.ACCOUNT
            self.failed("account_revoked", 403)
            return False
        identity = decision.identity
        if identity is None or gate.known(identity) is not None:
            return True
        self._ask_gate()
        return False

    def _unauthorised(self) -> None:
        # From its API, to a request that named an account: that one may not be there any more.
        plane, decision = self._plane, self._decision
        gate, identity, line = plane.gate, decision.identity, decision.line
        if gate is None or identity is None or line is None or self._account is None:
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
