"""Whether Navidrome has users, where the shim does not look after accounts.

On an empty server the first visitor whom the user header names becomes its admin, whoever that is.
"""

from __future__ import annotations

import asyncio
import ssl

from shim.health import Check, State
from shim.navidrome.api import is_empty
from shim.navidrome.errors import Unavailable
from shim.navidrome.transport import Transport
from shim.settings import Settings


class EmptyServerMonitor:
    """Asks Navidrome's web app, which is told; nobody is named, so nobody is made."""

    def __init__(self, settings: Settings, tls: ssl.SSLContext | None) -> None:
        """`tls` is what Navidrome's certificate is verified with, None without TLS."""
        self._transport = Transport(settings.upstream, settings.base_path, tls=tls, timeout=5.0)
        self._empty: bool | None = None

    async def probe(self) -> None:
        """Ask once."""
        try:
            self._empty = await is_empty(self._transport)
        except Unavailable:
            self._empty = None

    async def run(self, interval: float) -> None:
        """Ask every `interval` seconds."""
        while True:
            await asyncio.sleep(interval)
            await self.probe()

    async def close(self) -> None:
        """Close every connection."""
        await self._transport.close()

    def check(self) -> Check:
        """What there is to say of it."""
        if self._empty:
            return Check(
                "accounts",
                State.WARNING,
                "Navidrome has no users: the first visitor becomes its admin, whoever that is",
                "Make the first admin in Navidrome before anybody else comes, or set "
                "SHIM_PROVISIONING=true.",
            )
        return Check("accounts", State.OK, "provisioning is off")
