"""The addresses of host names, looked up again and again.

A name that never resolved lists nobody. One whose look-up fails keeps its last answer for a bounded
time, since a name server that blinks must not lock everybody out; after that it lists nobody either.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass

from shim.trust.addresses import Address, parse_peer


@dataclass(slots=True)
class _Name:
    addresses: frozenset[Address] = frozenset()
    resolved_at: float | None = None
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class NameState:
    """How a name stands: its addresses, and why the last look-up failed, if it did."""

    host: str
    addresses: frozenset[Address]
    fault: str | None


class NameWatch:
    """Keeps the answers for `hosts`. `keep` is how long, in seconds, an answer outlives failing look-ups;
    `timeout` is for one look-up."""

    def __init__(self, hosts: tuple[str, ...], keep: float, timeout: float = 5.0) -> None:
        self._names = {host: _Name() for host in hosts}
        self._keep = keep
        self._timeout = timeout

    def inherit(self, older: NameWatch) -> None:
        """Take what another watch knows of the same names, with its age."""
        for host in self._names.keys() & older._names.keys():
            self._names[host] = older._names[host]

    @property
    def states(self) -> tuple[NameState, ...]:
        """How each name stands."""
        return tuple(
            NameState(host, name.addresses, name.fault) for host, name in self._names.items()
        )

    def answers(self) -> dict[str, frozenset[Address]]:
        """The addresses that each name has for now."""
        return {host: name.addresses for host, name in self._names.items()}

    async def look_up(self) -> bool:
        """Look every name up once. Whether any answer changed."""
        before = self.answers()
        await asyncio.gather(*(self._look_up(host, name) for host, name in self._names.items()))
        return self.answers() != before

    async def run(
        self,
        interval: float,
        changed: Callable[[], None],
        looked: Callable[[], None] = lambda: None,
    ) -> None:
        """Look up every `interval` seconds. `looked` hears of each time, `changed` of each answer that
        differs from the last one."""
        while self._names:
            await asyncio.sleep(interval)
            differs = await self.look_up()
            looked()
            if differs:
                changed()

    async def _look_up(self, host: str, name: _Name) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout):
                found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            fault = "no answer in time" if isinstance(error, TimeoutError) else str(error)
            name.fault = fault
            if name.resolved_at is not None and loop.time() - name.resolved_at > self._keep:
                name.addresses = frozenset()
            return
        peers = (parse_peer(str(entry[4][0])) for entry in found)
        name.addresses = frozenset(peer.address for peer in peers if peer.address is not None)
        name.resolved_at = loop.time()
        name.fault = None
