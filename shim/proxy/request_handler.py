"""Handle one request, from its decision to the end of its response.

The fast path is synchronous: the decision is available, the account is known, an upstream connection is idle.
A request that has to wait goes through `waiting_request.py`, which ends in `forward` too. `own_responses.py`
has the responses of the shim, `request_reports.py` the reports to metrics and log.
"""

from __future__ import annotations

import asyncio
import re
from time import perf_counter
from typing import TYPE_CHECKING

from shim.proxy import own_responses
from shim.proxy.account_checks import may_continue, report_unauthorized, without_invalid_tokens
from shim.proxy.counters import FASTEST
from shim.proxy.device_gate import DeviceMatch, DeviceRefused
from shim.proxy.failures import Failure
from shim.proxy.gate import Account, AccountGate
from shim.proxy.request_body import BodyBuffer
from shim.proxy.request_reports import (
    log_access,
    new_request_id,
    report_identity,
    report_incomplete,
    report_tokens,
)
from shim.proxy.retry import is_retryable
from shim.proxy.server import NEVER
from shim.proxy.states import FORWARDING, TUNNEL
from shim.proxy.subsonic_responses import ResponseFilter
from shim.proxy.subsonic_sign_in import (
    SignInResult,
    accepts_devices,
    requests_token_info,
    sign_in,
)
from shim.proxy.upload import Upload
from shim.proxy.upstream import Upstream
from shim.proxy.user_write import UserWrite
from shim.proxy.waiting_request import WaitingRequest
from shim.trust.cached_decisions import PendingVerification
from shim.trust.decision import USER_BODY_BYTES, Decision, reject
from shim.trust.reasons import PathClass, Reason, Verdict
from shim.trust.rejection import RequestRejected

if TYPE_CHECKING:
    from shim.proxy.client_connection import ClientConnection

_MEDIA = re.compile(rb"(?im)^content-type:[ \t]*(?:audio|video)/")
# Enum members are slow to look up, so those that each request uses are module constants.
_AUTHENTICATED, _STRIPPED, _REJECTED = Verdict.AUTHENTICATED, Verdict.STRIPPED, Verdict.REJECTED
_INTERNAL = PathClass.INTERNAL
_UNKNOWN_KEY = Reason.JWT_UNKNOWN_KEY


