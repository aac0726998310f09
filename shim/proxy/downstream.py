"""One connection from the edge: it reads requests, has them decided, and sends them on.

The class that uvicorn is given as its HTTP protocol. One request is under way at a time; what a client
sends ahead is kept up to a bound, then reading pauses. The phases of a request:

    HEAD ──▶ ACCOUNT ──▶ CONNECTION ──▶ EXCHANGE ──▶ HEAD
      │         │            │             ├──▶ TUNNEL
      └─────────┴────────────┴─────────────┴──▶ CLOSING
"""

from __future__ import annotations

import asyncio
import re
import secrets
import socket
import struct
from enum import IntEnum, auto
from typing import TYPE_CHECKING, Any, cast

from shim.proxy.answers import own_answer
from shim.proxy.chunked import LAST_CHUNK, ChunkedDecoder, ChunkedError, encode_chunk
from shim.proxy.gate import Account, Asker, Refusal
from shim.proxy.plane import NEVER, DataPlane
from shim.proxy.repeat import may_repeat
from shim.proxy.sign_in import sign_in_location
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
_BARE_LF = re.compile(rb"(?<!\r)\n")
_AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset


class Phase(IntEnum):
    """Where a connection is."""

    HEAD = auto()  # idle, or a head is not whole yet
    KEYS = auto()  # the key set is fetched anew, once
    ACCOUNT = auto()  # the gate is asked
    CONNECTION = auto()  # the pool is asked
    EXCHANGE = auto()  # the request goes to Navidrome, the answer comes back
    TUNNEL = auto()
    CLOSING = auto()  # the last answer is out; what still comes is not read


