"""Bodies are forwarded unchanged in both directions, for any bytes and any slicing."""

from __future__ import annotations

import asyncio
import hashlib
import random
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.certificates import Certificates
from tests.support.http_client import build_request, get
from tests.support.raw_connection import run_loop_turns, until
from tests.support.running_proxy import RunningProxy, start_proxy
from tests.support.scripted_navidrome import (
    OK,
    Navidrome,
    navidrome_on_a_socket,
    navidrome_with_tls,
)

UPSTREAM_KINDS = ("tcp", "unix", "tls", "tls on unix")


@asynccontextmanager
async def start_upstream(
    kind: str, folder: Path, certificates: Certificates
) -> AsyncIterator[Navidrome]:
    path = folder / "navidrome.sock" if "unix" in kind else None
    if "tls" in kind:
        server, client = certificates.server(), certificates.client()
        async with navidrome_with_tls(server, client, path) as navidrome:
            yield navidrome
    else:
        async with navidrome_on_a_socket(path) as navidrome:
            yield navidrome


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def sliced(data: bytes, seed: int, max_size: int) -> list[bytes]:
    """The data in pieces of random lengths, some of them a byte."""
    rng = random.Random(seed)
    pieces, at = [], 0
    while at < len(data):
        size = 1 if rng.random() < 0.2 else rng.randint(1, max_size)
        pieces.append(data[at : at + size])
        at += size
    return pieces


def chunked(pieces: list[bytes]) -> list[bytes]:
    return [*(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces), b"0\r\n\r\n"]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def _round(
    proxy: RunningProxy, navidrome: Navidrome, size: int, seed: int, up: str, down: str
) -> None:
    max_size = max(1, size // 12)
    sent, returned = noise(seed, size), noise(seed + 1, size)
    client = await proxy.client()
    framing = f"Content-Length: {size}" if up == "length" else "Transfer-Encoding: chunked"
    await client.send(build_request("POST", "/api/upload", framing).encode())
    pieces = sliced(sent, seed, max_size)
    uploading = asyncio.create_task(client.send(*(pieces if up == "length" else chunked(pieces))))
    served, _ = await navidrome.requests()
    got = await (served.read_exactly(size) if up == "length" else served.chunks())
    await uploading
    assert digest(got) == digest(sent)
    heads = {
        "length": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size,
        "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "close": b"HTTP/1.1 200 OK\r\n\r\n",
    }
    back = sliced(returned, seed + 2, max_size)

    async def send_response() -> None:
        await served.send(heads[down], *(chunked(back) if down == "chunked" else back))
        if down == "close":
            served.close()

    sending = asyncio.create_task(send_response())
    response = await client.read_response()
    await sending
    assert digest(response.body) == digest(returned)
    client.close()
    served.close()


@given(
    size=st.one_of(st.integers(0, 40), st.integers(0, 300_000)),
    seed=st.integers(0, 1 << 30),
    up=st.sampled_from(["length", "chunked"]),
    down=st.sampled_from(["length", "chunked", "close"]),
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
async def test_random_bodies_of_any_length_and_chunking(
    size: int, seed: int, up: str, down: str
) -> None:
    async with navidrome_on_a_socket() as navidrome, start_proxy(navidrome) as proxy:
        await _round(proxy, navidrome, size, seed, up, down)


@pytest.mark.parametrize("kind", UPSTREAM_KINDS)
@pytest.mark.parametrize(("up", "down"), [("length", "chunked"), ("chunked", "length")])
async def test_bodies_are_unchanged_over_every_kind_of_socket(
    tmp_path: Path, certificates: Certificates, kind: str, up: str, down: str
) -> None:
    async with (
        start_upstream(kind, tmp_path, certificates) as navidrome,
        start_proxy(navidrome) as proxy,
    ):
        await _round(proxy, navidrome, 1_500_000, 7, up, down)


async def test_a_client_with_tls_is_forwarded_as_https(
    navidrome: Navidrome, certificates: Certificates
) -> None:
    async with start_proxy(navidrome, tls=certificates.server()) as proxy:
        client = await proxy.client(tls=certificates.client())
        await client.send(get().encode())
        served, head = await navidrome.requests()
        assert b"\r\nX-Forwarded-Proto: https\r\n" in head
        await served.send(OK)
        assert (await client.read_response()).body == b"ok"
        response = await client.request("BREW / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert response.status == 501


async def test_a_navidrome_with_an_unknown_certificate_gets_no_request(
    certificates: Certificates,
) -> None:
    async with (
        navidrome_with_tls(certificates.server(), ssl.create_default_context()) as navidrome,
        start_proxy(navidrome) as proxy,
    ):
        assert (await proxy.request(get())).status == 502
        assert proxy.failures == {"connect_failed": 1}
        assert navidrome.count == 0


@pytest.mark.parametrize("kind", ["tcp", "tls"])
@pytest.mark.parametrize("length", ["length", "chunked"])
async def test_a_slow_reader_receives_everything_with_little_buffering(
    tmp_path: Path, certificates: Certificates, kind: str, length: str
) -> None:
    async with (
        start_upstream(kind, tmp_path, certificates) as navidrome,
        start_proxy(navidrome) as proxy,
    ):
        await _read_slowly(proxy, navidrome, length)


async def _read_slowly(proxy: RunningProxy, navidrome: Navidrome, length: str) -> None:
    size = 20_000_000
    body = noise(3, 1 << 16) * (size >> 16)
    client = await proxy.client(receive_buffer=4096)
    await client.send(get("/track").encode())
    served, _ = await navidrome.requests()
    head = (
        b"Content-Length: %d" % len(body) if length == "length" else b"Transfer-Encoding: chunked"
    )
    payload = body if length == "length" else b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    pieces = (payload[at : at + (1 << 18)] for at in range(0, len(payload), 1 << 18))
    sending = asyncio.create_task(served.send(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % head, *pieces))
    await until(lambda: proxy.writing_paused)
    await run_loop_turns(1000)
    assert proxy.held < 1 << 20
    assert not sending.done(), "reading from Navidrome is paused"
    response = await client.read_response()
    await sending
    assert digest(response.body) == digest(body)
