"""Handle one request, from its decision to the end of its response.

The fast path is synchronous: the decision is available, the account is known, an upstream connection is idle.
A request that has to wait goes through `_serve`, one coroutine: verification queue, key set, account, form,
connection. It is cancelled when the request ends.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Coroutine
from time import perf_counter
from typing import TYPE_CHECKING, Any

from shim.http1.chunked import ChunkedError
from shim.http1.framing import CHUNKED, NO_BODY
from shim.proxy.counters import FASTEST
from shim.proxy.device_gate import DeviceMatch, DeviceRefused
from shim.proxy.edge_probe import edge_probe_response
from shim.proxy.error_responses import error_response, token_info
from shim.proxy.failures import Failure
from shim.proxy.gate import Account, AccountDenied, AccountGate, RequestInfo
from shim.proxy.pool import UpstreamPool
from shim.proxy.request_body import BodyBuffer, BodyTooLarge, BufferFull
from shim.proxy.retry import is_retryable
from shim.proxy.server import NEVER
from shim.proxy.sign_in import public_address, sign_in_location
from shim.proxy.slow_path import SlowPath, suspend
from shim.proxy.states import (
    BUFFERING_FORM,
    CONNECTING,
    FETCHING_JWKS,
    FORWARDING,
    PROVISIONING,
    TUNNEL,
    VERIFYING,
)
from shim.proxy.subsonic_responses import Tap
from shim.proxy.subsonic_sign_in import (
    SignInResult,
    accepts_devices,
    requests_token_info,
    sign_in,
)
from shim.proxy.upload import CONTINUE, Upload
from shim.proxy.upstream import Upstream
from shim.trust.cached_decisions import PendingVerification
from shim.trust.decision import USER_BODY_BYTES, Decision, reject, user_body_too_large
from shim.trust.navidrome_tokens import NavidromeClaims, filter_form
from shim.trust.reasons import PathClass, Reason, Verdict
from shim.trust.rejection import RequestRejected

if TYPE_CHECKING:
    from shim.proxy.client_connection import ClientConnection

_MEDIA = re.compile(rb"(?im)^content-type:[ \t]*(?:audio|video)/")
# Enum members are slow to look up, so those that each request uses are module constants.
_AUTHENTICATED, _STRIPPED, _REJECTED = Verdict.AUTHENTICATED, Verdict.STRIPPED, Verdict.REJECTED
_INTERNAL = PathClass.INTERNAL
_INTERNAL_BODY_BYTES = 65536  # the control plane takes less
_UNKNOWN_KEY = Reason.JWT_UNKNOWN_KEY


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


class RequestHandler:
    """Decides on one request, forwards it, and forwards its response.

    `upstream` is the connection to Navidrome while the request has one. `request_sent`: the whole request was
    sent to Navidrome. `response_begun`: bytes of the response were written. `http10`: the request is
    HTTP/1.0. `no_body`: its response has no body, since it is a HEAD request. `upgrading`: it requests a
    WebSocket. `upload_paused`: Navidrome does not read the body.
    """

    __slots__ = (
        "_account",
        "_arrived",
        "_buffer",
        "_bytes_sent",
        "_connection",
        "_decision",
        "_device",
        "_form",
        "_measured",
        "_plane",
        "_request_id",
        "_response_lines",
        "_response_status",
        "_retried",
        "_slow_path",
        "_tap",
        "_transport",
        "_unfinished",
        "_upload",
        "_user_write",
        "_users_listed",
        "http10",
        "no_body",
        "request_sent",
        "response_begun",
        "upgrading",
        "upload_paused",
        "upstream",
    )

    def __init__(self, connection: ClientConnection, arrived: float) -> None:
        """Create the handler of a request whose head was complete at `arrived`, in seconds of
        `perf_counter`."""
        self._connection = connection
        self._plane = connection.plane
        self._transport = connection.transport
        self._decision: Decision
        self._account: Account | None = None
        self._device: DeviceMatch | None = None  # whose password the request has
        self._form = b""  # of a Subsonic request, while it may need a response of the shim
        self._tap: Tap | None = None  # sees the response
        self._request_id = ""
        self._slow_path: SlowPath | None = None
        self._arrived = arrived
        self._measured = False  # the shim's own share of the time was counted
        self.upstream: Upstream | None = None
        self._retried = False
        self._unfinished = False  # `_finish_request` has an action left
        # The accounts of a request that can change Navidrome's users, once it was announced.
        self._user_write: tuple[str, ...] | None = None
        self._users_listed = False  # since the request arrived
        self._buffer: BodyBuffer | None  # set if a body is buffered
        self._upload: Upload | None = None  # set once the body is forwarded
        self.upload_paused = False
        self._response_lines: bytes  # set once the response has begun
        self._response_status: int
        self._bytes_sent = 0
        self.request_sent = False
        self.response_begun = False
        self.http10: bool
        self.no_body: bool
        self.upgrading: bool

    # the decision

    def start(self, decision: Decision, head: bytes) -> None:
        """Apply the decision: at once, unless the request has to wait."""
        plane = self._plane
        outcome = decision.outcome
        self._decision = decision
        verdict = outcome.verdict
        if plane.edge_probe is not None and self._respond_to_probe(decision):
            return
        if verdict is _REJECTED:
            if outcome.reason is _UNKNOWN_KEY:
                self._wait(self._serve(decision, head))
            else:
                self.reject(decision)
            return
        gate = plane.gate
        if (gate is not None and (decision.form or decision.to_user_api)) or (
            outcome.path_class is _INTERNAL and self._has_body()
        ):
            self._wait(self._serve(decision, head))
            return
        if gate is not None:
            if verdict is _AUTHENTICATED:
                identity = decision.identity
                assert identity is not None
                self._account = gate.known(identity)
                # The internal pages must work without Navidrome.
                if self._account is None and outcome.path_class is not _INTERNAL:
                    self._wait(self._serve(decision, head))
                    return
            else:
                if not self._start_without_identity(decision, head, gate):
                    return
                decision = self._decision
                outcome = decision.outcome
                verdict = outcome.verdict
        line = decision.request_line
        assert line is not None
        connection = self._connection
        connection.keep_alive = connection.keep_alive and decision.keep_alive
        self.http10 = line.version == 10
        self.no_body = line.method == b"HEAD"
        self.upgrading = decision.upgrade
        if decision.has_navidrome_tokens:
            self._check_tokens()
            outcome = self._decision.outcome
        plane.counters.requests[outcome.index] += 1
        if verdict is _STRIPPED:
            plane.observer.request_decided(decision, self._ensure_request_id())
        elif verdict is _AUTHENTICATED and id(decision.trust_result) not in plane.identities:
            self._report_identity(decision)
        upstream = (plane.pool if outcome.path_class is not _INTERNAL else self._pool()).take()
        if upstream is None:
            self._wait(self._connect())
        else:
            self._forward(upstream)

    def _start_without_identity(self, decision: Decision, head: bytes, gate: AccountGate) -> bool:
        """Look for the password of a device. Return whether the request goes on at once."""
        if self._accepts_devices(decision) and not self._start_sign_in(decision, head):
            return False
        if self._decision.has_navidrome_tokens and not gate.users_listed:
            self._wait(self._serve(decision, head))
            return False
        return True

    def _start_sign_in(self, decision: Decision, head: bytes) -> bool:
        result = self._sign_in()
        if result.needs_list:
            self._wait(self._serve(decision, head))
            return False
        if result.refused is not None:
            self._refuse(result.refused)
            return False
        if self._requests_token_info():
            self._send_token_info()
            return False
        return True

    def start_verification(self, pending: PendingVerification, head: bytes) -> None:
        """Decide once the token was verified."""
        self._wait(self._serve(pending, head))

    def _accept(self, decision: Decision) -> None:
        line = decision.request_line
        assert line is not None
        connection = self._connection
        connection.keep_alive = connection.keep_alive and decision.keep_alive
        self.http10 = line.version == 10
        self.no_body = line.method == b"HEAD"
        self.upgrading = decision.upgrade

    # the slow path

    def _wait(self, slow: Coroutine[None, Any, None]) -> None:
        self._slow_path = slow_path = SlowPath(self._guard(slow), self._connection.resume)
        slow_path.start()

    async def _guard(self, slow: Coroutine[None, Any, None]) -> None:
        """Send a response if the slow path ends early."""
        try:
            await slow
        except _RequestFailed as error:
            self.fail(error.failure)
        except _Denied as error:
            denied = error.denied
            self._reject_after_all(
                RequestRejected(denied.reason, denied.detail), denied.retry_after
            )
        except RequestRejected as rejection:
            self._reject_after_all(rejection)
        except _Refused as error:
            self._refuse(error.refused)

    async def _serve(self, found: Decision | PendingVerification, head: bytes) -> None:
        """Run all steps of a request that has to wait."""
        decision = await self._decide(found, head)
        verdict = decision.outcome.verdict
        if verdict is _REJECTED:
            self.reject(decision)
            return
        self._accept(decision)
        plane = self._plane
        gate, identity = plane.gate, decision.identity
        signs_in = verdict is not _AUTHENTICATED and self._accepts_devices(decision)
        if signs_in and not decision.form:
            await self._sign_in_listed()
            if self._requests_token_info():
                self._send_token_info()
                return
            decision = self._decision
        if self._device is not None:
            pass
        elif gate is not None and verdict is _AUTHENTICATED:
            assert identity is not None
            self._account = gate.known(identity)
            if self._account is None and decision.outcome.path_class is not _INTERNAL:
                await self._provision()
        elif gate is not None and decision.has_navidrome_tokens and not gate.users_listed:
            await self._list_users()
        if decision.has_navidrome_tokens:
            self._check_tokens()
        if self._needs_body():
            await self._buffer_body(signs_in=signs_in)
            if self._requests_token_info():
                self._send_token_info()
                return
            if decision.outcome.path_class is not _INTERNAL and not self._is_unchanged():
                await self._provision_again()
        else:
            plane.counters.requests[self._decision.outcome.index] += 1
            if self._decision.outcome.verdict is _STRIPPED:
                plane.observer.request_decided(self._decision, self._ensure_request_id())
        decision = self._decision
        if (
            decision.outcome.verdict is _AUTHENTICATED
            and id(decision.trust_result) not in plane.identities
        ):
            self._report_identity(decision)
        await self._connect()

    async def _decide(self, found: Decision | PendingVerification, head: bytes) -> Decision:
        """Verify a token in the verification queue; fetch the key set, once, for a token whose key is
        unknown."""
        refreshed = False
        while True:
            while isinstance(found, PendingVerification):
                found = await self._verify(found, head)
            self._decision = found
            if refreshed or found.outcome.reason is not _UNKNOWN_KEY:
                return found
            keys = self._plane.options.keys
            future = None if keys is None else keys.request_refresh()
            if future is None:
                return found
            self._connection.enter(FETCHING_JWKS)
            self.set_deadline(self._plane.limits.upstream_response_timeout)
            await self._current().wait_for(future)
            refreshed = True
            found = self._connection.evaluate(head)

    async def _verify(
        self, pending: PendingVerification, head: bytes
    ) -> Decision | PendingVerification:
        connection, plane = self._connection, self._plane
        connection.enter(VERIFYING)
        self.set_deadline(plane.limits.upstream_response_timeout)
        plane.verification_queue.enqueue(self._current())
        await suspend()
        if connection.context() is pending.context:
            return plane.decisions.verify(pending, plane.time)
        return connection.evaluate(head)  # another policy is in force now

    async def _provision(self) -> None:
        """Let the gate make the account ready."""
        plane, decision = self._plane, self._decision
        gate, identity = plane.gate, decision.identity
        assert gate is not None and identity is not None
        self._connection.enter(PROVISIONING)
        self.set_deadline(plane.limits.upstream_response_timeout)
        verified = decision.outcome.reason is Reason.VERIFIED_JWT
        peer, block = decision.source.peer.text, decision.block
        client = None if block is None else block.metadata.client
        request_info = RequestInfo(
            peer,
            self._ensure_request_id(),
            verified,
            client=None if client is None else client.decode(),
        )
        future = gate.ensure(identity, request_info)
        await self._current().wait_for(future)
        if future.cancelled():
            raise _RequestFailed(Failure.ACCOUNT_UNAVAILABLE)
        result = future.result()
        if isinstance(result, AccountDenied):
            raise _Denied(result)
        self._account = result

    async def _provision_again(self) -> None:
        """Ask the gate again for a request that waited, since its account may have changed meanwhile."""
        if self._device is not None:
            await self._check_device_again(self._device)
            return
        gate, identity, claims = self._plane.gate, self._decision.identity, self._decision.claims
        assert gate is not None
        if claims and not self._may_continue():
            raise _RequestFailed(Failure.ACCOUNT_REVOKED)
        if self._unfinished and identity is not None and not gate.identity_current(identity):
            # The account has the rights of a later request's groups: do not write those of this older request
            # again.
            revoked = not self._may_continue()
            raise _RequestFailed(
                Failure.ACCOUNT_REVOKED if revoked else Failure.ACCOUNT_UNAVAILABLE
            )
        await self._provision()
        account = self._account
        assert account is not None
        if not all(each.names(account.user_name, account.id) for each in claims):
            raise _RequestFailed(Failure.ACCOUNT_REVOKED)

    def _is_unchanged(self) -> bool:
        """Return whether a request that waited may be sent as it is: an account may have been revoked, or
        Navidrome may be another instance, without users."""
        gate, decision = self._plane.gate, self._decision
        if self._device is not None:
            devices = self._plane.devices
            return devices is not None and devices.is_current(self._device)
        if gate is None or (self._account is None and not decision.claims):
            return True
        if decision.claims and not self._may_continue():
            return False
        identity = decision.identity
        return identity is None or gate.known(identity) is not None

    async def _list_users(self) -> None:
        """Wait until the users are listed. Before that no Navidrome token of a request without an identity is
        valid."""
        gate = self._plane.gate
        assert gate is not None
        self._connection.enter(PROVISIONING)
        self.set_deadline(self._plane.limits.upstream_response_timeout)
        future = gate.list_users()
        await self._current().wait_for(future)
        if future.cancelled():
            return
        denied = future.result()
        if denied is not None:
            raise _Denied(denied)
        self._users_listed = True

    def _needs_body(self) -> bool:
        """Return whether the body is read before the request is sent: a form may carry a Navidrome token, and
        for a change of users Navidrome checks the sender at the head, but applies the change at the end of
        the body. The shim's own pages have few connections, which a slow sender must not occupy."""
        decision = self._decision
        if decision.outcome.path_class is _INTERNAL:
            return self._has_body()
        if self._plane.gate is None:
            return False
        return decision.form or (decision.writes_users and self._has_body())

    def _has_body(self) -> bool:
        block = self._decision.block
        return block is not None and block.metadata.length not in (NO_BODY, 0)

    async def _buffer_body(self, *, signs_in: bool) -> None:
        """Read the body. Remove from a form the Navidrome tokens that are void or belong to another account;
        `signs_in`: it may have the password of a device, which is removed too."""
        plane, connection, block = self._plane, self._connection, self._decision.block
        assert block is not None
        metadata = block.metadata
        self._measure()  # the wait for the body is the client's share
        connection.enter(BUFFERING_FORM)
        self.set_deadline(plane.limits.form_timeout)
        limit = plane.limits.form_bytes
        if self._decision.writes_users:
            limit = min(limit, USER_BODY_BYTES)
        elif self._decision.outcome.path_class is _INTERNAL:
            limit = min(limit, _INTERNAL_BODY_BYTES)
        share = plane.body_budget.share(metadata.client, trusted=self._decision.source.trusted)
        try:
            buffer = BodyBuffer(metadata.length, limit, share)
            self._buffer = buffer
            self._unfinished = True
            data = connection.take_buffer()
            if metadata.expect_continue and not data and not self.http10:
                self._transport.write(CONTINUE)
            connection.resume_reading()
            rest = buffer.feed(data)
            while not buffer.done:
                rest = buffer.feed(await suspend())
        except BodyTooLarge:
            if self._decision.writes_users:
                raise user_body_too_large() from None
            raise RequestRejected(
                Reason.BODY_TOO_LARGE, f"the body has more than {limit} bytes"
            ) from None
        except BufferFull:
            raise _RequestFailed(Failure.BUFFER_FULL) from None
        except ChunkedError as error:
            raise RequestRejected(Reason.AMBIGUOUS_FRAMING, str(error)) from None
        body, removed, claims = buffer.take(), False, tuple[NavidromeClaims, ...]()
        if signs_in:
            self._form = body
            body = await self._sign_in_listed(body)
        if self._decision.form and self._device is None:
            body, removed, claims = await self._filter_form(body)
        if not self._requests_token_info():  # that response has the format that the form asks for
            self._form = b""
        self._decision = decision = self._decision.with_form(len(body), claims, void=removed)
        if removed:
            plane.observer.navidrome_token_found(
                decision, self._ensure_request_id(), self._account_name()
            )
        plane.counters.requests[decision.outcome.index] += 1
        if decision.outcome.verdict is _STRIPPED and not removed:
            plane.observer.request_decided(decision, self._ensure_request_id())
        connection.buffer_data(body + rest + connection.take_buffer())

    async def _filter_form(self, body: bytes) -> tuple[bytes, bool, tuple[NavidromeClaims, ...]]:
        """Remove the invalid tokens. Those of a request without an identity wait until the users are
        listed."""
        gate, waits = self._plane.gate, False
        assert gate is not None

        def accept(claims: NavidromeClaims) -> bool:
            nonlocal waits
            waits = waits or (self._account is None and not gate.users_listed)
            return self._accepts(claims)

        filtered = filter_form(body, accept)
        if not waits or self._users_listed:
            return filtered
        await self._list_users()
        return filter_form(body, self._accepts)

    # devices

    def _accepts_devices(self, decision: Decision) -> bool:
        plane = self._plane
        return plane.devices is not None and accepts_devices(decision, plane.decisions.policy.paths)

    def _sign_in(self, body: bytes = b"", *, listed: bool = False) -> SignInResult:
        """Look for the password of a device, in a form's body too, and use it."""
        plane = self._plane
        assert plane.devices is not None
        self._drop_tap()  # of an earlier look, before Navidrome's users were listed
        result = sign_in(
            plane.devices,
            plane.decisions.policy,
            self._decision,
            self._ensure_request_id,
            body,
            listed=listed,
        )
        self._decision = result.decision
        if result.tap is not None:
            self._tap = result.tap
        if result.device is not None:
            self._device, self._account = result.device, result.device.account
        return result

    def _drop_tap(self) -> None:
        if self._tap is not None:
            self._tap.abandon()
            self._tap = None

    async def _sign_in_listed(self, body: bytes = b"") -> bytes:
        """Look for the password of a device, once Navidrome's users are listed. Return the body to send."""
        result = self._sign_in(body, listed=self._users_listed)
        if result.needs_list:
            await self._list_users()
            result = self._sign_in(body, listed=True)
        if result.refused is not None:
            raise _Refused(result.refused)
        if result.needs_list:
            raise _RequestFailed(Failure.ACCOUNT_UNAVAILABLE)
        return result.body

    async def _check_device_again(self, device: DeviceMatch) -> None:
        """Check a device whose request waited: it may be revoked, and its account may have another name."""
        devices = self._plane.devices
        assert devices is not None
        await self._list_users()
        if not devices.is_current(device, listed=True):
            raise _RequestFailed(Failure.ACCOUNT_REVOKED)

    def _refuse(self, refused: DeviceRefused) -> None:
        """Send a Subsonic error for credentials that the shim refuses."""
        plane, decision = self._plane, self._decision
        assert plane.devices is not None
        plane.devices.refused(decision, refused, self._ensure_request_id())
        self._reject_after_all(RequestRejected(refused.reason, refused.detail))

    def _requests_token_info(self) -> bool:
        return self._device is not None and requests_token_info(
            self._decision, self._plane.decisions.policy.paths
        )

    def _send_token_info(self) -> None:
        """Send the name of the device's account, which Navidrome can't: it knows no API keys."""
        plane, connection, decision = self._plane, self._connection, self._decision
        line, account = decision.request_line, self._account
        assert line is not None and account is not None
        self.cancel()
        plane.counters.requests[decision.outcome.index] += 1
        complete = decision.block is not None and decision.block.metadata.length in (NO_BODY, 0)
        keep_alive = connection.keep_alive and decision.keep_alive and complete
        connection.keep_alive = keep_alive
        response = token_info(
            line.target,
            account.user_name.decode(),
            self._ensure_request_id(),
            form=self._form,
            keep_alive=keep_alive,
        )
        if line.method == b"HEAD":
            response = response[: response.index(b"\r\n\r\n") + 4]
        self._send_response(200, response, keep_alive=keep_alive)

    def form_received(self, data: bytes) -> None:
        """Buffer a piece of the form."""
        self._current().resume(data)

    async def _connect(self, *, reuse: bool = True) -> None:
        """Forward the request over an upstream connection, waiting for one if none is idle; `reuse`: take an
        idle one."""
        pool = self._pool()
        upstream = pool.take() if reuse else None
        while upstream is None:
            upstream = await self._wait_for_connection(pool)
            if self._is_unchanged():
                break
            # Not at once: that would run the next waiting request within this one's turn.
            asyncio.get_running_loop().call_soon(pool.release, upstream)
            await self._provision_again()
            upstream = pool.take()
        self._forward(upstream)

    async def _wait_for_connection(self, pool: UpstreamPool) -> Upstream:
        self._connection.enter(CONNECTING)
        self.set_deadline(self._plane.limits.upstream_connect_timeout)
        if not pool.acquire(self):
            raise _RequestFailed(Failure.POOL_EXHAUSTED)
        try:
            upstream: Upstream = await suspend()
        finally:
            pool.cancel(self)
        return upstream

    def connection_ready(self, upstream: Upstream) -> None:
        """Send the request over `upstream`."""
        self._current().resume(upstream)

    def connection_failed(self, failure: Failure) -> None:
        """Handle a failure: no connection to Navidrome is available."""
        self._current().throw(_RequestFailed(failure))

    def _current(self) -> SlowPath:
        assert self._slow_path is not None
        return self._slow_path

    def set_deadline(self, seconds: float) -> None:
        """Set the deadline of the connection's state, in seconds from now."""
        self._connection.deadline = self._plane.now + seconds

    def cancel(self) -> None:
        """Cancel the request: abort the upstream connection, and every wait."""
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.abort()
        self._drop_tap()
        slow_path, self._slow_path = self._slow_path, None
        if slow_path is not None:
            slow_path.cancel()
        if self._unfinished:
            self._finish_request(response_began=False)

    def expired(self) -> None:
        """Handle the deadline of the connection's state."""
        state = self._connection.state
        if state is FORWARDING:
            uploading = not self.request_sent and not self._connection.read_paused
            self.fail(Failure.BODY_TIMEOUT if uploading else Failure.UPSTREAM_RESPONSE_TIMEOUT)
        elif state is FETCHING_JWKS:
            self.reject(self._decision)
            self._connection.resume()
        elif state is PROVISIONING:
            self.fail(Failure.ACCOUNT_TIMEOUT)
        elif state is BUFFERING_FORM:
            self.fail(Failure.BODY_TIMEOUT)
        else:
            self.fail(Failure.CONNECT_TIMEOUT)

    # Navidrome's own tokens, and accounts that are revoked

    def _check_tokens(self) -> None:
        """Remove the Navidrome tokens that are void, and, if the request has an identity, those of other
        accounts. Without provisioning no account id is known, so each token counts as another account's;
        without an identity none is known to be void."""
        before = decision = self._decision
        account = self._account
        if self._plane.gate is not None:
            decision = decision.without_void_tokens(self._is_valid)
        identity = decision.identity
        if identity is not None:
            name = identity.username.encode() if account is None else account.user_name
            decision = decision.with_tokens_bound_to(name, None if account is None else account.id)
        self._decision = decision
        removed = decision.void != before.void or decision.removed_tokens != before.removed_tokens
        if removed or decision.token_without_identity:
            self._plane.observer.navidrome_token_found(
                decision, self._ensure_request_id(), self._account_name()
            )

    def _is_valid(self, claims: NavidromeClaims) -> bool:
        gate = self._plane.gate
        assert gate is not None
        account = self._account
        if account is not None:
            listed = claims.names(account.user_name, account.id)
        else:
            listed = self._users_listed
        return gate.navidrome_token_valid(
            claims.username, claims.user_id, claims.issued_at, listed=listed
        )

    def _accepts(self, claims: NavidromeClaims) -> bool:
        """Return whether a Navidrome token in a form is valid."""
        account = self._account
        named = account is None or claims.names(account.user_name, account.id)
        return named and self._is_valid(claims)

    def check_account(self) -> None:
        """Cancel the current request if its account was revoked."""
        # Navidrome has received all of a request that changes users: cancelling it here would not stop it,
        # and the lock waits for it.
        if self._user_write is None and not self._may_continue():
            self.fail(Failure.ACCOUNT_REVOKED)

    def _may_continue(self) -> bool:
        gate, decision, account = self._plane.gate, self._decision, self._account
        if gate is None:
            return True
        if self._device is not None:
            devices = self._plane.devices
            if devices is None or not devices.is_active(self._device):
                return False
        if account is not None:
            identity = decision.identity
            uid = None if identity is None else identity.uid
            if account.id is None or not gate.may_continue(account.id, uid, 0.0):
                return False
        return all(
            gate.may_continue(claims.user_id, None, claims.issued_at) for claims in decision.claims
        )

    def _on_unauthorized(self) -> None:
        # From Navidrome's API, to a request that named an account: the account may no longer exist.
        plane, decision = self._plane, self._decision
        gate, identity, line = plane.gate, decision.identity, decision.request_line
        if gate is None or identity is None or line is None or self._account is None:
            return
        if line.path.startswith(plane.decisions.policy.paths.base + b"api/"):
            gate.report_unauthorized(identity)

    # the request goes to Navidrome

    def _pool(self) -> UpstreamPool:
        plane = self._plane
        if self._decision.outcome.path_class is _INTERNAL and plane.control_pool is not None:
            return plane.control_pool
        return plane.pool

    def _forward(self, upstream: Upstream) -> None:
        """Send the request's head, and the available part of its body."""
        plane, connection, decision = self._plane, self._connection, self._decision
        connection.enter(FORWARDING)
        if decision.to_user_api and not self._announce_user_write(upstream):
            return
        self.upstream = upstream
        block = decision.block
        assert block is not None
        if decision.outcome.path_class is _INTERNAL and plane.control_auth_headers:
            head = decision.render_control_head(
                plane.decisions.policy.paths, plane.control_auth_headers
            )
        else:
            account = self._account
            head = decision.render_head(None if account is None else account.user_name)
        upstream.begin(self, head)
        if not self._measured:
            # `_measure`, without its calls for most requests.
            self._measured = True
            seconds = perf_counter() - self._arrived
            if seconds <= FASTEST:
                plane.counters.latency_seconds += seconds
                plane.counters.latency[0] += 1
            else:
                plane.counters.observe_latency(seconds)
        length = block.metadata.length
        if length <= 0 and length != CHUNKED:
            self.request_sent = True
            connection.deadline = plane.now + plane.limits.upstream_response_timeout
            if connection.read_buffer:
                if len(connection.read_buffer) > plane.limits.max_buffered_bytes:
                    connection.over_read_limit()
                else:
                    connection.resume_reading()
            return
        max_bytes = USER_BODY_BYTES if decision.writes_users else None
        self._upload = Upload(self, connection, plane.limits, length, max_bytes)
        self._upload.begin(expect_continue=block.metadata.expect_continue)

    def _announce_user_write(self, upstream: Upstream) -> bool:
        """Announce a request that can change users. Return whether it may be sent; if not, the request has
        failed."""
        gate, account, decision = self._plane.gate, self._account, self._decision
        if gate is None or not decision.writes_users:
            return True
        ids = {claims.user_id for claims in decision.claims}
        if account is not None and account.id is not None:
            ids.add(account.id)
        write = tuple(ids)
        if self._user_write is None and not gate.user_write_started(write):
            # Not at once: that would run the next waiting request within this one's turn.
            asyncio.get_running_loop().call_soon(self._pool().release, upstream)
            self.fail(Failure.ACCOUNT_UNAVAILABLE)
            return False
        self._user_write = write
        if not self._unfinished:
            self._unfinished = True
            self._buffer = None
        gate.users_may_have_changed()
        return True

    def upload(self, data: bytes) -> None:
        """Forward a piece of the body."""
        assert self._upload is not None
        self._upload.receive(data)

    def upload_buffered(self) -> None:
        """Forward the next buffered chunks of the body."""
        assert self._upload is not None
        self._upload.decode_buffered()

    def body_sent(self) -> None:
        """Note that the last byte of the body is written."""
        self.request_sent = True

    def await_response(self) -> None:
        """Set the deadline after the last byte of the body."""
        if self.response_begun:
            self._connection.deadline = NEVER
        else:
            self.set_deadline(self._plane.limits.upstream_response_timeout)

    def reject_body(self, rejection: RequestRejected) -> None:
        """Reject a request for its body; if its response has begun, close the connection."""
        if self.response_begun:
            self._connection.abort()
        else:
            self._reject_after_all(rejection)

    def pause_upload(self) -> None:
        """Pause the request body, since Navidrome does not read."""
        self.upload_paused = True
        self._connection.pause_reading()
        self.set_deadline(self._plane.limits.send_timeout)

    def resume_upload(self) -> None:
        """Resume the request body, since Navidrome reads again."""
        connection, limits = self._connection, self._plane.limits
        self.upload_paused = False
        connection.resume_reading()
        if connection.read_paused:
            return
        if connection.state is FORWARDING and not self.request_sent:
            self.set_deadline(limits.request_body_timeout)
        elif connection.state is FORWARDING and not self.response_begun:
            self.set_deadline(limits.upstream_response_timeout)
        else:
            connection.deadline = NEVER

    # the response comes from Navidrome

    def pause_upstream(self) -> None:
        """Pause the response, since the client does not read."""
        if self.upstream is not None:
            self.upstream.pause()

    def resume_upstream(self) -> None:
        """Resume the response, since the client reads again."""
        if self.upstream is not None:
            self.upstream.resume()

    def response_started(self, status: int, lines: bytes) -> None:
        """Handle the start of the final response, just before its head is sent."""
        self.response_begun = True
        self._response_lines = lines
        self._response_status = status
        if status == 401:
            self._on_unauthorized()
        if self._unfinished:
            self._finish_request(response_began=True)
        connection = self._connection
        if not self.request_sent:
            connection.keep_alive = False
        elif not connection.read_paused:
            connection.deadline = NEVER

    def _finish_request(self, *, response_began: bool) -> None:
        """Run the actions that are due when the response begins, or can no longer begin."""
        self._unfinished = False
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            buffer.release()
        write, self._user_write = self._user_write, None
        if write is not None:
            gate = self._plane.gate
            assert gate is not None
            gate.user_write_ended(write, response_began=response_began)
            gate.users_may_have_changed()

    def close_after_response(self) -> None:
        """Close the client's connection after this response."""
        self._connection.keep_alive = False

    def connection_line(self) -> bytes:
        """Return the `Connection` header line for the client."""
        connection = self._connection
        if not connection.keep_alive or self.upgrading:
            connection.keep_alive = False
            return b"Connection: close\r\n"
        return b"Connection: keep-alive\r\n" if self.http10 else b""

    def send(self, data: bytes) -> None:
        """Write to the client."""
        if self._tap is not None:
            data = self._tap.feed(data)
        self._bytes_sent += len(data)
        self._transport.write(data)

    def send_pieces(self, pieces: tuple[bytes, memoryview]) -> None:
        """Write to the client, without joining the pieces."""
        if self._tap is not None:
            self.send(b"".join(pieces))
            return
        self._bytes_sent += len(pieces[0]) + len(pieces[1])
        self._transport.writelines(pieces)

    def switch_to_tunnel(self, head: bytes) -> None:
        """Switch to a tunnel, since Navidrome switched to WebSocket: bytes are forwarded unchanged from now
        on."""
        connection = self._connection
        connection.enter(TUNNEL)
        self.response_begun = True
        self._response_lines = b""
        self._response_status = 101
        self._plane.counters.tunnels_open += 1
        connection.deadline = NEVER
        self.send(head)
        data = connection.take_buffer()
        connection.resume_reading()
        if data:
            self.send_through_tunnel(data)  # may pause reading again

    def send_through_tunnel(self, data: bytes) -> None:
        """Send the client's bytes to Navidrome unchanged."""
        assert self.upstream is not None
        self.upstream.write(data)

    def end_tunnel(self) -> None:
        """Close Navidrome's side, since the client sends no more, once everything is written."""
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.half_close()

    def response_complete(self) -> None:
        """Handle the end of a complete response."""
        self.upstream = None
        connection = self._connection
        tap = self._tap
        if tap is not None:
            self._tap = None
            last = tap.finish()
            if last:
                self.send(last)
        if self._plane.observer.logs_access:
            self._log_access()
        if not connection.keep_alive:
            connection.send_and_close(b"")
            return
        connection.enter_keep_alive()
        if connection.read_buffer or connection.read_paused:
            connection.resume()

    def upstream_closed_early(self, *, unused: bool) -> None:
        """Handle a connection that closed before the first byte of the response: retry over another one, if
        that is safe."""
        self.upstream = None
        line, block = self._decision.request_line, self._decision.block
        assert line is not None and block is not None
        length = block.metadata.length
        retryable = (
            not unused
            and not self._retried
            and length <= 0
            and length != CHUNKED
            and not self.upgrading
            and is_retryable(line, self._plane.decisions.policy.paths)
        )
        if not retryable:
            self.fail(Failure.UPSTREAM_RESPONSE_MISSING)
            return
        self._retried = True
        self.request_sent = False
        self._plane.counters.retries += 1
        self._wait(self._connect(reuse=False))

    def response_truncated(self) -> None:
        """Handle a response that broke off: the client must not take it for a complete one."""
        self.upstream = None
        connection = self._connection
        self._drop_tap()
        if connection.state is not TUNNEL:
            if self._plane.observer.logs_access:
                self._log_access(Failure.UPSTREAM_RESPONSE_TRUNCATED)
            self._report_incomplete(Failure.UPSTREAM_RESPONSE_TRUNCATED)
            connection.abort()
        else:
            connection.linger()
            self._transport.close()

    @property
    def sends_media(self) -> bool:
        """Return whether the response is audio or video, whose player may be paused for a long time."""
        return self.response_begun and _MEDIA.search(self._response_lines) is not None

    def response_incomplete(self, failure: Failure) -> None:
        """Count and log the response in progress, if there is one: it is incomplete."""
        if not self.response_begun:
            return
        connection = self._connection
        under_way = connection.state is FORWARDING and self.upstream is not None
        # Even if Navidrome sent the whole response, the client may not have read everything.
        if under_way or connection.write_paused or self._transport.get_write_buffer_size():
            self._report_incomplete(failure)
            if under_way and self._plane.observer.logs_access:
                self._log_access(failure)

    # the shim's own responses

    def fail(self, failure: Failure) -> None:
        """Send an error response, since Navidrome sent none; if a response began, close the connection."""
        plane, connection = self._plane, self._connection
        if self.response_begun:
            if connection.state is FORWARDING and plane.observer.logs_access:
                self._log_access(failure)
            self.cancel()
            self._report_incomplete(failure)
            connection.abort()
            return
        self.cancel()
        plane.counters.failed(failure)
        status = failure.status
        plane.observer.failed(
            self._decision,
            self._ensure_request_id(),
            failure,
            status,
            account=self._account_name(),
        )
        retry_after = 5 if status in (502, 503) else None
        connection.keep_alive = False
        self._respond(status, self._decision, retry_after, failure=failure)

    def reject(self, decision: Decision, retry_after: int | None = None) -> None:
        """Count and log a rejected request, and send its response."""
        self._decision = decision
        plane = self._plane
        self.cancel()
        plane.counters.requests[decision.outcome.index] += 1
        location = sign_in_location(
            decision, plane.options.sign_in_url, plane.decisions.policy.paths
        )
        status = decision.outcome.status if location is None else 302
        plane.observer.request_decided(decision, self._ensure_request_id(), status)
        self._respond(status, decision, retry_after, location=location)

    def reject_unparsed(self, decision: Decision) -> None:
        """Reject a request whose head could not be parsed."""
        self.reject(decision)

    def close_without_response(self, decision: Decision, *, logged: bool) -> None:
        """Count a rejected request, and close the connection without a response."""
        plane = self._plane
        plane.counters.requests[decision.outcome.index] += 1
        if logged:
            plane.observer.request_decided(decision, self._ensure_request_id())
        self._connection.send_and_close(b"")

    def _reject_after_all(self, rejection: RequestRejected, retry_after: int | None = None) -> None:
        """Reject a request that was accepted before."""
        decision = self._decision
        self.reject(
            reject(rejection, decision.source, decision.request_line, decision.block), retry_after
        )

    def _respond(
        self,
        status: int,
        decision: Decision,
        retry_after: int | None,
        *,
        location: str | None = None,
        failure: Failure | None = None,
    ) -> None:
        self._measure()
        connection, plane = self._connection, self._plane
        keep_alive = connection.keep_alive = connection.keep_alive and decision.keep_alive
        response = error_response(
            status,
            decision,
            self._ensure_request_id(),
            failure=failure,
            retry_after=retry_after,
            location=location,
            contact=plane.options.support_contact,
            sign_out=plane.options.sign_out_url,
            keep_alive=keep_alive,
            form=self._form,
            address=self._sign_in_address(decision),
        )
        self._send_response(status, response, keep_alive=keep_alive)

    def _sign_in_address(self, decision: Decision) -> str:
        """Return where the owner of a device signs in, empty if that is not what the response says."""
        if decision.outcome.reason is not Reason.DEVICE_SIGN_IN_DUE:
            return ""
        block, base = decision.block, self._plane.decisions.policy.paths.base
        return "" if block is None else public_address(block.forward, base)

    def _send_response(self, status: int, response: bytes, *, keep_alive: bool) -> None:
        """Send a complete response of the shim, and end the request."""
        connection, plane = self._connection, self._plane
        self._response_lines = b""
        self._response_status = status
        self.response_begun = True
        self._bytes_sent = len(response)
        if plane.observer.logs_access:
            self._log_access()
        if keep_alive:
            self._transport.write(response)
            connection.enter_keep_alive()
        else:
            connection.send_and_close(response)

    def _respond_to_probe(self, decision: Decision) -> bool:
        """Respond to the request of `navidrome-shim check`, if it is this one. Return whether it is.

        It is not logged as stripped, because the check sends identity headers on purpose.
        """
        plane, connection = self._plane, self._connection
        probe = plane.edge_probe
        if probe is None or not probe.matches(decision, plane.now):
            return False
        plane.edge_probe = None
        plane.counters.requests[decision.outcome.index] += 1
        response = edge_probe_response(decision, plane.decisions.policy)
        self._measure()
        connection.keep_alive = False
        self._response_lines = b""
        self._response_status = 200
        self.response_begun = True
        self._bytes_sent = len(response)
        if plane.observer.logs_access:
            self._log_access()
        connection.send_and_close(response)
        return True

    # metrics and the log

    def _measure(self) -> None:
        """Count the time since the head was complete as the shim's own share, once."""
        if not self._measured:
            self._measured = True
            self._plane.counters.observe_latency(perf_counter() - self._arrived)

    def _report_incomplete(self, failure: Failure) -> None:
        """Count and log a response that began and is incomplete."""
        plane = self._plane
        plane.counters.failed(failure)
        plane.observer.failed(
            self._decision,
            self._ensure_request_id(),
            failure,
            self._response_status,
            self._bytes_sent,
            account=self._account_name(),
        )

    def _report_identity(self, decision: Decision) -> None:
        """Report the use of an identity, and remember it until the plane forgets it."""
        self._plane.remember_identity(decision)
        self._plane.observer.identity_used(
            decision, self._ensure_request_id(), self._account_name()
        )

    def _account_name(self) -> str | None:
        return None if self._account is None else self._account.user_name.decode()

    def _ensure_request_id(self) -> str:
        if not self._request_id:
            self._request_id = secrets.token_hex(8)
        return self._request_id

    def _log_access(self, incomplete: Failure | None = None) -> None:
        seconds = perf_counter() - self._arrived
        self._plane.observer.request_completed(
            self._decision,
            self._ensure_request_id(),
            self._response_status,
            self._bytes_sent,
            seconds,
            incomplete,
            account=self._account_name(),
        )
