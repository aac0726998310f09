"""The connection pool of an upstream.

Invariants: a connection is in `_idle` only between two requests, with reading enabled, no byte left over and
no pending close; `_open` counts those that are connected or connecting, `_connecting` the latter; `_waiters`
holds, in order, the requests that wait for a connection, each at most once.
"""

from __future__ import annotations

import asyncio
import errno
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from shim.http1.response_templates import ResponseTemplateCache
from shim.proxy.failures import Failure
from shim.proxy.interfaces import ProxyContext
from shim.proxy.upstream import Upstream

# The shim has no descriptors left: this is no sign that Navidrome is down.
_NO_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})


@dataclass(frozen=True, slots=True)
class UpstreamAddress:
    """The address of an upstream: a host and a port, or the path of a Unix socket. `tls` is the TLS context,
    None for plain HTTP."""

    host: str = "127.0.0.1"
    port: int = 4533
    path: str | None = None
    tls: ssl.SSLContext | None = None


class PoolWaiter(Protocol):
    """A request that waits for a connection."""

    def connection_ready(self, upstream: Upstream) -> None:
        """Send the request over `upstream`."""

    def connection_failed(self, failure: Failure) -> None:
        """Handle a failure: no connection is available."""


class UpstreamPool:
    """Connections to one address: as many as needed, up to the limit; the most recently used is taken
    first."""

    __slots__ = (
        "_address",
        "_connecting",
        "_context",
        "_idle",
        "_max_connections",
        "_open",
        "_tasks",
        "_waiters",
        "closed",
        "down",
        "report_health",
        "templates",
    )

    def __init__(
        self,
        context: ProxyContext,
        address: UpstreamAddress,
        *,
        report_health: bool = True,
        max_connections: int | None = None,
    ) -> None:
        """Create an empty pool. `max_connections`: the maximum of simultaneous connections, by default
        `max_upstream_connections`."""
        self._max_connections = (
            context.limits.max_upstream_connections if max_connections is None else max_connections
        )
        self._context = context
        self._address = address
        self._idle: list[Upstream] = []
        self._waiters: dict[PoolWaiter, None] = {}
        self._open = 0
        self._connecting = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.closed = False
        self.down = False
        self.report_health = report_health
        self.templates = ResponseTemplateCache(
            context.limits.header_bytes, context.limits.header_lines
        )

    def take(self) -> Upstream | None:
        """Return an idle connection, or None. The caller owns it until it is released or lost."""
        while self._idle:
            upstream = self._idle.pop()
            if not upstream.closing:
                return upstream
        return None

    def acquire(self, waiter: PoolWaiter) -> bool:
        """Queue `waiter` for a connection. Return whether it was queued; False if the pool is closed or the
        queue is full."""
        if self.closed or len(self._waiters) >= self._context.limits.max_pending_requests:
            return False
        self._waiters[waiter] = None
        if self._open < self._max_connections:
            self._connect()
        return True

    def cancel(self, waiter: PoolWaiter) -> None:
        """Remove `waiter` from the queue."""
        self._waiters.pop(waiter, None)

    def release(self, upstream: Upstream) -> None:
        """Return a connection to the pool, for the next request."""
        if self.closed or upstream.closing:
            upstream.close()
        elif self._waiters:
            waiter = next(iter(self._waiters))
            self.cancel(waiter)
            waiter.connection_ready(upstream)
        else:
            upstream.idle_since = self._context.now
            self._idle.append(upstream)

    def connection_lost(self, upstream: Upstream) -> None:
        """Remove a connection that is closed."""
        self._open -= 1
        if upstream in self._idle:
            self._idle.remove(upstream)
        self._refill()

    def response_received(self) -> None:
        """Record that Navidrome responds."""
        if self.down:
            self.down = False
            if self.report_health:
                self._context.observer.upstream_up()
                self._notify_gate()

    def sweep(self, now: float) -> None:
        """Close connections that have been idle too long, and update the gauges."""
        oldest = now - self._context.limits.upstream_idle_timeout
        while self._idle and self._idle[0].idle_since < oldest:
            self._idle.pop(0).close()
        self._update_counters()

    def close(self) -> None:
        """Close idle connections now, and all others when they are released."""
        self.closed = True
        for task in self._tasks:
            task.cancel()
        for upstream in self._idle:
            upstream.close()
        self._idle.clear()

    def _refill(self) -> None:
        below_limit = self._open < self._max_connections
        if below_limit and not self.closed and len(self._waiters) > self._connecting:
            self._connect()

    def _connect(self) -> None:
        self._open += 1
        self._connecting += 1
        task = asyncio.get_running_loop().create_task(self._open_one())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open_one(self) -> None:
        limit = self._context.limits.upstream_connect_timeout
        try:
            async with asyncio.timeout(limit):
                upstream = await _open(self._address, self._create_connection)
        except TimeoutError:
            self._connection_failed(Failure.CONNECT_TIMEOUT, f"no connection within {limit:g} s")
        except OSError as error:
            if error.errno in _NO_DESCRIPTORS:
                self._connection_failed(Failure.DESCRIPTORS_EXHAUSTED, None)
                return
            self._connection_failed(Failure.CONNECT_FAILED, _error_detail(error))
        else:
            self._connecting -= 1
            self.release(upstream)

    def _create_connection(self) -> Upstream:
        return Upstream(self._context, self)

    def _connection_failed(self, failure: Failure, reason: str | None) -> None:
        """Handle a failed connection attempt. `reason` is why Navidrome is down, None if it may be up."""
        self._open -= 1
        self._connecting -= 1
        if reason is not None and not self.down:
            self.down = True
            if self.report_health:
                self._context.observer.upstream_down(reason)
                self._notify_gate()
        # The first waiter fails; for the others there is another attempt.
        if self._waiters:
            waiter = next(iter(self._waiters))
            self.cancel(waiter)
            waiter.connection_failed(failure)
        self._refill()

    def _notify_gate(self) -> None:
        if self._context.gate is not None:
            self._context.gate.upstream_changed()

    def _update_counters(self) -> None:
        if self.report_health:
            counters = self._context.counters
            counters.upstream_connections = self._open
            counters.upstream_idle = len(self._idle)
            counters.upstream_waiting = len(self._waiters)


async def _open(address: UpstreamAddress, create: Callable[[], Upstream]) -> Upstream:
    loop = asyncio.get_running_loop()
    tls = address.tls
    host = address.host if tls is not None else None
    if address.path is not None:
        _, upstream = await loop.create_unix_connection(
            create, address.path, ssl=tls, server_hostname=host
        )
    else:
        _, upstream = await loop.create_connection(
            create, address.host, address.port, ssl=tls, server_hostname=host
        )
    return upstream


def _error_detail(error: OSError) -> str:
    return f"{type(error).__name__}: {error.strerror or error}"
