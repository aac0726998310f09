"""The exchange with Navidrome: a request goes up, with back-pressure, and the response comes back.

What an `Upstream` tells of the response arrives here. Who asks and whether they may is decided before.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

from shim.http1.chunked import LAST_CHUNK, ChunkedDecoder, ChunkedError, encode_chunk
from shim.http1.framing import CHUNKED
from shim.proxy.failures import Failure
from shim.proxy.gate import Account
from shim.proxy.pool import UpstreamPool
from shim.proxy.request_body import BodyBuffer
from shim.proxy.responding import RespondingConnection
from shim.proxy.retry import is_retryable
from shim.proxy.server import NEVER, DataPlane
from shim.proxy.states import CONNECTING, FORWARDING, READING_HEAD, TUNNEL
from shim.proxy.upstream import Upstream
from shim.trust.decision import USER_BODY_BYTES, user_body_too_large
from shim.trust.reasons import PathClass, Reason
from shim.trust.rejection import RequestRejected

if TYPE_CHECKING:
    from uvicorn.server import ServerState

_UNLIMITED = -1
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# Chunks of a request's body that are decoded as they come, and in a turn of the connection's own. The first
# cost about as much as a request, the others a few times that.
_CHUNKS_AT_ONCE = 32
_CHUNKS_PER_TURN = 256
_PIECE = 16384  # bytes that a turn looks at
_MEDIA = re.compile(rb"(?im)^content-type:[ \t]*(?:audio|video)/")
# Members of an enumeration are dear to look up; what a request passes has them at hand.
_INTERNAL = PathClass.INTERNAL


class ForwardingConnection(RespondingConnection):
    """A connection whose decided request is sent on.

    `request_sent`: Navidrome has the whole request. `upload_paused`: it takes no more of it for now.
    `old`: the request came in HTTP/1.0. `bodiless`: its
    answer has no body, since it was a HEAD. `upgrading`: it asked for a WebSocket.
    """

    __slots__ = (
        "_account",
        "_body_remaining",
        "_buffer",
        "_decoder",
        "_response_lines",
        "_retried",
        "_unfinished",
        "_upstream",
        "_user_write",
        "http10",
        "no_body",
        "request_sent",
        "upgrading",
        "upload_paused",
    )

    def __init__(self, plane: DataPlane, server_state: ServerState) -> None:
        super().__init__(plane, server_state)
        self._account: Account | None = None
        self._upstream: Upstream | None = None
        self._decoder: ChunkedDecoder | None = None
        self._body_remaining = 0
        self._retried = False
        self._buffer: BodyBuffer | None = None
        self._unfinished = False  # something is to be done when the response comes, or never will
        # The accounts that a request to change users was sent for, while Navidrome has not answered it.
        self._user_write: tuple[str, ...] | None = None
        self.request_sent = True
        self.http10 = False
        self.no_body = False
        self.upgrading = False
        self.upload_paused = False
        self._response_lines = b""

    # what is built on it has to say

    def _recheck_account(self, upstream: Upstream) -> bool:
        """Whether the request has to be looked at again, now that a connection was waited for: then
        `upstream` has gone back to its pool."""
        raise NotImplementedError

    def _on_unauthorized(self) -> None:
        """Navidrome answered with 401."""
        raise NotImplementedError

    # the request

    def _pool(self) -> UpstreamPool:
        plane = self._plane
        if self._decision.outcome.path_class is _INTERNAL and plane.control_pool is not None:
            return plane.control_pool
        return plane.pool

    def _connect(self) -> None:
        pool = self._pool()
        upstream = pool.take()
        if upstream is not None:
            self.connection_ready(upstream)
            return
        self._await_connection(pool)

    def _await_connection(self, pool: UpstreamPool) -> None:
        self.enter(CONNECTING)
        self.deadline = self._plane.now + self._plane.limits.upstream_connect_timeout
        pool.acquire(self)

    def connection_ready(self, upstream: Upstream) -> None:
        """A connection to Navidrome is there: send the request."""
        if self.state is CONNECTING and self._recheck_account(upstream):
            return
        self.enter(FORWARDING)
        plane, decision = self._plane, self._decision
        if (
            decision.writes_users
            and plane.gate is not None
            and not self._begin_user_write(upstream)
        ):
            return
        self._upstream = upstream
        self.upload_paused = False
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
        length = block.metadata.length
        if length == CHUNKED:
            self._decoder = ChunkedDecoder()
            self._body_remaining = USER_BODY_BYTES if decision.writes_users else _UNLIMITED
        elif length > 0:
            self._decoder = None
            self._body_remaining = length
        else:
            self.request_sent = True
            self.deadline = plane.now + plane.limits.upstream_response_timeout
            if self._read_buffer:
                if len(self._read_buffer) > plane.limits.max_buffered_bytes:
                    self._over_read_limit()
                else:
                    self._resume_reading()
            return
        self.deadline = plane.now + plane.limits.request_body_timeout
        if block.metadata.expect_continue and not self._read_buffer and not self.http10:
            self._transport.write(CONTINUE)
        data = bytes(self._read_buffer)
        self._read_buffer.clear()
        self._resume_reading()
        if data:
            self._upload(data)  # which may pause reading again

    def _begin_user_write(self, upstream: Upstream) -> bool:
        """Announce a request that can change users. Return whether it may be sent; if not, it is rejected."""
        gate, account = self._plane.gate, self._account
        assert gate is not None
        ids = {claims.user_id for claims in self._decision.claims}
        if account is not None and account.id is not None:
            ids.add(account.id)
        write = tuple(ids)
        if self._user_write is None and not gate.user_write_started(write):
            self._return_connection(upstream)
            self.failed(Failure.ACCOUNT_UNAVAILABLE)
            return False
        self._user_write = write
        self._unfinished = True
        gate.users_may_have_changed()
        return True

    def _return_connection(self, upstream: Upstream) -> None:
        """Give a connection back to its pool unused."""
        # Not at once: it would be the next waiting client's turn to think again, within this one's.
        asyncio.get_running_loop().call_soon(self._pool().release, upstream)

    def connection_failed(self, failure: Failure) -> None:
        """There is no connection to Navidrome."""
        self.failed(failure)

    def _upload(self, data: bytes) -> None:
        """Send a piece of the request's body on, and keep what follows it."""
        upstream, plane = self._upstream, self._plane
        assert upstream is not None
        remainder = b""
        self.deadline = plane.now + plane.limits.request_body_timeout
        if self._decoder is None:
            remaining = self._body_remaining - len(data)
            if remaining < 0:
                data, remainder = data[:remaining], data[remaining:]
            self._body_remaining = max(0, remaining)
            upstream.write(data)
            self.request_sent = remaining <= 0
        else:
            used = 0 if self._queued else self._decode(data, _CHUNKS_AT_ONCE)
            if used < 0:
                return
            remainder = data[used:]
            if remainder and not self.request_sent:
                self._read_buffer += remainder
                self._pause_reading()
                self._enqueue()
                return
        if self.request_sent:
            self._upload_ends()
            if remainder:
                self._buffer_data(remainder)

    def _upload_kept(self) -> None:
        """Decode the next chunks that are kept, for one turn of the loop."""
        self.deadline = self._plane.now + self._plane.limits.request_body_timeout
        used = self._decode(bytes(self._read_buffer[:_PIECE]), _CHUNKS_PER_TURN)
        if used < 0:
            return
        del self._read_buffer[:used]
        if self.request_sent:
            self._upload_ends()
        elif self._read_buffer:
            self._enqueue()
            return
        if not self.upload_paused:
            self._resume_reading()
        if self.request_sent and len(self._read_buffer) > self._plane.limits.max_buffered_bytes:
            self._over_read_limit()

    def _decode(self, data: bytes, max_lines: int) -> int:
        """Send the chunks of `data` on, put together into one. Return how many bytes were read, -1 where the
        request is rejected for its coding."""
        assert self._decoder is not None and self._upstream is not None
        try:
            pieces, used = self._decoder.feed(data, max_lines)
        except ChunkedError as error:
            self._reject_body(RequestRejected(Reason.AMBIGUOUS_FRAMING, str(error)))
            return -1
        if self._body_remaining != _UNLIMITED:
            self._body_remaining -= sum(map(len, pieces))
            if self._body_remaining < 0:
                self._reject_body(user_body_too_large())
                return -1
        self.request_sent = self._decoder.done
        self._upstream.write(encode_chunk(pieces) + (LAST_CHUNK if self.request_sent else b""))
        return used

    def _upload_ends(self) -> None:
        plane = self._plane
        self._decoder = None
        self.deadline = (
            NEVER if self._response_started else plane.now + plane.limits.upstream_response_timeout
        )

    def _over_read_limit(self) -> None:
        """Pause reading where what is kept may be a request's body; end the connection where the client sent
        it after a whole request, whose response it does not wait for."""
        state = self.state
        if state is READING_HEAD or (state is FORWARDING and self.request_sent):
            # The next head may be longer than what is kept.
            if len(self._read_buffer) > self._plane.limits.header_bytes + 4:
                self.failed(Failure.SENT_AHEAD)
        elif not self._read_paused:
            self._pause_reading()
            self.deadline = min(self.deadline, self._plane.now + self._plane.limits.send_timeout)

    def _reject_body(self, refused: RequestRejected) -> None:
        if self._response_started:
            self.abort()
            return
        self._reject_after_all(refused)

    def pause_upload(self) -> None:
        """Navidrome takes no more of the request for now."""
        self.upload_paused = True
        self._pause_reading()
        self.deadline = self._plane.now + self._plane.limits.send_timeout

    def resume_upload(self) -> None:
        """Navidrome takes more."""
        self.upload_paused = False
        self._resume_reading()
        if self._read_paused:
            return
        limits = self._plane.limits
        if self.state is FORWARDING and not self.request_sent:
            self.deadline = self._plane.now + limits.request_body_timeout
        elif self.state is FORWARDING and not self._response_started:
            self.deadline = self._plane.now + limits.upstream_response_timeout
        else:
            self.deadline = NEVER

    # the response

    def response_started(self, status: int, lines: bytes) -> None:
        """The head of the final response is about to be sent."""
        self._response_started = True
        self._response_lines = lines
        self._response_status = status
        if status == 401:
            self._on_unauthorized()
        if self._unfinished:
            self._finish_request(answered=True)
        if not self.request_sent:
            self.keep_alive = False
        elif not self._read_paused:
            self.deadline = NEVER

    def _finish_request(self, *, answered: bool) -> None:
        """Do what was left for when the response comes (`answered`), or never will."""
        self._unfinished = False
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            buffer.release()
        write, self._user_write = self._user_write, None
        if write is not None:
            gate = self._plane.gate
            assert gate is not None
            gate.user_write_ended(write, answered=answered)
            gate.users_may_have_changed()

    def connection_line(self) -> bytes:
        """The line that tells the client whether the connection lasts."""
        if not self.keep_alive or self.upgrading:
            self.keep_alive = False
            return b"Connection: close\r\n"
        return b"Connection: keep-alive\r\n" if self.http10 else b""

    def send(self, data: bytes) -> None:
        """Write to the client."""
        self._bytes_sent += len(data)
        self._transport.write(data)

    def send_pieces(self, pieces: tuple[bytes, memoryview]) -> None:
        """Write to the client, without putting the pieces together."""
        self._bytes_sent += len(pieces[0]) + len(pieces[1])
        self._transport.writelines(pieces)

    def switch_to_tunnel(self, head: bytes) -> None:
        """Navidrome switched to WebSocket: from now on bytes pass as they are."""
        self.enter(TUNNEL)
        self._response_started = True
        self._response_status = 101
        self._plane.counters.tunnels_open += 1
        self.deadline = NEVER
        self.send(head)
        data = bytes(self._read_buffer)
        self._read_buffer.clear()
        self._resume_reading()
        if data:
            assert self._upstream is not None
            self._upstream.write(data)  # which may pause reading again

    def response_complete(self) -> None:
        """The response is whole."""
        self._upstream = None
        if self._plane.observer.logs_access:
            self._log_access()
        if not self.keep_alive:
            self._send_and_close(b"")
            return
        self._enter_keep_alive()
        self._resume()

    def upstream_closed_early(self, *, unused: bool) -> None:
        """The connection went before a byte of the response: try another one, where that is safe."""
        self._upstream = None
        line, block = self._decision.request_line, self._decision.block
        assert line is not None and block is not None
        length = block.metadata.length
        repeatable = length <= 0 and length != CHUNKED and not self.upgrading
        if unused or self._retried or not repeatable:
            self.failed(Failure.UPSTREAM_RESPONSE_MISSING)
            return
        if not is_retryable(line, self._plane.decisions.policy.paths):
            self.failed(Failure.UPSTREAM_RESPONSE_MISSING)
            return
        self._retried = True
        self.request_sent = False
        self._plane.counters.retries += 1
        self._await_connection(self._pool())

    def response_truncated(self) -> None:
        """The response broke off: the client must not take it for whole."""
        self._upstream = None
        if self.state is not TUNNEL:
            if self._plane.observer.logs_access:
                self._log_access(Failure.UPSTREAM_RESPONSE_TRUNCATED)
            self._report_incomplete(Failure.UPSTREAM_RESPONSE_TRUNCATED)
            self.abort()
        else:
            self._linger()
            self._transport.close()

    # the client

    def pause_writing(self) -> None:
        self.write_paused = True
        self.send_deadline = self._plane.now + self._send_timeout()
        if self._upstream is not None:
            self._upstream.pause()

    def resume_writing(self) -> None:
        self.write_paused = False
        self.send_deadline = NEVER
        if self._upstream is not None:
            self._upstream.resume()
        self._resume()

    def _send_timeout(self) -> float:
        limits = self._plane.limits
        media = _MEDIA.search(self._response_lines) is not None
        return max(limits.send_timeout, limits.media_stall_timeout if media else 0.0)

    def _response_incomplete(self, failure: Failure) -> None:
        if not self._response_started:
            return
        under_way = self.state is FORWARDING and self._upstream is not None
        # Also of a response that Navidrome gave whole, the client may not have taken everything.
        if under_way or self.write_paused or self._transport.get_write_buffer_size():
            self._report_incomplete(failure)
            if under_way and self._plane.observer.logs_access:
                self._log_access(failure)

    def _cancel_pending(self) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abort()
        if self._unfinished:
            self._finish_request(answered=False)
        if self.state is CONNECTING:
            self._pool().cancel(self)
