"""A server of a key set whose responses the test sets."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

PATH = "/application/o/navidrome/jwks/"


def build_response(
    body: bytes, kind: str = "application/json", status: str = "200 OK", *fields: str
) -> bytes:
    """Build a complete response."""
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join(lines).encode() + b"\r\nConnection: close\r\n\r\n" + body


class JwksServer:
    """`body` is the response to each request; None sends nothing.

    `requests` counts; `hold` delays every response until it is set.
    """

    def __init__(self, body: bytes | None) -> None:
        self.body = body
        self.requests = 0
        self.url = ""
        self.hold = asyncio.Event()
        self.hold.set()
        self.connections: set[asyncio.Task[None]] = set()
        self._arrived = asyncio.Condition()

    async def wait_for_requests(self, times: int) -> None:
        """Wait until it has received this many requests."""
        async with asyncio.timeout(10.0), self._arrived:
            await self._arrived.wait_for(lambda: self.requests >= times)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        task = asyncio.current_task()
        assert task is not None
        self.connections.add(task)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(f"GET {PATH} HTTP/1.1\r\n".encode())
            async with self._arrived:
                self.requests += 1
                self._arrived.notify_all()
            await self.hold.wait()
            if self.body is None:
                await reader.read()
            else:
                writer.write(self.body)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()
            self.connections.discard(task)


@asynccontextmanager
async def jwks_server(
    body: bytes | None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[JwksServer]:
    """Serve on a free port, until the block ends."""
    end = JwksServer(body)
    server = await asyncio.start_server(end.serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    end.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{port}{PATH}"
    try:
        yield end
    finally:
        end.hold.set()
        server.close()
        await asyncio.gather(*end.connections)
