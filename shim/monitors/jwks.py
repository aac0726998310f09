"""Monitor the provider's key set.

Keys are used until the next successful fetch, during an outage for a bounded time. Clients cannot cause many
fetches: an unknown key starts one fetch, which all waiting requests share, and the next one starts only after
`min_interval`.
"""

from __future__ import annotations

import asyncio
import math
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from shim.trust.jwks import Key, read_key_set

MAX_WAITERS = 256
# Without any key all tokens are rejected, so fetch again soon.
_WITHOUT_KEYS_SECONDS = 5.0
_TYPES = ("application/json", "application/jwk-set+json")


@dataclass(frozen=True, slots=True)
class JwksState:
    """The state of the key set. `fault` is the error of the last fetch, None if it succeeded. `failing_for`
    is the time in seconds since the first failure, `age` that since the last successful fetch, infinite
    before it."""

    keys: tuple[Key, ...] = ()
    fault: str | None = "not fetched yet"
    failing_for: float = 0.0
    age: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class JwksConfig:
    """How to fetch the key set.

    `ca`: a PEM file with the CA to trust, None for the system's. `min_interval`: minimum seconds between two
    fetches for unknown keys. `max_age`: seconds that keys are used while fetches fail. `timeout`: limit in
    seconds for one complete fetch. `max_bytes`: limit for the response.
    """

    url: str
    ca: str | None = None
    min_interval: float = 30.0
    max_age: float = 86400.0
    timeout: float = 5.0
    max_bytes: int = 262144


class JwksMonitor:
    """Fetches the keys of `config`."""

    def __init__(self, config: JwksConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.config = config
        self._on_change: Callable[[], None] = lambda: None
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
        """The current keys."""
        return self._keys

    @property
    def state(self) -> JwksState:
        """The state of the key set."""
        now, fetched_at, since = self._clock(), self._fetched_at, self._failing_since
        failing_for = 0.0 if since is None else now - since
        age = math.inf if fetched_at is None else now - fetched_at
        return JwksState(self._keys, self._fault, failing_for, age)

    def report_changes(self, on_change: Callable[[], None]) -> None:
        """From now on, call `on_change` after each fetch with another result than the last one, before
        waiting requests continue."""
        self._on_change = on_change

    async def fetch(self) -> None:
        """Fetch once, or wait for the fetch in progress. Never raises; `state` has the result."""
        await asyncio.shield(self._start_fetch())

    async def refetch(self) -> None:
        """Read the CA file again, because it may have been renewed, and fetch."""
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
        """Return a future that is done when the set was fetched for an unknown key. Return None if the last
        such fetch is too recent, or if too many requests wait. Cancelling it does not affect other
        requests."""
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
        """Cancel the fetch in progress."""
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
            self._failed("no complete response in time")
        except httpx.HTTPError as error:
            self._failed(f"{type(error).__name__}: {error}".rstrip(": "))
        except (httpx.InvalidURL, OSError, ValueError) as error:
            self._failed(str(error))
        else:
            self._fetched_at, self._failing_since = self._clock(), None
            self._fault = None
        if before != (self._keys, self._fault):
            self._on_change()

    def _failed(self, fault: str) -> None:
        now = self._clock()
        self._fault = fault
        if self._failing_since is None:
            self._failing_since = now
        if self._fetched_at is None or now - self._fetched_at > self.config.max_age:
            self._keys = ()

    def _verify(self) -> ssl.SSLContext | bool:
        """Return the TLS context to verify with. Raises ValueError if the CA file has no certificate."""
        if not self.config.url.startswith("https:"):
            return False
        if self._context is None:
            try:
                self._context = ssl.create_default_context(cafile=self.config.ca)
            except OSError as error:
                raise ValueError(f"{self.config.ca} contains no certificate: {error}") from None
        return self._context

    async def _download(self) -> tuple[Key, ...]:
        """Return the keys of the set. Raises httpx errors, and ValueError for a response that is not a key
        set."""
        headers = {"Accept": ", ".join(_TYPES), "Accept-Encoding": "identity"}
        # Follow no redirects and use no proxy of the environment: connect only to the configured address.
        client = httpx.AsyncClient(
            verify=self._verify(), timeout=self.config.timeout, trust_env=False, headers=headers
        )
        async with client, client.stream("GET", self.config.url) as response:
            if response.status_code != 200:
                raise ValueError(f"the key set's URL returned {response.status_code}")
            kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            if kind not in _TYPES:
                raise ValueError(
                    f"the response has the type {kind[:60] or 'none'}, not that of a key set"
                )
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise ValueError("the response is compressed, which was not requested")
            data = bytearray()
            async for piece in response.aiter_raw():
                data += piece
                if len(data) > self.config.max_bytes:
                    raise ValueError(f"the key set has more than {self.config.max_bytes} bytes")
        # In a thread: the first time, it loads what public keys need.
        return await asyncio.to_thread(read_key_set, bytes(data))
