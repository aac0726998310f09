"""Prepare a request that has to wait before it is forwarded: the slow path.

`WaitingRequest._serve` has all steps in their order. It is one coroutine: verification queue, key set, device
password, account, body, connection. It is cancelled when the request ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from shim.http1.chunked import ChunkedError
from shim.proxy.account_checks import is_unchanged, may_continue, token_accepted
from shim.proxy.device_gate import DeviceMatch, DeviceRefused
from shim.proxy.failures import Failure
from shim.proxy.gate import AccountDenied, AccountGate, RequestInfo
from shim.proxy.pool import UpstreamPool
from shim.proxy.request_body import BodyBuffer, BodyTooLarge, BufferFull
from shim.proxy.request_reports import count_decision, report_identity, report_tokens
from shim.proxy.slow_path import SlowPath, suspend
from shim.proxy.states import (
    BUFFERING_FORM,
    CONNECTING,
    FETCHING_JWKS,
    PROVISIONING,
    VERIFYING,
    State,
)
from shim.proxy.subsonic_sign_in import accepts_devices
from shim.proxy.upload import CONTINUE
from shim.proxy.upstream import Upstream
from shim.trust.cached_decisions import PendingVerification
from shim.trust.decision import USER_BODY_BYTES, Decision, user_body_too_large
from shim.trust.navidrome_tokens import NavidromeClaims, filter_form
from shim.trust.reasons import PathClass, Reason, Verdict
from shim.trust.rejection import RequestRejected

if TYPE_CHECKING:
    from shim.proxy.client_connection import ClientConnection
    from shim.proxy.request_handler import RequestHandler

# Enum members are slow to look up.
_AUTHENTICATED, _REJECTED = Verdict.AUTHENTICATED, Verdict.REJECTED
_INTERNAL_BODY_BYTES = 65536  # the control plane takes less
# A longer form is not kept while its request waits for a connection: an error is then in the format that the
# query asks for.
_KEPT_FORM_BYTES = 4096


class _RequestFailed(Exception):
    """Ends the slow path with a failure."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


class _Refused(Exception):
    """Ends the slow path because of the credentials of an app."""

    def __init__(self, refused: DeviceRefused) -> None:
        super().__init__(refused.detail)
        self.refused = refused


class _Denied(Exception):
    """Ends the slow path because the gate denied the account."""

    def __init__(self, denied: AccountDenied) -> None:
        super().__init__(denied.detail)
        self.denied = denied


