"""One connection to Navidrome: send the request's bytes and frame the response for the client.

The shim frames the body of a response from method, status and fields (RFC 9112 §6.3). Bodies with a length
are forwarded uncopied and unparsed; chunked ones are framed again; one that ends with the connection is sent
to an HTTP/1.1 client as chunks. A truncated body never ends cleanly for the client.
"""

from __future__ import annotations

import asyncio
import re
import sys
from enum import IntEnum, auto
from typing import Protocol, cast

from shim.http1.chunked import LAST_CHUNK, ChunkedDecoder, ChunkedError, encode_chunk
from shim.http1.framing import CHUNKED, UNTIL_CLOSE
from shim.http1.response_head import InvalidResponse, ResponseHead
from shim.http1.response_templates import ResponseTemplateCache
from shim.proxy.failures import Failure
from shim.proxy.interfaces import ProxyContext, ResponseReceiver
from shim.proxy.keepalive import enable_keepalive

_BARE_LF = re.compile(rb"(?<!\r)\n")
_MAX_INTERIM = 16  # 1xx responses before the final one
_SWITCHING_PROTOCOLS = 101
# Limits for one turn of the event loop: chunk lines of a response, and the bytes of a later turn.
_LINES_PER_TURN = 256
_BYTES_PER_TURN = 16384
# From this many bytes on, writing two pieces in one system call is cheaper than a copy.
_WORTH_TWO_PIECES = 4096
_CHUNKED_LINE = b"Transfer-Encoding: chunked\r\n"


class _Phase(IntEnum):
    IDLE = auto()
    HEAD = auto()  # a request was sent, the head of its response is awaited
    LENGTH = auto()  # a body of a known length
    CHUNKS = auto()
    BODY_UNTIL_CLOSE = auto()  # a body that ends with the connection
    TUNNEL = auto()


# Enum members are slow to look up, so those that each request uses are module constants.
_IDLE, _HEAD, _LENGTH, _CHUNKS = _Phase.IDLE, _Phase.HEAD, _Phase.LENGTH, _Phase.CHUNKS
_STREAMING = (_LENGTH, _CHUNKS, _Phase.BODY_UNTIL_CLOSE)


class Pool(Protocol):
    """The pool that an upstream connection belongs to, as the connection needs it."""

    templates: ResponseTemplateCache
    down: bool

    def release(self, upstream: Upstream) -> None:
        """Return a connection to the pool, for the next request."""

    def connection_lost(self, upstream: Upstream) -> None:
        """Remove a connection that is closed."""

    def response_received(self) -> None:
        """Record that Navidrome responds."""


