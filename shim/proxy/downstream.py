"""One connection from the edge: it reads requests, has them decided, and sends them on.

The class that uvicorn is given as its HTTP protocol. One request is under way at a time; what a client
sends ahead is kept up to a bound, then reading pauses. The phases of a request:

    HEAD ──▶ ACCOUNT ──▶ CONNECTION ──▶ EXCHANGE ──▶ HEAD
      │         │            │             ├──▶ TUNNEL
      └─────────┴────────────┴─────────────┴──▶ CLOSING
"""

from __future__ import annotations

import asyncio
import secrets
from enum import IntEnum, auto
from typing import TYPE_CHECKING, Any, cast

from shim.proxy.answers import own_answer
from shim.proxy.chunked import LAST_CHUNK, ChunkedDecoder, ChunkedError, encode_chunk
from shim.proxy.gate import Account, Asker, Refusal
from shim.proxy.plane import NEVER, DataPlane
from shim.proxy.repeat import may_repeat
from shim.trust.addresses import parse_peer
from shim.trust.decide import Decision, refuse
from shim.trust.envelope import CHUNKED
from shim.trust.reasons import PathClass, Reason, Verdict
from shim.trust.refusal import Refused

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from shim.proxy.pool import UpstreamPool
    from shim.proxy.upstream import Upstream
    from shim.trust.remember import Standing

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Phase(IntEnum):
    """Where a connection is."""

    HEAD = auto()  # idle, or a head is not whole yet
    ACCOUNT = auto()  # the gate is asked
    CONNECTION = auto()  # the pool is asked
    EXCHANGE = auto()  # the request goes to Navidrome, the answer comes back
    TUNNEL = auto()
    CLOSING = auto()  # the last answer is out; what still comes is not read


