"""The verification queue: new tokens wait for each other, and no other request waits for them."""

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
from tests.support.http_client import Client
from tests.support.jwt_minting import claims, token
from tests.support.raw_connection import until
from tests.support.running_proxy import EDGE, RunningProxy, policy, start_proxy
from tests.support.scripted_navidrome import OK, Navidrome
from tests.unit.proxy.test_jwks_refresh import HEAD, KEYS, RULES, Fetcher

KNOWN = policy(tokens=replace(RULES, keys=KEYS))


def carrying(text: str) -> bytes:
    return f"GET /app/ HTTP/1.1\r\nHost: h\r\nX-authentik-jwt: {text}\r\n\r\n".encode()


def forged(number: int) -> bytes:
    good = token(claims(iat=None, exp=2**40))
    return carrying(f"{good[:-22]}{number:020d}{good[-2:]}")


class Piece:
    """Records when its turn was."""

    def __init__(
        self, run_loop_turns: list[object], name: object, queue: VerificationQueue | None = None
    ) -> None:
        self.order = run_loop_turns
        self.name = name
        self.queue = queue

    def run(self) -> None:
        self.order.append(self.name)
        if self.queue is not None:
            self.queue.enqueue(Piece(self.order, f"{self.name} again"))
        if self.name == "broken":
            raise RuntimeError(self.name)


async def test_each_loop_turn_runs_one_verification_and_other_ready_callbacks() -> None:
    run_loop_turns: list[object] = []
    queue = VerificationQueue()
    for number in range(3):
        queue.enqueue(Piece(run_loop_turns, number))
    for turn in range(3):
        await asyncio.sleep(0)
        run_loop_turns.append(f"others {turn}")
    assert run_loop_turns == [0, "others 0", 1, "others 1", 2, "others 2"]


async def test_a_verification_that_is_queued_again_goes_to_the_end() -> None:
    run_loop_turns: list[object] = []
    queue = VerificationQueue()
    queue.enqueue(Piece(run_loop_turns, "a", queue))
    queue.enqueue(Piece(run_loop_turns, "b"))
    for _ in range(6):
        await asyncio.sleep(0)
    assert run_loop_turns == ["a", "b", "a again"]


async def test_a_verification_that_fails_does_not_stop_the_others() -> None:
    run_loop_turns: list[object] = []
    queue = VerificationQueue()
    asyncio.get_running_loop().set_exception_handler(lambda *_: run_loop_turns.append("reported"))
    queue.enqueue(Piece(run_loop_turns, "broken"))
    queue.enqueue(Piece(run_loop_turns, "next"))
    for _ in range(4):
        await asyncio.sleep(0)
    assert run_loop_turns == ["broken", "reported", "next"]


class HeldQueue(VerificationQueue):
    """While it is `holding`, no verification runs before the test lets it."""

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
        """Wait until this many verifications are queued."""
        await until(lambda: len(self.held) == wanted)

    def release(self) -> None:
        held, self.held = self.held, []
        for waiting in held:
            super().enqueue(waiting)


@asynccontextmanager
async def proxy_with_held_queue(
    navidrome: Navidrome, *, logs_access: bool = False
) -> AsyncIterator[tuple[RunningProxy, HeldQueue]]:
    """A data plane whose queue is held, with the token of `HEAD` in its cache."""
    queue = HeldQueue()
    async with start_proxy(navidrome, by=KNOWN, logs_access=logs_access, queue=queue) as proxy:
        await assert_answered(await proxy.client(EDGE), HEAD.encode(), navidrome)
        queue.holding = True
        yield proxy, queue


