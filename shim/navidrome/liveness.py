"""A connection to Navidrome that detects its restart.

A process that exits closes its connections before another process can listen at its address. So the end of
this connection is noticed in time, also if no request fails. Pings keep the connection from being idle; their
responses are ignored.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import cast

from shim.navidrome.errors import Unavailable
from shim.settings import Upstream

# Shorter than the usual idle timeout of a proxy in between.
_PING_SECONDS = 25.0


class LivenessConnection(asyncio.Protocol):
    """A connection that calls `on_disconnect` when Navidrome closes it; `ping` is the request.

    If a response announces that the connection is closed after it, the end is not reported.
    """

    def __init__(self, on_disconnect: Callable[[], None], ping: bytes) -> None:
        self._on_disconnect: Callable[[], None] | None = on_disconnect
        self._ping = ping
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's class has another base
        self._send()

    @property
    def own_address(self) -> str:
        """Return the address from which this connection comes, `@` on a Unix socket."""
        name = self._transport.get_extra_info("sockname")
        return str(name[0]) if isinstance(name, tuple) else "@"

    def data_received(self, data: bytes) -> None:
        head = data.partition(b"\r\n\r\n")[0].lower()
        if head.startswith(b"http/1.0") or b"\r\nconnection: close" in head:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's name
        on_disconnect = self._on_disconnect
        self.close()
        if on_disconnect is not None:
            on_disconnect()

    def close(self) -> None:
        """Close the connection without calling `on_disconnect`."""
        self._on_disconnect = None
        if self._timer is not None:
            self._timer.cancel()
        self._transport.close()

    def _send(self) -> None:
        self._transport.write(self._ping)
        self._timer = asyncio.get_running_loop().call_later(_PING_SECONDS, self._send)


async def open_liveness(
    upstream: Upstream,
    base_path: str,
    tls: ssl.SSLContext | None,
    on_disconnect: Callable[[], None],
    max_seconds: float,
) -> LivenessConnection:
    """Connect, and call `on_disconnect` when Navidrome closes the connection. Raises `Unavailable`."""
    loop = asyncio.get_running_loop()
    path = base_path.rstrip("/") + "/ping"
    ping = f"GET {path} HTTP/1.1\r\nHost: {upstream.authority}\r\n\r\n".encode()
    try:
        async with asyncio.timeout(max_seconds):
            if upstream.path is not None:
                _, liveness = await loop.create_unix_connection(
                    lambda: LivenessConnection(on_disconnect, ping), upstream.path
                )
            else:
                _, liveness = await loop.create_connection(
                    lambda: LivenessConnection(on_disconnect, ping),
                    upstream.host,
                    upstream.port,
                    ssl=tls,
                    server_hostname=upstream.host if tls is not None else None,
                )
    except TimeoutError:
        raise Unavailable(
            f"{upstream}: no connection within {max_seconds:g} s", sent=False
        ) from None
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise Unavailable(f"{upstream}: not reached: {reason}", sent=False) from None
    return liveness