class Downstream(asyncio.Protocol):
    """A client's connection.

    `keep_alive`: another request may follow. `request_sent`: Navidrome has the whole request.
    `write_paused`: the client takes nothing for now. `old`: the request came in HTTP/1.0.
    `bodiless`: its answer has no body, since it was a HEAD. `upgrading`: it asked for a WebSocket.
    """

    __slots__ = (
        "_answer_begun",
        "_answer_status",
        "_body_left",
        "_decision",
        "_decisions",
        "_decoder",
        "_future",
        "_kept",
        "_phase",
        "_plane",
        "_read_paused",
        "_request_id",
        "_retried",
        "_searched",
        "_sent",
        "_server_state",
        "_standing",
        "_started",
        "_transport",
        "_upstream",
        "_user_name",
        "bodiless",
        "deadline",
        "keep_alive",
        "old",
        "request_sent",
        "stall_deadline",
        "upgrading",
        "write_paused",
    )

    def __init__(
        self,
        config: Config,  # noqa: ARG002 - uvicorn hands it to every protocol class
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._plane: DataPlane = app_state["plane"]
        self._server_state = server_state
        self._transport: asyncio.Transport
        self._phase = Phase.HEAD
        self._kept = bytearray()  # what was read and not looked at yet
        self._searched = 0
        self._decisions: object = None
        self._standing: Standing
        self._decision: Decision
        self._user_name: bytes | None = None
        self._upstream: Upstream | None = None
        self._future: asyncio.Future[Account | Refusal] | None = None
        self._decoder: ChunkedDecoder | None = None
        self._body_left = 0
        self._answer_begun = False
        self._answer_status = 0
        self._sent = 0
        self._started = 0.0
        self._retried = False
        self._read_paused = False
        self._request_id = ""
        self.keep_alive = True
        self.request_sent = True
        self.write_paused = False
        self.old = False
        self.bodiless = False
        self.upgrading = False
        self.deadline = NEVER
        self.stall_deadline = NEVER

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        plane = self._plane
        plane.counters.client_connections += 1
        plane.timed.add(self)
        self._server_state.connections.add(cast("Any", self))
        self.deadline = plane.now + plane.limits.head_timeout
        if plane.counters.client_connections > plane.limits.max_connections:
            plane.counters.clients_refused += 1
            self._last_words(own_answer(503, None, "", retry_after=5))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._plane.counters.client_connections -= 1
        self._plane.timed.discard(self)
        self._server_state.connections.discard(cast("Any", self))
        if self._phase is Phase.TUNNEL:
            self._plane.counters.tunnels_open -= 1
        self._abandon()
        self._phase = Phase.CLOSING

    def data_received(self, data: bytes) -> None:
        phase = self._phase
        if phase is Phase.HEAD:
            if self._kept or self.write_paused:
                self._kept += data
                self._serve()
                return
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._kept += data
                self._serve()
                return
            if end + 4 < len(data):
                self._kept += data[end + 4 :]
            self._head(data, end)
            if self._phase is Phase.HEAD:
                self._serve()
        elif phase is Phase.EXCHANGE and not self.request_sent:
            self._upload(data)
        elif phase is Phase.TUNNEL:
            assert self._upstream is not None
            self._upstream.write(data)
        elif phase is not Phase.CLOSING:
            self._keep(data)

    def eof_received(self) -> bool:
        # Whoever ends their side while an answer is pending has left: RFC 9112 §9.6 lets a server say so.
        self._abandon()
        return False

    def pause_writing(self) -> None:
        self.write_paused = True
        self.stall_deadline = self._plane.now + self._plane.limits.stall_timeout
        if self._upstream is not None:
            self._upstream.pause()

    def resume_writing(self) -> None:
        self.write_paused = False
        self.stall_deadline = NEVER
        if self._upstream is not None:
            self._upstream.resume()
        if self._phase is Phase.HEAD and self._kept:
            self._serve()

    def shutdown(self) -> None:
        """The server stops: go when nothing is under way, else after this answer."""
        self.keep_alive = False
        if self._phase is Phase.HEAD and not self._kept:
            self._transport.close()

    def abort(self) -> None:
        """End it now, whatever is under way."""
        self._abandon()
        self._transport.abort()

    # Timed

    def expired(self) -> None:
        """The deadline of the phase has passed."""
        self.deadline = NEVER
        match self._phase:
            case Phase.HEAD if self._kept:
                self._count(
                    self._plane.decisions.refuse(
                        Reason.HEAD_TIMEOUT, "no whole head", self._stand()
                    )
                )
            case Phase.HEAD:
                self._transport.close()
            case Phase.EXCHANGE if not self.request_sent and not self._read_paused:
                self.failed("body_timeout", 408)
            case Phase.EXCHANGE:
                self.failed("answer_timeout", 504)
            case Phase.ACCOUNT:
                self.failed("account_timeout", 503)
            case Phase.CONNECTION:
                self.failed("connect_timeout", 504)
            case _:
                self._transport.abort()

    def stalled(self) -> None:
        """What was written to the client has not been taken in time."""
        self.abort()

    # heads

    def _serve(self) -> None:
        """Read the heads that are kept, one after the other, as long as nothing is under way."""
        while self._phase is Phase.HEAD and self._kept and not self.write_paused:
            end = self._kept.find(b"\r\n\r\n", self._searched)
            if end < 0:
                if not self._searched:
                    self.deadline = self._plane.now + self._plane.limits.head_timeout
                self._searched = max(1, len(self._kept) - 3)
                if len(self._kept) > self._plane.limits.header_bytes:
                    self._too_large()
                return
            data = bytes(self._kept[: end + 4])
            del self._kept[: end + 4]
            self._head(data, end)

    def _head(self, data: bytes, end: int) -> None:
        """Judge one head, which ends at `end`, and do what was decided."""
        self._searched = 0
        plane = self._plane
        if self._decisions is not plane.decisions:
            self._stand()
        if end > plane.limits.header_bytes:
            self._too_large()
            return
        at = data.find(b"\r\n")
        decision = plane.decisions.decide(data[:at], data[at + 2 : end + 2], self._standing)
        outcome = decision.outcome
        self._decision = decision
        self._user_name = None
        self._request_id = ""
        if plane.observer.wants_access:
            self._started, self._sent = asyncio.get_running_loop().time(), 0
        verdict = outcome.verdict
        if verdict is Verdict.REJECTED:
            self._count(decision)
            return
        line = decision.line
        assert line is not None
        self._retried = False
        self._answer_begun = False
        self.request_sent = False
        self.keep_alive = decision.keep_alive and not plane.pool.closed
        self.old = line.version == 10
        self.bodiless = line.method == b"HEAD"
        self.upgrading = decision.upgrade
        if verdict is Verdict.AUTHENTICATED and plane.gate is not None:
            identity = decision.identity
            assert identity is not None
            account = plane.gate.known(identity)
            if account is None:
                self._ask_gate()
                return
            self._user_name = account.user_name
        plane.counters.requests[outcome.index] += 1
        if verdict is Verdict.STRIPPED:
            plane.observer.judged(decision, self._identify())
        self._connect()

    def _stand(self) -> Standing:
        decisions = self._plane.decisions
        transport = self._transport
        peername = transport.get_extra_info("peername")
        peer = parse_peer(peername[0] if isinstance(peername, tuple) else "")
        scheme = b"https" if transport.get_extra_info("sslcontext") else b"http"
        self._decisions = decisions
        self._standing = decisions.standing(peer, scheme)
        return self._standing

    def _too_large(self) -> None:
        limit = self._plane.limits.header_bytes
        detail = f"the head has more than {limit} bytes"
        self._count(self._plane.decisions.refuse(Reason.HEAD_TOO_LARGE, detail, self._stand()))

    # accounts

    def _ask_gate(self) -> None:
        plane, identity = self._plane, self._decision.identity
        assert plane.gate is not None and identity is not None
        self._phase = Phase.ACCOUNT
        self.deadline = plane.now + plane.limits.answer_timeout
        asker = Asker(self._standing.source.peer.text, self._identify())
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
            refused = refuse(
                Refused(answer.reason, answer.detail),
                decision.source,
                decision.line,
                decision.block,
            )
            self._count(refused, answer.retry_after)
            return
        self._user_name = answer.user_name
        self._plane.counters.requests[decision.outcome.index] += 1
        self._connect()

    # the exchange

    def _pool(self) -> UpstreamPool:
        plane = self._plane
        if self._decision.outcome.path_class is PathClass.OWN and plane.own is not None:
            return plane.own
        return plane.pool

    def _connect(self) -> None:
        pool = self._pool()
        upstream = pool.take()
        if upstream is not None:
            self.attach(upstream)
            return
        self._phase = Phase.CONNECTION
        self.deadline = self._plane.now + self._plane.limits.answer_timeout
        pool.ask(self)

    def attach(self, upstream: Upstream) -> None:
        """A connection to Navidrome is there: send the request."""
        self._phase = Phase.EXCHANGE
        self._upstream = upstream
        plane, decision = self._plane, self._decision
        block = decision.block
        assert block is not None
        if decision.outcome.path_class is PathClass.OWN and plane.own_lines:
            head = decision.own_head(plane.decisions.policy.paths, plane.own_lines)
        else:
            head = decision.head(self._user_name)
        upstream.begin(self, head)
        length = block.envelope.length
        if length == CHUNKED:
            self._decoder = ChunkedDecoder()
        elif length > 0:
            self._decoder = None
            self._body_left = length
        else:
            self.request_sent = True
            self.deadline = plane.now + plane.limits.answer_timeout
            return
        self.deadline = plane.now + plane.limits.body_timeout
        if block.envelope.expects and not self._kept and not self.old:
            self._transport.write(_CONTINUE)
        if self._kept:
            data = bytes(self._kept)
            self._kept.clear()
            self._upload(data)
        self._resume_reading()

    def unserved(self, word: str, status: int) -> None:
        """There is no connection to Navidrome."""
        self.failed(word, status)

    def _upload(self, data: bytes) -> None:
        """Send a piece of the request's body on, and keep what follows it."""
        upstream, plane = self._upstream, self._plane
        assert upstream is not None
        rest = b""
        self.deadline = plane.now + plane.limits.body_timeout
        if self._decoder is None:
            left = self._body_left - len(data)
            if left < 0:
                data, rest = data[:left], data[left:]
            self._body_left = max(0, left)
            upstream.write(data)
            self.request_sent = left <= 0
        else:
            try:
                pieces, used = self._decoder.feed(data)
            except ChunkedError as error:
                self._bad_body(str(error))
                return
            self.request_sent = self._decoder.done
            upstream.write(encode_chunk(pieces) + (LAST_CHUNK if self.request_sent else b""))
            rest = data[used:]
        if self.request_sent:
            self._decoder = None
            self.deadline = NEVER if self._answer_begun else plane.now + plane.limits.answer_timeout
            if rest:
                self._keep(rest)

    def _bad_body(self, detail: str) -> None:
        if self._answer_begun:
            self.abort()
            return
        decision = self._decision
        refused = Refused(Reason.AMBIGUOUS_FRAMING, detail)
        self._count(refuse(refused, decision.source, decision.line, decision.block))

    def pause_upload(self) -> None:
        """Navidrome takes no more of the request for now."""
        self._pause_reading()
        self.deadline = self._plane.now + self._plane.limits.stall_timeout

    def resume_upload(self) -> None:
        """Navidrome takes more."""
        limits = self._plane.limits
        if self._phase is Phase.EXCHANGE:
            wait = limits.answer_timeout if self.request_sent else limits.body_timeout
            self.deadline = NEVER if self._answer_begun else self._plane.now + wait
        self._resume_reading()

    def _keep(self, data: bytes) -> None:
        self._kept += data
        if len(self._kept) > self._plane.limits.kept_bytes and not self._read_paused:
            self._pause_reading()
            self.deadline = min(self.deadline, self._plane.now + self._plane.limits.stall_timeout)

    def _pause_reading(self) -> None:
        if not self._read_paused:
            self._read_paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._read_paused and len(self._kept) <= self._plane.limits.kept_bytes:
            self._read_paused = False
            self._transport.resume_reading()

    # what the upstream says of the answer

    def answer_begins(self, status: int) -> None:
        """The head of the final answer is about to be sent."""
        self._answer_begun = True
        self._answer_status = status
        if not self.request_sent:
            self.keep_alive = False
        elif not self._read_paused:
            self.deadline = NEVER

    def connection_line(self) -> bytes:
        """The line that tells the client whether the connection lasts."""
        if not self.keep_alive or self.upgrading:
            self.keep_alive = False
            return b"Connection: close\r\n"
        return b"Connection: keep-alive\r\n" if self.old else b""

    def send(self, data: bytes) -> None:
        """Write to the client."""
        self._sent += len(data)
        self._transport.write(data)

    def tunnel(self, head: bytes) -> None:
        """Navidrome switched to WebSocket: from now on bytes pass as they are."""
        self._phase = Phase.TUNNEL
        self._answer_begun = True
        self._plane.counters.tunnels_open += 1
        self.deadline = NEVER
        self.send(head)
        if self._kept:
            assert self._upstream is not None
            self._upstream.write(bytes(self._kept))
            self._kept.clear()
        self._resume_reading()

    def answered(self) -> None:
        """The answer is whole."""
        self._upstream = None
        if self._plane.observer.wants_access:
            self._log_access()
        if not self.keep_alive:
            self._last_words(b"")
            return
        self._phase = Phase.HEAD
        self.deadline = self._plane.now + self._plane.limits.idle_timeout
        if self._kept:
            self._serve()
        if self._read_paused:
            self._resume_reading()

    def vanished(self, upstream: Upstream) -> None:
        """The connection went before a byte of the answer: try another one, where that is safe."""
        self._upstream = None
        line, block = self._decision.line, self._decision.block
        assert line is not None and block is not None
        length = block.envelope.length
        repeatable = length <= 0 and length != CHUNKED and not self.upgrading
        if upstream.fresh or self._retried or not repeatable:
            self.failed("answer_missing", 502)
            return
        if not may_repeat(line, self._plane.decisions.policy.paths):
            self.failed("answer_missing", 502)
            return
        self._retried = True
        self.request_sent = False
        self._plane.counters.retries += 1
        self._phase = Phase.CONNECTION
        self._pool().ask(self)

    def failed(self, word: str, status: int) -> None:
        """There is no answer from Navidrome: give one of our own, or end the connection if one began."""
        self._abandon()
        plane = self._plane
        plane.counters.failed(word)
        plane.observer.failed(self._decision, self._identify(), word, status)
        if self._answer_begun:
            self._transport.abort()
            return
        retry_after = 5 if status in (502, 503) else None
        self._answer(status, self._decision, retry_after)

    def cut(self) -> None:
        """The answer broke off: the client must not take it for whole."""
        self._upstream = None
        if self._phase is not Phase.TUNNEL:
            self._plane.counters.failed("answer_cut")
            self._plane.observer.failed(
                self._decision, self._identify(), "answer_cut", self._answer_status
            )
            self._transport.abort()
        else:
            self._transport.close()

    # the shim's own answers

    def _count(self, decision: Decision, retry_after: int | None = None) -> None:
        """Say of a rejected request what there is to say, to everybody who has to know."""
        self._decision = decision
        self._abandon()
        self._plane.counters.requests[decision.outcome.index] += 1
        self._plane.observer.judged(decision, self._identify())
        self._answer(decision.outcome.status, decision, retry_after)

    def _answer(self, status: int, decision: Decision, retry_after: int | None) -> None:
        answer = own_answer(status, decision, self._identify(), retry_after=retry_after)
        self._answer_status = status
        self._sent = len(answer)
        if self._plane.observer.wants_access:
            self._log_access()
        self._last_words(answer)

    def _last_words(self, answer: bytes) -> None:
        """Send this, say goodbye, and give the client a moment to read it.

        Closing at once would reset a connection on which bytes are still unread, and the client might
        lose the answer with them (RFC 9112 §9.6)."""
        self._phase = Phase.CLOSING
        self._kept.clear()
        self.deadline = self._plane.now + self._plane.limits.linger_timeout
        transport = self._transport
        if answer:
            transport.write(answer)
        if self._read_paused:
            self._read_paused = False
            transport.resume_reading()
        if transport.can_write_eof():
            transport.write_eof()
        else:
            transport.close()

    def _abandon(self) -> None:
        """Drop what was asked of others for this request."""
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.drop()
        future, self._future = self._future, None
        if future is not None:
            future.cancel()
        if self._phase is Phase.CONNECTION:
            self._pool().forget(self)

    def _identify(self) -> str:
        if not self._request_id:
            self._request_id = secrets.token_hex(8)
        return self._request_id

    def _log_access(self) -> None:
        seconds = asyncio.get_running_loop().time() - self._started
        self._plane.observer.accessed(
            self._decision, self._identify(), self._answer_status, self._sent, seconds
        )
