"""One connection from the edge: it reads requests, has them decided, and sends them on.

The class that uvicorn is given as its HTTP protocol, in five layers, each a file: the socket
(`connection`), the shim's own answers (`telling`), the exchange with Navidrome (`exchange`), what becomes
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

from shim.proxy.connection import Phase
from shim.proxy.deciding import DecidingConnection
from shim.proxy.plane import NEVER
from shim.trust.reasons import Reason, Verdict
from shim.trust.remember import Unproven

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

_BARE_LF = re.compile(rb"(?<!\r)\n")
# Members of an enumeration are dear to look up; what a request passes has them at hand.
_HEAD, _EXCHANGE, _CLOSING = Phase.HEAD, Phase.EXCHANGE, Phase.CLOSING
_REJECTED = Verdict.REJECTED


class Downstream(DecidingConnection):
    """A client's connection, whole."""

    __slots__ = ("_searched",)

    def __init__(
        self,
        config: Config,  # noqa: ARG002 - uvicorn hands it to every protocol class
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(app_state["plane"], server_state)
        self._searched = 0

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        phase = self._phase
        if phase is _HEAD:
            if self.write_paused:
                self._keep(data)
            elif self._kept or not self._serve_whole(data):
                self._kept += data
                self._serve()
        elif phase is _EXCHANGE and not self.request_sent:
            self._upload(data)
        elif phase is Phase.TUNNEL:
            assert self._upstream is not None
            self._upstream.write(data)
        elif phase is Phase.BODY:
            self._read_form(data)
        elif phase is not _CLOSING:
            self._keep(data)

    def eof_received(self) -> bool:
        # Whoever ends their side while an answer is pending has left: RFC 9112 §9.6 lets a server say so.
        phase = self._phase
        if phase is _EXCHANGE and self._answer_begun:
            self.abort()
            return False
        if phase is Phase.TUNNEL and self._upstream is not None:
            upstream, self._upstream = self._upstream, None
            upstream.leave()
        self._abandon()
        if phase is not _CLOSING:
            self._linger()
        if phase is not Phase.TUNNEL:
            self._phase = _CLOSING
        return False

    def expired(self) -> None:
        """The deadline of the phase has passed."""
        self.deadline = NEVER
        match self._phase:
            case Phase.HEAD if self._kept and not self.write_paused:
                self._unread(Reason.HEAD_TIMEOUT, "no whole head")
            case Phase.HEAD:
                self._leave()
            case Phase.EXCHANGE if not self.request_sent and not self._read_paused:
                self.failed("body_timeout", 408)
            case Phase.EXCHANGE:
                self.failed("answer_timeout", 504)
            case Phase.KEYS:
                self._count(self._decision)
                self._go_on()
            case Phase.ACCOUNT:
                self.failed("account_timeout", 503)
            case Phase.BODY:
                self.failed("body_timeout", 408)
            case Phase.CONNECTION:
                self.failed("connect_timeout", 504)
            case _ if self._transport.get_write_buffer_size():
                self.abort()
            case _:
                self._transport.abort()

    # heads

    def _serve(self) -> None:
        """Read the heads that are kept, one after the other, as long as nothing is under way."""
        while self._phase is _HEAD and self._kept and not self.write_paused:
            end = self._kept.find(b"\r\n\r\n", self._searched)
            if end < 0:
                if not self._searched:
                    self.deadline = self._plane.now + self._plane.limits.head_timeout
                if _BARE_LF.search(self._kept, self._searched):
                    # Whoever takes it for a line end waits for an answer to a head that is none here.
                    self._unread(Reason.MALFORMED_HEAD, "a line of the head ends in LF alone")
                    return
                self._searched = max(1, len(self._kept) - 3)
                if self._searched > self._plane.limits.header_bytes:
                    self._too_large()
                return
            data = bytes(self._kept[: end + 4])
            del self._kept[: end + 4]
            if end > self._plane.limits.header_bytes:
                self._too_large()
                return
            self._searched = 0
            self._consider(data)

    def _serve_whole(self, data: bytes) -> bool:
        """Serve `data` at once if it is one whole head and nothing else, as most requests come."""
        if not data.endswith(b"\r\n\r\n"):
            return False
        decisions = self._plane.decisions
        standing = self._standing if self._decisions is decisions else self._stand()
        at = data.find(b"\r\n")
        block_text = data[at + 2 : -2]
        block = decisions.recall(block_text, standing)
        if len(data) - 4 > self._plane.limits.header_bytes:
            return False
        decision = decisions.weigh(data[:at], block_text, standing, block, self._plane.time)
        if isinstance(decision, Unproven):
            self._await_proof(decision, data)
            return True
        if decision.outcome.verdict is _REJECTED and b"\r\n\r\n" in data[at:-2]:
            # It was more than one head: a block that is read has no empty line in it.
            return False
        self._judge(decision, data)
        return True

    def _too_large(self) -> None:
        limit = self._plane.limits.header_bytes
        self._unread(Reason.HEAD_TOO_LARGE, f"the head has more than {limit} bytes")

    def _unread(self, reason: Reason, detail: str) -> None:
        """Refuse a request whose head is not looked at."""
        self._request_id = ""
        self._begin_access()
        self._count(self._plane.decisions.refuse(reason, detail, self._stand()))