class RequestHandler:
    """Decides on one request, forwards it, and forwards its response.

    `upstream` is the connection to Navidrome while the request has one. `request_sent`: the whole request was
    sent to Navidrome. `response_begun`: bytes of the response were written. `http10`: the request is
    HTTP/1.0. `no_body`: its response has no body, since it is a HEAD request. `upgrading`: it requests a
    WebSocket. `upload_paused`: Navidrome does not read the body.
    """

    __slots__ = (
        "_buffer",
        "_connection",
        "_measured",
        "_plane",
        "_request_id",
        "_response_filter",
        "_response_lines",
        "_retried",
        "_transport",
        "_unfinished",
        "_upload",
        "_user_write",
        "_waiting",
        "account",
        "arrived",
        "bytes_sent",
        "decision",
        "device",
        "http10",
        "no_body",
        "request_sent",
        "response_begun",
        "response_status",
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
        self.decision: Decision
        self.account: Account | None = None
        self.device: DeviceMatch | None = None  # whose password the request has
        self._response_filter: ResponseFilter | None = None  # sees the response
        self._request_id = ""
        self._waiting: WaitingRequest | None = None
        self.arrived = arrived
        self._measured = False  # the shim's own share of the time was counted
        self.upstream: Upstream | None = None
        self._retried = False
        self._unfinished = False  # `_finish_request` has an action left
        self._user_write: UserWrite | None = None  # once it was announced
        self._buffer: BodyBuffer | None  # set if a body is buffered
        self._upload: Upload | None = None  # set once the body is forwarded
        self.upload_paused = False
        self._response_lines: bytes  # set once the response has begun
        self.response_status: int
        self.bytes_sent = 0
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
        self.decision = decision
        verdict = outcome.verdict
        if plane.edge_probe is not None and plane.take_edge_probe(decision):
            own_responses.respond_to_probe(self, self._connection)
            return
        if verdict is _REJECTED:
            if outcome.reason is _UNKNOWN_KEY:
                self._wait().serve(decision, head)
            else:
                self.reject(decision)
            return
        gate, internal = plane.gate, outcome.path_class is _INTERNAL
        if (internal and decision.has_body) or (
            gate is not None and (decision.form or decision.to_user_api)
        ):
            self._wait().serve(decision, head)
            return
        if gate is not None:
            if verdict is _AUTHENTICATED:
                identity = decision.identity
                assert identity is not None
                self.account = account = gate.known(identity)
                # The internal pages must work without Navidrome.
                if account is None and not internal:
                    self._wait().serve(decision, head)
                    return
            else:
                if not self._start_without_identity(decision, head, gate):
                    return
                decision = self.decision
                outcome = decision.outcome
                verdict = outcome.verdict
        line = decision.request_line
        assert line is not None
        if not decision.keep_alive:
            self._connection.keep_alive = False
        self.http10 = line.version == 10
        self.no_body = line.method == b"HEAD"
        self.upgrading = decision.upgrade
        if decision.has_navidrome_tokens:
            self.check_tokens()
            outcome = self.decision.outcome
        plane.counters.requests[outcome.index] += 1
        if verdict is _STRIPPED:
            plane.observer.request_decided(decision, self.ensure_request_id())
        elif verdict is _AUTHENTICATED and id(decision.trust_result) not in plane.identities:
            report_identity(plane, self)
        upstream = (plane.pool_for(decision) if internal else plane.pool).take()
        if upstream is None:
            self._wait().connect()
        else:
            self.forward(upstream)

    def _start_without_identity(self, decision: Decision, head: bytes, gate: AccountGate) -> bool:
        """Look for the password of a device. Return whether the request goes on at once."""
        plane = self._plane
        if (
            plane.devices is not None
            and accepts_devices(decision, plane.policy.paths)
            and not self._start_sign_in(decision, head)
        ):
            return False
        if self.decision.has_navidrome_tokens and not gate.users_listed:
            self._wait().serve(decision, head)
            return False
        return True

    def _start_sign_in(self, decision: Decision, head: bytes) -> bool:
        result = self.sign_in()
        if result.needs_list:
            self._wait().serve(decision, head)
            return False
        if result.refused is not None:
            self.refuse(result.refused)
            return False
        return not self.respond_with_token_info()

    def sign_in(self, body: bytes = b"", *, listed: bool = False) -> SignInResult:
        """Look for the password of a device, in a form's body too, and use it. `listed`: Navidrome's users
        were listed after the request arrived."""
        plane = self._plane
        assert plane.devices is not None
        self._abandon_response_filter()  # of an earlier look, before Navidrome's users were listed
        result = sign_in(
            plane.devices,
            plane.policy,
            self.decision,
            self.ensure_request_id,
            body,
            listed=listed,
        )
        self.decision = result.decision
        if result.response_filter is not None:
            self._response_filter = result.response_filter
        if result.device is not None:
            self.device, self.account = result.device, result.device.account
        return result

    def _abandon_response_filter(self) -> None:
        if self._response_filter is not None:
            self._response_filter.abandon()
            self._response_filter = None

    def respond_with_token_info(self) -> bool:
        """Respond to the call `tokenInfo` of a device. Return whether the request is one."""
        if self.device is None or not requests_token_info(self.decision, self._plane.policy.paths):
            return False
        own_responses.send_token_info(self, self._connection)
        return True

    def start_verification(self, pending: PendingVerification, head: bytes) -> None:
        """Decide once the token was verified."""
        self._wait().serve(pending, head)

    def use_decision(self, decision: Decision) -> None:
        """Set the decision, while the request waits."""
        self.decision = decision

    def use_account(self, account: Account | None) -> None:
        """Set the account that the request is sent as, None if it is not known."""
        self.account = account

    def accept(self, decision: Decision) -> None:
        """Set what the head of an accepted request says about the request and its connection."""
        line = decision.request_line
        assert line is not None
        if not decision.keep_alive:
            self._connection.keep_alive = False
        self.http10 = line.version == 10
        self.no_body = line.method == b"HEAD"
        self.upgrading = decision.upgrade

    # the slow path

    def _wait(self) -> WaitingRequest:
        """Return the slow path, which is to be started next."""
        self._waiting = waiting = WaitingRequest(self, self._connection)
        return waiting

    def form_received(self, data: bytes) -> None:
        """Buffer a piece of the form."""
        assert self._waiting is not None
        self._waiting.form_received(data)

    def hold_body(self, buffer: BodyBuffer) -> None:
        """Release this buffered body when the response begins, or can no longer begin."""
        self._buffer = buffer
        self._unfinished = True

    @property
    def form(self) -> bytes:
        """Return the body of a Subsonic request, if it was read and the shim may have to respond."""
        return b"" if self._waiting is None else self._waiting.form

    def cancel(self) -> None:
        """Cancel the request: abort the upstream connection, and every wait."""
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.abort()
        self._abandon_response_filter()
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.cancel()
        if self._unfinished:
            self._finish_request(response_began=False)

    def expired(self) -> None:
        """Handle the deadline of the connection's state."""
        connection = self._connection
        if connection.state is FORWARDING:
            uploading = not self.request_sent and not connection.read_paused
            self.fail(Failure.BODY_TIMEOUT if uploading else Failure.UPSTREAM_RESPONSE_TIMEOUT)
        elif self._waiting is not None:
            self._waiting.expired(connection.state)

    # the account of the request

    def check_tokens(self, *, listed: bool = False) -> None:
        """Remove the Navidrome tokens that are invalid. `listed`: Navidrome's users were listed after the
        request arrived."""
        before = self.decision
        self.decision = decision = without_invalid_tokens(
            before, self._plane.gate, self.account, listed=listed
        )
        removed = decision.void != before.void or decision.removed_tokens != before.removed_tokens
        if removed or decision.token_without_identity:
            report_tokens(self._plane, self)

    def check_account(self) -> None:
        """Cancel the current request if its account was revoked."""
        # The right to the shim's own pages does not come from the account: an administrator who locks the own
        # one gets the response.
        if self.decision.outcome.path_class is _INTERNAL:
            return
        # Navidrome has received all of a request that changes users: cancelling it here would not stop it,
        # and the lock waits for it.
        if self._user_write is None and not may_continue(self._plane, self):
            self.fail(Failure.ACCOUNT_REVOKED)

    # the request goes to Navidrome

    def forward(self, upstream: Upstream) -> None:
        """Send the request's head, and the available part of its body."""
        plane, connection, decision = self._plane, self._connection, self.decision
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
            account = self.account
            head = decision.render_head(None if account is None else account.user_name)
        upstream.begin(self, head)
        if not self._measured:
            # `_measure`, without its calls for most requests.
            self._measured = True
            seconds = perf_counter() - self.arrived
            if seconds <= FASTEST:
                plane.counters.latency_seconds += seconds
                plane.counters.latency[0] += 1
            else:
                plane.counters.observe_latency(seconds)
        metadata = block.metadata
        if not metadata.has_body:
            self.request_sent = True
            connection.deadline = plane.now + plane.limits.upstream_response_timeout
            if connection.read_buffer:
                if len(connection.read_buffer) > plane.limits.max_buffered_bytes:
                    connection.over_read_limit()
                else:
                    connection.resume_reading()
            return
        max_bytes = USER_BODY_BYTES if decision.writes_users else None
        self._upload = Upload(self, connection, plane.limits, metadata.length, max_bytes)
        self._upload.begin(expect_continue=metadata.expect_continue)

    def _announce_user_write(self, upstream: Upstream) -> bool:
        """Announce a request that can change users. Return whether it may be sent; if not, the request has
        failed."""
        gate, decision = self._plane.gate, self.decision
        if gate is None or not decision.writes_users:
            return True
        write = self._user_write
        if write is None:
            write = UserWrite(gate, decision, self.account)
            if not write.begin():
                # Not at once: that would run the next waiting request within this one's turn.
                pool = self._plane.pool_for(decision)
                asyncio.get_running_loop().call_soon(pool.release, upstream)
                self.fail(Failure.ACCOUNT_UNAVAILABLE)
                return False
            self._user_write = write
        if not self._unfinished:
            self._unfinished = True
            self._buffer = None
        write.sent()
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

    def pause_upload(self) -> None:
        """Pause the request body, since Navidrome does not read."""
        self.upload_paused = True
        self._connection.pause_reading()
        self._connection.set_deadline(self._plane.limits.send_timeout)

    def resume_upload(self) -> None:
        """Resume the request body, since Navidrome reads again."""
        connection, limits = self._connection, self._plane.limits
        self.upload_paused = False
        connection.resume_reading()
        if connection.read_paused:
            return
        if connection.state is FORWARDING and not self.request_sent:
            connection.set_deadline(limits.request_body_timeout)
        elif connection.state is FORWARDING and not self.response_begun:
            connection.set_deadline(limits.upstream_response_timeout)
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

    def response_started(self, status: int, lines: bytes) -> bytes:
        """Handle the start of the final response, just before its head is sent. Return the `Connection`
        header line for the client, empty if it needs none."""
        self.response_begun = True
        self._response_lines = lines
        self.response_status = status
        if status == 401:
            report_unauthorized(self._plane, self)
        if self._unfinished:
            self._finish_request(response_began=True)
        connection = self._connection
        if not self.request_sent:
            connection.keep_alive = False
        elif not connection.read_paused:
            connection.deadline = NEVER
        if not connection.keep_alive or self.upgrading:
            connection.keep_alive = False
            return b"Connection: close\r\n"
        return b"Connection: keep-alive\r\n" if self.http10 else b""

    def _finish_request(self, *, response_began: bool) -> None:
        """Run the actions that are due when the response begins, or can no longer begin."""
        self._unfinished = False
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            buffer.release()
        write, self._user_write = self._user_write, None
        if write is not None:
            write.end(response_began=response_began)

    def close_after_response(self) -> None:
        """Close the client's connection after this response."""
        self._connection.keep_alive = False

    def send(self, data: bytes) -> None:
        """Write to the client."""
        if self._response_filter is not None:
            data = self._response_filter.feed(data)
        self.bytes_sent += len(data)
        self._transport.write(data)

    def send_pieces(self, pieces: tuple[bytes, memoryview]) -> None:
        """Write to the client, without joining the pieces."""
        if self._response_filter is not None:
            self.send(b"".join(pieces))
            return
        self.bytes_sent += len(pieces[0]) + len(pieces[1])
        self._transport.writelines(pieces)

    def switch_to_tunnel(self, head: bytes) -> None:
        """Switch to a tunnel, since Navidrome switched to WebSocket: bytes are forwarded unchanged from now
        on."""
        connection = self._connection
        self._abandon_response_filter()
        connection.enter(TUNNEL)
        self.response_begun = True
        self._response_lines = b""
        self.response_status = 101
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
        response_filter = self._response_filter
        if response_filter is not None:
            self._response_filter = None
            last = response_filter.finish()
            if last:
                self.send(last)
        if self._plane.observer.logs_access:
            log_access(self._plane, self)
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
        if unused or self._retried or not is_retryable(self.decision, self._plane.policy.paths):
            self.fail(Failure.UPSTREAM_RESPONSE_MISSING)
            return
        self._retried = True
        self.request_sent = False
        self._plane.counters.retries += 1
        self._wait().connect(reuse=False)

    def response_truncated(self) -> None:
        """Handle a response that broke off: the client must not take it for a complete one."""
        self.upstream = None
        self._abandon_response_filter()
        if self._connection.state is TUNNEL:
            self._connection.linger()
            self._transport.close()
        else:
            own_responses.abort_response(
                self, self._connection, Failure.UPSTREAM_RESPONSE_TRUNCATED
            )

    @property
    def sends_media(self) -> bool:
        """Return whether the response is audio or video, whose player may be paused for a long time."""
        return self.response_begun and _MEDIA.search(self._response_lines) is not None

    def response_incomplete(self, failure: Failure) -> None:
        """Count and log the response in progress, if there is one: it is incomplete."""
        if not self.response_begun:
            return
        connection = self._connection
        in_progress = connection.state is FORWARDING and self.upstream is not None
        # Even if Navidrome sent the whole response, the client may not have read everything.
        if in_progress or connection.write_paused or self._transport.get_write_buffer_size():
            report_incomplete(self._plane, self, failure)
            if in_progress:
                log_access(self._plane, self, failure)

    # the shim's own responses

    def fail(self, failure: Failure) -> None:
        """Send an error response, since Navidrome sent none; if a response began, close the connection."""
        own_responses.fail(self, self._connection, failure)

    def reject(self, decision: Decision, retry_after: int | None = None) -> None:
        """Send the response of a rejected request. `retry_after` is in seconds."""
        self.decision = decision
        own_responses.reject(self, self._connection, retry_after)

    def reject_accepted(self, rejection: RequestRejected, retry_after: int | None = None) -> None:
        """Reject a request that was accepted before."""
        decision = self.decision
        rejected = reject(rejection, decision.source, decision.request_line, decision.block)
        self.reject(rejected, retry_after)

    def refuse(self, refused: DeviceRefused) -> None:
        """Send a Subsonic error for credentials that the shim refuses."""
        devices = self._plane.devices
        assert devices is not None
        devices.refused(self.decision, refused, self.ensure_request_id())
        self.reject_accepted(RequestRejected(refused.reason, refused.detail))

    def respond(self, status: int, response: bytes, *, keep_alive: bool) -> None:
        """Send a complete response of the shim, and end the request."""
        self.measure()
        connection = self._connection
        connection.keep_alive = keep_alive
        self._response_lines = b""
        self.response_status = status
        self.response_begun = True
        self.bytes_sent = len(response)
        log_access(self._plane, self)
        if keep_alive:
            self._transport.write(response)
            connection.enter_keep_alive()
        else:
            connection.send_and_close(response)

    # the request in metrics and log

    def measure(self) -> None:
        """Count the time since the head was complete as the shim's own share, once."""
        if not self._measured:
            self._measured = True
            self._plane.counters.observe_latency(perf_counter() - self.arrived)

    def ensure_request_id(self) -> str:
        """Return the request's id, which is created when it is needed."""
        if not self._request_id:
            self._request_id = new_request_id()
        return self._request_id
