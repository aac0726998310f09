"""Long responses, which the shim reads into memory that all connections share.

The danger is that a client gets bytes of another response: memory that a transport still has to send must not
be overwritten.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import pytest

from shim.proxy import body_reader
from shim.proxy.body_reader import BUFFER_BYTES, BodyReader
from shim.proxy.request_handler import RequestHandler
from tests.support.certificates import Certificates
from tests.support.http_client import Client, get
from tests.support.raw_connection import run_loop_turns, until
from tests.support.running_proxy import RunningProxy, start_proxy
from tests.support.scripted_navidrome import OK, Navidrome, Served
from tests.unit.proxy.test_bounded_work import counted_turns
from tests.unit.proxy.test_unchanged_bytes import UPSTREAM_KINDS, digest, start_upstream

SIZE = 24_000_000
_BEFORE_PAUSE = 12_000_000


def _body(seed: int) -> bytes:
    """Bytes in which no two blocks of 64 kB are equal."""
    return random.Random(seed).randbytes(SIZE)


@pytest.fixture
def shared_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all reads into the shared memory."""
    sizes: list[int] = []
    original = BodyReader.buffer_updated

    def counting(self: BodyReader, nbytes: int) -> None:
        sizes.append(nbytes)
        original(self, nbytes)

    monkeypatch.setattr(BodyReader, "buffer_updated", counting)
    return sizes


async def _request(proxy: RunningProxy, navidrome: Navidrome) -> tuple[Client, Served]:
    client = await proxy.client()
    await client.send(get("/track").encode())
    served, _ = await navidrome.requests()
    return client, served


def _send(served: Served, body: bytes, excess: bytes = b"") -> asyncio.Task[None]:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    pieces = (body[at : at + (1 << 20)] for at in range(0, len(body), 1 << 20))
    return asyncio.create_task(served.send(head, *pieces, *filter(None, [excess])))


@pytest.mark.parametrize("kind", UPSTREAM_KINDS)
async def test_a_long_body_arrives_unchanged_and_its_connection_serves_the_next_request(
    tmp_path: Path, certificates: Certificates, shared_reads: list[int], kind: str
) -> None:
    body = _body(1)
    async with (
        start_upstream(kind, tmp_path, certificates) as navidrome,
        start_proxy(navidrome) as proxy,
    ):
        client, served = await _request(proxy, navidrome)
        for _ in range(2):
            sending = _send(served, body)
            response = await client.read_response()
            await sending
            assert digest(response.body) == digest(body)
            await client.send(get("/track").encode())
            await served.head()
        await served.send(OK)
        assert (await client.read_response()).body == b"ok"
        assert navidrome.count == 1
    if "tls" not in kind:
        assert sum(shared_reads) > SIZE // 2


async def test_a_client_with_tls_gets_a_long_body_unchanged(
    navidrome: Navidrome, certificates: Certificates, shared_reads: list[int]
) -> None:
    body = _body(2)
    async with start_proxy(navidrome, tls=certificates.server()) as proxy:
        client = await proxy.client(tls=certificates.client())
        await client.send(get("/track").encode())
        served, _ = await navidrome.requests()
        sending = _send(served, body)
        response = await client.read_response()
        await sending
        assert digest(response.body) == digest(body)
    assert shared_reads


async def test_a_client_that_pauses_does_not_get_the_bytes_of_another_response(
    navidrome: Navidrome, shared_reads: list[int]
) -> None:
    bodies = [_body(3), _body(4)]
    async with start_proxy(navidrome) as proxy:
        slow, slow_served = await _request(proxy, navidrome)
        slow_sending = _send(slow_served, bodies[0])
        await slow.read_response_head()
        begin = await slow.read_exactly(_BEFORE_PAUSE)
        await until(lambda: proxy.writing_paused)
        assert proxy.held <= 1 << 19, "what one pause keeps in memory"
        before = len(shared_reads)
        assert before
        fast, fast_served = await _request(proxy, navidrome)
        fast_sending = _send(fast_served, bodies[1])
        response = await fast.read_response()
        assert digest(response.body) == digest(bodies[1])
        assert len(shared_reads) > before
        end = await slow.read_exactly(SIZE - _BEFORE_PAUSE)
        await asyncio.gather(slow_sending, fast_sending)
        assert digest(begin + end) == digest(bodies[0])


async def test_bytes_after_a_long_body_are_not_forwarded(
    navidrome: Navidrome, shared_reads: list[int]
) -> None:
    body = _body(5)
    async with start_proxy(navidrome) as proxy:
        client, served = await _request(proxy, navidrome)
        sending = _send(served, body, b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        response = await client.read_response()
        assert digest(response.body) == digest(body)
        await served.wait_closed()
        await asyncio.gather(sending, return_exceptions=True)
        await client.send(get().encode())
        other, _ = await navidrome.requests()
        await other.send(OK)
        assert (await client.read_response()).body == b"ok"
    assert shared_reads


async def test_a_long_body_that_breaks_off_ends_in_a_reset(
    navidrome: Navidrome, shared_reads: list[int]
) -> None:
    body = _body(6)
    async with start_proxy(navidrome) as proxy:
        client, served = await _request(proxy, navidrome)
        sending = asyncio.create_task(
            served.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE, body[:-1])
        )
        await client.read_response_head()
        received = await client.read_exactly(SIZE - 1)
        await sending
        assert digest(received) == digest(body[:-1])
        served.close()
        await client.read_to_reset()
        assert proxy.failures == {"upstream_response_truncated": 1}
    assert shared_reads


async def test_a_client_that_disconnects_within_a_long_body_ends_its_upstream_connection(
    navidrome: Navidrome, shared_reads: list[int]
) -> None:
    async with start_proxy(navidrome) as proxy:
        client, served = await _request(proxy, navidrome)
        sending = _send(served, _body(7))
        await client.read_response_head()
        await client.read_exactly(_BEFORE_PAUSE)
        assert shared_reads
        client.reset()
        await proxy.until_no_client()
        await served.wait_closed()
        await asyncio.gather(sending, return_exceptions=True)
        assert proxy.failures == {"client_left": 1}


async def test_a_long_body_leaves_turns_to_others(
    navidrome: Navidrome, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = _body(8)
    forwarded: Counter[int] = Counter()
    send_view = RequestHandler.send_view
    async with start_proxy(navidrome) as proxy, counted_turns() as turn:

        def counting(self: RequestHandler, data: memoryview) -> bool:
            forwarded[turn[0]] += len(data)
            return send_view(self, data)

        monkeypatch.setattr(RequestHandler, "send_view", counting)
        monkeypatch.setattr(body_reader, "FULL_READS_PER_TURN", 2)
        client, served = await _request(proxy, navidrome)
        sending = _send(served, body)
        response = await client.read_response()
        await sending
        await run_loop_turns(1)
        assert digest(response.body) == digest(body)
    assert sum(forwarded.values()) > SIZE // 4
    assert max(forwarded.values()) <= 2 * BUFFER_BYTES
