"""Forward the body of a request to Navidrome.

A body with a length passes through unchanged. Chunks are decoded and encoded again, a bounded number in one
turn of the event loop: the rest waits in the connection's buffer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from shim.http1.chunked import LAST_CHUNK, ChunkedDecoder, ChunkedError, encode_chunk
from shim.http1.framing import CHUNKED
from shim.proxy.server import NEVER
from shim.trust.decision import user_body_too_large
from shim.trust.reasons import Reason
from shim.trust.rejection import RequestRejected

if TYPE_CHECKING:
    from shim.proxy.client_connection import ClientConnection
    from shim.proxy.limits import Limits
    from shim.proxy.request_handler import RequestHandler
    from shim.proxy.upstream import Upstream

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
# The number of chunks that are decoded as they arrive, and in one turn of the event loop. The first number
# costs about as much as a request, the second a few times that.
_CHUNKS_AT_ONCE = 32
_CHUNKS_PER_TURN = 256
_PIECE = 16384  # bytes that are decoded in one turn


class Upload:
    """The body of one request. `length` is its number of bytes, or `CHUNKED`. `max_bytes` limits a chunked
    body; None does not."""

    __slots__ = ("_connection", "_decoder", "_handler", "_limits", "_remaining")

    def __init__(
        self,
        handler: RequestHandler,
        connection: ClientConnection,
        limits: Limits,
        length: int,
        max_bytes: int | None,
    ) -> None:
        self._handler = handler
        self._connection = connection
        self._limits = limits
        self._decoder = ChunkedDecoder() if length == CHUNKED else None
        self._remaining = max_bytes if length == CHUNKED else length

    def begin(self, *, expect_continue: bool) -> None:
        """Forward what has arrived, and read on."""
        handler, connection = self._handler, self._connection
        connection.set_deadline(self._limits.request_body_timeout)
        if expect_continue and not connection.read_buffer and not handler.http10:
            connection.transport.write(CONTINUE)
        data = connection.take_buffer()
        connection.resume_reading()
        if data:
            self.receive(data)  # may pause reading again

    def receive(self, data: bytes) -> None:
        """Forward a piece of the body, and buffer the bytes that follow the body."""
        handler, connection = self._handler, self._connection
        upstream = handler.upstream
        assert upstream is not None
        remainder = b""
        connection.set_deadline(self._limits.request_body_timeout)
        if self._decoder is not None:
            used = 0
            if not connection.queued:
                used = self._decode(self._decoder, upstream, data, _CHUNKS_AT_ONCE)
            if used < 0:
                return
            remainder = data[used:]
            if remainder and not handler.request_sent:
                connection.read_buffer += remainder
                connection.pause_reading()
                connection.enqueue()
                return
        else:
            assert self._remaining is not None
            remaining = self._remaining - len(data)
            if remaining < 0:
                data, remainder = data[:remaining], data[remaining:]
            self._remaining = max(0, remaining)
            upstream.write(data)
            if remaining <= 0:
                handler.body_sent()
        if handler.request_sent:
            self._await_response()
            if remainder:
                connection.buffer_data(remainder)

    def decode_buffered(self) -> None:
        """Forward the next buffered chunks, in one turn of the event loop."""
        handler, connection, limits = self._handler, self._connection, self._limits
        upstream = handler.upstream
        assert upstream is not None and self._decoder is not None
        connection.set_deadline(limits.request_body_timeout)
        data = bytes(connection.read_buffer[:_PIECE])
        used = self._decode(self._decoder, upstream, data, _CHUNKS_PER_TURN)
        if used < 0:
            return
        del connection.read_buffer[:used]
        if handler.request_sent:
            self._await_response()
        elif connection.read_buffer:
            connection.enqueue()
            return
        if not handler.upload_paused:
            connection.resume_reading()
        if handler.request_sent and len(connection.read_buffer) > limits.max_buffered_bytes:
            connection.over_read_limit()

    def _decode(
        self, decoder: ChunkedDecoder, upstream: Upstream, data: bytes, max_lines: int
    ) -> int:
        """Send the chunks of `data`, joined into one. Return how many bytes were read, -1 if the request is
        rejected for its coding."""
        handler = self._handler
        try:
            pieces, used = decoder.feed(data, max_lines)
        except ChunkedError as error:
            self._reject(RequestRejected(Reason.AMBIGUOUS_FRAMING, str(error)))
            return -1
        if self._remaining is not None:
            self._remaining -= sum(map(len, pieces))
            if self._remaining < 0:
                self._reject(user_body_too_large())
                return -1
        if decoder.done:
            handler.body_sent()
        upstream.write(encode_chunk(pieces) + (LAST_CHUNK if decoder.done else b""))
        return used

    def _await_response(self) -> None:
        """Set the deadline after the last byte of the body."""
        if self._handler.response_begun:
            self._connection.deadline = NEVER
        else:
            self._connection.set_deadline(self._limits.upstream_response_timeout)

    def _reject(self, rejection: RequestRejected) -> None:
        """Reject the request for its body; if its response has begun, close the connection."""
        if self._handler.response_begun:
            self._connection.abort()
        else:
            self._handler.reject_accepted(rejection)
