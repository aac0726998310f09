"""The upstream: a server whose responses a test writes, on TCP, TLS or a Unix socket."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from shim.proxy.pool import UpstreamAddress
from tests.support.raw_connection import PATIENCE, RawConnection, SocketTransport, StreamTransport

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Served(RawConnection):
    """A connection that the shim made."""

    async def head(self) -> bytes:
        """The next request's head."""
        return await self.read_until(b"\r\n\r\n")

    async def first_head(self) -> bytes:
        """The next request's head, without a deadline."""
        while True:
            try:
                return await self.head()
            except TimeoutError:
                continue

    async def wait_closed(self) -> None:
        """Wait until the shim has closed or reset this connection."""
        try:
            await self.read_to_end()
        except ConnectionError:
            return


class Navidrome:
    """The connections that the shim opened, in order; `count` of them so far."""

    def __init__(self, address: UpstreamAddress) -> None:
        self.address = address
        self.count = 0
        self.listener: socket.socket
        self.accepting: asyncio.Task[None]
        self._created: asyncio.Queue[Served] = asyncio.Queue()
        self._all: list[Served] = []

    async def next_connection(self) -> Served:
        """The next connection, without a deadline."""
        return await self._created.get()

    async def accepted(self) -> Served:
        """The next connection, within the deadline."""
        async with asyncio.timeout(PATIENCE):
            return await self._created.get()

    async def requests(self) -> tuple[Served, bytes]:
        """The next connection and the first request's head on it."""
        served = await self.accepted()
        return served, await served.head()

    async def stop_listening(self) -> None:
        """Reject connections from now on."""
        self.accepting.cancel()
        await asyncio.gather(self.accepting, return_exceptions=True)
        self.listener.close()

    def created(self, served: Served) -> None:
        self.count += 1
        self._all.append(served)
        self._created.put_nowait(served)

    def close(self) -> None:
        for served in self._all:
            served.close()


@asynccontextmanager
async def navidrome_on_a_socket(
    path: Path | None = None, port: int = 0
) -> AsyncIterator[Navidrome]:
    """On TCP, or on a Unix socket at `path`."""
    listener = socket.socket(socket.AF_INET if path is None else socket.AF_UNIX)
    if path is None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        address = UpstreamAddress(*listener.getsockname())
    else:
        listener.bind(str(path))
        address = UpstreamAddress(path=str(path))
    listener.listen(64)
    listener.setblocking(False)
    navidrome = Navidrome(address)
    navidrome.listener = listener
    navidrome.accepting = asyncio.create_task(_accept(listener, navidrome))
    try:
        yield navidrome
    finally:
        await navidrome.stop_listening()
        navidrome.close()


async def _accept(listener: socket.socket, navidrome: Navidrome) -> None:
    loop = asyncio.get_running_loop()
    while True:
        sock, _ = await loop.sock_accept(listener)
        navidrome.created(Served(SocketTransport(sock)))


@asynccontextmanager
async def navidrome_with_tls(
    server: ssl.SSLContext, client: ssl.SSLContext, path: Path | None = None
) -> AsyncIterator[Navidrome]:
    """On TLS, over TCP or a Unix socket at `path`."""
    navidrome: Navidrome

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        navidrome.created(Served(StreamTransport(reader, writer)))
        await writer.wait_closed()

    if path is None:
        listening = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=server)
        host, port = listening.sockets[0].getsockname()
        navidrome = Navidrome(UpstreamAddress(host, port, None, client))
    else:
        listening = await asyncio.start_unix_server(accept, str(path), ssl=server)
        navidrome = Navidrome(UpstreamAddress("127.0.0.1", 0, str(path), client))
    try:
        yield navidrome
    finally:
        navidrome.close()
        listening.close()
