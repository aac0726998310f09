"""One connection from the edge: it reads requests, has them decided, and sends them on.

The class that uvicorn is given as its HTTP protocol, in five layers, each a file: the socket
(`client_connection`), the shim's own responses (`responding`), the exchange with Navidrome (`forwarding`),
what becomes of a head (`deciding`), and here the bytes as they come. One request is under way at a time; what
a client sends ahead is kept up to a bound, then reading pauses. The states are in `states.py`.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

from shim.proxy import states
from shim.proxy.client_connection import RELEASE_SECONDS
from shim.proxy.deciding import DecidingConnection
from shim.proxy.failures import Failure
from shim.proxy.server import NEVER
from shim.proxy.states import BUFFERING_FORM, CLOSING, FORWARDING, READING_HEAD, TUNNEL
from shim.trust.cached_decisions import PendingVerification
from shim.trust.reasons import Reason, Verdict

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

# Heads that are kept and read in one turn of the loop; the next ones have to wait for another.
_HEADS_PER_TURN = 8
_TLS = b"\x16\x03"  # a handshake record (RFC 8446 §5.1)
_BARE_LF = re.compile(rb"(?<!\r)\n")
# Members of an enumeration are dear to look up; what a request passes has them at hand.
_REJECTED = Verdict.REJECTED


class Downstream(DecidingConnection):
    """A client's connection, whole."""

    __slots__ = ("_empty_line_seen", "_searched")

    def __init__(
        self,
        config: Config,  # noqa: ARG002 - uvicorn hands it to every protocol class
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(app_state["plane"], server_state)
        self._searched = 0
        self._empty_line_seen = False

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        state = self.state
        if state is READING_HEAD:
            if self.write_paused or self._queued:
                self._buffer_data(data)
            elif self._read_buffer or not self._serve_single(data):
                self._read_buffer += data
                self._serve()
        elif state is FORWARDING and not self.request_sent:
            self._upload(data)
        elif state is TUNNEL:
            assert self._upstream is not None
            self._upstream.write(data)
        elif state is BUFFERING_FORM:
            self._read_form(data)
        elif state is not CLOSING:
            self._buffer_data(data)

    def eof_received(self) -> bool:
        # Whoever ends their side while a response is pending has left: RFC 9112 §9.6 lets a server say so.
        state = self.state
        if state is FORWARDING and self._response_started:
            self._response_incomplete(Failure.CLIENT_LEFT)
            self.abort()
            return False
        if state is TUNNEL and self._upstream is not None:
            upstream, self._upstream = self._upstream, None
            upstream.half_close()
        self._cancel_pending()
        if state is not CLOSING:
            self._linger()
        if state is not TUNNEL:
            self.enter(CLOSING)
        return False

    def expired(self) -> None:
        """The deadline of the phase has passed."""
        due, self.deadline = self.deadline, NEVER
        match self.state:
            case states.READING_HEAD if self._read_buffer and not self.write_paused:
                self._reject_unparsed(Reason.HEAD_TIMEOUT, "no whole head")
            case states.READING_HEAD:
                self._release_or_close(due)
            case states.FORWARDING if not self.request_sent and not self._read_paused:
                self.failed(Failure.BODY_TIMEOUT)
            case states.FORWARDING:
                self.failed(Failure.UPSTREAM_RESPONSE_TIMEOUT)
            case states.FETCHING_JWKS:
                self._reject(self._decision)
                self._resume()
            case states.PROVISIONING:
                self.failed(Failure.ACCOUNT_TIMEOUT)
            case states.BUFFERING_FORM:
                self.failed(Failure.BODY_TIMEOUT)
            case states.CONNECTING:
                self.failed(Failure.CONNECT_TIMEOUT)
            case _ if self._transport.get_write_buffer_size():
                self.send_timed_out()
            case _:
                self._transport.abort()

    def _release_or_close(self, due: float) -> None:
        """Drop the last request's decision, which may hold 64 kB, or close the connection where it has been
        idle for long enough; `due` was the deadline."""
        plane = self._plane
        due += plane.limits.idle_timeout - RELEASE_SECONDS
        if not self._release_due or not self.keep_alive or due < plane.now:
            self._close_idle()
            return
        self._release_due = False
        self.deadline = due
        if not self.write_paused and not self._transport.get_write_buffer_size():
            self._response_started = False  # so nothing more is said of it
            self._account = None
            self._response_lines = b""
            del self._decision

    # heads

    def _serve(self) -> None:
        """Read the heads that are kept, one after the other, as long as nothing is under way; so many in
        one turn of the loop."""
        if self._queued:
            return
        left = _HEADS_PER_TURN
        while self.state is READING_HEAD and self._read_buffer and not self.write_paused:
            if not left:
                self._pause_reading()
                self._enqueue()
                return
            left -= 1
            if not self._empty_line_seen and self._read_buffer.startswith(b"\r\n"):
                # RFC 9112 §2.2: one empty line before a request line is ignored.
                self._empty_line_seen = True
                self._searched = 0
                del self._read_buffer[:2]
                continue
            if self._read_buffer.startswith(_TLS):
                self._reject_tls()
                return
            end = self._read_buffer.find(b"\r\n\r\n", self._searched)
            if end < 0:
                if not self._searched:
                    self.deadline = self._plane.now + self._plane.limits.request_header_timeout
                if _BARE_LF.search(self._read_buffer, self._searched):
                    # A client using bare LF would hang; reject now.
                    self._reject_unparsed(
                        Reason.MALFORMED_HEAD, "a line of the head ends in LF alone"
                    )
                    return
                self._searched = max(1, len(self._read_buffer) - 3)
                if self._searched > self._plane.limits.header_bytes:
                    self._too_large()
                return
            if end > self._plane.limits.header_bytes:
                self._too_large()
                return
            data = bytes(self._read_buffer[: end + 4])
            del self._read_buffer[: end + 4]
            self._searched = 0
            self._empty_line_seen = False
            self._evaluate(data)

    def _serve_single(self, data: bytes) -> bool:
        """Serve `data` at once if it is one whole head and nothing else, as most requests come."""
        if not data.endswith(b"\r\n\r\n"):
            return False
        decisions = self._plane.decisions
        context = self._context if self._decisions is decisions else self._connection_context()
        at = data.find(b"\r\n")
        if not at:
            return False
        block_text = data[at + 2 : -2]
        block = decisions.cached_headers(block_text, context)
        if len(data) - 4 > self._plane.limits.header_bytes:
            return False
        self._empty_line_seen = False
        decision = decisions.evaluate(data[:at], block_text, context, block, self._plane.time)
        if isinstance(decision, PendingVerification):
            self._await_verification(decision, data)
            return True
        if decision.outcome.verdict is _REJECTED and b"\r\n\r\n" in data[at:-2]:
            # It was more than one head: a block that is read has no empty line in it.
            return False
        self._apply_decision(decision, data)
        return True

    def _reject_tls(self) -> None:
        """Close a connection on which TLS is spoken: a response in plain HTTP is nothing to its client."""
        decisions, context = self._plane.decisions, self._connection_context()
        detail = "a TLS handshake on the port for plain HTTP"
        decision = decisions.reject(Reason.MALFORMED_HEAD, detail, context)
        self._request_id = ""
        self._plane.counters.requests[decision.outcome.index] += 1
        if self._plane.reports_tls(self._peer):
            self._plane.observer.request_decided(decision, self._ensure_request_id())
        self._send_and_close(b"")

    def _too_large(self) -> None:
        limit = self._plane.limits.header_bytes
        self._reject_unparsed(Reason.HEAD_TOO_LARGE, f"the head has more than {limit} bytes")

    def _reject_unparsed(self, reason: Reason, detail: str) -> None:
        """Reject a request whose head is not looked at."""
        self._request_id = ""
        self._begin_access()
        line_text = bytes(self._read_buffer[: self._plane.limits.header_bytes]).partition(b"\r\n")[
            0
        ]
        self._reject(
            self._plane.decisions.reject(reason, detail, self._connection_context(), line_text)
        )
