"""Monitor whether Navidrome obeys the user header that the shim writes.

A Navidrome that reads the user name from another header would obey a client's own header. So until Navidrome
is known to obey `SHIM_REVERSE_PROXY_USER_HEADER`, only headers on an allow-list are forwarded, and while it
is known not to, identities are rejected. The result expires when Navidrome closes the connection that the
monitor keeps open, because it may restart with other settings.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeAlias

from shim.navidrome.api import obeys
from shim.navidrome.errors import NavidromeError, NotAuthenticated, PermissionDenied, Unavailable
from shim.navidrome.liveness import LivenessConnection, open_liveness
from shim.navidrome.models import ExternalAuthentication
from shim.navidrome.transport import Transport
from shim.settings import Settings
from shim.trust.known_headers import USER_HEADERS
from shim.trust.peers import Address

# Reads Navidrome's settings. Returns None if Navidrome does not show them.
Configuration: TypeAlias = Callable[[], Awaitable[ExternalAuthentication | None]]

_EVERY_SECONDS = 3600.0
# The configuration becomes readable when the shim has its account.
_UNREAD_SECONDS = 60.0
_FIRST_PAUSE = 0.1
_LAST_PAUSE = 2.0
_TIMEOUT = 5.0


@dataclass(frozen=True, slots=True)
class UserHeaderState:
    """Which header Navidrome reads the user name from.

    `obeyed`: whether it is the header that the shim sets; None while that is not known.
    `other`: the header that Navidrome obeys instead, "" if none is known.
    `trusted_sources`: Navidrome's `ExtAuth.TrustedSources`, None if they are not known.
    `detail`: why the state is not known, in words.
    `own_address`: the address from which the shim connects to Navidrome, `@` over a Unix socket, "" if it is
    not known. Navidrome sees another one if there is a proxy or NAT in between.
    """

    obeyed: bool | None
    other: str = ""
    trusted_sources: str | None = None
    detail: str = ""
    own_address: str = field(default="", compare=False)


class UserHeaderWatch:
    """Checks at the start, after each restart of Navidrome, and hourly.

    `configuration` reads Navidrome's settings, None if the shim has no account there. `changed` is called
    when the state changes.
    """

    def __init__(
        self,
        settings: Settings,
        configuration: Configuration | None,
        changed: Callable[[], None],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`tls` is what Navidrome's certificate is verified with, None without TLS."""
        upstream = settings.upstream
        self._transport = Transport(upstream, settings.base_path, tls=tls, timeout=_TIMEOUT)
        self._upstream = upstream
        self._base_path = settings.base_path
        self._tls = tls
        self._header = settings.reverse_proxy_user_header
        self._configuration = configuration
        self._changed = changed
        self._unread = configuration is not None
        self._liveness: LivenessConnection | None = None
        self._wake = asyncio.Event()
        self.state = UserHeaderState(None, detail="not checked yet")

    async def start(self) -> None:
        """Connect to Navidrome and check once, without calling `changed`."""
        try:
            await self._connect()
        except Unavailable as error:
            # A check now would only open the circuit breaker of the API.
            self.state = UserHeaderState(None, detail=str(error))
        else:
            await self.ask()

    async def run(self) -> None:
        """Check at each interval, until cancelled."""
        loop = asyncio.get_running_loop()
        pause, asked_at = _FIRST_PAUSE, loop.time()
        while True:
            if self._liveness is None or self.state.obeyed is None:
                await self._sleep(pause)
                pause = min(_LAST_PAUSE, pause * 2)
                with contextlib.suppress(Unavailable):
                    await self._connect()
                    self._update_state(await self.ask())
                    asked_at = loop.time()
                continue
            pause = _FIRST_PAUSE
            await self._sleep(_UNREAD_SECONDS if self._unread else _EVERY_SECONDS)
            if loop.time() - asked_at < _EVERY_SECONDS and (
                not self._unread or await self._read() is None
            ):
                continue
            self._update_state(await self.ask())
            asked_at = loop.time()

    async def ask(self) -> bool:
        """Check once. Return whether the state changed."""
        before = self.state
        liveness = self._liveness
        state = await self._query()
        if self._liveness is liveness:  # otherwise Navidrome restarted meanwhile
            own = "" if liveness is None else liveness.own_address
            self.state = replace(state, own_address=own)
        return self.state != before

    async def close(self) -> None:
        """Close every connection."""
        self._close_connection()
        await self._transport.close()

    async def _connect(self) -> None:
        if self._liveness is None:
            self._liveness = await open_liveness(
                self._upstream, self._base_path, self._tls, self._on_disconnect, _TIMEOUT
            )

    def _on_disconnect(self) -> None:
        self._liveness = None
        self.state = UserHeaderState(None, detail="Navidrome closed its connection")
        self._wake.set()
        self._changed()

    def _close_connection(self) -> None:
        liveness, self._liveness = self._liveness, None
        if liveness is not None:
            liveness.close()

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        self._wake.clear()

    def _update_state(self, differs: bool) -> None:
        if differs:
            self._changed()

    async def _query(self) -> UserHeaderState:
        found = await self._read()
        sources = None if found is None else found.trusted_sources
        try:
            if found is not None and found.user_header.lower() != self._header.lower():
                return UserHeaderState(False, found.user_header, sources)
            if (found is not None and found.read_by_header) or await obeys(
                self._transport, self._header
            ):
                return UserHeaderState(True, trusted_sources=sources)
            return UserHeaderState(False, await self._find_other(), sources)
        except Unavailable as error:
            return UserHeaderState(None, trusted_sources=sources, detail=str(error))

    async def _read(self) -> ExternalAuthentication | None:
        if self._configuration is None:
            return None
        self._unread = True
        try:
            found = await self._configuration()
        except (NotAuthenticated, PermissionDenied, Unavailable):
            return None
        except NavidromeError:
            found = None
        self._unread = False
        return found

    async def _find_other(self) -> str:
        """Return the known header that Navidrome obeys; "" if there is none, or if it trusts nobody."""
        others = [each for each in USER_HEADERS if each.lower() != self._header.lower()]
        if await obeys(self._transport, *others):
            for header in others:
                if await obeys(self._transport, header):
                    return header
        return ""


