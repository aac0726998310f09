"""A server of a key set, which answers as it is told."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

PATH = "/application/o/navidrome/jwks/"


def answer(
    body: bytes, kind: str = "application/json", status: str = "200 OK", *fields: str
) -> bytes:
    """A whole answer."""
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join(lines).encode() + b"\r\nConnection: close\r\n\r\n" + body


class JwksServer:
    """`says` is what the next one who asks is answered; None answers nothing. `asked` counts; `hold` keeps
    every answer back until it is set."""

    def __init__(self, says: bytes | None) -> None:
        self.body = says
        self.requests = 0
        self.url = ""
        self.hold = asyncio.Event()
        self.hold.set()
        self.connections: set[asyncio.Task[None]] = set()
        self._arrived = asyncio.Condition()

    async def until_asked(self, times: int) -> None:
        """Wait until it was asked so many times."""
        async with asyncio.timeout(10.0), self._arrived:
            await self._arrived.wait_for(lambda: self.requests >= times)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
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
    says: bytes | None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[JwksServer]:
    """One on a free port, until the block ends."""
    end = JwksServer(says)
    server = await asyncio.start_server(end.serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    end.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{port}{PATH}"
    try:
        yield end
    finally:
        end.hold.set()
        server.close()
        await asyncio.gather(*end.connections)
