"""A response that is whole, while the client has not taken all of it."""

from __future__ import annotations

import asyncio

from tests.support.data_plane import Front
from tests.support.http_client import Client
from tests.support.scripted_navidrome import Served

SIZE = 8_000_000


async def answer_that_waits(front: Front, client: Client, served: Served) -> int:
    """Give a response of `SIZE` bytes, and read of it until the shim has all of it and holds a part.

    How many bytes are still to be read.
    """
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE
    giving = asyncio.create_task(served.send(head, bytes(SIZE)))
    await client.read_response_head()
    left = SIZE
    while not giving.done() or front.counters.streams_open:
        left -= len(await client.read_some())
    await giving
    assert front.writing_paused
    assert front.held
    return left