class Upstream(asyncio.Protocol):
    """Speaks HTTP/1.1 with Navidrome for one client at a time.

    `unused`: no response has come over it yet. `idle_since`: the plane's time (seconds) when it was last
    released.
    """

    __slots__ = (
        "_client",
        "_context",
        "_decode_scheduled",
        "_decoder",
        "_interim",
        "_partial",
        "_paused",
        "_persistent",
        "_phase",
        "_pool",
        "_remaining",
        "_searched",
        "_transport",
        "closing",
        "idle_since",
        "unused",
    )

    def __init__(self, context: ProxyContext, pool: Pool) -> None:
        self._context = context
        self._pool = pool
        self._client: ResponseReceiver | None = None
        self._phase = _Phase.IDLE
        self._partial = bytearray()  # of a head, or chunks that wait for a turn of the event loop
        self._decode_scheduled = False
        self._paused = False  # by the client
        self._searched = 0
        self._interim = 0
        self._remaining = 0
        self._decoder: ChunkedDecoder | None = None
        self._persistent = False
        self._transport: asyncio.Transport
        self.closing = False
        self.unused = True
        self.idle_since = 0.0

    # calls of the client

    def begin(self, client: ResponseReceiver, head: bytes) -> None:
        """Send a request's head for `client`, which receives the response."""
        self._client = client
        self._interim = 0
        self._phase = _HEAD
        self._transport.write(head)

    def write(self, data: bytes) -> None:
        """Send more of the request, or of the tunnel."""
        self._transport.write(data)

    def pause(self) -> None:
        """Pause reading, since the client does not read."""
        self._paused = True
        self._transport.pause_reading()

    def resume(self) -> None:
        """Resume reading, since the client reads again."""
        self._paused = False
        if self._phase is _CHUNKS and self._partial:
            self._schedule_decode()
        else:
            self._transport.resume_reading()

    def abort(self) -> None:
        """Abort the connection, since the client has disconnected or its request has ended."""
        if self._phase in _STREAMING:
            self._context.counters.streams_open -= 1
        self._phase = _IDLE
        self._client = None
        self.closing = True
        self._transport.abort()

    def half_close(self) -> None:
        """Close the sending direction of a tunnel once everything that the client sent is written."""
        self._client = None
        self.close()

    def close(self) -> None:
        """Close an idle connection."""
        self.closing = True
        self._transport.close()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        enable_keepalive(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        client = self._client
        if client is None:
            # Unsolicited data: the next client must not take it for a response.
            self.closing = True
            self._transport.abort()
            return
        phase = self._phase
        if phase is _HEAD:
            matched = None if self._partial else self._pool.templates.match(data)
            if matched is None:
                self._head_received(client, data)
                return
            if self._pool.down:
                self._pool.response_received()
            self._start_response(client, matched[0], data, matched[1])
        elif phase is _LENGTH:
            self._length_received(client, data)
        elif phase is _CHUNKS:
            self._chunks_received(client, data)
        elif phase is _Phase.BODY_UNTIL_CLOSE:
            client.send(data if client.http10 else encode_chunk([data]))
        else:
            client.send(data)

    def eof_received(self) -> bool:
        self.closing = True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closing = True
        self._pool.connection_lost(self)
        client, self._client = self._client, None
        if client is None:
            return
        if self._phase is _HEAD:
            if self._partial:
                client.fail(Failure.UPSTREAM_RESPONSE_TRUNCATED)
            else:
                client.upstream_closed_early(unused=self.unused)
        elif self._phase is _Phase.BODY_UNTIL_CLOSE and exc is None:
            self._phase = _IDLE
            if not client.http10:
                client.send(LAST_CHUNK)
            self._context.counters.streams_open -= 1
            client.response_complete()
        else:
            waiting = bytes(self._partial) if self._phase is _CHUNKS else b""
            # Navidrome may have sent the end before it closed the connection.
            if waiting and self._decode(client, waiting, sys.maxsize) < 0:
                return
            if self._phase is not _Phase.TUNNEL:
                self._context.counters.streams_open -= 1
            client.response_truncated()

    def pause_writing(self) -> None:
        if self._client is not None:
            self._client.pause_upload()

    def resume_writing(self) -> None:
        if self._client is not None:
            self._client.resume_upload()

    # the response

    def _head_received(self, client: ResponseReceiver, data: bytes) -> None:
        """Parse a response head that matches no template, or a piece of one."""
        if self._partial:
            self._partial += data
            data = b""
            if self._partial.find(b"\r\n\r\n", self._searched) >= 0:
                data = bytes(self._partial)
                self._partial.clear()
        at = 0
        while (end := data.find(b"\r\n\r\n", max(at, self._searched))) >= 0:
            self._searched = 0
            if end - at > self._context.limits.header_bytes:
                self._reject_response(client)
                return
            try:
                head = self._pool.templates.read(data[at : end + 4])
            except InvalidResponse:
                self._reject_response(client)
                return
            self._pool.response_received()
            at = end + 4
            if head.status >= 200:
                self._start_response(client, head, data, at)
                return
            if head.status == _SWITCHING_PROTOCOLS:
                self._switched(client, head, data[at:])
                return
            self._interim += 1
            if self._interim > _MAX_INTERIM:
                self._reject_response(client)
                return
            if head.status != 100 and not client.http10 and not client.upgrading:
                # RFC 9110 §15.2: forwarded, except the 100, which the shim has sent itself.
                client.send(head.lines + b"\r\n")
        self._partial += data[at:]
        if _BARE_LF.search(self._partial, self._searched):
            # A head whose lines end in bare LF never ends here: reject it now, not after the timeout.
            self._reject_response(client)
            return
        self._searched = max(0, len(self._partial) - 3)
        if self._searched > self._context.limits.header_bytes:
            self._reject_response(client)

    def _reject_response(self, client: ResponseReceiver) -> None:
        self.abort()
        client.fail(Failure.UPSTREAM_RESPONSE_MALFORMED)

    def _switched(self, client: ResponseReceiver, head: ResponseHead, remainder: bytes) -> None:
        # RFC 9112 §6.1, RFC 9110 §8.6: a 101 frames no body.
        if not client.upgrading or head.upgrade != b"websocket" or head.length != UNTIL_CLOSE:
            self._reject_response(client)
            return
        self._phase = _Phase.TUNNEL
        handshake = b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        client.switch_to_tunnel(head.lines + handshake + remainder)

    def _start_response(
        self, client: ResponseReceiver, head: ResponseHead, data: bytes, at: int
    ) -> None:
        """Send the client the head, and the available part of the body: `data` from `at` on."""
        length, status = head.length, head.status
        self.unused = False
        framing = b""
        if client.no_body or (status != 200 and head.no_body):
            if length == CHUNKED and not head.no_body and not client.http10:
                framing = _CHUNKED_LINE
            length = 0
        elif length < 0:
            if client.http10:
                client.close_after_response()
            else:
                framing = _CHUNKED_LINE
        self._persistent = head.persistent and not client.upgrading
        connection = client.response_started(status, head.lines)
        if length < 0:
            self._context.counters.streams_open += 1
            client.send(b"".join((head.lines, framing, connection, b"\r\n")))
            self._start_body(client, length, data[at:])
            return
        remaining = length - len(data) + at
        if remaining < 0:
            self._persistent = False
            data = data[:remaining]
        if len(data) - at < _WORTH_TWO_PIECES:
            client.send(b"".join((head.lines, framing, connection, b"\r\n", data[at:])))
        else:
            start = b"".join((head.lines, framing, connection, b"\r\n"))
            client.send_pieces((start, memoryview(data)[at:]))
        if remaining <= 0:
            self._finish(client)
            return
        self._remaining = remaining
        self._phase = _LENGTH
        self._context.counters.streams_open += 1

    def _start_body(self, client: ResponseReceiver, length: int, body: bytes) -> None:
        """Start a body that has no length, with its available part."""
        if length == CHUNKED:
            self._decoder = ChunkedDecoder()
            self._phase = _CHUNKS
            if body:
                self._chunks_received(client, body)
            return
        assert length == UNTIL_CLOSE
        self._phase = _Phase.BODY_UNTIL_CLOSE
        if body:
            client.send(body if client.http10 else encode_chunk([body]))

    def _length_received(self, client: ResponseReceiver, data: bytes) -> None:
        remaining = self._remaining - len(data)
        if remaining > 0:
            self._remaining = remaining
            client.send(data)
            return
        if remaining < 0:
            self._persistent = False
            data = data[:remaining]
        self._context.counters.streams_open -= 1
        client.send(data)
        self._finish(client)

    def _chunks_received(self, client: ResponseReceiver, data: bytes) -> None:
        if self._partial:
            self._partial += data
            return
        used = self._decode(client, data, _LINES_PER_TURN)
        if 0 <= used < len(data):
            self._partial += data[used:]
            self._transport.pause_reading()
            self._schedule_decode()

    def _schedule_decode(self) -> None:
        if not self._decode_scheduled:
            self._decode_scheduled = True
            asyncio.get_running_loop().call_soon(self._decode_next)

    def _decode_next(self) -> None:
        """Decode some of the waiting chunks, in one turn of the event loop."""
        self._decode_scheduled = False
        client = self._client
        if client is None or self._phase is not _CHUNKS or self._paused:
            return
        used = self._decode(client, bytes(self._partial[:_BYTES_PER_TURN]), _LINES_PER_TURN)
        if used < 0:
            return
        del self._partial[:used]
        if self._partial:
            self._schedule_decode()
        elif not self._paused:
            self._transport.resume_reading()

    def _decode(self, client: ResponseReceiver, data: bytes, max_lines: int) -> int:
        """Send the chunks of `data` to the client, joined into one. Return how many bytes were read, -1 if
        the response has ended."""
        decoder = self._decoder
        assert decoder is not None
        try:
            pieces, used = decoder.feed(data, max_lines)
        except ChunkedError:
            self.abort()
            client.response_truncated()
            return -1
        out = b"".join(pieces) if client.http10 else encode_chunk(pieces)
        if not decoder.done:
            if out:
                client.send(out)
            return used
        if used < max(len(data), len(self._partial)):
            self._persistent = False
        if self._partial:
            self._partial.clear()
            self._transport.resume_reading()
        self._context.counters.streams_open -= 1
        self._decoder = None
        client.send(out if client.http10 else out + LAST_CHUNK)
        self._finish(client)
        return -1

    def _finish(self, client: ResponseReceiver) -> None:
        self._phase = _IDLE
        self._client = None
        if (
            self._persistent
            and client.request_sent
            and not self.closing
            and not self._transport.get_write_buffer_size()
        ):
            if self._paused:
                self._paused = False
                self._transport.resume_reading()
            self._pool.release(self)
        else:
            self.closing = True
            self._transport.abort()
        client.response_complete()
