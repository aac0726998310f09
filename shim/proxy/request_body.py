"""Bodies of requests that have to be read before the request is sent on: buffered, within bounds.

Used for forms that may carry a credential, and for changes of Navidrome's users. One body has a limit of
its own, all bodies together have a budget. Untrusted peers share half of it, and one client has at most an
eighth.
"""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_address

from shim.http1.chunked import ChunkedDecoder
from shim.http1.framing import CHUNKED

# Of a chunked body: so that one of single bytes costs a few milliseconds in all.
_MAX_CHUNKS = 4096
_SLICE = 4096
# One client has this part of the budget at most.
_CLIENT_SHARE = 8


class BodyTooLarge(Exception):
    """The body is longer than what is buffered of one, or has too many chunks."""


class BufferFull(Exception):
    """Other bodies take up the memory that there is for all of them."""


class BodyBudget:
    """The bytes that all buffered bodies may take up together: `size`. Of these, untrusted peers have half,
    and one client has an eighth."""

    __slots__ = ("_by_client", "_size", "used", "used_by_untrusted")

    def __init__(self, size: int) -> None:
        self._size = size
        self._by_client: Counter[bytes] = Counter()
        self.used = 0
        self.used_by_untrusted = 0

    def share(self, client: bytes | None, *, trusted: bool) -> BudgetShare:
        """Return the budget as the client with this address may use it, None where it is not known."""
        return BudgetShare(self, _network(client), trusted=trusted)

    def take(self, count: int, client: bytes, *, trusted: bool) -> None:
        """Count `count` bytes more. Raises `BufferFull`."""
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

    def give_back(self, count: int, client: bytes, *, trusted: bool) -> None:
        """Count `count` bytes less."""
        self.used -= count
        self._by_client[client] -= count
        if not self._by_client[client]:
            del self._by_client[client]
        if not trusted:
            self.used_by_untrusted -= count


class BudgetShare:
    """A budget as one client uses it."""

    __slots__ = ("_budget", "_client", "_trusted")

    def __init__(self, budget: BodyBudget, client: bytes, *, trusted: bool) -> None:
        self._budget = budget
        self._client = client
        self._trusted = trusted

    def take(self, count: int) -> None:
        """Count `count` bytes more. Raises `BufferFull`."""
        self._budget.take(count, self._client, trusted=self._trusted)

    def give_back(self, count: int) -> None:
        """Count `count` bytes less."""
        self._budget.give_back(count, self._client, trusted=self._trusted)


def _network(client: bytes | None) -> bytes:
    """The address as one client has it: of IPv6 the first 64 bits, which one client has all addresses of."""
    text = (client or b"").decode("ascii", "replace").partition("%")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return text.encode()
    return address.packed[:8]


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
        "done",
    )

    def __init__(self, length: int, limit: int, budget: BudgetShare) -> None:
        if length > limit:
            raise BodyTooLarge
        self._budget = budget
        self._limit = limit
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
        self._budget.take(len(body))
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
        self._budget.give_back(self._taken)
        self._taken = 0
        self._data = bytearray()