class WaitingRequest:
    """Carries one request through everything that it waits for, and then forwards it.

    `form` is the body of a Subsonic request while the shim may have to respond to it in the format that the
    body asks for, else empty.
    """

    __slots__ = (
        "_body_buffered",
        "_connection",
        "_plane",
        "_request",
        "_slow_path",
        "_users_listed",
        "form",
    )

    def __init__(self, request: RequestHandler, connection: ClientConnection) -> None:
        self._request = request
        self._connection = connection
        self._plane = connection.plane
        self._slow_path: SlowPath
        self._body_buffered = False
        self._users_listed = False  # since the request arrived
        self.form = b""

    # the start, and what ends a wait

    def serve(self, found: Decision | PendingVerification, head: bytes) -> None:
        """Run all steps, from the decision to the forwarding."""
        self._start(self._serve(found, head))

    def connect(self, *, reuse: bool = True) -> None:
        """Forward the request over an upstream connection, waiting for one if none is idle; `reuse`: take an
        idle one."""
        self._start(self._connect(reuse=reuse))

    def form_received(self, data: bytes) -> None:
        """Continue with a piece of the body."""
        self._slow_path.resume(data)

    def connection_ready(self, upstream: Upstream) -> None:
        """Continue with a connection to Navidrome."""
        self._slow_path.resume(upstream)

    def connection_failed(self, failure: Failure) -> None:
        """Handle a failure: no connection to Navidrome is available."""
        self._slow_path.throw(_RequestFailed(failure))

    def expired(self, state: State) -> None:
        """Handle the deadline of `state`."""
        if state is FETCHING_JWKS:
            self._request.reject(self._request.decision)
            self._connection.resume()
        elif state is PROVISIONING:
            self._request.fail(Failure.ACCOUNT_TIMEOUT)
        elif state is BUFFERING_FORM:
            self._request.fail(Failure.BODY_TIMEOUT)
        else:
            self._request.fail(Failure.CONNECT_TIMEOUT)

    def cancel(self) -> None:
        """End the wait."""
        self._slow_path.cancel()

    def _start(self, steps: Coroutine[None, Any, None]) -> None:
        self._slow_path = SlowPath(self._run(steps), self._connection.resume)
        self._slow_path.start()

    async def _run(self, steps: Coroutine[None, Any, None]) -> None:
        """Run the steps, and send a response if they end early."""
        request = self._request
        try:
            await steps
        except _RequestFailed as error:
            request.fail(error.failure)
        except _Denied as error:
            denied = error.denied
            request.reject_accepted(
                RequestRejected(denied.reason, denied.detail), denied.retry_after
            )
        except RequestRejected as rejection:
            request.reject_accepted(rejection)
        except _Refused as error:
            request.refuse(error.refused)

    # the steps

    async def _serve(self, found: Decision | PendingVerification, head: bytes) -> None:
        request, plane = self._request, self._plane
        await self._decide(found, head)
        decision = request.decision
        if decision.outcome.verdict is _REJECTED:
            request.reject(decision)
            return
        request.accept(decision)
        signs_in = (
            decision.outcome.verdict is not _AUTHENTICATED
            and plane.devices is not None
            and accepts_devices(decision, plane.policy.paths)
        )
        if signs_in and not decision.form:
            await self._sign_in()
            if request.respond_with_token_info():
                return
        if request.device is None:
            await self._find_account()
        if request.decision.has_navidrome_tokens:
            request.check_tokens(listed=self._users_listed)
        if self._needs_body():
            await self._buffer_body(signs_in=signs_in)
            if request.respond_with_token_info():
                return
            if not self._is_internal() and not is_unchanged(plane, request):
                await self._provision_again()
            if len(self.form) > _KEPT_FORM_BYTES:
                self.form = b""
        else:
            count_decision(plane, request)
        report_identity(plane, request)
        await self._connect()

    def _is_internal(self) -> bool:
        return self._request.decision.outcome.path_class is PathClass.INTERNAL

    # the decision

    async def _decide(self, found: Decision | PendingVerification, head: bytes) -> None:
        """Verify a token in the verification queue; fetch the key set, once, for a token whose key is
        unknown."""
        refreshed = False
        while True:
            while isinstance(found, PendingVerification):
                found = await self._verify(found, head)
            self._request.use_decision(found)
            if refreshed or found.outcome.reason is not Reason.JWT_UNKNOWN_KEY:
                return
            keys = self._plane.options.keys
            future = None if keys is None else keys.request_refresh()
            if future is None:
                return
            self._enter(FETCHING_JWKS, self._plane.limits.upstream_response_timeout)
            await self._slow_path.wait_for(future)
            refreshed = True
            found = self._connection.evaluate(head)

    async def _verify(
        self, pending: PendingVerification, head: bytes
    ) -> Decision | PendingVerification:
        connection, plane = self._connection, self._plane
        self._enter(VERIFYING, plane.limits.upstream_response_timeout)
        plane.verification_queue.enqueue(self._slow_path)
        await suspend()
        if connection.context() is pending.context:
            return plane.decisions.verify(pending, plane.time)
        return connection.evaluate(head)  # another policy is in force now

    # the device password

    async def _sign_in(self, body: bytes = b"") -> bytes:
        """Look for the password of a device, once Navidrome's users are listed. Return the body to send."""
        result = self._request.sign_in(body, listed=self._users_listed)
        if result.needs_list:
            await self._list_users()
            result = self._request.sign_in(body, listed=True)
        if result.refused is not None:
            raise _Refused(result.refused)
        if result.needs_list:
            raise _RequestFailed(Failure.ACCOUNT_UNAVAILABLE)
        return result.body

    # the account

    async def _find_account(self) -> None:
        """Wait for the account of an identity. A Navidrome token without one waits until the users are
        listed."""
        gate, decision = self._plane.gate, self._request.decision
        if gate is None:
            return
        if decision.outcome.verdict is _AUTHENTICATED:
            assert decision.identity is not None
            account = gate.known(decision.identity)
            self._request.use_account(account)
            # The internal pages must work without Navidrome.
            if account is None and not self._is_internal():
                await self._provision()
        elif decision.has_navidrome_tokens and not gate.users_listed:
            await self._list_users()

    async def _provision(self) -> None:
        """Let the gate make the account ready."""
        request, decision, gate = self._request, self._request.decision, self._gate()
        assert decision.identity is not None
        self._enter(PROVISIONING, self._plane.limits.upstream_response_timeout)
        client = None if decision.block is None else decision.block.metadata.client
        request_info = RequestInfo(
            decision.source.peer.text,
            request.ensure_request_id(),
            decision.outcome.reason is Reason.VERIFIED_JWT,
            client=None if client is None else client.decode(),
        )
        future = gate.ensure(decision.identity, request_info)
        await self._slow_path.wait_for(future)
        if future.cancelled():
            raise _RequestFailed(Failure.ACCOUNT_UNAVAILABLE)
        result = future.result()
        if isinstance(result, AccountDenied):
            raise _Denied(result)
        request.use_account(result)

    async def _list_users(self) -> None:
        """Wait until the users are listed. Before that no Navidrome token of a request without an identity is
        valid."""
        gate = self._gate()
        self._enter(PROVISIONING, self._plane.limits.upstream_response_timeout)
        future = gate.list_users()
        await self._slow_path.wait_for(future)
        if future.cancelled():
            return
        denied = future.result()
        if denied is not None:
            raise _Denied(denied)
        self._users_listed = True

    async def _provision_again(self) -> None:
        """Ask the gate again for a request that waited, since its account may have changed meanwhile."""
        request = self._request
        if request.device is not None:
            await self._check_device_again(request.device)
            return
        identity, claims = request.decision.identity, request.decision.claims
        if claims and not may_continue(self._plane, request):
            raise _RequestFailed(Failure.ACCOUNT_REVOKED)
        if (
            self._body_buffered
            and identity is not None
            and not self._gate().identity_current(identity)
        ):
            # The account has the rights of a later request's groups: do not write those of this older request
            # again.
            revoked = not may_continue(self._plane, request)
            raise _RequestFailed(
                Failure.ACCOUNT_REVOKED if revoked else Failure.ACCOUNT_UNAVAILABLE
            )
        await self._provision()
        account = request.account
        assert account is not None
        if not all(each.names(account.user_name, account.id) for each in claims):
            raise _RequestFailed(Failure.ACCOUNT_REVOKED)

    async def _check_device_again(self, device: DeviceMatch) -> None:
        """Check a device whose request waited: it may be revoked, and its account may have another name."""
        devices = self._plane.devices
        assert devices is not None
        await self._list_users()
        if not devices.is_current(device, listed=True):
            raise _RequestFailed(Failure.ACCOUNT_REVOKED)

    # the body

    def _needs_body(self) -> bool:
        """Return whether the body is read before the request is sent: a form may carry a Navidrome token, and
        for a change of users Navidrome checks the sender at the head, but applies the change at the end of
        the body. The shim's own pages have few connections, which a slow sender must not occupy."""
        decision = self._request.decision
        if self._is_internal():
            return decision.has_body
        if self._plane.gate is None:
            return False
        return decision.form or (decision.writes_users and decision.has_body)

    async def _buffer_body(self, *, signs_in: bool) -> None:
        """Read the body. Remove from a form the Navidrome tokens that are void or belong to another account;
        `signs_in`: it may have the password of a device, which is removed too."""
        request, plane = self._request, self._plane
        request.measure()  # the wait for the body is the client's share
        body, rest = await self._read_body()
        removed, claims = False, tuple[NavidromeClaims, ...]()
        if signs_in:
            self.form = body
            body = await self._sign_in(body)
        if request.decision.form and request.device is None:
            body, removed, claims = await self._filter_form(body)
        request.use_decision(request.decision.with_form(len(body), claims, void=removed))
        if removed:
            report_tokens(plane, request)
        count_decision(plane, request, report=not removed)
        self._connection.buffer_data(body + rest + self._connection.take_buffer())

    async def _read_body(self) -> tuple[bytes, bytes]:
        """Return the body, and the bytes after it."""
        plane, connection, decision = self._plane, self._connection, self._request.decision
        assert decision.block is not None
        metadata = decision.block.metadata
        self._enter(BUFFERING_FORM, plane.limits.form_timeout)
        limit = plane.limits.form_bytes
        if decision.writes_users:
            limit = min(limit, USER_BODY_BYTES)
        elif self._is_internal():
            limit = min(limit, _INTERNAL_BODY_BYTES)
        share = plane.body_budget.share(metadata.client, trusted=decision.source.trusted)
        try:
            buffer = BodyBuffer(metadata.length, limit, share)
            self._request.hold_body(buffer)
            self._body_buffered = True
            data = connection.take_buffer()
            if metadata.expect_continue and not data and not self._request.http10:
                connection.transport.write(CONTINUE)
            connection.resume_reading()
            rest = buffer.feed(data)
            while not buffer.done:
                rest = buffer.feed(await suspend())
        except BodyTooLarge:
            if decision.writes_users:
                raise user_body_too_large() from None
            raise RequestRejected(
                Reason.BODY_TOO_LARGE, f"the body has more than {limit} bytes"
            ) from None
        except BufferFull:
            raise _RequestFailed(Failure.BUFFER_FULL) from None
        except ChunkedError as error:
            raise RequestRejected(Reason.AMBIGUOUS_FRAMING, str(error)) from None
        return buffer.take(), rest

    async def _filter_form(self, body: bytes) -> tuple[bytes, bool, tuple[NavidromeClaims, ...]]:
        """Remove the invalid tokens. Those of a request without an identity wait until the users are
        listed."""
        gate, account = self._gate(), self._request.account
        waits = False

        def accept(claims: NavidromeClaims) -> bool:
            nonlocal waits
            waits = waits or (account is None and not gate.users_listed)
            return token_accepted(gate, account, claims, listed=self._users_listed)

        filtered = filter_form(body, accept)
        if not waits or self._users_listed:
            return filtered
        await self._list_users()
        return filter_form(body, accept)

    # the connection

    async def _connect(self, *, reuse: bool = True) -> None:
        pool = self._plane.pool_for(self._request.decision)
        upstream = pool.take() if reuse else None
        while upstream is None:
            upstream = await self._wait_for_connection(pool)
            if is_unchanged(self._plane, self._request):
                break
            # Not at once: that would run the next waiting request within this one's turn.
            asyncio.get_running_loop().call_soon(pool.release, upstream)
            await self._provision_again()
            upstream = pool.take()
        self._request.forward(upstream)

    async def _wait_for_connection(self, pool: UpstreamPool) -> Upstream:
        self._enter(CONNECTING, self._plane.limits.upstream_connect_timeout)
        if not pool.acquire(self):
            raise _RequestFailed(Failure.POOL_EXHAUSTED)
        try:
            upstream: Upstream = await suspend()
        finally:
            pool.cancel(self)
        return upstream

    def _enter(self, state: State, seconds: float) -> None:
        """Enter a state that ends after so many seconds at the latest."""
        self._connection.enter(state)
        self._connection.set_deadline(seconds)

    def _gate(self) -> AccountGate:
        gate = self._plane.gate
        assert gate is not None
        return gate
