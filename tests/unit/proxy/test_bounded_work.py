"""Bounded work in each turn of the event loop, and bounded memory for pipelined data.

No client waits for another client's tiny chunks or pipelined heads, and a disconnect is noticed
although reading is paused.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from shim.http1.chunked import ChunkedDecoder
from shim.proxy import server
from shim.trust.decision import Decision
from tests.support.http_client import Client, build_request, get
from tests.support.raw_connection import until
from tests.support.running_proxy import EDGE, RunningProxy, start_proxy
from tests.support.scripted_navidrome import OK, Navidrome, navidrome_on_a_socket
from tests.support.slow_gate import SlowGate

PIPELINED_BYTES = 1 << 16


@asynccontextmanager
async def counted_turns() -> AsyncIterator[list[int]]:
    """The number of the event loop's turn, in a list of one."""
    turn = [0]

    async def count() -> None:
        while True:
            turn[0] += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(count())
    try:
        yield turn
    finally:
        task.cancel()


async def _upload(proxy: RunningProxy, *lines: str) -> Client:
    client = await proxy.client()
    await client.send(build_request("POST", "/api/x", *lines).encode())
    return client


async def test_tiny_chunks_are_decoded_in_limited_batches(
    proxy: RunningProxy, navidrome: Navidrome, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: Counter[int] = Counter()
    feed = ChunkedDecoder.feed
    async with counted_turns() as turn:

        def counting(self: ChunkedDecoder, *arguments: object) -> tuple[list[bytes], int]:
            pieces, used = feed(self, *arguments)  # type: ignore[arg-type]
            decoded[turn[0]] += len(pieces)
            return pieces, used

        client = await _upload(proxy, "Transfer-Encoding: chunked")
        served, _ = await navidrome.requests()
        with monkeypatch.context() as patched:
            patched.setattr(ChunkedDecoder, "feed", counting)
            sending = asyncio.create_task(client.send(b"1\r\na\r\n" * 20_000 + b"0\r\n\r\n"))
            # Read as it comes: a receiver that does not read pauses the upload.
            chunks = []
            while chunk := await served.chunk():
                chunks.append(chunk)
            await sending
    assert b"".join(chunks) == b"a" * 20_000
    assert max(decoded.values()) <= 300
    assert len(chunks) < 2000, "tiny chunks are merged"
    await served.send(OK)
    assert (await client.read_response()).status == 200


@pytest.mark.parametrize("ending", ["kept", "closed", "cut"])
async def test_tiny_chunks_of_a_response_are_decoded_in_limited_batches(
    proxy: RunningProxy, navidrome: Navidrome, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    decoded: Counter[int] = Counter()
    feed = ChunkedDecoder.feed
    last = b"" if ending == "cut" else b"0\r\n\r\n"
    async with counted_turns() as turn:

        def counting(self: ChunkedDecoder, *arguments: object) -> tuple[list[bytes], int]:
            pieces, used = feed(self, *arguments)  # type: ignore[arg-type]
            decoded[turn[0]] += len(pieces)
            return pieces, used

        client = await proxy.client()
        await client.send(get().encode())
        served, _ = await navidrome.requests()
        monkeypatch.setattr(ChunkedDecoder, "feed", counting)
        sending = asyncio.create_task(
            served.send(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                b"1\r\na\r\n" * 20_000 + last,
            )
        )
        if ending == "kept":
            response = await client.read_response()
            assert response.body == b"a" * 20_000
            await sending
            monkeypatch.setattr(ChunkedDecoder, "feed", feed)
            await client.send(get("/next").encode())
            assert (await served.head()).startswith(b"GET /next ")
            await served.send(OK)
            assert (await client.read_response()).body == b"ok"
        else:
            await sending
            served.close()
            if ending == "closed":
                assert (await client.read_response()).body == b"a" * 20_000
            else:
                await client.read_to_reset()
    assert sum(decoded.values()) == 20_000
    assert max(decoded.values()) <= 300
    assert proxy.counters.streams_open == 0


async def test_a_slow_reader_of_tiny_chunks_receives_all_of_them(navidrome: Navidrome) -> None:
    async with start_proxy(navidrome, send_buffer=4096) as proxy:
        client = await proxy.client(receive_buffer=4096)
        await client.send(get().encode())
        served, _ = await navidrome.requests()
        body = b"100\r\n" + b"b" * 256 + b"\r\n" + b"1\r\na\r\n" * 300
        sending = asyncio.create_task(
            served.send(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                body * 400 + b"0\r\n\r\n",
            )
        )
        await until(lambda: proxy.writing_paused)
        response = await client.read_response()
        assert response.body == (b"b" * 256 + b"a" * 300) * 400
        await sending


async def test_another_client_is_served_during_an_upload_of_tiny_chunks(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client = await _upload(proxy, "Transfer-Encoding: chunked")
    slow, _ = await navidrome.requests()
    await client.send(b"1\r\na\r\n" * 20_000)
    other = await proxy.client()
    await other.send(get("/api/song").encode())
    served, _ = await navidrome.requests()
    await served.send(OK)
    assert (await other.read_response()).status == 200
    assert any(each._queued for each in proxy._connections), "chunks remain"
    assert slow.received.count(b"a") < 20_000


async def test_the_data_after_a_body_of_tiny_chunks_is_the_next_request(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client = await proxy.client()
    head = build_request("POST", "/api/x", "Transfer-Encoding: chunked").encode()
    body = b"1\r\na\r\n" * 5000 + b"0\r\n\r\n"
    await client.send(head + body + get("/next").encode())
    served, _ = await navidrome.requests()
    assert await served.chunks() == b"a" * 5000
    await served.send(OK)
    assert (await client.read_response()).status == 200
    assert (await served.head()).startswith(b"GET /next ")


async def test_an_invalid_chunk_after_tiny_ones_is_a_400(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client = await _upload(proxy, "Transfer-Encoding: chunked")
    await navidrome.accepted()
    await client.send(b"1\r\na\r\n" * 5000 + b"x\r\n")
    assert (await client.read_response()).status == 400


async def test_a_client_that_disconnects_during_its_tiny_chunks_is_dropped(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client = await _upload(proxy, "Transfer-Encoding: chunked")
    served, _ = await navidrome.requests()
    await client.send(b"1\r\na\r\n" * 20_000)
    client.reset()
    await proxy.until_no_client()
    await served.wait_closed()


async def test_pipelined_heads_are_read_in_limited_batches(
    proxy: RunningProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    rejected = get(
        "/app/", "X-authentik-uid: 1"
    ).encode()  # a 403, and the connection is kept alive
    decided: Counter[int] = Counter()
    async with counted_turns() as turn:
        client = await proxy.client(EDGE)
        note = proxy.recorded.request_decided

        def counting(decision: Decision, request_id: str, status: int | None = None) -> None:
            decided[turn[0]] += 1
            note(decision, request_id, status)

        monkeypatch.setattr(proxy.recorded, "request_decided", counting)
        sending = asyncio.create_task(client.send(rejected * 1000))
        for _ in range(1000):
            assert (await client.read_response()).status == 403
        await sending
    assert sum(decided.values()) == 1000
    assert max(decided.values()) <= 16


async def test_a_client_must_wait_for_a_response_before_it_sends_64_kb_more(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client = await proxy.client()
    await client.send(get("/api/song").encode())
    served, _ = await navidrome.requests()
    await client.send(bytes(PIPELINED_BYTES))
    await proxy.wait_until_idle()
    assert proxy.recorded.failures == []
    await client.send(bytes(4096))
    response = await client.read_response()
    assert (response.status, response.get("connection")) == (400, "close")
    assert proxy.recorded.failures == [("sent_ahead", 400, response.get("x-request-id"))]
    await served.wait_closed()


async def test_too_much_pipelined_data_during_a_response_resets_the_connection(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client = await proxy.client()
    await client.send(get("/api/events").encode())
    served, _ = await navidrome.requests()
    await served.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
    await client.read_response_head()
    with pytest.raises(ConnectionError):
        await client.send(*[bytes(1 << 14)] * 64)
    await proxy.until_no_client()
    await served.wait_closed()
    assert [failure for failure, *_ in proxy.recorded.failures] == ["sent_ahead"]


async def test_heads_sent_in_one_piece_count_as_pipelined_data(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client = await proxy.client()
    await client.send(get("/1", "X: " + "x" * 7000).encode() * 30)
    served, _ = await navidrome.requests()
    assert (await client.read_response()).status == 400
    await served.wait_closed()


async def _paused_upload(proxy: RunningProxy, navidrome: Navidrome) -> Client:
    """A client whose upload is not read, and that has sent more than the shim buffers."""
    client = await _upload(proxy, "Content-Length: 100000000")
    await navidrome.accepted()
    waiting = proxy.plane.paused.copy()
    for _ in range(4096):
        if proxy.plane.paused != waiting:
            await client.send(bytes(1 << 12))  # which the shim does not read
            return client
        await client.send(bytes(1 << 14))
    raise AssertionError("the shim continues to read")


@pytest.mark.parametrize("reset", [True, False])
async def test_a_client_that_disconnects_while_reading_is_paused_is_noticed(
    tmp_path: Path, reset: bool
) -> None:
    async with (
        navidrome_on_a_socket(tmp_path / "n.sock") as navidrome,
        start_proxy(navidrome) as proxy,
    ):
        client = await _paused_upload(proxy, navidrome)
        proxy.pass_time(0)
        assert proxy.counters.client_connections == 1, "it is still there"
        if reset:
            client.reset()
        else:
            client.close()
        proxy.pass_time(1)
        await proxy.until_no_client()
        assert not proxy.plane.paused


async def test_paused_sockets_are_polled_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_POLLED", 2)
    async with (
        navidrome_on_a_socket(tmp_path / "n.sock") as navidrome,
        start_proxy(navidrome) as proxy,
    ):
        clients = [await _paused_upload(proxy, navidrome) for _ in range(5)]
        for client in clients[2:]:
            client.close()
        counts = []
        for _ in range(3):
            proxy.plane.sweep(proxy.plane.now)
            await asyncio.sleep(0.01)
            counts.append(len(proxy.plane.paused))
        assert counts == [5, 3, 2]


async def test_a_client_that_disconnects_while_its_account_is_provisioned_is_noticed(
    navidrome: Navidrome,
) -> None:
    gate = SlowGate()
    async with start_proxy(navidrome, gate=gate) as proxy:
        client = await proxy.client(EDGE)
        lines = ("X-authentik-username: alice", "X-authentik-uid: u1", "Content-Length: 1000000")
        await client.send(build_request("POST", "/api/x", *lines).encode())
        future = await gate.next_request()
        while not proxy.reading_paused:
            await client.send(bytes(1 << 14))
        await client.send(bytes(1 << 14))
        client.close()
        proxy.pass_time(1)
        await proxy.until_no_client()
        assert future.cancelled()
