"""A complete response that the client has not fully read."""

from __future__ import annotations

import asyncio

from tests.support.http_client import Client
from tests.support.running_proxy import RunningProxy
from tests.support.scripted_navidrome import Served

SIZE = 8_000_000
# One segment on loopback, so that the shim reads it at once. More than the small socket buffers take.
_LAST = 32_768


async def send_response_partly_read(proxy: RunningProxy, client: Client, served: Served) -> int:
    """Send a response of `SIZE` bytes, and read of it until the shim has received all of it and
    buffers a part. The sockets between the shim and the client need small buffers.

    Return how many bytes are still unread.
    """
    proxy.pause_writing_above(0)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE
    giving = asyncio.create_task(served.send(head, bytes(SIZE - _LAST)))
    await client.read_response_head()
    left = SIZE
    while left > _LAST:
        left -= len(await client.read_some())
    await giving
    # The client has read all that was sent, so that only the last segment fills the buffers.
    await served.send(bytes(_LAST))
    await proxy.until_response_complete()
    assert proxy.writing_paused
    assert proxy.held
    return left
