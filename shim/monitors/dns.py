"""The addresses of host names, looked up again and again.

A name that never resolved lists nobody. One whose look-up fails keeps its last answer for a bounded
time, since a name server that blinks must not lock everybody out; after that it lists nobody either.

Look-ups have threads of their own: those that the event loop has for them are few, connections to Navidrome
wait for the same ones, and a name server that is silent would hold them all.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from shim.trust.peers import Address, parse_peer

# While a name has no address nobody speaks under it: an edge that starts after the shim is soon found.
_UNRESOLVED_SECONDS = 5.0
# The addresses, or why there are none.
_Lookup: TypeAlias = "frozenset[Address] | str"


@dataclass(slots=True)
class _Name:
    addresses: frozenset[Address] = frozenset()
    resolved_at: float | None = None
    fault: str | None = None
    pending: asyncio.Future[_Lookup] | None = None  # of the look-up that is under way


@dataclass(frozen=True, slots=True)
class NameState:
    """How a name stands: its addresses, and why the last look-up failed, if it did."""

    host: str
    addresses: frozenset[Address]
    fault: str | None


class DnsMonitor:
    """Keeps the answers for `hosts`. `keep` is how long, in seconds, an answer outlives failing look-ups;
    `timeout` is for one look-up."""

    def __init__(self, hosts: tuple[str, ...], stale_seconds: float, timeout: float = 5.0) -> None:
        self._names = {host: _Name() for host in hosts}
        self._stale_seconds = stale_seconds
        self._timeout = timeout

    def copy_state_from(self, older: DnsMonitor) -> None:
        """Take what another watch knows of the same names, with its age."""
        for host in self._names.keys() & older._names.keys():
            self._names[host] = older._names[host]

    @property
    def states(self) -> tuple[NameState, ...]:
        """How each name stands."""
        return tuple(
            NameState(host, name.addresses, name.fault) for host, name in self._names.items()
        )

    def addresses(self) -> dict[str, frozenset[Address]]:
        """The addresses that each name has for now."""
        return {host: name.addresses for host, name in self._names.items()}

    async def resolve(self) -> bool:
        """Look every name up once. Whether any answer changed."""
        before = self.addresses()
        await asyncio.gather(*(self._resolve(host, name) for host, name in self._names.items()))
        return self.addresses() != before

    async def run(
        self,
        interval: float,
        on_change: Callable[[], None],
        on_lookup: Callable[[], None] = lambda: None,
    ) -> None:
        """Look up every `interval` seconds, and more often while a name has no address. `looked` hears of
        each time, `changed` of each answer that differs from the last one."""
        while self._names:
            resolved = all(name.addresses for name in self._names.values())
            await asyncio.sleep(interval if resolved else min(interval, _UNRESOLVED_SECONDS))
            differs = await self.resolve()
            on_lookup()
            if differs:
                on_change()

    async def _resolve(self, host: str, name: _Name) -> None:
        loop = asyncio.get_running_loop()
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
            name.addresses, name.resolved_at, name.fault = result, loop.time(), None
            return
        name.fault = result
        if name.resolved_at is not None and loop.time() - name.resolved_at > self._stale_seconds:
            name.addresses = frozenset()


def _start_lookup(host: str) -> asyncio.Future[_Lookup]:
    """Have a thread look the name up."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_Lookup] = loop.create_future()

    def run() -> None:
        result = _addresses(host)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(future.set_result, result)

    # A daemon, so that leaving does not wait for the name server either.
    threading.Thread(target=run, name=f"look-up of {host}", daemon=True).start()
    return future


def _addresses(host: str) -> _Lookup:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        peers = [parse_peer(str(entry[4][0])) for entry in found]
    except (OSError, ValueError) as error:  # a name that can't be encoded is a ValueError
        return str(error) or type(error).__name__
    return frozenset(peer.address for peer in peers if peer.address is not None)
