"""Monitor whether Navidrome responds, and whether it has the configured base path.

The monitor sends requests at intervals over its own connection, so that `/readyz` can respond at once. If
Navidrome redirects to another base path, it routes paths differently from the shim. Then no identity is
trusted until both agree.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from shim.navidrome.transport import default_tls
from shim.settings import Upstream

# Navidrome redirects an unknown path to its web app, below its base path.
_PROBE = "navidrome-shim-probe"


@dataclass(frozen=True, slots=True)
class UpstreamState:
    """`reached`: whether Navidrome responded. `base_path`: the base path in its redirect, None without one.
    `detail`: the finding in words."""

    reached: bool
    base_path: str | None
    detail: str


class UpstreamMonitor:
    """Monitors Navidrome at `upstream`, with the expected `base_path`."""

    def __init__(
        self,
        upstream: Upstream,
        tls: ssl.SSLContext | None,
        base_path: str,
        timeout: float = 5.0,
    ) -> None:
        """`tls` is what its certificate is verified with, None for the system's authorities."""
        verify = tls or default_tls(upstream)
        self._client = httpx.AsyncClient(
            base_url=f"{'https' if upstream.tls else 'http'}://{upstream.authority}",
            transport=httpx.AsyncHTTPTransport(uds=upstream.path, verify=verify),
            timeout=timeout,
        )
        self._base_path = "/" + base_path.strip("/") + "/" if base_path.strip("/") else "/"
        self.state = UpstreamState(False, None, "not checked yet")

    @property
    def base_path_mismatch(self) -> bool:
        """Whether Navidrome has another base path."""
        return self.state.base_path is not None and self.state.base_path != self._base_path

    async def probe(self) -> bool:
        """Send one request. Return whether the state changed."""
        before = self.state
        self.state = await self._probe()
        if not self.state.reached and before.base_path is not None:
            # An outage does not resolve a mismatch.
            self.state = UpstreamState(False, before.base_path, self.state.detail)
        return self.state != before

    async def run(self, interval: float, changed: Callable[[], None]) -> None:
        """Send a request every `interval` seconds, and more often while Navidrome is away."""
        while True:
            await asyncio.sleep(interval if self.state.reached else min(interval, 2.0))
            if await self.probe():
                changed()

    async def close(self) -> None:
        """Close the connection."""
        await self._client.aclose()

    async def _probe(self) -> UpstreamState:
        try:
            response = await self._client.get(f"{self._base_path}{_PROBE}")
        except httpx.HTTPError as error:
            return UpstreamState(False, None, f"{type(error).__name__}: {error}")
        location = response.headers.get("Location")
        if location is None:
            return UpstreamState(True, None, f"responds with {response.status_code}")
        try:
            path = urlsplit(location).path
        except ValueError:
            path = ""
        if not path.endswith("/app/"):
            return UpstreamState(True, None, "responds with a redirect, but not to its web app")
        base_path = path.removesuffix("app/")
        return UpstreamState(True, base_path, f"responds, with the base path {base_path}")
