"""The control plane's protocol: uvicorn's own, which somebody who only connects can't exhaust.

uvicorn waits without end for the first request of a connection, and its limits count requests. Here a
connection without a whole request head goes after `SILENCE` seconds, and there are at most `MOST` of them.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST = 64
SILENCE = 10.0


class ControlProtocol(HttpToolsProtocol):
    """One connection to the control plane."""

    _silence: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MOST:
            transport.abort()
            return
        self._silence = self.loop.call_later(SILENCE, transport.abort)

    def on_headers_complete(self) -> None:
        self._heard()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._heard()
        super().connection_lost(exc)

    def _heard(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None
