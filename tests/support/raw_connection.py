"""One end of a connection under a test's control: it reads and sends nothing by itself.

Plain sockets on the test's own loop, so that a reader can be slow, a head can be cut anywhere, and
a connection can be reset. It knows no HTTP but chunked framing, which both sides need.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Iterable
from typing import Protocol

PATIENCE = 5.0
"""Seconds after which a wait is a failure. No test that passes gets anywhere near."""
_PIECE = 1 << 18


class Wire(Protocol):
    """The transport of the bytes."""

    async def receive(self) -> bytes: ...
    async def send(self, data: bytes) -> None: ...
    def close(self) -> None: ...


class SocketTransport:
    """A socket without TLS."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def receive(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.sock, _PIECE)

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    def close(self) -> None:
        self.sock.close()


class StreamTransport:
    """A connection of asyncio's streams, with or without TLS."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def receive(self) -> bytes:
        return await self._reader.read(_PIECE)

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    def close(self) -> None:
        self._writer.transport.abort()


class RawConnection:
    """One end of a connection. `received` is everything that was read so far."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._rest = bytearray()
        self.received = bytearray()

    async def send(self, *pieces: bytes) -> None:
        """Send pieces, each on its own: the other side can read between two of them."""
        async with asyncio.timeout(PATIENCE):
            for piece in pieces:
                await self._wire.send(piece)
                await run_loop_turns(3)

    async def send_each_byte(self, data: bytes) -> None:
        await self.send(*(data[at : at + 1] for at in range(len(data))))

    async def read_until(self, mark: bytes) -> bytes:
        """Read up to `mark`, inclusive. Raises EOFError if the other side closes first."""
        while (at := self._rest.find(mark)) < 0:
            await self._receive()
        return self._take(at + len(mark))

    async def read_exactly(self, count: int) -> bytes:
        while len(self._rest) < count:
            await self._receive()
        return self._take(count)

    async def read_some(self) -> bytes:
        """Read at least one byte."""
        if not self._rest:
            await self._receive()
        return self._take(len(self._rest))

    async def read_to_end(self) -> bytes:
        """Read up to the other side's FIN. Raises ConnectionError on a reset."""
        try:
            while True:
                await self._receive()
        except EOFError:
            return self._take(len(self._rest))

    async def read_to_reset(self) -> bytes:
        """Read up to a reset. Raises AssertionError on a FIN."""
        try:
            await self.read_to_end()
        except ConnectionError:
            return self._take(len(self._rest))
        raise AssertionError("the connection ended cleanly")

    async def chunk(self) -> bytes:
        """One chunk's bytes; empty at the last. Fails on a trailer."""
        size = int((await self.read_until(b"\r\n"))[:-2], 16)
        data = await self.read_exactly(size + 2)
        assert data[-2:] == b"\r\n"
        return data[:-2]

    async def chunks(self) -> bytes:
        """A whole chunked body."""
        body = bytearray()
        while chunk := await self.chunk():
            body += chunk
        return bytes(body)

    def finish(self) -> None:
        """Send FIN, and continue reading."""
        assert isinstance(self._wire, SocketTransport)
        self._wire.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Send RST."""
        assert isinstance(self._wire, SocketTransport)
        linger = struct.pack("ii", 1, 0)
        self._wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._wire.close()

    def close(self) -> None:
        self._wire.close()

    async def _receive(self) -> None:
        async with asyncio.timeout(PATIENCE):
            data = await self._wire.receive()
        if not data:
            raise EOFError
        self._rest += data
        self.received += data

    def _take(self, count: int) -> bytes:
        data = bytes(self._rest[:count])
        del self._rest[:count]
        return data


async def until(condition: Callable[[], object]) -> None:
    """Run the event loop until this condition holds."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def run_loop_turns(count: int) -> None:
    """Run the event loop, so that every ready connection is read."""
    for _ in range(count):
        await asyncio.sleep(0)


def two_piece_splits(data: bytes) -> Iterable[tuple[bytes, bytes]]:
    """The data in two pieces, split at every position."""
    return ((data[:at], data[at:]) for at in range(1, len(data)))
