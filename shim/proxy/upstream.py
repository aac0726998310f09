"""One connection to Navidrome: it takes a request's bytes and frames the answer for the client.

The body of an answer is framed by us from method, status and fields (RFC 9112 §6.3). Bodies with a
length pass uncopied and unparsed; chunked ones are framed anew; one that ends with the connection goes
to a client of HTTP/1.1 as chunks. A body that was cut never ends cleanly for the client.
"""

from __future__ import annotations

import asyncio
from enum import IntEnum, auto
from typing import TYPE_CHECKING, cast

from shim.proxy.chunked import LAST_CHUNK, ChunkedDecoder, ChunkedError, encode_chunk
from shim.proxy.response import (
    CHUNKED,
    NO_BODY,
    UNTIL_CLOSE,
    BadAnswer,
    ResponseHead,
    parse_response_head,
)

if TYPE_CHECKING:
    from shim.proxy.downstream import Downstream
    from shim.proxy.plane import DataPlane
    from shim.proxy.pool import UpstreamPool

_SWITCHING_PROTOCOLS = 101


class _Phase(IntEnum):
    IDLE = auto()
    HEAD = auto()  # a request was sent, its answer's head is awaited
    LENGTH = auto()  # a body of a known length
    CHUNKS = auto()
    REST = auto()  # a body that ends with the connection
    TUNNEL = auto()


