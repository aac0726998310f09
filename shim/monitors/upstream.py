"""Whether Navidrome is there, and whether it has the base path that it is believed to have.

Asked now and then over a connection of its own, so that `/readyz` can answer at once. A Navidrome that
redirects to another base path would route what the shim takes for protected as something else: then
nobody is believed until it agrees.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from shim.settings import Upstream

# Navidrome redirects whatever it has no page for to its web app, below its base path.
_PROBE = "navidrome-shim-probe"


@dataclass(frozen=True, slots=True)
class UpstreamState:
    """`reached`: whether it answered. `base_path`: the one that its redirect names, None if it named
    none. `detail`: what was found, in a sentence."""

    reached: bool
    base_path: str | None
    detail: str


class UpstreamMonitor:
    """Asks Navidrome at `upstream`, which is expected below `base_path` (begins and ends with "/")."""

    def __init__(
        self,
        upstream: Upstream,
        tls: ssl.SSLContext | None,
        base_path: str,
        timeout: float = 5.0,
    ) -> None:
        """`tls` is what its certificate is verified with, None for the system's authorities."""
        verify = (tls or ssl.create_default_context()) if upstream.tls else False
        self._client = httpx.AsyncClient(
            base_url=f"{'https' if upstream.tls else 'http'}://{upstream.authority}",
            transport=httpx.AsyncHTTPTransport(uds=upstream.path, verify=verify),
            timeout=timeout,
        )
        self._base_path = "/" + base_path.strip("/") + "/" if base_path.strip("/") else "/"
        self.state = UpstreamState(False, None, "not asked yet")

    @property
    def base_path_mismatch(self) -> bool:
        """Whether Navidrome named another base path."""
        return self.state.base_path is not None and self.state.base_path != self._base_path

    async def probe(self) -> bool:
        """Ask once. Whether what is known changed."""
        before = self.state
        self.state = await self._probe()
        if not self.state.reached and before.base_path is not None:
            # Being away does not take a contradiction back.
            self.state = UpstreamState(False, before.base_path, self.state.detail)
        return self.state != before

    async def run(self, interval: float, changed: Callable[[], None]) -> None:
        """Ask every `interval` seconds, and at once more often while it is away."""
        while True:
            await asyncio.sleep(interval if self.state.reached else min(interval, 2.0))
            if await self.probe():
                changed()

    async def close(self) -> None:
        """Ask no more."""
        await self._client.aclose()

    async def _probe(self) -> UpstreamState:
        try:
            response = await self._client.get(f"{self._base_path}{_PROBE}")
        except httpx.HTTPError as error:
            return UpstreamState(False, None, f"{type(error).__name__}: {error}")
        location = response.headers.get("Location")
        if location is None:
            return UpstreamState(True, None, f"answers with {response.status_code}")
        try:
            path = urlsplit(location).path
        except ValueError:
            path = ""
        if not path.endswith("/app/"):
            return UpstreamState(True, None, "answers with a redirect that is not to its web app")
        base_path = path.removesuffix("app/")
        return UpstreamState(True, base_path, f"answers, with its base path at {base_path}")
