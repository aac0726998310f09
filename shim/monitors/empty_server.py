"""Monitor whether Navidrome has users, if provisioning is off.

On an empty server the first user in the user header becomes the admin.
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
    """Requests Navidrome's web app, which shows this, without a user header, so that no account is
    created."""

    def __init__(self, settings: Settings, tls: ssl.SSLContext | None) -> None:
        """`tls` is what Navidrome's certificate is verified with, None without TLS."""
        self._transport = Transport(settings.upstream, settings.base_path, tls=tls, timeout=5.0)
        self._empty: bool | None = None

    async def probe(self) -> None:
        """Send one request."""
        try:
            self._empty = await is_empty(self._transport)
        except Unavailable:
            self._empty = None

    async def run(self, interval: float) -> None:
        """Send a request every `interval` seconds."""
        while True:
            await asyncio.sleep(interval)
            await self.probe()

    async def close(self) -> None:
        """Close every connection."""
        await self._transport.close()

    def check(self) -> Check:
        """Return the check for `/readyz` and `check`."""
        if self._empty:
            return Check(
                "accounts",
                State.WARNING,
                "Navidrome has no users: the first visitor becomes its admin",
                "Create the first admin in Navidrome now, or set SHIM_PROVISIONING=true.",
            )
        return Check("accounts", State.OK, "provisioning is off")