async def assert_answered(client: Client, head: bytes, navidrome: Navidrome) -> None:
    """Assert that this request is forwarded and answered, on a connection that it closes."""
    await client.send(head)
    served, sent = await navidrome.requests()
    assert b"eyJ" not in sent
    await served.send(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    served.close()
    assert (await client.read_response()).status == 200


async def test_a_cached_token_skips_the_queue(navidrome: Navidrome) -> None:
    async with proxy_with_held_queue(navidrome) as (proxy, queue):
        clients = [await proxy.client(EDGE) for _ in range(20)]
        for number, client in enumerate(clients):
            await client.send(forged(number))
        await queue.length(20)
        honest = await proxy.client(EDGE)
        for more in ("", "Cookie: a=1\r\n", "Cookie: a=2\r\n", "Cookie: a=2\r\n"):
            await assert_answered(
                honest, HEAD.replace("\r\n\r\n", f"\r\n{more}\r\n").encode(), navidrome
            )
        assert len(queue.held) == 20
        queue.release()
        assert [(await client.read_response()).status for client in clients] == [401] * 20
        assert [reason for reason, _ in proxy.recorded.decided_as] == [Reason.JWT_INVALID] * 20


async def test_a_new_valid_token_waits_once(navidrome: Navidrome) -> None:
    async with proxy_with_held_queue(navidrome) as (proxy, queue):
        new = carrying(token(claims(iat=1, exp=2**40)))
        client = await proxy.client(EDGE)
        await client.send(new)
        await queue.length(1)
        queue.release()
        await assert_answered(client, b"", navidrome)
        await assert_answered(await proxy.client(EDGE), new, navidrome)
        assert queue.held == []


async def test_no_token_is_verified_where_none_is_required(navidrome: Navidrome) -> None:
    async with proxy_with_held_queue(navidrome) as (proxy, queue):
        client = await proxy.client(EDGE)
        for _ in range(3):  # cached by then
            await assert_answered(client, forged(1).replace(b"/app/", b"/rest/ping"), navidrome)
        assert queue.held == []
        await client.send(forged(1))
        await queue.length(1)


async def test_the_wait_is_part_of_the_request_duration(navidrome: Navidrome) -> None:
    async with proxy_with_held_queue(navidrome, logs_access=True) as (proxy, queue):
        client = await proxy.client(EDGE)
        await client.send(forged(1))
        await queue.length(1)
        await asyncio.sleep(0.05)
        queue.release()
        assert (await client.read_response()).status == 401
        waited = proxy.recorded.durations[-1]
        assert waited >= 0.049
        begun = asyncio.get_running_loop().time()
        await assert_answered(client, HEAD.encode(), navidrome)
        assert proxy.recorded.durations[-1] <= asyncio.get_running_loop().time() - begun + 0.001


async def test_a_queued_request_whose_turn_never_comes_times_out(navidrome: Navidrome) -> None:
    async with proxy_with_held_queue(navidrome) as (proxy, queue):
        client = await proxy.client(EDGE)
        await client.send(forged(1))
        await queue.length(1)
        proxy.pass_time(proxy.plane.limits.upstream_response_timeout + 1)
        with contextlib.suppress(ConnectionError):
            assert await client.read_to_end() == b""
        queue.release()
        await proxy.wait_until_idle()
        assert proxy.recorded.decided_as == []


async def test_pipelined_requests_keep_their_order(navidrome: Navidrome) -> None:
    async with proxy_with_held_queue(navidrome) as (proxy, queue):
        client = await proxy.client(EDGE)
        await client.send(forged(1) + HEAD.encode())
        await queue.length(1)
        await client.send(forged(2))
        await proxy.wait_until_idle()
        assert len(queue.held) == 1
        queue.release()
        assert (await client.read_response()).status == 401
        await assert_answered(client, b"", navidrome)
        await queue.length(1)
        queue.release()
        assert (await client.read_response()).status == 401


async def test_the_token_of_a_disconnected_client_is_not_verified(
    navidrome: Navidrome, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with proxy_with_held_queue(navidrome) as (proxy, queue):
        client = await proxy.client(EDGE)
        await client.send(forged(1))
        await queue.length(1)
        monkeypatch.delattr(Key, "verify")
        client.close()
        await until(lambda: proxy.counters.client_connections == 1)
        queue.release()
        await proxy.wait_until_idle()
        assert proxy.recorded.decided_as == []


async def test_a_new_policy_applies_to_requests_that_still_wait(navidrome: Navidrome) -> None:
    async with proxy_with_held_queue(navidrome) as (proxy, queue):
        new = carrying(token(claims(iat=1, exp=2**40)))
        client = await proxy.client(EDGE)
        await client.send(new)
        await queue.length(1)
        now = proxy.plane.decisions.policy
        proxy.plane.apply_policy(
            now.next_version(tokens=replace(RULES, keys=KEYS[:0], fetched=False))
        )
        queue.release()
        await queue.length(1)  # it is not cached under the new policy
        queue.release()
        assert (await client.read_response()).status == 401


async def test_a_thousand_pipelined_new_tokens_do_not_recurse(navidrome: Navidrome) -> None:
    async with start_proxy(navidrome, by=KNOWN) as proxy:
        client = await proxy.client(EDGE)
        sending = asyncio.create_task(client.send(b"".join(map(forged, range(1000)))))
        for _ in range(1000):
            assert (await client.read_response()).status == 401
        await sending


async def test_requests_that_waited_for_the_keys_wait_for_their_turn(navidrome: Navidrome) -> None:
    queue, fetcher = HeldQueue(), Fetcher()
    async with start_proxy(navidrome, by=policy(tokens=RULES), keys=fetcher, queue=queue) as proxy:
        client = await proxy.client(EDGE)
        await client.send(HEAD.encode())
        future = await fetcher.requested()
        queue.holding = True
        now = proxy.plane.decisions.policy
        proxy.plane.apply_policy(now.next_version(tokens=replace(RULES, keys=KEYS)))
        future.set_result(None)
        await queue.length(1)
        queue.release()
        await assert_answered(client, b"", navidrome)