# Members of an enumeration are dear to look up; what a request passes has them at hand.
_HEAD, _EXCHANGE, _CLOSING = Phase.HEAD, Phase.EXCHANGE, Phase.CLOSING
_AUTHENTICATED, _STRIPPED, _REJECTED = Verdict.AUTHENTICATED, Verdict.STRIPPED, Verdict.REJECTED
_OWN = PathClass.OWN
_UNKNOWN_KEY = Reason.JWT_UNKNOWN_KEY


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
        "_keys_future",
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
        self._keys_future: asyncio.Future[None] | None = None
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
        if transport.get_extra_info("peername") is None:
            # Reset before it was accepted: it has no address any more, and is not a Unix peer for that.
            self._phase = _CLOSING
            self._transport.abort()
            return
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
        self._phase = _CLOSING

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
        if self._phase is _HEAD and self._kept:
            self._serve()
            self._resume_reading()

    def shutdown(self) -> None:
        """The server stops: go when nothing is under way, else after this answer."""
        self.keep_alive = False
        if self._phase is _HEAD and not self._kept:
            self._leave()

    def abort(self) -> None:
        """End it now, whatever is under way, with a reset: a FIN would end a body that has neither length
        nor chunks as if it were whole."""
        self._abandon()
        self._transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE
        )
        self._transport.abort()

    # Timed

    def expired(self) -> None:
        """The deadline of the phase has passed."""
        self.deadline = NEVER
        match self._phase:
            case Phase.HEAD if self._kept:
                self._unread(Reason.HEAD_TIMEOUT, "no whole head")
            case Phase.HEAD:
                self._leave()
            case Phase.EXCHANGE if not self.request_sent and not self._read_paused:
                self.failed("body_timeout", 408)
            case Phase.EXCHANGE:
                self.failed("answer_timeout", 504)
            case Phase.KEYS:
                self._count(self._decision)
            case Phase.ACCOUNT:
                self.failed("account_timeout", 503)
            case Phase.CONNECTION:
                self.failed("connect_timeout", 504)
            case _ if self._transport.get_write_buffer_size():
                self.abort()
            case _:
                self._transport.abort()

    def stalled(self) -> None:
        """What was written to the client has not been taken in time."""
        self.abort()

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
            at = data.find(b"\r\n")
            standing = self._stand()
            plane = self._plane
            decision = plane.decisions.decide(
                data[:at], data[at + 2 : end + 2], standing, None, plane.time
            )
            self._judge(decision, data)

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
        decision = decisions.decide(data[:at], block_text, standing, block, self._plane.time)
        if decision.outcome.verdict is _REJECTED and b"\r\n\r\n" in data[at:-2]:
            # It was more than one head: a block that is read has no empty line in it.
            return False
        self._judge(decision, data)
        return True

    def _judge(self, decision: Decision, head: bytes, *, waited: bool = False) -> None:
        """Do what was decided on this head; `waited`: the keys were fetched for it already."""
        plane = self._plane
        outcome = decision.outcome
        self._decision = decision
        self._user_name = None
        self._request_id = ""
        if plane.observer.wants_access:
            self._started, self._sent = asyncio.get_running_loop().time(), 0
        verdict = outcome.verdict
        if verdict is _REJECTED:
            if outcome.reason is not _UNKNOWN_KEY or waited or not self._ask_keys(head):
                self._count(decision)
            return
        line = decision.line
        assert line is not None
        self._retried = False
        self._answer_begun = False
        self.request_sent = False
        self.keep_alive = self.keep_alive and decision.keep_alive
        self.old = line.version == 10
        self.bodiless = line.method == b"HEAD"
        self.upgrading = decision.upgrade
        if verdict is _AUTHENTICATED and plane.gate is not None:
            identity = decision.identity
            assert identity is not None
            account = plane.gate.known(identity)
            if account is not None:
                self._user_name = account.user_name
                if decision.tokens:
                    self._bind_tokens(account)
            elif (
                outcome.path_class is not _OWN
            ):  # what is shown there has to be seen without Navidrome
                self._ask_gate()
                return
        elif decision.tokens:
            self._bind_tokens(None)
        plane.counters.requests[outcome.index] += 1
        if verdict is _STRIPPED:
            plane.observer.judged(decision, self._identify())
        self._connect()

    def _stand(self) -> Standing:
        """Where the connection stands under the policy in force."""
        decisions = self._plane.decisions
        if self._decisions is not decisions:
            transport = self._transport
            peername = transport.get_extra_info("peername")
            peer = parse_peer(peername[0] if isinstance(peername, tuple) else "")
            scheme = b"https" if transport.get_extra_info("sslcontext") else b"http"
            self._decisions = decisions
            self._standing = decisions.standing(peer, scheme)
        return self._standing

    def _too_large(self) -> None:
        limit = self._plane.limits.header_bytes
        self._unread(Reason.HEAD_TOO_LARGE, f"the head has more than {limit} bytes")

    def _unread(self, reason: Reason, detail: str) -> None:
        """Refuse a request whose head is not looked at."""
        self._request_id = ""
        self._started = asyncio.get_running_loop().time()
        self._count(self._plane.decisions.refuse(reason, detail, self._stand()))

    # keys

    def _ask_keys(self, head: bytes) -> bool:
        """Have the key set fetched anew for the token of this head. Whether that is waited for."""
        keys = self._plane.keys
        future = None if keys is None else keys.want()
        if future is None:
            return False
        self._phase = Phase.KEYS
        self.deadline = self._plane.now + self._plane.limits.answer_timeout
        self._keys_future = future
        future.add_done_callback(lambda done: self._keys_fetched(done, head))
        return True

    def _keys_fetched(self, future: asyncio.Future[None], head: bytes) -> None:
        if future is not self._keys_future or self._phase is not Phase.KEYS:
            return
        self._keys_future = None
        self._phase = _HEAD
        line, _, block = head[:-2].partition(b"\r\n")
        plane, standing = self._plane, self._stand()
        decision = plane.decisions.decide(line, block, standing, None, plane.time)
        self._judge(decision, head, waited=True)

    # tokens of Navidrome's own

    def _bind_tokens(self, account: Account | None) -> None:
        """Let no Navidrome token pass that names another account; without provisioning no account is
        known by its id, so none passes. Where nobody is named, it passes and is told of."""
        decision = self._decision
        if decision.identity is not None:
            name = decision.identity.username.encode() if account is None else account.user_name
            self._decision = decision.bound(name, None if account is None else account.id)
            if self._decision is decision:
                return
        self._plane.observer.tokens_seen(self._decision, self._identify())

    # accounts

    def _ask_gate(self) -> None:
        plane, identity = self._plane, self._decision.identity
        assert plane.gate is not None and identity is not None
        self._phase = Phase.ACCOUNT
        self.deadline = plane.now + plane.limits.answer_timeout
        verified = self._decision.outcome.reason is Reason.VERIFIED_JWT
        asker = Asker(self._standing.source.peer.text, self._identify(), verified)
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
        if self._user_name is None:
            self._plane.counters.requests[decision.outcome.index] += 1
        self._user_name = answer.user_name
        if decision.tokens:
            self._bind_tokens(answer)
        self._connect()

    def _outdated(self) -> bool:
        """Whether the account that the request is to be sent for is not known any more: Navidrome may have
        become another one, with no users, while a connection was waited for."""
        gate, identity = self._plane.gate, self._decision.identity
        if gate is None or identity is None or self._user_name is None:
            return False
        return gate.known(identity) is None

    # the exchange

    def _pool(self) -> UpstreamPool:
        plane = self._plane
        if self._decision.outcome.path_class is _OWN and plane.own is not None:
            return plane.own
        return plane.pool

    def _connect(self) -> None:
        pool = self._pool()
        upstream = pool.take()
        if upstream is not None:
            self.attach(upstream)
            return
        self._await_connection(pool)

    def _await_connection(self, pool: UpstreamPool) -> None:
        self._phase = Phase.CONNECTION
        self.deadline = self._plane.now + self._plane.limits.connect_timeout
        pool.ask(self)

    def attach(self, upstream: Upstream) -> None:
        """A connection to Navidrome is there: send the request."""
        if self._phase is Phase.CONNECTION and self._outdated():
            self._phase = Phase.ACCOUNT
            self._pool().release(upstream)
            self._ask_gate()
            return
        self._phase = _EXCHANGE
        self._upstream = upstream
        plane, decision = self._plane, self._decision
        block = decision.block
        assert block is not None
        if decision.outcome.path_class is _OWN and plane.own_lines:
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
        data = bytes(self._kept)
        self._kept.clear()
        self._resume_reading()
        if data:
            self._upload(data)  # which may pause reading again

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
        self._resume_reading()
        if self._read_paused:
            return
        limits = self._plane.limits
        if self._phase is _EXCHANGE and not self.request_sent:
            self.deadline = self._plane.now + limits.body_timeout
        elif self._phase is _EXCHANGE and not self._answer_begun:
            self.deadline = self._plane.now + limits.answer_timeout
        else:
            self.deadline = NEVER

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
        # Between requests what is kept is the beginning of a head, which has a bound of its own.
        unfinished = self._phase is _HEAD and not self.write_paused
        if self._read_paused and (unfinished or len(self._kept) <= self._plane.limits.kept_bytes):
            self._read_paused = False
            self._transport.resume_reading()

    # what the upstream says of the answer

    def answer_begins(self, status: int) -> None:
        """The head of the final answer is about to be sent."""
        self._answer_begun = True
        self._answer_status = status
        if status == 401:
            self._doubt()
        if not self.request_sent:
            self.keep_alive = False
        elif not self._read_paused:
            self.deadline = NEVER

    def _doubt(self) -> None:
        """Navidrome's API says 401 to a request that named an account: it may not be there any more."""
        plane, decision = self._plane, self._decision
        gate, identity, line = plane.gate, decision.identity, decision.line
        if gate is None or identity is None or line is None or self._user_name is None:
            return
        if line.path.startswith(plane.decisions.policy.paths.base + b"api/"):
            gate.doubt(identity)

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

    def send_pieces(self, pieces: tuple[bytes, memoryview]) -> None:
        """Write to the client, without putting the pieces together."""
        self._sent += len(pieces[0]) + len(pieces[1])
        self._transport.writelines(pieces)

    def tunnel(self, head: bytes) -> None:
        """Navidrome switched to WebSocket: from now on bytes pass as they are."""
        self._phase = Phase.TUNNEL
        self._answer_begun = True
        self._plane.counters.tunnels_open += 1
        self.deadline = NEVER
        self.send(head)
        data = bytes(self._kept)
        self._kept.clear()
        self._resume_reading()
        if data:
            assert self._upstream is not None
            self._upstream.write(data)  # which may pause reading again

    def answered(self) -> None:
        """The answer is whole."""
        self._upstream = None
        if self._plane.observer.wants_access:
            self._log_access()
        if not self.keep_alive:
            self._last_words(b"")
            return
        self._phase = _HEAD
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
        self._await_connection(self._pool())

    def failed(self, word: str, status: int) -> None:
        """There is no answer from Navidrome: give one of our own, or end the connection if one began."""
        self._abandon()
        plane = self._plane
        plane.counters.failed(word)
        plane.observer.failed(self._decision, self._identify(), word, status)
        if self._answer_begun:
            self.abort()
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
            self.abort()
        else:
            self._linger()
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
        location = sign_in_location(
            decision, self._plane.sign_in, self._plane.decisions.policy.paths
        )
        if location is not None:
            status = 302
        answer = own_answer(
            status,
            decision,
            self._identify(),
            retry_after=retry_after,
            location=location,
            contact=self._plane.contact,
        )
        self._answer_status = status
        self._sent = len(answer)
        if self._plane.observer.wants_access:
            self._log_access()
        self._last_words(answer)

    def _last_words(self, answer: bytes) -> None:
        """Send this, say goodbye, and give the client a moment to read it.

        Closing at once would reset a connection on which bytes are still unread, and the client might
        lose the answer with them (RFC 9112 §9.6)."""
        self._phase = _CLOSING
        self._kept.clear()
        transport = self._transport
        if answer:
            transport.write(answer)
        self._linger()
        if self._read_paused:
            self._read_paused = False
            transport.resume_reading()
        if transport.can_write_eof():
            transport.write_eof()
        else:
            transport.close()

    def _leave(self) -> None:
        """End an idle connection."""
        self._phase = _CLOSING
        self._linger()
        self._transport.close()

    def _linger(self) -> None:
        """Wait a moment for the client to leave; longer where it has not taken all that was written."""
        limits = self._plane.limits
        transport = self._transport
        # With TLS nobody can tell what is still to be sent; uvloop ends such a goodbye by itself.
        unsent = transport.get_write_buffer_size() or not transport.can_write_eof()
        self.deadline = self._plane.now + (
            limits.stall_timeout if unsent else limits.linger_timeout
        )

    def _abandon(self) -> None:
        """Drop what was asked of others for this request."""
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.drop()
        future, self._future = self._future, None
        if future is not None:
            future.cancel()
        keys, self._keys_future = self._keys_future, None
        if keys is not None:
            keys.cancel()
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
