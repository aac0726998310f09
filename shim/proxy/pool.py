"""The connections to Navidrome.

Invariants: a connection is in `_idle` only between two requests, with reading on, no byte left over and
no wish to close; `_open` counts those that are connected or connecting, `_connecting` the latter;
`_waiting` holds, in order, the clients that were promised a connection, each at most once.
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

# The shim has no descriptors left: that says nothing about Navidrome.
_NO_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})


@dataclass(frozen=True, slots=True)
class UpstreamAddress:
    """Where an upstream listens: a host and a port, or the path of a Unix socket. `tls` is the context
    to speak TLS with."""

    host: str = "127.0.0.1"
    port: int = 4533
    path: str | None = None
    tls: ssl.SSLContext | None = None


class PoolWaiter(Protocol):
    """Who waits for a connection."""

    def connection_ready(self, upstream: Upstream) -> None:
        """Here is the connection: send the request."""

    def connection_failed(self, failure: Failure) -> None:
        """There will be none."""


class UpstreamPool:
    """Connections to one address: as many as are needed, up to the limit, the last used first."""

    __slots__ = (
        "_address",
        "_connecting",
        "_context",
        "_idle",
        "_most",
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
        most: int | None = None,
    ) -> None:
        """`most`: connections at the same time, by default as many as the limits allow."""
        self._most = context.limits.max_upstream_connections if most is None else most
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
        """A connection that is ready now, or None. It is the caller's until it is released or lost."""
        while self._idle:
            upstream = self._idle.pop()
            if not upstream.closing:
                return upstream
        return None

    def acquire(self, waiter: PoolWaiter) -> bool:
        """Get `waiter` a connection, later. Return whether it may wait: the pool may be closed, or too many
        wait already."""
        if self.closed or len(self._waiters) >= self._context.limits.max_pending_requests:
            return False
        self._waiters[waiter] = None
        if self._open < self._most:
            self._connect()
        return True

    def cancel(self, waiter: PoolWaiter) -> None:
        """The client waits no longer."""
        self._waiters.pop(waiter, None)

    def release(self, upstream: Upstream) -> None:
        """Take a connection back, for the next request."""
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
        """The connection is gone."""
        self._open -= 1
        if upstream in self._idle:
            self._idle.remove(upstream)
        self._refill()

    def response_received(self) -> None:
        """Navidrome gave a response: it is there."""
        if self.down:
            self.down = False
            if self.report_health:
                self._context.observer.upstream_up()
                self._notify_gate()

    def sweep(self, now: float) -> None:
        """Close what has been idle for too long, and count what there is."""
        oldest = now - self._context.limits.upstream_idle_timeout
        while self._idle and self._idle[0].idle_since < oldest:
            self._idle.pop(0).close()
        self._update_counters()

    def close(self) -> None:
        """Close what is idle, and everything that comes back."""
        self.closed = True
        for task in self._tasks:
            task.cancel()
        for upstream in self._idle:
            upstream.close()
        self._idle.clear()

    def _refill(self) -> None:
        room = self._open < self._most
        if room and not self.closed and len(self._waiters) > self._connecting:
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
        """`reason` says why Navidrome is down, None where it may not be."""
        self._open -= 1
        self._connecting -= 1
        if reason is not None and not self.down:
            self.down = True
            if self.report_health:
                self._context.observer.upstream_down(reason)
                self._notify_gate()
        # Whoever waits for a connection being made is told; the others are tried for once more.
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
