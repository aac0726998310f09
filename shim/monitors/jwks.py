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
    from shim.trust.jwks import Key

MAX_WAITERS = 256
# While there is no key at all, nobody gets in: ask soon.
_WITHOUT_KEYS_SECONDS = 5.0
_TYPES = ("application/json", "application/jwk-set+json")


@dataclass(frozen=True, slots=True)
class JwksState:
    """How the key set stands. `fault` is why the last fetch failed, None if it didn't; `since` is for how
    many seconds it has been failing."""

    keys: tuple[Key, ...] = ()
    fault: str | None = "not fetched yet"
    failing_for: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JwksConfig:
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


class JwksMonitor:
    """Keeps the keys of `source`. `told` hears of every fetch whose outcome differs from the last one's,
    before anybody who waits does."""

    def __init__(
        self,
        config: JwksConfig,
        on_change: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.on_change = on_change
        self._clock = clock
        self._context: ssl.SSLContext | None = None
        self._keys: tuple[Key, ...] = ()
        self._fault: str | None = "not fetched yet"
        self._fetched_at: float | None = None
        self._failing_since: float | None = None
        self._requested_at: float | None = None
        self._waiters = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def keys(self) -> tuple[Key, ...]:
        """The keys that count for now."""
        return self._keys

    @property
    def state(self) -> JwksState:
        """How the key set stands."""
        failing_for = 0.0 if self._failing_since is None else self._clock() - self._failing_since
        return JwksState(self._keys, self._fault, failing_for)

    async def fetch(self) -> None:
        """Fetch once, or wait for the fetch that is under way. Never raises; `state` says how it went."""
        await asyncio.shield(self._start_fetch())

    async def refetch(self) -> None:
        """Fetch with the authority's file read again: it may have been renewed."""
        self._context = None
        await self.fetch()

    async def run(self, interval: float) -> None:
        """Fetch every `interval` seconds, and more often while it fails."""
        while True:
            pause = interval
            if self._fault is not None:
                pause = min(interval, self.config.min_interval)
            if not self._keys:
                pause = min(pause, _WITHOUT_KEYS_SECONDS)
            await asyncio.sleep(pause)
            await self.fetch()

    def request_refresh(self) -> asyncio.Future[None] | None:
        """A future that is done when the set has been fetched for a key that is unknown; None where it
        was only just fetched for one, or where too many wait. Cancelling it is no harm to the others."""
        now = self._clock()
        if self._waiters >= MAX_WAITERS:
            return None
        if self._task is None:
            if (
                self._requested_at is not None
                and now - self._requested_at < self.config.min_interval
            ):
                return None
            self._requested_at = now
        waiter = asyncio.shield(self._start_fetch())
        self._waiters += 1
        waiter.add_done_callback(self._waiter_done)
        return waiter

    async def close(self) -> None:
        """End the fetch that is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _waiter_done(self, _: asyncio.Future[None]) -> None:
        self._waiters -= 1

    def _start_fetch(self) -> asyncio.Task[None]:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._fetch())
            self._task.add_done_callback(self._fetched)
        return self._task

    def _fetched(self, _: asyncio.Task[None]) -> None:
        self._task = None

    async def _fetch(self) -> None:
        before = self._keys, self._fault
        try:
            async with asyncio.timeout(self.config.timeout):
                self._keys = await self._download()
        except TimeoutError:
            self._failed("no whole response in time")
        except httpx.HTTPError as error:
            self._failed(f"{type(error).__name__}: {error}".rstrip(": "))
        except (httpx.InvalidURL, OSError, ValueError) as error:
            self._failed(str(error))
        else:
            self._fetched_at, self._failing_since = self._clock(), None
            self._fault = None
        if before != (self._keys, self._fault):
            self.on_change()

    def _failed(self, fault: str) -> None:
        now = self._clock()
        self._fault = fault
        if self._failing_since is None:
            self._failing_since = now
        if self._fetched_at is None or now - self._fetched_at > self.config.max_age:
            self._keys = ()

    def _verify(self) -> ssl.SSLContext | bool:
        """What a certificate is verified with. Raises ValueError where the authority's file has none."""
        if not self.config.url.startswith("https:"):
            return False
        if self._context is None:
            try:
                self._context = ssl.create_default_context(cafile=self.config.ca)
            except OSError as error:
                raise ValueError(f"{self.config.ca} has no certificate in it: {error}") from None
        return self._context

    async def _download(self) -> tuple[Key, ...]:
        """The keys of the set. Raises as httpx does, and ValueError for an answer that is no key set."""
        headers = {"Accept": ", ".join(_TYPES), "Accept-Encoding": "identity"}
        # No redirect is followed, and no proxy of the environment used: the address is what was set.
        client = httpx.AsyncClient(
            verify=self._verify(), timeout=self.config.timeout, trust_env=False, headers=headers
        )
        async with client, client.stream("GET", self.config.url) as response:
            if response.status_code != 200:
                raise ValueError(f"the key set's address answers with {response.status_code}")
            kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            if kind not in _TYPES:
                raise ValueError(f"what came is {kind[:60] or 'of no type'}, and no key set")
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise ValueError("what came is compressed, which was not asked for")
            data = bytearray()
            async for piece in response.aiter_raw():
                data += piece
                if len(data) > self.config.max_bytes:
                    raise ValueError(f"the key set has more than {self.config.max_bytes} bytes")
        from shim.trust.jwks import read_key_set  # noqa: PLC0415 - megabytes, for tokens alone

        return read_key_set(bytes(data))