def sources_beyond_shim(trusted_sources: str, own_address: str = "") -> tuple[str, ...]:
    """Return the entries of `ExtAuth.TrustedSources` that trust more than the shim.

    Those are networks of more than one address, and other addresses than the shim's if the list has
    `own_address`. Without it, what Navidrome sees as the shim's address is not known. Entries that
    Navidrome ignores are ignored.
    """
    networks: list[tuple[str, IPv4Network | IPv6Network]] = []
    for entry in trusted_sources.split(","):
        with contextlib.suppress(ValueError):
            networks.append((entry, _network(entry)))
    try:
        own = ip_address(own_address)
    except ValueError:  # not known, or a Unix socket
        own = None
    listed = own is not None and any(own in network for _, network in networks)
    return tuple(
        entry
        for entry, network in networks
        if network.num_addresses > 1 or (listed and not _is_same(own, network.network_address))
    )


def _network(entry: str) -> IPv4Network | IPv6Network:
    """Return the network of an entry as Go's `net.ParseCIDR` reads it: only with a prefix length, and with
    IPv4 addresses within IPv6 (`::ffff:10.0.0.0/104`) as IPv4. Raises `ValueError` for any other text."""
    _, _, length = entry.partition("/")
    if not (length.isascii() and length.isdigit()):
        raise ValueError("no prefix length")
    network = ip_network(entry, strict=False)
    address = network.network_address
    if isinstance(address, IPv6Address) and address.ipv4_mapped and network.prefixlen >= 96:
        return IPv4Network((address.ipv4_mapped, network.prefixlen - 96), strict=False)
    return network


def _is_same(own: Address | None, other: Address) -> bool:
    """Return whether both are the same host: all loopback addresses are."""
    return own == other or (own is not None and own.is_loopback and other.is_loopback)
