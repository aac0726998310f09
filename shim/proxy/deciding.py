"""What becomes of a head: decided, and whatever has to be asked of others before the request goes on.

A token that was not seen before is looked at in its turn; one whose key is not known waits for the key set;
a person whom nobody knows yet waits for the account. Everything else is sent on at once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeAlias

from shim.http1.chunked import ChunkedError
from shim.http1.framing import NO_BODY
from shim.proxy.failures import Failure
from shim.proxy.forwarding import CONTINUE, ForwardingConnection
from shim.proxy.gate import Account, AccountDenied, RequestInfo
from shim.proxy.request_body import BodyBuffer, BodyTooLarge, BufferFull
from shim.proxy.states import (
    BUFFERING_FORM,
    FETCHING_JWKS,
    FORWARDING,
    PROVISIONING,
    READING_HEAD,
    TUNNEL,
    VERIFYING,
)
from shim.proxy.upstream import Upstream
from shim.trust.cached_decisions import ConnectionContext, DecisionCache, PendingVerification
from shim.trust.decision import USER_BODY_BYTES, Decision, user_body_too_large
from shim.trust.navidrome_tokens import NavidromeClaims, filter_form
from shim.trust.reasons import PathClass, Reason, Verdict
from shim.trust.rejection import RequestRejected

if TYPE_CHECKING:
    from uvicorn.server import ServerState

    from shim.proxy.server import DataPlane

# Members of an enumeration are dear to look up; what a request passes has them at hand.
_AUTHENTICATED, _STRIPPED, _REJECTED = Verdict.AUTHENTICATED, Verdict.STRIPPED, Verdict.REJECTED
_INTERNAL = PathClass.INTERNAL
_UNKNOWN_KEY = Reason.JWT_UNKNOWN_KEY


# What was read of a head, the head, and whether the keys were fetched for it already.
_Pending: TypeAlias = tuple[PendingVerification, bytes, bool]


class DecidingConnection(ForwardingConnection):
    """A connection whose whole heads are judged."""

    __slots__ = (
        "_context",
        "_decisions",
        "_form",
        "_future",
        "_keys_future",
        "_pending",
        "_users_future",
        "_users_listed",
    )

    def __init__(self, plane: DataPlane, server_state: ServerState) -> None:
        super().__init__(plane, server_state)
        self._decisions: DecisionCache | None = None
        self._context: ConnectionContext
        self._pending: _Pending | None = None
        self._keys_future: asyncio.Future[None] | None = None
        self._future: asyncio.Future[Account | AccountDenied] | None = None
        self._users_future: asyncio.Future[AccountDenied | None] | None = None
        self._users_listed = False  # since this request came
        self._form = b"", b""  # the body, and what came after it, while the users are listed

    def _evaluate(self, head: bytes, *, jwks_refreshed: bool = False) -> None:
        """Have a whole head decided, its empty line included, and do so; `waited`: the keys were fetched
        for it already."""
        line, _, block = head[:-2].partition(b"\r\n")
        plane = self._plane
        found = plane.decisions.evaluate(line, block, self._connection_context(), None, plane.time)
        if isinstance(found, PendingVerification):
            self._await_verification(found, head, jwks_refreshed=jwks_refreshed)
        else:
            self._apply_decision(found, head, jwks_refreshed=jwks_refreshed)

    def _apply_decision(
        self, decision: Decision, head: bytes, *, jwks_refreshed: bool = False
    ) -> None:
        """Do what was decided on this head."""
        plane = self._plane
        outcome = decision.outcome
        self._decision = decision
        self._account = None
        self._users_listed = False
        self._request_id = ""
        if plane.observer.logs_access:
            self._begin_access()
        verdict = outcome.verdict
        if verdict is _REJECTED:
            if outcome.reason is not _UNKNOWN_KEY or jwks_refreshed or not self._request_keys(head):
                self._reject(decision)
            return
        line = decision.request_line
        assert line is not None
        self._retried = False
        self._response_started = False
        self.request_sent = False
        self.keep_alive = self.keep_alive and decision.keep_alive
        self.http10 = line.version == 10
        self.no_body = line.method == b"HEAD"
        self.upgrading = decision.upgrade
        if verdict is _AUTHENTICATED and plane.gate is not None:
            identity = decision.identity
            assert identity is not None
            account = plane.gate.known(identity)
            if account is not None:
                self._account = account
            elif (
                outcome.path_class is not _INTERNAL
            ):  # what is shown there has to be seen without Navidrome
                self._request_account()
                return
            if decision.has_navidrome_tokens:
                self._check_tokens(account)
        elif decision.has_navidrome_tokens:
            if plane.gate is not None and not plane.gate.users_listed:
                self._request_users()
                return
            self._check_tokens(None)
        if (decision.form or decision.writes_users) and self._needs_body():
            self._begin_form()
            return
        plane.counters.requests[self._decision.outcome.index] += 1
        if verdict is _STRIPPED:
            plane.observer.request_decided(decision, self._ensure_request_id())
        self._connect()

    def _connection_context(self) -> ConnectionContext:
        """Where the connection stands under the policy in force."""
        decisions = self._plane.decisions
        if self._decisions is not decisions:
            scheme = b"https" if self._transport.get_extra_info("sslcontext") else b"http"
            self._decisions = decisions
            self._context = decisions.connection_context(self._peer, scheme)
        return self._context

    # tokens that were not seen before

    def _await_verification(
        self, pending: PendingVerification, head: bytes, *, jwks_refreshed: bool = False
    ) -> None:
        self.enter(VERIFYING)
        self.deadline = self._plane.now + self._plane.limits.upstream_response_timeout
        if self._plane.observer.logs_access:
            self._begin_access()
        self._pending = pending, head, jwks_refreshed
        self._enqueue()

    def run(self) -> None:
        """Go on with what was left for this turn: a token, chunks of a body, or heads."""
        self._queued = False
        state = self.state
        if self._pending is not None:
            self._look_at_token(*self._pending)
        elif state is FORWARDING and not self.request_sent and self._upstream is not None:
            self._upload_kept()
        elif state is READING_HEAD:
            self._resume()

    def _look_at_token(
        self, pending: PendingVerification, head: bytes, jwks_refreshed: bool
    ) -> None:
        self._pending = None
        self.enter(READING_HEAD)
        plane = self._plane
        if self._decisions is plane.decisions:
            self._apply_decision(
                plane.decisions.verify(pending, plane.time), head, jwks_refreshed=jwks_refreshed
            )
        else:  # another policy is in force by now
            self._evaluate(head, jwks_refreshed=jwks_refreshed)
        self._resume()

    # keys

    def _request_keys(self, head: bytes) -> bool:
        """Have the key set fetched again for the token of this head. Whether that is waited for."""
        keys = self._plane.options.keys
        future = None if keys is None else keys.request_refresh()
        if future is None:
            return False
        self.enter(FETCHING_JWKS)
        self.deadline = self._plane.now + self._plane.limits.upstream_response_timeout
        self._keys_future = future
        future.add_done_callback(lambda done: self._keys_fetched(done, head))
        return True

    def _keys_fetched(self, future: asyncio.Future[None], head: bytes) -> None:
        if future is not self._keys_future or self.state is not FETCHING_JWKS:
            return
        self._keys_future = None
        self.enter(READING_HEAD)
        self._evaluate(head, jwks_refreshed=True)
        self._resume()

    # tokens of Navidrome's own

    def _check_tokens(self, account: Account | None) -> None:
        """Remove the Navidrome tokens that are void, and, where somebody is named, those of other accounts.
        Without provisioning no account is known by its id, so then nobody's is theirs; where nobody is
        named, none is known to be void."""
        before = decision = self._decision
        if self._plane.gate is not None:
            decision = decision.without_void_tokens(lambda claims: self._is_valid(claims, account))
        identity = decision.identity
        if identity is not None:
            name = identity.username.encode() if account is None else account.user_name
            decision = decision.with_tokens_bound_to(name, None if account is None else account.id)
        self._decision = decision
        removed = decision.void != before.void or decision.removed_tokens != before.removed_tokens
        if removed or decision.token_without_identity:
            self._plane.observer.navidrome_token_found(decision, self._ensure_request_id())

    def _is_valid(self, claims: NavidromeClaims, account: Account | None) -> bool:
        gate = self._plane.gate
        assert gate is not None
        listed = self._users_listed or (
            account is not None and claims.names(account.user_name, account.id)
        )
        return gate.navidrome_token_valid(
            claims.username, claims.user_id, claims.issued_at, listed=listed
        )

    def _request_users(self) -> None:
        """Have the users listed: before, a token of a request without an identity can't be judged."""
        gate = self._plane.gate
        assert gate is not None
        self.enter(PROVISIONING)
        self.deadline = self._plane.now + self._plane.limits.upstream_response_timeout
        self._users_future = gate.list_users()
        self._users_future.add_done_callback(self._users_ready)

    def _users_ready(self, future: asyncio.Future[AccountDenied | None]) -> None:
        if future is not self._users_future or self.state is not PROVISIONING:
            return
        self._users_future = None
        denied = None if future.cancelled() else future.result()
        (body, rest), self._form = self._form, (b"", b"")
        rest += bytes(self._read_buffer)
        if denied is not None:
            self._read_buffer[:] = rest
            self._reject_after_all(
                RequestRejected(denied.reason, denied.detail), denied.retry_after
            )
            self._resume()
            return
        self._users_listed = not future.cancelled()
        decision = self._decision
        if self._unfinished:  # the tokens are in a form, which was read
            self._read_buffer.clear()
            self._form_read(body, rest)
            return
        self._check_tokens(None)
        if decision.form:
            self._begin_form()
            return
        self._plane.counters.requests[self._decision.outcome.index] += 1
        if decision.outcome.verdict is _STRIPPED:
            self._plane.observer.request_decided(decision, self._ensure_request_id())
        self._connect()

    def check_account(self) -> None:
        """An account was revoked: end what is under way, if it is for that one."""
        under_way = self.state is FORWARDING or self.state is TUNNEL
        # Navidrome has the whole of a request to change users: ending it here would not stop it, and the lock
        # waits for it.
        if under_way and self._user_write is None and not self._may_continue():
            self.failed(Failure.ACCOUNT_REVOKED)

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

    # bodies that are read first: forms that may carry a token, and changes of users

    def _needs_body(self) -> bool:
        """Return whether the body is read before the request is sent, and was not yet. Navidrome checks who
        sends a change of users when it gets the head, and makes it when the body is whole."""
        decision, block = self._decision, self._decision.block
        if self._plane.gate is None or self._buffer is not None or block is None:
            return False
        return decision.form or block.metadata.length not in (NO_BODY, 0)

    def _body_limit(self) -> int:
        limit = self._plane.limits.form_bytes
        return min(limit, USER_BODY_BYTES) if self._decision.writes_users else limit

    def _begin_form(self) -> None:
        """Read the body before the request is sent on."""
        plane, block = self._plane, self._decision.block
        assert block is not None
        self.enter(BUFFERING_FORM)
        self.deadline = plane.now + plane.limits.form_timeout
        metadata = block.metadata
        share = plane.body_budget.share(metadata.client, trusted=self._decision.source.trusted)
        try:
            self._buffer = BodyBuffer(metadata.length, self._body_limit(), share)
        except BodyTooLarge:
            self._reject_form()
            return
        self._unfinished = True
        data = bytes(self._read_buffer)
        self._read_buffer.clear()
        if block.metadata.expect_continue and not data and not self.http10:
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
            self.failed(Failure.BUFFER_FULL)
        except ChunkedError as error:
            self._reject_after_all(RequestRejected(Reason.AMBIGUOUS_FRAMING, str(error)))
        else:
            if buffer.done:
                self._form_read(buffer.take(), rest)

    def _reject_form(self) -> None:
        if self._decision.writes_users:
            self._reject_after_all(user_body_too_large())
            return
        limit = self._plane.limits.form_bytes
        self._reject_after_all(
            RequestRejected(Reason.BODY_TOO_LARGE, f"the form has more than {limit} bytes")
        )

    def _form_read(self, body: bytes, rest: bytes) -> None:
        plane, account = self._plane, self._account
        gate, waits = plane.gate, False

        def accept(claims: NavidromeClaims) -> bool:
            nonlocal waits
            if account is None:
                waits = waits or not (gate is None or self._users_listed or gate.users_listed)
            elif not claims.names(account.user_name, account.id):
                return False
            return self._is_valid(claims, account)

        removed, claims = False, tuple[NavidromeClaims, ...]()
        if self._decision.form:
            filtered, removed, claims = filter_form(body, accept)
            if waits:
                self._form = body, rest
                self._request_users()
                return
            body = filtered
        self._decision = decision = self._decision.with_form(len(body), claims, void=removed)
        if removed:
            plane.observer.navidrome_token_found(decision, self._ensure_request_id())
        plane.counters.requests[decision.outcome.index] += 1
        if decision.outcome.verdict is _STRIPPED and not removed:
            plane.observer.request_decided(decision, self._ensure_request_id())
        self._buffer_data(body + rest)
        if self._recheck():
            self._connect()

    # accounts

    def _request_account(self) -> None:
        plane, identity = self._plane, self._decision.identity
        assert plane.gate is not None and identity is not None
        self.enter(PROVISIONING)
        self.deadline = plane.now + plane.limits.upstream_response_timeout
        verified = self._decision.outcome.reason is Reason.VERIFIED_JWT
        request_info = RequestInfo(
            self._context.source.peer.text, self._ensure_request_id(), verified
        )
        self._future = plane.gate.ensure(identity, request_info)
        self._future.add_done_callback(self._account_ready)

    def _account_ready(self, future: asyncio.Future[Account | AccountDenied]) -> None:
        # The connection may have gone meanwhile, or carry another request by now.
        if future is not self._future or self.state is not PROVISIONING:
            return
        self._future = None
        if future.cancelled():
            self.failed(Failure.ACCOUNT_UNAVAILABLE)
            return
        result = future.result()
        decision = self._decision
        if isinstance(result, AccountDenied):
            self._reject_after_all(
                RequestRejected(result.reason, result.detail), result.retry_after
            )
            self._resume()
            return
        first, self._account = self._account is None, result
        if not first and not all(
            claims.names(result.user_name, result.id) for claims in decision.claims
        ):
            self.failed(Failure.ACCOUNT_REVOKED)
            return
        if first and decision.has_navidrome_tokens:
            self._check_tokens(result)
        if (decision.form or decision.writes_users) and self._needs_body():
            self._begin_form()
            return
        if first:
            self._plane.counters.requests[decision.outcome.index] += 1
        self._connect()

    def _recheck_account(self, upstream: Upstream) -> bool:
        if self._recheck():
            return False
        self._return_connection(upstream)
        return True

    def _recheck(self) -> bool:
        """Return whether a request that waited may be sent as it is. If not, it is rejected, or the gate is
        asked again: an account may have been revoked meanwhile, or Navidrome have become another one, with
        no users."""
        gate, decision = self._plane.gate, self._decision
        if gate is None or (self._account is None and not decision.claims):
            return True
        if decision.claims and not self._may_continue():
            self.enter(PROVISIONING)
            self.failed(Failure.ACCOUNT_REVOKED)
            return False
        identity = decision.identity
        if identity is None or gate.known(identity) is not None:
            return True
        if self._buffer is not None and not gate.identity_current(identity):
            # The account has what a later request's groups give: not again what this older one's gave.
            revoked = not self._may_continue()
            self.failed(Failure.ACCOUNT_REVOKED if revoked else Failure.ACCOUNT_UNAVAILABLE)
            return False
        self._request_account()
        return False

    def _on_unauthorized(self) -> None:
        # From its API, to a request that named an account: that one may not be there any more.
        plane, decision = self._plane, self._decision
        gate, identity, line = plane.gate, decision.identity, decision.request_line
        if gate is None or identity is None or line is None or self._account is None:
            return
        if line.path.startswith(plane.decisions.policy.paths.base + b"api/"):
            gate.report_unauthorized(identity)

    def _cancel_pending(self) -> None:
        super()._cancel_pending()
        self._pending = None
        future, self._future = self._future, None
        if future is not None:
            future.cancel()
        users, self._users_future = self._users_future, None
        if users is not None:
            users.cancel()
        keys, self._keys_future = self._keys_future, None
        if keys is not None:
            keys.cancel()
