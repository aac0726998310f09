"""One connection from the edge: it reads requests, has them decided, and sends them on.

The class that uvicorn is given as its HTTP protocol, in five layers, each a file: the socket
(`connection`), the shim's own responses (`telling`), the exchange with Navidrome (`exchange`), what becomes
of a head (`deciding`), and here the bytes as they come. One request is under way at a time; what a client
sends ahead is kept up to a bound, then reading pauses. The phases of a request:

    HEAD ──▶ PROOF ──▶ KEYS ──▶ ACCOUNT ──▶ BODY ──▶ CONNECTION ──▶ EXCHANGE ──▶ HEAD
      │        │         │         │          │          │             ├──▶ TUNNEL
      └────────┴─────────┴─────────┴──────────┴──────────┴─────────────┴──▶ HEAD or CLOSING
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

from shim.proxy.client_connection import RELEASE_SECONDS, Phase
from shim.proxy.deciding import DecidingConnection
from shim.proxy.server import NEVER
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
_HEAD, _FORWARDING, _CLOSING = Phase.HEAD, Phase.FORWARDING, Phase.CLOSING
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
        phase = self._phase
        if phase is _HEAD:
            if self.write_paused or self._queued:
                self._buffer_data(data)
            elif self._read_buffer or not self._serve_single(data):
                self._read_buffer += data
                self._serve()
        elif phase is _FORWARDING and not self.request_sent:
            self._upload(data)
        elif phase is Phase.TUNNEL:
            assert self._upstream is not None
            self._upstream.write(data)
        elif phase is Phase.BODY:
            self._read_form(data)
        elif phase is not _CLOSING:
            self._buffer_data(data)

    def eof_received(self) -> bool:
        # Whoever ends their side while a response is pending has left: RFC 9112 §9.6 lets a server say so.
        phase = self._phase
        if phase is _FORWARDING and self._response_started:
            self._response_incomplete("client_left")
            self.abort()
            return False
        if phase is Phase.TUNNEL and self._upstream is not None:
            upstream, self._upstream = self._upstream, None
            upstream.half_close()
        self._cancel_pending()
        if phase is not _CLOSING:
            self._linger()
        if phase is not Phase.TUNNEL:
            self._phase = _CLOSING
        return False

    def expired(self) -> None:
        """The deadline of the phase has passed."""
        due, self.deadline = self.deadline, NEVER
        match self._phase:
            case Phase.HEAD if self._read_buffer and not self.write_paused:
                self._reject_unparsed(Reason.HEAD_TIMEOUT, "no whole head")
            case Phase.HEAD:
                self._release_or_close(due)
            case Phase.FORWARDING if not self.request_sent and not self._read_paused:
                self.failed("body_timeout", 408)
            case Phase.FORWARDING:
                self.failed("upstream_response_timeout", 504)
            case Phase.FETCHING_JWKS:
                self._reject(self._decision)
                self._resume()
            case Phase.PROVISIONING:
                self.failed("account_timeout", 503)
            case Phase.BODY:
                self.failed("body_timeout", 408)
            case Phase.CONNECTING:
                self.failed("connect_timeout", 504)
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
        while self._phase is _HEAD and self._read_buffer and not self.write_paused:
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
