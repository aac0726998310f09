"""The provider's key set, fetched again and again.

What was fetched counts until the next answer, through an outage too, but for a bounded time. Nobody who
asks can make it be fetched often: an unknown key sets off one fetch, which all who wait for it share, and
the next one only after a while.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from shim.trust.jwt_keys import Key

MAX_WAITING = 256
# While there is no key at all, nobody gets in: ask soon.
_WITHOUT_KEYS_SECONDS = 5.0
_TYPES = ("application/json", "application/jwk-set+json")


@dataclass(frozen=True, slots=True)
class KeyState:
    """How the key set stands. `fault` is why the last fetch failed, None if it didn't; `since` is for how
    many seconds it has been failing."""

    keys: tuple[Key, ...] = ()
    fault: str | None = "not fetched yet"
    since: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySource:
    """Where the key set is, and how it is fetched.

    `ca`: a PEM file with the authority to trust, None for the system's. `min_interval`: seconds between
    two fetches for unknown keys. `max_age`: seconds that keys outlive failing fetches. `timeout`: seconds
    for one fetch, whole. `max_bytes`: the most that is read.
    """

    url: str
    ca: str | None = None
    min_interval: float = 30.0
    max_age: float = 86400.0
    timeout: float = 5.0
    max_bytes: int = 262144


class KeyWatch:
    """Keeps the keys of `source`. `told` hears of every fetch whose outcome differs from the last one's,
    before anybody who waits does."""

    def __init__(
        self,
        source: KeySource,
        told: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.source = source
        self.told = told
        self._clock = clock
        self._context: ssl.SSLContext | None = None
        self._keys: tuple[Key, ...] = ()
        self._fault: str | None = "not fetched yet"
        self._fetched_at: float | None = None
        self._failing_since: float | None = None
        self._wanted_at: float | None = None
        self._waiting = 0
        self._flight: asyncio.Task[None] | None = None

    @property
    def keys(self) -> tuple[Key, ...]:
        """The keys that count for now."""
        return self._keys

    @property
    def state(self) -> KeyState:
        """How the key set stands."""
        since = 0.0 if self._failing_since is None else self._clock() - self._failing_since
        return KeyState(self._keys, self._fault, since)

    async def fetch(self) -> None:
        """Fetch once, or wait for the fetch that is under way. Never raises; `state` says how it went."""
        await asyncio.shield(self._start())

    async def fetch_anew(self) -> None:
        """Fetch with the authority's file read again: it may have been renewed."""
        self._context = None
        await self.fetch()

    async def run(self, interval: float) -> None:
        """Fetch every `interval` seconds, and more often while it fails."""
        while True:
            pause = interval
            if self._fault is not None:
                pause = min(interval, self.source.min_interval)
            if not self._keys:
                pause = min(pause, _WITHOUT_KEYS_SECONDS)
            await asyncio.sleep(pause)
            await self.fetch()

    def want(self) -> asyncio.Future[None] | None:
        """A future that is done when the set has been fetched for a key that is unknown; None where it
        was only just fetched for one, or where too many wait. Cancelling it is no harm to the others."""
        now = self._clock()
        if self._waiting >= MAX_WAITING:
            return None
        if self._flight is None:
            if self._wanted_at is not None and now - self._wanted_at < self.source.min_interval:
                return None
            self._wanted_at = now
        waiter = asyncio.shield(self._start())
        self._waiting += 1
        waiter.add_done_callback(self._left)
        return waiter

    async def close(self) -> None:
        """End the fetch that is under way."""
        if self._flight is not None:
            self._flight.cancel()
            await asyncio.gather(self._flight, return_exceptions=True)

    def _left(self, _: asyncio.Future[None]) -> None:
        self._waiting -= 1

    def _start(self) -> asyncio.Task[None]:
        if self._flight is None:
            self._flight = asyncio.get_running_loop().create_task(self._fly())
            self._flight.add_done_callback(self._landed)
        return self._flight

    def _landed(self, _: asyncio.Task[None]) -> None:
        self._flight = None

    async def _fly(self) -> None:
        before = self._keys, self._fault
        try:
            async with asyncio.timeout(self.source.timeout):
                self._keys = await self._ask()
        except TimeoutError:
            self._failed("no whole answer in time")
        except httpx.HTTPError as error:
            self._failed(f"{type(error).__name__}: {error}".rstrip(": "))
        except (httpx.InvalidURL, OSError, ValueError) as error:
            self._failed(str(error))
        else:
            self._fetched_at, self._failing_since = self._clock(), None
            self._fault = None
        if before != (self._keys, self._fault):
            self.told()

    def _failed(self, fault: str) -> None:
        now = self._clock()
        self._fault = fault
        if self._failing_since is None:
            self._failing_since = now
        if self._fetched_at is None or now - self._fetched_at > self.source.max_age:
            self._keys = ()

    def _verify(self) -> ssl.SSLContext | bool:
        """What a certificate is verified with. Raises ValueError where the authority's file has none."""
        if not self.source.url.startswith("https:"):
            return False
        if self._context is None:
            try:
                self._context = ssl.create_default_context(cafile=self.source.ca)
            except OSError as error:
                raise ValueError(f"{self.source.ca} has no certificate in it: {error}") from None
        return self._context

    async def _ask(self) -> tuple[Key, ...]:
        """The keys of the set. Raises as httpx does, and ValueError for an answer that is no key set."""
        headers = {"Accept": ", ".join(_TYPES), "Accept-Encoding": "identity"}
        # No redirect is followed, and no proxy of the environment used: the address is what was set.
        client = httpx.AsyncClient(
            verify=self._verify(), timeout=self.source.timeout, trust_env=False, headers=headers
        )
        async with client, client.stream("GET", self.source.url) as answer:
            if answer.status_code != 200:
                raise ValueError(f"the key set's address answers with {answer.status_code}")
            kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            if kind not in _TYPES:
                raise ValueError(f"what came is {kind[:60] or 'of no type'}, and no key set")
            if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise ValueError("what came is compressed, which was not asked for")
            data = bytearray()
            async for piece in answer.aiter_raw():
                data += piece
                if len(data) > self.source.max_bytes:
                    raise ValueError(f"the key set has more than {self.source.max_bytes} bytes")
        from shim.trust.jwt_keys import read_key_set  # noqa: PLC0415 - megabytes, for tokens alone

        return read_key_set(bytes(data))