class Upstream(asyncio.Protocol):
    """Speaks HTTP/1.1 with Navidrome for one client at a time.

    `fresh`: no answer has come over it yet. `idle_since`: the plane's time when it was last released.
    """

    __slots__ = (
        "_client",
        "_decoder",
        "_left",
        "_partial",
        "_persistent",
        "_phase",
        "_plane",
        "_pool",
        "_searched",
        "_transport",
        "closing",
        "fresh",
        "idle_since",
    )

    def __init__(self, plane: DataPlane, pool: UpstreamPool) -> None:
        self._plane = plane
        self._pool = pool
        self._client: Downstream | None = None
        self._phase = _Phase.IDLE
        self._partial = bytearray()  # of a head
        self._searched = 0
        self._left = 0
        self._decoder: ChunkedDecoder | None = None
        self._persistent = False
        self._transport: asyncio.Transport
        self.closing = False
        self.fresh = True
        self.idle_since = 0.0

    # what a client asks of it

    def begin(self, client: Downstream, head: bytes) -> None:
        """Send a request's head for `client`, who hears of the answer."""
        self._client = client
        self._phase = _Phase.HEAD
        self._transport.write(head)

    def write(self, data: bytes) -> None:
        """Send more of the request, or of the tunnel."""
        self._transport.write(data)

    def pause(self) -> None:
        """The client takes no more for now."""
        self._transport.pause_reading()

    def resume(self) -> None:
        """The client takes more."""
        self._transport.resume_reading()

    def drop(self) -> None:
        """The client is gone, or its request is: end it at once."""
        self._client = None
        self.closing = True
        self._transport.abort()

    def close(self) -> None:
        """End an idle connection."""
        self.closing = True
        self._transport.close()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        client = self._client
        if client is None:
            # Nobody asked: whatever it is, the next client must not take it for an answer.
            self.closing = True
            self._transport.abort()
            return
        match self._phase:
            case _Phase.LENGTH:
                self._length_received(client, data)
            case _Phase.HEAD:
                self._head_received(client, data)
            case _Phase.CHUNKS:
                self._chunks_received(client, data)
            case _Phase.REST:
                client.send(data if client.old else encode_chunk([data]))
            case _Phase.TUNNEL:
                client.send(data)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closing = True
        self._pool.lost(self)
        client, self._client = self._client, None
        if client is None:
            return
        if self._phase is _Phase.HEAD:
            if self._partial:
                client.failed("answer_cut", 502)
            else:
                client.vanished(self)
        elif self._phase is _Phase.REST and exc is None:
            self._phase = _Phase.IDLE
            if not client.old:
                client.send(LAST_CHUNK)
            self._plane.counters.streams_open -= 1
            client.answered()
        else:
            if self._phase is not _Phase.TUNNEL:
                self._plane.counters.streams_open -= 1
            client.cut()

    def pause_writing(self) -> None:
        if self._client is not None:
            self._client.pause_upload()

    def resume_writing(self) -> None:
        if self._client is not None:
            self._client.resume_upload()

    # the answer

    def _head_received(self, client: Downstream, data: bytes) -> None:
        if self._partial:
            self._partial += data
            end = self._partial.find(b"\r\n\r\n", self._searched)
            if end >= 0:
                data = bytes(self._partial)
        else:
            end = data.find(b"\r\n\r\n")
        if end < 0:
            if not self._partial:
                self._partial += data
            self._searched = max(0, len(self._partial) - 3)
            if len(self._partial) > self._plane.limits.header_bytes:
                self._refused(client)
            return
        if self._partial:
            self._partial.clear()
        self._searched = 0
        try:
            head = parse_response_head(data[: end + 4])
        except BadAnswer:
            self._refused(client)
            return
        self._pool.answered()
        if head.status < 200:
            self._interim(client, head, data[end + 4 :])
        else:
            self._answer(client, head, data[end + 4 :])

    def _refused(self, client: Downstream) -> None:
        self.drop()
        client.failed("answer_malformed", 502)

    def _interim(self, client: Downstream, head: ResponseHead, rest: bytes) -> None:
        if head.status == _SWITCHING_PROTOCOLS:
            if not client.upgrading or head.upgrade != b"websocket" or head.length >= 0:
                self._refused(client)
                return
            self._phase = _Phase.TUNNEL
            handshake = b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
            client.tunnel(head.lines + handshake + rest)
            return
        if head.status != 100 and not client.old and not client.upgrading:
            # RFC 9110 §15.2: passed on, but for the 100 that was answered by us.
            client.send(head.lines + b"\r\n")
        if rest:
            self._head_received(client, rest)

    def _answer(self, client: Downstream, head: ResponseHead, body: bytes) -> None:
        length = head.length
        self.fresh = False
        if head.bodiless or client.bodiless:
            framing, length = head.framing, NO_BODY
            if head.length == CHUNKED:
                framing = b"Transfer-Encoding: chunked\r\n" if not client.old else b""
            if head.status in (204, 304) and head.length == CHUNKED:
                framing = b""
        elif length >= 0:
            framing = head.framing
        elif client.old:
            framing = b""
            client.keep_alive = False
        else:
            framing = b"Transfer-Encoding: chunked\r\n"
        self._persistent = head.persistent and not client.upgrading
        client.answer_begins(head.status)
        start = b"".join((head.lines, framing, client.connection_line(), b"\r\n"))
        if length >= 0:
            size = len(body)
            if size >= length:
                if size > length:
                    self._persistent = False
                    body = body[:length]
                client.send(start + body)
                self._finish(client)
                return
            self._left = length - size
            self._phase = _Phase.LENGTH
            self._plane.counters.streams_open += 1
            client.send(start + body)
            return
        self._plane.counters.streams_open += 1
        client.send(start)
        if length == CHUNKED:
            self._decoder = ChunkedDecoder()
            self._phase = _Phase.CHUNKS
            if body:
                self._chunks_received(client, body)
            return
        assert length == UNTIL_CLOSE
        self._phase = _Phase.REST
        if body:
            client.send(body if client.old else encode_chunk([body]))

    def _length_received(self, client: Downstream, data: bytes) -> None:
        left = self._left - len(data)
        if left > 0:
            self._left = left
            client.send(data)
            return
        if left < 0:
            self._persistent = False
            data = data[:left]
        self._plane.counters.streams_open -= 1
        client.send(data)
        self._finish(client)

    def _chunks_received(self, client: Downstream, data: bytes) -> None:
        decoder = self._decoder
        assert decoder is not None
        try:
            pieces, used = decoder.feed(data)
        except ChunkedError:
            self._plane.counters.streams_open -= 1
            self.drop()
            client.cut()
            return
        out = b"".join(pieces) if client.old else encode_chunk(pieces)
        if not decoder.done:
            if out:
                client.send(out)
            return
        if used < len(data):
            self._persistent = False
        self._plane.counters.streams_open -= 1
        client.send(out if client.old else out + LAST_CHUNK)
        self._finish(client)

    def _finish(self, client: Downstream) -> None:
        self._phase = _Phase.IDLE
        self._client = None
        self._decoder = None
        if self._persistent and client.request_sent and not self.closing:
            if client.write_paused:
                self._transport.resume_reading()
            self._pool.release(self)
        else:
            self.closing = True
            self._transport.abort()
        client.answered()
