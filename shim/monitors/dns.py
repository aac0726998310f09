"""Monitor the addresses of the whitelist's host names.

A name that was never resolved trusts no peer. If a lookup fails, the name keeps its last addresses for a
bounded time, so that a short failure of the name server does not lock out all users; after that it trusts no
peer.

Lookups have their own threads: the event loop has few for them, connections to Navidrome need the same ones,
and a silent name server would block all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from shim.trust.peers import Address, parse_peer

# While a name has no address, look it up more often, to find an edge that starts after the shim.
_UNRESOLVED_SECONDS = 5.0
# The addresses, or the error text.
_Lookup: TypeAlias = "frozenset[Address] | str"


@dataclass(slots=True)
class _Name:
    addresses: frozenset[Address] = frozenset()
    resolved_at: float | None = None
    fault: str | None = None
    pending: asyncio.Future[_Lookup] | None = None  # of the lookup in progress


@dataclass(frozen=True, slots=True)
class NameState:
    """A name's addresses, and the error of its last lookup, if it failed. `age`: the time in seconds since
    the last lookup that succeeded, infinite before the first one."""

    host: str
    addresses: frozenset[Address]
    fault: str | None
    age: float = math.inf


class DnsMonitor:
    """Resolves `hosts`. Addresses are used for `stale_seconds` while lookups fail; `timeout` is the limit in
    seconds for one lookup."""

    def __init__(
        self,
        hosts: tuple[str, ...],
        stale_seconds: float,
        timeout: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._names = {host: _Name() for host in hosts}
        self._stale_seconds = stale_seconds
        self._timeout = timeout

    def copy_state_from(self, older: DnsMonitor) -> None:
        """Take over the addresses of another monitor for the same names, with their age."""
        for host in self._names.keys() & older._names.keys():
            self._names[host] = older._names[host]

    @property
    def states(self) -> tuple[NameState, ...]:
        """The state of each name."""
        now = self._clock()
        return tuple(
            NameState(
                host,
                name.addresses,
                name.fault,
                math.inf if name.resolved_at is None else now - name.resolved_at,
            )
            for host, name in self._names.items()
        )

    def addresses(self) -> dict[str, frozenset[Address]]:
        """Return the current addresses of each name."""
        return {host: name.addresses for host, name in self._names.items()}

    async def resolve(self) -> bool:
        """Look up every name once. Return whether any address changed."""
        before = self.addresses()
        await asyncio.gather(*(self._resolve(host, name) for host, name in self._names.items()))
        return self.addresses() != before

    async def run(
        self,
        interval: float,
        on_change: Callable[[], None],
        on_lookup: Callable[[], None] = lambda: None,
    ) -> None:
        """Look up every `interval` seconds, and more often while a name has no address. Call `on_lookup`
        after each lookup, and `on_change` if an address changed."""
        while self._names:
            resolved = all(name.addresses for name in self._names.values())
            await asyncio.sleep(interval if resolved else min(interval, _UNRESOLVED_SECONDS))
            differs = await self.resolve()
            on_lookup()
            if differs:
                on_change()

    async def _resolve(self, host: str, name: _Name) -> None:
        # A thread that waits for a name server can't be ended: one that is late is waited for again.
        pending = name.pending = name.pending or _start_lookup(host)
        result: _Lookup
        try:
            async with asyncio.timeout(self._timeout):
                result = await asyncio.shield(pending)
        except TimeoutError:
            result = "no response in time"
        else:
            name.pending = None
        if not isinstance(result, str):
            name.addresses, name.resolved_at, name.fault = result, self._clock(), None
            return
        name.fault = result
        if name.resolved_at is not None and self._clock() - name.resolved_at > self._stale_seconds:
            name.addresses = frozenset()


def _start_lookup(host: str) -> asyncio.Future[_Lookup]:
    """Look the name up in a thread."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_Lookup] = loop.create_future()

    def run() -> None:
        result = _addresses(host)
        with contextlib.suppress(
            RuntimeError
        ):  # the loop is closed, so nothing waits for the result
            loop.call_soon_threadsafe(future.set_result, result)

    # A daemon thread, so that the process does not wait for the name server when it exits.
    threading.Thread(target=run, name=f"look-up of {host}", daemon=True).start()
    return future


def _addresses(host: str) -> _Lookup:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        peers = [parse_peer(str(entry[4][0])) for entry in found]
    except (OSError, ValueError) as error:  # a name that cannot be encoded raises ValueError
        return str(error) or type(error).__name__
    return frozenset(peer.address for peer in peers if peer.address is not None)
