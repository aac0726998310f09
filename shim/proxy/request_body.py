"""Bodies of requests that have to be read before the request is sent on: buffered, within bounds.

Used for forms that may carry a credential. One body has a limit of its own, all bodies together have a
budget, and peers that are not trusted share half of it.
"""

from __future__ import annotations

from shim.http1.chunked import ChunkedDecoder
from shim.http1.framing import CHUNKED

# Of a chunked body: so that one of single bytes costs a few milliseconds in all.
_MAX_CHUNKS = 4096
_SLICE = 4096


class BodyTooLarge(Exception):
    """The body is longer than what is buffered of one, or has too many chunks."""


class BufferFull(Exception):
    """Other bodies take up the memory that there is for all of them."""


class BodyBudget:
    """The bytes that all buffered bodies may take up together: `size`."""

    __slots__ = ("_size", "used", "used_by_untrusted")

    def __init__(self, size: int) -> None:
        self._size = size
        self.used = 0
        self.used_by_untrusted = 0

    def take(self, count: int, *, trusted: bool) -> None:
        """Count `count` bytes more. Raises `BufferFull`."""
        if self.used + count > self._size or (
            not trusted and self.used_by_untrusted + count > self._size // 2
        ):
            raise BufferFull
        self.used += count
        if not trusted:
            self.used_by_untrusted += count

    def give_back(self, count: int, *, trusted: bool) -> None:
        """Count `count` bytes less."""
        self.used -= count
        if not trusted:
            self.used_by_untrusted -= count


class BodyBuffer:
    """Reads one body of `length` bytes, or a chunked one, of at most `limit` bytes. Raises `BodyTooLarge` at
    once where the length says so. `release` gives its bytes back, and is called once it is not needed."""

    __slots__ = (
        "_budget",
        "_chunks",
        "_data",
        "_decoder",
        "_left",
        "_limit",
        "_taken",
        "_trusted",
        "done",
    )

    def __init__(self, length: int, limit: int, budget: BodyBudget, *, trusted: bool) -> None:
        if length > limit:
            raise BodyTooLarge
        self._budget = budget
        self._limit = limit
        self._trusted = trusted
        self._decoder = ChunkedDecoder() if length == CHUNKED else None
        self._left = length
        self._data = bytearray()
        self._taken = 0
        self._chunks = 0
        self.done = False

    def feed(self, data: bytes) -> bytes:
        """Take what belongs to the body, and return the rest. Raises `BodyTooLarge`, `BufferFull` and
        `ChunkedError`."""
        if self._decoder is None:
            body, rest = data[: self._left], data[self._left :]
            self._left -= len(body)
            self.done = not self._left
        else:
            body, rest = self._decode(self._decoder, data)
            self.done = self._decoder.done
        if len(self._data) + len(body) > self._limit:
            raise BodyTooLarge
        self._budget.take(len(body), trusted=self._trusted)
        self._taken += len(body)
        self._data += body
        return rest

    def _decode(self, decoder: ChunkedDecoder, data: bytes) -> tuple[bytes, bytes]:
        body: list[bytes] = []
        at = 0
        while at < len(data) and not decoder.done:
            pieces, used = decoder.feed(data[at : at + _SLICE])
            at += used
            body += pieces
            self._chunks += len(pieces)
            if self._chunks > _MAX_CHUNKS:
                raise BodyTooLarge
        return b"".join(body), data[at:]

    def take(self) -> bytes:
        """Return the whole body, and keep it no longer; its bytes stay counted until `release`."""
        data, self._data = bytes(self._data), bytearray()
        return data

    def release(self) -> None:
        """Give the bytes back to the budget."""
        self._budget.give_back(self._taken, trusted=self._trusted)
        self._taken = 0
        self._data = bytearray()
