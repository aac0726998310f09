"""The control plane's protocol: uvicorn's own, with limits.

uvicorn waits without a limit for a request that has begun, and its own limits count requests. Here each
request must be complete `HEADER_TIMEOUT` seconds after its first byte (the first one after connecting), with
a head of at most `MAX_HEAD` bytes. Each listener has at most `MAX_CONNECTIONS` connections. So clients of the
control plane's own address cannot exhaust the private channel, which users reach through the edge.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MAX_CONNECTIONS = 64
HEADER_TIMEOUT = 10.0
MAX_HEAD = 65536


class ControlProtocol(HttpToolsProtocol):
    """One connection to the control plane."""

    _header_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self._on_this_listener() > MAX_CONNECTIONS:
            transport.abort()
            return
        self._await_request()

    def data_received(self, data: bytes) -> None:
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete:
            self._await_request()
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD:
                self.transport.abort()
                return
        super().data_received(data)

    def on_headers_complete(self) -> None:
        self._head_bytes = 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._cancel_timeout()
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timeout()
        super().connection_lost(exc)

    def _on_this_listener(self) -> int:
        """Count the connections of the listener that accepted this one. The port identifies the listener."""
        own_port = self.server and self.server[1]
        servers = [each.server for each in self.connections if isinstance(each, ControlProtocol)]
        return sum((server and server[1]) == own_port for server in servers)

    def _await_request(self) -> None:
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(HEADER_TIMEOUT, self.transport.abort)

    def _cancel_timeout(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None
