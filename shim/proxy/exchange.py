"""The exchange with Navidrome: a request goes up, with back-pressure, and the answer comes back.

What an `Upstream` tells of the answer arrives here. Who asks and whether they may is decided before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shim.proxy.chunked import LAST_CHUNK, ChunkedDecoder, ChunkedError, encode_chunk
from shim.proxy.connection import Phase
from shim.proxy.gate import Account
from shim.proxy.plane import NEVER, DataPlane
from shim.proxy.pool import UpstreamPool
from shim.proxy.repeat import may_repeat
from shim.proxy.request_body import BodyBuffer
from shim.proxy.telling import AnsweringConnection
from shim.proxy.upstream import Upstream
from shim.trust.decide import USER_BODY_BYTES, user_body_too_large
from shim.trust.envelope import CHUNKED
from shim.trust.reasons import PathClass, Reason
from shim.trust.refusal import Refused

if TYPE_CHECKING:
    from uvicorn.server import ServerState

_UNLIMITED = -1
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# Members of an enumeration are dear to look up; what a request passes has them at hand.
_HEAD, _EXCHANGE, _OWN = Phase.HEAD, Phase.EXCHANGE, PathClass.OWN


class ExchangingConnection(AnsweringConnection):
    """A connection whose decided request is sent on.

    `request_sent`: Navidrome has the whole request. `old`: the request came in HTTP/1.0. `bodiless`: its
    answer has no body, since it was a HEAD. `upgrading`: it asked for a WebSocket.
    """

    __slots__ = (
        "_account",
        "_body_left",
        "_buffer",
        "_decoder",
        "_retried",
        "_unfinished",
        "_upstream",
        "bodiless",
        "old",
        "request_sent",
        "upgrading",
    )

    def __init__(self, plane: DataPlane, server_state: ServerState) -> None:
        super().__init__(plane, server_state)
        self._account: Account | None = None
        self._upstream: Upstream | None = None
        self._decoder: ChunkedDecoder | None = None
        self._body_left = 0
        self._retried = False
        self._buffer: BodyBuffer | None = None
        self._unfinished = False  # something is to be done when the response comes, or never will
        self.request_sent = True
        self.old = False
        self.bodiless = False
        self.upgrading = False

    # what is built on it has to say

    def _reconsider(self, upstream: Upstream) -> bool:
        """Whether the request has to be looked at again, now that a connection was waited for: then
        `upstream` has gone back to its pool."""
        raise NotImplementedError

    def _unauthorised(self) -> None:
        """Navidrome answered with 401."""
        raise NotImplementedError

    # the request

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
        if self._phase is Phase.CONNECTION and self._reconsider(upstream):
            return
        self._phase = _EXCHANGE
        self._upstream = upstream
        plane, decision = self._plane, self._decision
        block = decision.block
        assert block is not None
        if decision.outcome.path_class is _OWN and plane.own_lines:
            head = decision.own_head(plane.decisions.policy.paths, plane.own_lines)
        else:
            account = self._account
            head = decision.head(None if account is None else account.user_name)
        upstream.begin(self, head)
        if decision.writes_users and plane.gate is not None:
            self._unfinished = True
            plane.gate.users_may_have_changed()
        length = block.envelope.length
        if length == CHUNKED:
            self._decoder = ChunkedDecoder()
            self._body_left = USER_BODY_BYTES if decision.writes_users else _UNLIMITED
        elif length > 0:
            self._decoder = None
            self._body_left = length
        else:
            self.request_sent = True
            self.deadline = plane.now + plane.limits.answer_timeout
            return
        self.deadline = plane.now + plane.limits.body_timeout
        if block.envelope.expects and not self._kept and not self.old:
            self._transport.write(CONTINUE)
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
                self._reject_body(Refused(Reason.AMBIGUOUS_FRAMING, str(error)))
                return
            if self._body_left != _UNLIMITED:
                self._body_left -= sum(map(len, pieces))
                if self._body_left < 0:
                    self._reject_body(user_body_too_large())
                    return
            self.request_sent = self._decoder.done
            upstream.write(encode_chunk(pieces) + (LAST_CHUNK if self.request_sent else b""))
            rest = data[used:]
        if self.request_sent:
            self._decoder = None
            self.deadline = NEVER if self._answer_begun else plane.now + plane.limits.answer_timeout
            if rest:
                self._keep(rest)

    def _reject_body(self, refused: Refused) -> None:
        if self._answer_begun:
            self.abort()
            return
        self._refuse(refused)

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

    # the answer

    def answer_begins(self, status: int) -> None:
        """The head of the final answer is about to be sent."""
        self._answer_begun = True
        self._answer_status = status
        if status == 401:
            self._unauthorised()
        if self._unfinished:
            self._finish_request()
        if not self.request_sent:
            self.keep_alive = False
        elif not self._read_paused:
            self.deadline = NEVER

    def _finish_request(self) -> None:
        """Do what was left for when the response comes, or never will."""
        self._unfinished = False
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            buffer.release()
        gate = self._plane.gate
        if gate is not None and self._decision.writes_users:
            gate.users_may_have_changed()

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
        self._rest()
        self._go_on()

    def vanished(self, *, fresh: bool) -> None:
        """The connection went before a byte of the answer: try another one, where that is safe."""
        self._upstream = None
        line, block = self._decision.line, self._decision.block
        assert line is not None and block is not None
        length = block.envelope.length
        repeatable = length <= 0 and length != CHUNKED and not self.upgrading
        if fresh or self._retried or not repeatable:
            self.failed("answer_missing", 502)
            return
        if not may_repeat(line, self._plane.decisions.policy.paths):
            self.failed("answer_missing", 502)
            return
        self._retried = True
        self.request_sent = False
        self._plane.counters.retries += 1
        self._await_connection(self._pool())

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

    # the client

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
        self._go_on()

    def _abandon(self) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.drop()
        if self._unfinished:
            self._finish_request()
        if self._phase is Phase.CONNECTION:
            self._pool().forget(self)
