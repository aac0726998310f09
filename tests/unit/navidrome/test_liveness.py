"""The connection that detects when Navidrome stops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop

from demo.navidrome import StandIn, StandInOptions
from shim.navidrome.errors import Unavailable
from shim.navidrome.liveness import open_liveness
from shim.settings import Upstream


async def disconnect_is_reported() -> None:
    stand_in = StandIn(StandInOptions())
    await stand_in.start()
    left = asyncio.Event()
    where = Upstream("http", "127.0.0.1", stand_in.port)
    await open_liveness(where, "/", None, left.set, 5)
    await asyncio.sleep(0.05)
    assert not left.is_set()
    await stand_in.stop()
    await asyncio.wait_for(left.wait(), 5)
    with pytest.raises(Unavailable, match="not reached"):
        await open_liveness(where, "/", None, left.set, 5)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_the_end_of_a_server_is_reported(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(disconnect_is_reported())


async def test_closing_the_connection_reports_nothing() -> None:
    async with StandIn(StandInOptions()) as stand_in:
        reports: list[None] = []
        liveness_connection = await open_liveness(
            Upstream("http", "127.0.0.1", stand_in.port), "/", None, lambda: reports.append(None), 5
        )
        liveness_connection.close()
        await asyncio.sleep(0.05)
        assert not reports


async def test_a_server_that_closes_after_each_response_is_not_reported_as_stopped() -> None:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\n.")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(respond, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    reports: list[None] = []
    await open_liveness(
        Upstream("http", "127.0.0.1", port), "/", None, lambda: reports.append(None), 5
    )
    await asyncio.sleep(0.1)
    assert not reports
    server.close()
