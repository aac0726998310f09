"""The control plane's connections: those that say nothing end, and there is a bound for all of them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
import uvicorn
from fastapi import FastAPI

from shim.control import serving
from shim.control.serving import ControlProtocol


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    monkeypatch.setattr(serving, "MOST", 3)
    monkeypatch.setattr(serving, "SILENCE", 0.2)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    app = FastAPI()

    @app.get("/")
    async def page() -> str:
        return "here"

    config = uvicorn.Config(app, http=ControlProtocol, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:  # noqa: ASYNC110 - uvicorn tells it in no other way
        await asyncio.sleep(0.01)
    yield listener.getsockname()[1]
    server.should_exit = True
    await task


async def test_who_only_connects_is_let_go(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HT")
    with suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_who_asks_is_answered_and_stays(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(2):
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert b"200 OK" in await reader.readuntil(b"here")
        await asyncio.sleep(0.3)
    writer.close()
    await writer.wait_closed()


async def test_connections_are_bounded(port: int) -> None:
    held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert await asyncio.wait_for(reader.read(), 5) == b""
    except ConnectionError:
        pass
    for _, other in (*held, (reader, writer)):
        other.close()
