"""Tokens that nobody has seen before wait for each other, and nobody else waits for them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from shim.proxy.verification_queue import QueuedVerification, VerificationQueue
from shim.trust.jwks import Key
from shim.trust.reasons import Reason
from tests.support.data_plane import EDGE, Front, front_before, policy
from tests.support.http_client import Client
from tests.support.jwt_minting import claims, token
from tests.support.scripted_navidrome import OK, Navidrome
from tests.support.socket_ends import until
from tests.unit.proxy.test_jwks_refresh import HEAD, KEYS, RULES, Fetcher

KNOWN = policy(tokens=replace(RULES, keys=KEYS))


def carrying(text: str) -> bytes:
    return f"GET /app/ HTTP/1.1\r\nHost: h\r\nX-authentik-jwt: {text}\r\n\r\n".encode()


def forged(number: int) -> bytes:
    good = token(claims(iat=None, exp=2**40))
    return carrying(f"{good[:-22]}{number:020d}{good[-2:]}")


class Piece:
    """Says when its turn was."""

    def __init__(
        self, told: list[object], name: object, queue: VerificationQueue | None = None
    ) -> None:
        self.order = told
        self.name = name
        self.queue = queue

    def run(self) -> None:
        self.order.append(self.name)
        if self.queue is not None:
            self.queue.enqueue(Piece(self.order, f"{self.name} again"))
        if self.name == "broken":
            raise RuntimeError(self.name)


async def test_a_turn_of_the_loop_does_one_piece_and_what_else_is_ready() -> None:
    told: list[object] = []
    queue = VerificationQueue()
    for number in range(3):
        queue.enqueue(Piece(told, number))
    for turn in range(3):
        await asyncio.sleep(0)
        told.append(f"others {turn}")
    assert told == [0, "others 0", 1, "others 1", 2, "others 2"]


async def test_who_comes_back_stands_behind_the_others() -> None:
    told: list[object] = []
    queue = VerificationQueue()
    queue.enqueue(Piece(told, "a", queue))
    queue.enqueue(Piece(told, "b"))
    for _ in range(6):
        await asyncio.sleep(0)
    assert told == ["a", "b", "a again"]


async def test_one_that_fails_does_not_stop_the_others() -> None:
    told: list[object] = []
    queue = VerificationQueue()
    asyncio.get_running_loop().set_exception_handler(lambda *_: told.append("said"))
    queue.enqueue(Piece(told, "broken"))
    queue.enqueue(Piece(told, "next"))
    for _ in range(4):
        await asyncio.sleep(0)
    assert told == ["broken", "said", "next"]


class HeldQueue(VerificationQueue):
    """While it is `holding`, nobody's turn comes before the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.holding = False
        self.held: list[QueuedVerification] = []

    def enqueue(self, waiting: QueuedVerification) -> None:
        if self.holding:
            self.held.append(waiting)
        else:
            super().enqueue(waiting)

    async def length(self, wanted: int) -> None:
        """Wait until so many stand in it."""
        await until(lambda: len(self.held) == wanted)

    def release(self) -> None:
        held, self.held = self.held, []
        for waiting in held:
            super().enqueue(waiting)


@asynccontextmanager
async def held_front(
    navidrome: Navidrome, *, logs_access: bool = False
) -> AsyncIterator[tuple[Front, HeldQueue]]:
    """A front whose lane is held, where the token of `HEAD` is known."""
    queue = HeldQueue()
    async with front_before(navidrome, by=KNOWN, logs_access=logs_access, queue=queue) as front:
        await answered(await front.client(EDGE), HEAD.encode(), navidrome)
        queue.holding = True
        yield front, queue


