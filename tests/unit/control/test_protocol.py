"""The control plane's connections: idle ones time out, and their number is limited."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
import uvicorn
from fastapi import FastAPI

from shim.control import protocol
from shim.control.protocol import ControlProtocol


@pytest.fixture
async def ports(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[int]]:
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 3)
    monkeypatch.setattr(protocol, "HEADER_TIMEOUT", 0.2)
    listeners = [socket.socket() for _ in range(2)]
    for listener in listeners:
        listener.bind(("127.0.0.1", 0))
    app = FastAPI()

    @app.get("/")
    async def page() -> str:
        return "here"

    config = uvicorn.Config(app, http=ControlProtocol, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=listeners))
    while not server.started:  # noqa: ASYNC110 - uvicorn tells it in no other way
        await asyncio.sleep(0.01)
    yield [listener.getsockname()[1] for listener in listeners]
    server.should_exit = True
    await task


@pytest.fixture
def port(ports: list[int]) -> int:
    return ports[0]


@pytest.fixture
def other_port(ports: list[int]) -> int:
    return ports[1]


async def test_a_connection_without_a_request_is_closed(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HT")
    with suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_a_client_that_sends_requests_keeps_its_connection(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(2):
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert b"200 OK" in await reader.readuntil(b"here")
        await asyncio.sleep(0.3)
    writer.close()
    await writer.wait_closed()


async def test_connections_are_limited(port: int) -> None:
    held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert await asyncio.wait_for(reader.read(), 5) == b""
    except ConnectionError:
        pass
    for _, other in (*held, (reader, writer)):
        other.close()


@pytest.mark.parametrize(
    "half",
    [b"GET / HT", b"\r\n", b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n12"],
)
async def test_a_second_request_that_is_never_complete_closes_the_connection(
    port: int, half: bytes
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    assert b"200 OK" in await reader.readuntil(b"here")
    writer.write(half)
    with suppress(ConnectionError):
        await asyncio.wait_for(reader.read(), 5)
    writer.close()


async def test_a_head_of_more_than_64_kb_closes_the_connection(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with suppress(ConnectionError):
        writer.write(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000)
        await writer.drain()
        writer.write(b"Host: h\r\n\r\n")
        assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_each_listener_has_its_own_limit(port: int, other_port: int) -> None:
    held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
    reader, writer = await asyncio.open_connection("127.0.0.1", other_port)
    writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    assert b"200 OK" in await asyncio.wait_for(reader.readuntil(b"here"), 5)
    for _, other in (*held, (reader, writer)):
        other.close()
