"""Buffer request bodies that must be read before the request is sent, within limits.

Buffered are forms that may carry a credential, and changes of Navidrome's users. One body has its own limit;
all bodies together have a budget. Untrusted peers share half of the budget, and one client has at most an
eighth.
"""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_address

from shim.http1.chunked import ChunkedDecoder
from shim.http1.framing import CHUNKED

# Limits the chunks of a body, so that one with single-byte chunks costs a few milliseconds in all.
_MAX_CHUNKS = 4096
_SLICE = 4096
# One client has at most this fraction of the budget.
_CLIENT_SHARE = 8


class BodyTooLarge(Exception):
    """The body exceeds the limit of one body, or has too many chunks."""


class BufferFull(Exception):
    """Other bodies use the memory budget."""


class BodyBudget:
    """The budget of all buffered bodies: `size` bytes. Untrusted peers share half of it, and one client has
    an eighth."""

    __slots__ = ("_by_client", "_size", "used", "used_by_untrusted")

    def __init__(self, size: int) -> None:
        self._size = size
        self._by_client: Counter[bytes] = Counter()
        self.used = 0
        self.used_by_untrusted = 0

    def share(self, client: bytes | None, *, trusted: bool) -> BudgetShare:
        """Return the share of the client with this address, None if unknown."""
        return BudgetShare(self, _network(client), trusted=trusted)

    def reserve(self, count: int, client: bytes, *, trusted: bool) -> None:
        """Reserve `count` bytes. Raises `BufferFull`."""
        size = self._size
        if (
            self.used + count > size
            or (not trusted and self.used_by_untrusted + count > size // 2)
            or self._by_client[client] + count > size // _CLIENT_SHARE
        ):
            raise BufferFull
        self.used += count
        self._by_client[client] += count
        if not trusted:
            self.used_by_untrusted += count

    def release(self, count: int, client: bytes, *, trusted: bool) -> None:
        """Release `count` bytes."""
        self.used -= count
        self._by_client[client] -= count
        if not self._by_client[client]:
            del self._by_client[client]
        if not trusted:
            self.used_by_untrusted -= count


class BudgetShare:
    """The share of the budget that one client may use."""

    __slots__ = ("_budget", "_client", "_trusted")

    def __init__(self, budget: BodyBudget, client: bytes, *, trusted: bool) -> None:
        self._budget = budget
        self._client = client
        self._trusted = trusted

    def reserve(self, count: int) -> None:
        """Reserve `count` bytes. Raises `BufferFull`."""
        self._budget.reserve(count, self._client, trusted=self._trusted)

    def release(self, count: int) -> None:
        """Release `count` bytes."""
        self._budget.release(count, self._client, trusted=self._trusted)


def _network(client: bytes | None) -> bytes:
    """Return the address that identifies one client: of IPv6 the first 64 bits, since one client has all
    addresses of such a network."""
    text = (client or b"").decode("ascii", "replace").partition("%")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return text.encode()
    return address.packed[:8]


class BodyBuffer:
    """Buffer one body of `length` bytes, or a chunked one, of at most `limit` bytes.

    Raises `BodyTooLarge` at once if the length exceeds the limit. `release` frees its bytes; it is called
    once the body is not needed.
    """

    __slots__ = (
        "_budget",
        "_chunks",
        "_data",
        "_decoder",
        "_limit",
        "_remaining",
        "_reserved",
        "done",
    )

    def __init__(self, length: int, limit: int, budget: BudgetShare) -> None:
        if length > limit:
            raise BodyTooLarge
        self._budget = budget
        self._limit = limit
        self._decoder = ChunkedDecoder() if length == CHUNKED else None
        self._remaining = length
        self._data = bytearray()
        self._reserved = 0
        self._chunks = 0
        self.done = False

    def feed(self, data: bytes) -> bytes:
        """Read the bytes of the body, and return the rest. Raises `BodyTooLarge`, `BufferFull` and
        `ChunkedError`."""
        if self._decoder is None:
            body, rest = data[: self._remaining], data[self._remaining :]
            self._remaining -= len(body)
            self.done = not self._remaining
        else:
            body, rest = self._decode(self._decoder, data)
            self.done = self._decoder.done
        if len(self._data) + len(body) > self._limit:
            raise BodyTooLarge
        self._budget.reserve(len(body))
        self._reserved += len(body)
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
        """Return the complete body and drop it; its bytes stay reserved until `release`."""
        data, self._data = bytes(self._data), bytearray()
        return data

    def release(self) -> None:
        """Return the bytes to the budget."""
        self._budget.release(self._reserved)
        self._reserved = 0
        self._data = bytearray()