async def answered(client: Client, head: bytes, navidrome: Navidrome) -> None:
    """Navidrome is asked and answers, on a connection that it ends."""
    await client.send(head)
    served, sent = await navidrome.requests()
    assert b"eyJ" not in sent
    await served.send(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    served.close()
    assert (await client.read_response()).status == 200


async def test_whoever_has_a_known_token_passes_by(navidrome: Navidrome) -> None:
    async with held_front(navidrome) as (front, queue):
        clients = [await front.client(EDGE) for _ in range(20)]
        for number, client in enumerate(clients):
            await client.send(forged(number))
        await queue.length(20)
        honest = await front.client(EDGE)
        for more in ("", "Cookie: a=1\r\n", "Cookie: a=2\r\n", "Cookie: a=2\r\n"):
            await answered(honest, HEAD.replace("\r\n\r\n", f"\r\n{more}\r\n").encode(), navidrome)
        assert len(queue.held) == 20
        queue.release()
        assert [(await client.read_response()).status for client in clients] == [401] * 20
        assert [reason for reason, _ in front.recorded.decided_as] == [Reason.JWT_INVALID] * 20


async def test_a_new_token_that_holds_waits_once(navidrome: Navidrome) -> None:
    async with held_front(navidrome) as (front, queue):
        new = carrying(token(claims(iat=1, exp=2**40)))
        client = await front.client(EDGE)
        await client.send(new)
        await queue.length(1)
        queue.release()
        await answered(client, b"", navidrome)
        await answered(await front.client(EDGE), new, navidrome)
        assert queue.held == []


async def test_no_token_waits_where_none_is_needed(navidrome: Navidrome) -> None:
    async with held_front(navidrome) as (front, queue):
        client = await front.client(EDGE)
        for _ in range(3):  # remembered by then
            await answered(client, forged(1).replace(b"/app/", b"/rest/ping"), navidrome)
        assert queue.held == []
        await client.send(forged(1))
        await queue.length(1)


async def test_the_wait_is_part_of_how_long_the_response_took(navidrome: Navidrome) -> None:
    async with held_front(navidrome, logs_access=True) as (front, queue):
        client = await front.client(EDGE)
        await client.send(forged(1))
        await queue.length(1)
        await asyncio.sleep(0.05)
        queue.release()
        assert (await client.read_response()).status == 401
        waited = front.recorded.durations[-1]
        assert waited >= 0.049
        begun = asyncio.get_running_loop().time()
        await answered(client, HEAD.encode(), navidrome)
        assert front.recorded.durations[-1] <= asyncio.get_running_loop().time() - begun + 0.001


async def test_one_whose_turn_never_comes_is_let_go(navidrome: Navidrome) -> None:
    async with held_front(navidrome) as (front, queue):
        client = await front.client(EDGE)
        await client.send(forged(1))
        await queue.length(1)
        front.pass_time(front.plane.limits.upstream_response_timeout + 1)
        with contextlib.suppress(ConnectionError):
            assert await client.read_to_end() == b""
        queue.release()
        await front.wait_until_idle()
        assert front.recorded.decided_as == []


async def test_what_is_sent_ahead_keeps_its_order(navidrome: Navidrome) -> None:
    async with held_front(navidrome) as (front, queue):
        client = await front.client(EDGE)
        await client.send(forged(1) + HEAD.encode())
        await queue.length(1)
        await client.send(forged(2))
        await front.wait_until_idle()
        assert len(queue.held) == 1
        queue.release()
        assert (await client.read_response()).status == 401
        await answered(client, b"", navidrome)
        await queue.length(1)
        queue.release()
        assert (await client.read_response()).status == 401


async def test_who_leaves_is_not_looked_at(
    navidrome: Navidrome, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with held_front(navidrome) as (front, queue):
        client = await front.client(EDGE)
        await client.send(forged(1))
        await queue.length(1)
        monkeypatch.delattr(Key, "verify")
        client.close()
        await until(lambda: front.counters.client_connections == 1)
        queue.release()
        await front.wait_until_idle()
        assert front.recorded.decided_as == []


async def test_another_policy_judges_whoever_still_waits(navidrome: Navidrome) -> None:
    async with held_front(navidrome) as (front, queue):
        new = carrying(token(claims(iat=1, exp=2**40)))
        client = await front.client(EDGE)
        await client.send(new)
        await queue.length(1)
        now = front.plane.decisions.policy
        front.plane.apply_policy(
            now.next_version(tokens=replace(RULES, keys=KEYS[:0], fetched=False))
        )
        queue.release()
        await queue.length(1)  # under that one nobody has seen it
        queue.release()
        assert (await client.read_response()).status == 401


async def test_a_thousand_new_tokens_sent_ahead_do_not_recurse(navidrome: Navidrome) -> None:
    async with front_before(navidrome, by=KNOWN) as front:
        client = await front.client(EDGE)
        sending = asyncio.create_task(client.send(b"".join(map(forged, range(1000)))))
        for _ in range(1000):
            assert (await client.read_response()).status == 401
        await sending


async def test_those_who_waited_for_the_keys_wait_for_their_turn(navidrome: Navidrome) -> None:
    queue, fetcher = HeldQueue(), Fetcher()
    async with front_before(navidrome, by=policy(tokens=RULES), keys=fetcher, queue=queue) as front:
        client = await front.client(EDGE)
        await client.send(HEAD.encode())
        future = await fetcher.requested()
        queue.holding = True
        now = front.plane.decisions.policy
        front.plane.apply_policy(now.next_version(tokens=replace(RULES, keys=KEYS)))
        future.set_result(None)
        await queue.length(1)
        queue.release()
        await answered(client, b"", navidrome)
