"""A client's connection: the socket, the read buffer, flow control, deadlines, and where a head ends.

`ClientConnection` is the HTTP protocol class that uvicorn uses. Each request head gets a `RequestHandler`,
which decides and forwards; one request is handled at a time. Pipelined data is buffered up to a limit, then
reading pauses. `states.py` defines the states.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from time import perf_counter
from typing import TYPE_CHECKING, Any, NoReturn, cast

from shim.proxy.error_responses import UNASSIGNED_REQUEST_ID, error_response
from shim.proxy.failures import Failure
from shim.proxy.request_handler import RequestHandler
from shim.proxy.request_reports import count_unanswered
from shim.proxy.server import NEVER, DataPlane
from shim.proxy.states import (
    BUFFERING_FORM,
    CLOSING,
    FORWARDING,
    READING_HEAD,
    TRANSITIONS,
    TUNNEL,
    VERIFYING,
    IllegalTransition,
    State,
)
from shim.trust.cached_decisions import ConnectionContext, DecisionCache, PendingVerification
from shim.trust.decision import Decision
from shim.trust.peers import Peer, parse_peer
from shim.trust.reasons import Reason, Verdict

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

SHUTDOWN_IDLE_SECONDS = 0.5
RELEASE_SECONDS = 2.0  # an idle connection keeps its last request this long
# The number of buffered heads that are read in one turn of the event loop; the rest wait for another turn.
_HEADS_PER_TURN = 8
_TLS = b"\x16\x03"  # a handshake record (RFC 8446 §5.1)
_BARE_LF = re.compile(rb"(?<!\r)\n")
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset
# Enum members are slow to look up, so those that each request uses are module constants.
_REJECTED = Verdict.REJECTED


class ClientConnection(asyncio.Protocol):
    """A client's socket.

    `handler` belongs to the current or the last request; it is None before the first request and after an
    idle time. `keep_alive`: another request may follow. `write_paused`: the client does not read at the
    moment. `read_paused`: the shim does not read from the client. `deadline` ends the state; `send_deadline`
    is for written bytes that the client has not read.
    """

    __slots__ = (
        "_aborted",
        "_context",
        "_decisions",
        "_empty_line_seen",
        "_queued",
        "_release_due",
        "_searched",
        "_server_state",
        "_untrusted",
        "deadline",
        "handler",
        "keep_alive",
        "peer",
        "plane",
        "read_buffer",
        "read_paused",
        "send_deadline",
        "state",
        "transport",
        "write_paused",
    )

    def __init__(
        self,
        config: Config,  # noqa: ARG002 - uvicorn passes it to every protocol class
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.plane: DataPlane = app_state["plane"]
        self._server_state = server_state
        self.transport: asyncio.Transport
        self.peer: Peer
        self.state = READING_HEAD
        self.handler: RequestHandler | None = None
        self.read_buffer = bytearray()  # bytes that were read and not yet parsed
        self._searched = 0  # length of the searched prefix that has no end of a head
        self._empty_line_seen = False
        self._queued = False  # waits for a turn of the event loop
        self.read_paused = False
        self._release_due = False  # `deadline` is the time to release the last request
        self._untrusted = False
        self._aborted = False  # by the shim, which has logged the reason
        self._decisions: DecisionCache | None = None
        self._context: ConnectionContext
        self.keep_alive = True
        self.write_paused = False
        self.deadline = NEVER
        self.send_deadline = NEVER

    def enter(self, state: State) -> None:
        """Change the state. Raises `IllegalTransition`, after aborting the connection, for a transition that
        the table does not list."""
        if state not in TRANSITIONS[self.state]:
            self._abort_illegal(state)
        self.state = state

    def _abort_illegal(self, state: State) -> NoReturn:
        self.abort()
        raise IllegalTransition(self.state, state)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        plane = self.plane
        plane.connections.add(self)
        self._server_state.connections.add(cast("Any", self))
        self.deadline = plane.now + plane.limits.request_header_timeout
        peername = transport.get_extra_info("peername")
        if peername is None:
            # The client reset the connection before it was accepted. It has no address, but it is not a Unix
            # peer.
            plane.counters.client_connections += 1
            self.enter(CLOSING)
            self.transport.abort()
            return
        self.peer = parse_peer(peername[0] if isinstance(peername, tuple) else "")
        self._untrusted = plane.connection_opened(self.peer)
        if plane.over_limit(untrusted=self._untrusted):
            self._reject_over_limit()

    def _reject_over_limit(self) -> None:
        limit = self.plane.limits.max_connections
        if self.plane.counters.client_connections > limit + max(8, limit // 8):
            # Even a rejection needs a file descriptor for a short time.
            self.enter(CLOSING)
            self.transport.abort()
        else:
            self.send_and_close(error_response(503, None, UNASSIGNED_REQUEST_ID, retry_after=5))

    def data_received(self, data: bytes) -> None:
        state = self.state
        if state is READING_HEAD:
            if self.write_paused or self._queued:
                self.buffer_data(data)
            elif self.read_buffer or not self._serve_single(data):
                self.read_buffer += data
                self._serve()
            return
        handler = self.handler
        assert handler is not None or state is CLOSING
        if handler is None or state is CLOSING:
            return
        if state is FORWARDING and not handler.request_sent:
            handler.upload(data)
        elif state is TUNNEL:
            handler.send_through_tunnel(data)
        elif state is BUFFERING_FORM:
            handler.form_received(data)
        else:
            self.buffer_data(data)

    def eof_received(self) -> bool:
        # A client that closes its side while a response is pending has disconnected (RFC 9112 §9.6).
        state, handler = self.state, self.handler
        if handler is not None:
            if state is FORWARDING and handler.response_begun:
                handler.response_incomplete(Failure.CLIENT_LEFT)
                self.abort()
                return False
            if state is TUNNEL:
                handler.end_tunnel()
            handler.cancel()
        if state is not CLOSING:
            self.linger()
        if state is not TUNNEL:
            self.enter(CLOSING)
        return False

    def pause_writing(self) -> None:
        self.write_paused = True
        self.send_deadline = self.plane.now + self._send_timeout()
        if self.handler is not None:
            self.handler.pause_upstream()

    def resume_writing(self) -> None:
        self.write_paused = False
        self.send_deadline = NEVER
        if self.handler is not None:
            self.handler.resume_upstream()
        self.resume()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.plane.connection_closed(untrusted=self._untrusted)
        self.plane.connections.discard(self)
        self.plane.paused.pop(self, None)
        self._server_state.connections.discard(cast("Any", self))
        if self.state is TUNNEL:
            self.plane.counters.tunnels_open -= 1
        if not self._aborted:
            self._response_incomplete(Failure.CLIENT_LEFT)
        self._cancel()
        self.enter(CLOSING)
        self.handler = None

    # the end of a connection

    def shutdown(self) -> None:
        """Close the connection after the next response, since the server stops. An idle connection stays open
        for a short time, since a request may be in transit."""
        self.keep_alive = False
        if self.state is READING_HEAD and not self.read_buffer:
            now = asyncio.get_running_loop().time()
            self.deadline = min(self.deadline, now + SHUTDOWN_IDLE_SECONDS)

    def abort(self) -> None:
        """Abort the connection now, even during a request, with a reset: after a FIN, a body that has neither
        a length nor chunks would look complete."""
        self._cancel()
        self.read_buffer.clear()
        self._aborted = True
        self.transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE
        )
        self.transport.abort()

    def abort_at_shutdown(self) -> None:
        """Abort the connection now, since the shutdown timeout has passed."""
        self._response_incomplete(Failure.SHUTDOWN)
        self.abort()

    def send_timed_out(self) -> None:
        """Abort the connection whose client did not read written bytes in time."""
        if not self._aborted:
            self._response_incomplete(Failure.SEND_TIMEOUT)
            self.abort()

    def client_disconnected(self, *, reset: bool) -> None:
        """Close the connection whose client has disconnected while reading is paused; `reset`: both
        directions ended.

        Bytes that the client sent into a tunnel before it disconnected must still reach Navidrome, so only a
        reset closes a tunnel.
        """
        if reset or self.state is not TUNNEL:
            self._response_incomplete(Failure.CLIENT_LEFT)
            self.abort()

    def check_account(self) -> None:
        """Cancel the current request if its account was revoked."""
        if self.handler is not None and (self.state is FORWARDING or self.state is TUNNEL):
            self.handler.check_account()

    def expired(self) -> None:
        """Handle the deadline of the state."""
        due, self.deadline = self.deadline, NEVER
        state, handler = self.state, self.handler
        if state is READING_HEAD:
            if self.read_buffer and not self.write_paused:
                self._reject_unparsed(Reason.HEAD_TIMEOUT, "no whole head")
            else:
                self._release_or_close(due)
        elif handler is not None and state not in (VERIFYING, TUNNEL, CLOSING):
            handler.expired()
        elif self.transport.get_write_buffer_size():
            self.send_timed_out()
        else:
            self.transport.abort()

    def _release_or_close(self, due: float) -> None:
        """Drop the last request, which may hold 64 kB, or close the connection if it has been idle too long;
        `due` is the deadline that has passed."""
        plane = self.plane
        due += plane.limits.idle_timeout - RELEASE_SECONDS
        if not self._release_due or not self.keep_alive or due < plane.now:
            self._close_idle()
            return
        self._release_due = False
        self.deadline = due
        if not self.write_paused and not self.transport.get_write_buffer_size():
            self.handler = None

    def _response_incomplete(self, failure: Failure) -> None:
        if self.handler is not None:
            self.handler.response_incomplete(failure)

    def _cancel(self) -> None:
        if self.handler is not None:
            self.handler.cancel()

    def send_and_close(self, response: bytes) -> None:
        """Send `response`, close the sending direction, and give the client time to read it.

        Closing at once would reset a connection on which bytes are still unread, and the client might lose
        the response (RFC 9112 §9.6).
        """
        self.enter(CLOSING)
        self.read_buffer.clear()
        transport = self.transport
        if response:
            transport.write(response)
        self.linger()
        if self.read_paused:
            self.read_paused = False
            self.plane.paused.pop(self, None)
            transport.resume_reading()
        if transport.can_write_eof():
            transport.write_eof()
        else:
            transport.close()

    def _close_idle(self) -> None:
        self.enter(CLOSING)
        self.linger()
        self.transport.close()

    def linger(self) -> None:
        """Wait a short time for the client to disconnect; longer if it has not read everything that was
        written."""
        transport = self.transport
        # With TLS the number of unsent bytes is unknown; uvloop completes such a close by itself.
        unsent = transport.get_write_buffer_size() or not transport.can_write_eof()
        self.deadline = self.plane.now + (
            self._send_timeout() if unsent else self.plane.limits.linger_timeout
        )

    def _send_timeout(self) -> float:
        """Return how many seconds written bytes may wait until the client reads them."""
        limits = self.plane.limits
        media = self.handler is not None and self.handler.sends_media
        return max(limits.send_timeout, limits.media_stall_timeout if media else 0.0)

    # reading

    def buffer_data(self, data: bytes) -> None:
        """Buffer data that can't be read yet."""
        self.read_buffer += data
        if len(self.read_buffer) > self.plane.limits.max_buffered_bytes:
            self.over_read_limit()

    def take_buffer(self) -> bytes:
        """Return the buffered bytes, and clear the buffer."""
        data = bytes(self.read_buffer)
        self.read_buffer.clear()
        return data

    def over_read_limit(self) -> None:
        """Pause reading if the buffered bytes may be a request's body. Close the connection if the client
        sent them after a complete request without waiting for the response."""
        state, handler = self.state, self.handler
        if state is READING_HEAD or (
            state is FORWARDING and handler is not None and handler.request_sent
        ):
            # The next head may be longer than the limit on buffered bytes.
            if len(self.read_buffer) > self.plane.limits.header_bytes + 4:
                if handler is None:
                    self.abort()
                else:
                    handler.fail(Failure.SENT_AHEAD)
        elif not self.read_paused:
            self.pause_reading()
            self.deadline = min(self.deadline, self.plane.now + self.plane.limits.send_timeout)

    def set_deadline(self, seconds: float) -> None:
        """Set the deadline of the state, in seconds from now."""
        self.deadline = self.plane.now + seconds

    def pause_reading(self) -> None:
        """Pause reading from the client."""
        if not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()
            self.plane.paused[self] = None

    def resume_reading(self) -> None:
        """Resume reading from the client, unless the buffer is full."""
        # Between requests the buffer has the start of a head, which has its own limit.
        if self._queued or not self.read_paused:
            return
        unfinished = self.state is READING_HEAD and not self.write_paused
        if unfinished or len(self.read_buffer) <= self.plane.limits.max_buffered_bytes:
            self.read_paused = False
            self.transport.resume_reading()
            self.plane.paused.pop(self, None)

    def descriptor(self) -> int:
        """Return the file descriptor of the client's socket, -1 if it is closed."""
        descriptor: int = self.transport.get_extra_info("socket").fileno()
        return descriptor

    # work that is split into turns of the event loop

    @property
    def queued(self) -> bool:
        """Return whether the connection waits for a turn of the event loop."""
        return self._queued

    def enqueue(self) -> None:
        """Continue in one of the next turns of the event loop, and do not read until then."""
        if not self._queued:
            self._queued = True
            self.plane.verification_queue.enqueue(self)

    def run(self) -> None:
        """Continue with the work that was left for this turn: chunks of a body, or heads."""
        self._queued = False
        handler = self.handler
        if self.state is FORWARDING and handler is not None:
            if not handler.request_sent and handler.upstream is not None:
                handler.upload_buffered()
        elif self.state is READING_HEAD:
            self.resume()

    # heads

    def enter_keep_alive(self) -> None:
        """Prepare for another request, after a complete response."""
        if READING_HEAD not in TRANSITIONS[self.state]:  # `enter`, without a call on the hot path
            self._abort_illegal(READING_HEAD)
        self.state = READING_HEAD
        self._release_due = True
        self.deadline = self.plane.now + RELEASE_SECONDS  # the idle timeout follows it

    def resume(self) -> None:
        """Serve the bytes that were buffered during a request."""
        if self.state is READING_HEAD:
            if self.read_buffer:
                self._serve()
            if self.read_paused:
                self.resume_reading()

    def context(self) -> ConnectionContext:
        """Return the connection's part of the decision's input, under the policy in force."""
        decisions = self.plane.decisions
        if self._decisions is not decisions:
            scheme = b"https" if self.transport.get_extra_info("sslcontext") else b"http"
            self._decisions = decisions
            self._context = decisions.connection_context(self.peer, scheme)
        return self._context

    def evaluate(self, head: bytes) -> Decision | PendingVerification:
        """Decide on a complete head, including its empty line."""
        plane = self.plane
        return plane.decisions.evaluate(head, self.context(), plane.time)

    def _serve(self) -> None:
        """Serve the buffered heads one after the other while no request is in progress; at most
        `_HEADS_PER_TURN` in one turn of the event loop."""
        if self._queued:
            return
        remaining = _HEADS_PER_TURN
        while self.state is READING_HEAD and self.read_buffer and not self.write_paused:
            if not remaining:
                self.pause_reading()
                self.enqueue()
                return
            remaining -= 1
            if not self._empty_line_seen and self.read_buffer.startswith(b"\r\n"):
                # RFC 9112 §2.2: one empty line before a request line is ignored.
                self._empty_line_seen = True
                self._searched = 0
                del self.read_buffer[:2]
                continue
            if self.read_buffer.startswith(_TLS):
                self._reject_tls()
                return
            end = self.read_buffer.find(b"\r\n\r\n", self._searched)
            if end < 0:
                if not self._searched:
                    self.deadline = self.plane.now + self.plane.limits.request_header_timeout
                if _BARE_LF.search(self.read_buffer, self._searched):
                    # A client that uses bare LF would wait forever; reject it now.
                    self._reject_unparsed(
                        Reason.MALFORMED_HEAD, "a line of the head ends in LF without CR"
                    )
                    return
                self._searched = max(1, len(self.read_buffer) - 3)
                if self._searched > self.plane.limits.header_bytes:
                    self._too_large()
                return
            if end > self.plane.limits.header_bytes:
                self._too_large()
                return
            head = bytes(self.read_buffer[: end + 4])
            del self.read_buffer[: end + 4]
            self._searched = 0
            self._empty_line_seen = False
            arrived = perf_counter()
            self._handle(self.evaluate(head), head, arrived)

    def _serve_single(self, data: bytes) -> bool:
        """Serve `data` at once if it is exactly one complete head, which is the usual case."""
        plane = self.plane
        if not data.endswith(b"\r\n\r\n") or len(data) - 4 > plane.limits.header_bytes:
            return False
        arrived = perf_counter()
        decisions = plane.decisions
        context = self._context if self._decisions is decisions else self.context()
        decision = decisions.evaluate(data, context, plane.time)
        if isinstance(decision, PendingVerification):
            self._handle(decision, data, arrived)
            return True
        if decision.outcome.verdict is _REJECTED and (
            data.startswith(b"\r\n") or b"\r\n\r\n" in data[:-2]
        ):
            # It was more than one head, or an empty line came first: an accepted header block has no empty
            # line in it.
            return False
        self._empty_line_seen = False
        self.handler = handler = RequestHandler(self, arrived)
        handler.start(decision, data)
        return True

    def _handle(self, found: Decision | PendingVerification, head: bytes, arrived: float) -> None:
        self.handler = handler = RequestHandler(self, arrived)
        if isinstance(found, PendingVerification):
            handler.start_verification(found, head)
        else:
            handler.start(found, head)

    def _reject_tls(self) -> None:
        """Close a connection on which the client speaks TLS: it can't read a response in plain HTTP."""
        detail = "a TLS handshake on the port for plain HTTP"
        decision = self.plane.decisions.reject(Reason.MALFORMED_HEAD, detail, self.context())
        count_unanswered(self.plane, decision, report=self.plane.reports_tls(self.peer))
        self.send_and_close(b"")

    def _too_large(self) -> None:
        limit = self.plane.limits.header_bytes
        self._reject_unparsed(Reason.HEAD_TOO_LARGE, f"the head has more than {limit} bytes")

    def _reject_unparsed(self, reason: Reason, detail: str) -> None:
        """Reject a request whose head could not be parsed."""
        line, _, _ = bytes(self.read_buffer[: self.plane.limits.header_bytes]).partition(b"\r\n")
        self.handler = handler = RequestHandler(self, perf_counter())
        handler.reject(self.plane.decisions.reject(reason, detail, self.context(), line))
