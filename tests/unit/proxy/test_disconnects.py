"""Client disconnects: pending work is cancelled, and late results are discarded."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from shim.app.sockets import raise_descriptor_limit
from shim.proxy.gate import Account, AccountDenied, RequestInfo
from shim.trust.identity import Identity
from shim.trust.reasons import Reason
from tests.support.http_client import Client, build_request, get
from tests.support.limits import limits_with
from tests.support.raw_connection import until
from tests.support.running_proxy import EDGE, RunningProxy, policy, start_proxy
from tests.support.scripted_navidrome import OK, Navidrome, navidrome_on_a_socket
from tests.support.slow_gate import SlowGate
from tests.support.slow_reader import send_response_partly_read

SIGNED_IN = ("X-authentik-username: alice", "X-authentik-uid: u1")


async def signed_in(proxy: RunningProxy, *lines: str) -> Client:
    client = await proxy.client(EDGE)
    await client.send(get("/api/song", *SIGNED_IN, *lines).encode())
    return client


@pytest.mark.parametrize("reset", [False, True])
async def test_a_disconnect_before_the_response_drops_the_request(
    proxy: RunningProxy, navidrome: Navidrome, reset: bool
) -> None:
    client = await proxy.client()
    await client.send(get().encode())
    served, _ = await navidrome.requests()
    client.reset() if reset else client.finish()
    await served.wait_closed()
    await proxy.until_no_client()
    assert proxy.counters.upstream_connections == 0


async def test_a_disconnect_during_the_response_drops_it_without_a_clean_end(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client = await proxy.client()
    await client.send(b"GET / HTTP/1.0\r\nHost: h\r\n\r\n")
    served, _ = await navidrome.requests()
    await served.send(b"HTTP/1.1 200 OK\r\n\r\nhalf")
    await client.read_response_head()
    await client.read_exactly(4)
    client.finish()
    await served.wait_closed()
    await client.read_to_reset()
    assert proxy.counters.streams_open == 0


async def test_a_disconnect_during_the_body_drops_the_request(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client = await proxy.client()
    await client.send(build_request("POST", "/api/x", "Content-Length: 10").encode() + b"half")
    served, _ = await navidrome.requests()
    await served.read_exactly(4)
    client.finish()
    await served.wait_closed()
    assert proxy.counters.upstream_connections == 0


async def test_a_disconnect_during_provisioning_cancels_it(
    navidrome: Navidrome,
) -> None:
    gate = SlowGate()
    async with start_proxy(navidrome, gate=gate) as proxy:
        client = await signed_in(proxy)
        future = await gate.next_request()
        client.finish()
        await proxy.until_no_client()
        assert future.cancelled()
        assert navidrome.count == 0


async def test_a_disconnect_while_connecting_sends_nothing(navidrome: Navidrome) -> None:
    async with start_proxy(navidrome, limits=limits_with(max_upstream_connections=1)) as proxy:
        first, second = await proxy.client(), await proxy.client()
        await first.send(get("/1").encode())
        served, _ = await navidrome.requests()
        await second.send(get("/2").encode())
        await proxy.wait_until_idle()
        second.finish()
        await second.read_to_end()
        await served.send(OK)
        await first.read_response()
        assert proxy.counters.upstream_waiting == 0
        await first.send(get("/3").encode())
        assert (await served.head()).startswith(b"GET /3 ")


async def test_an_account_that_is_ready_after_the_disconnect_sends_nothing(
    navidrome: Navidrome,
) -> None:
    class UncancellableGate(SlowGate):
        """Its futures can't be cancelled, like those of a shared provisioning run."""

        def ensure(
            self, identity: Identity, request_info: RequestInfo
        ) -> asyncio.Future[Account | AccountDenied]:
            return _Uncancellable(super().ensure(identity, request_info))  # type: ignore[return-value]

    gate = UncancellableGate()
    async with start_proxy(navidrome, gate=gate) as proxy:
        client = await signed_in(proxy)
        future = await gate.next_request()
        client.finish()
        await proxy.until_no_client()
        future.set_result(Account(b"alice"))
        await proxy.wait_until_idle()
        assert navidrome.count == 0


class _Uncancellable:
    def __init__(self, future: asyncio.Future[Account | AccountDenied]) -> None:
        self._future = future

    def cancel(self) -> bool:
        return False

    def __getattr__(self, name: str) -> object:
        return getattr(self._future, name)


async def test_the_user_header_has_the_account_name(navidrome: Navidrome) -> None:
    gate = SlowGate()
    async with start_proxy(navidrome, gate=gate) as proxy:
        client = await signed_in(proxy)
        future = await gate.next_request()
        await proxy.wait_until_idle()
        assert navidrome.count == 0, "nothing is sent before the account is ready"
        gate.respond(future, "Älice".encode())
        served, head = await navidrome.requests()
        assert head.count(b"\r\nRemote-User: ") == 1
        assert b"\r\nRemote-User: \xc3\x84lice\r\n" in head
        await served.send(OK)
        assert (await client.read_response()).body == b"ok"
        gate.ready["alice"] = Account(b"alice2")
        await client.send(get("/api/song", *SIGNED_IN).encode())
        assert b"\r\nRemote-User: alice2\r\n" in await served.head()


async def test_an_account_that_is_invalidated_while_connecting_is_provisioned_again(
    navidrome: Navidrome,
) -> None:
    gate = SlowGate()
    async with start_proxy(navidrome, gate=gate) as proxy:
        await signed_in(proxy)
        # Another Navidrome may respond at the same address by now: the account is ready, but not
        # known.
        (await gate.next_request()).set_result(Account(b"alice"))
        again = await gate.next_request()
        served = await navidrome.accepted()
        await proxy.wait_until_idle()
        assert bytes(served.received) == b""
        gate.respond(again)
        assert b"\r\nRemote-User: alice\r\n" in await served.head()


@pytest.mark.parametrize(
    ("refusal", "status", "retry_after"),
    [
        (AccountDenied(Reason.GROUP_NOT_ALLOWED, "no group"), 403, None),
        (AccountDenied(Reason.ACCOUNT_UNAVAILABLE, "Navidrome is away", 7), 503, "7"),
    ],
)
async def test_a_denied_account_gets_an_error_response_and_is_counted(
    navidrome: Navidrome, refusal: AccountDenied, status: int, retry_after: str | None
) -> None:
    gate = SlowGate()
    async with start_proxy(navidrome, gate=gate) as proxy:
        client = await signed_in(proxy)
        (await gate.next_request()).set_result(refusal)
        response = await client.read_response()
        assert (response.status, response.get("retry-after")) == (status, retry_after)
        assert proxy.recorded.decided_as == [(refusal.reason, gate.request_infos[0].request_id)]
        assert response.get("x-request-id") == gate.request_infos[0].request_id
        assert gate.request_infos[0].peer == EDGE
        assert navidrome.count == 0


async def test_a_body_waits_for_the_account_and_is_forwarded_completely(
    navidrome: Navidrome,
) -> None:
    gate = SlowGate()
    async with start_proxy(navidrome, gate=gate) as proxy:
        client = await proxy.client(EDGE)
        body = bytes(range(256)) * 64
        head = build_request("POST", "/api/x", *SIGNED_IN, f"Content-Length: {len(body)}").encode()
        await client.send(head + body[:100], body[100:])
        gate.respond(await gate.next_request())
        served, _ = await navidrome.requests()
        assert await served.read_exactly(len(body)) == body


async def test_the_policy_can_change_during_provisioning(navidrome: Navidrome) -> None:
    gate = SlowGate()
    async with start_proxy(navidrome, gate=gate) as proxy:
        await signed_in(proxy)
        future = await gate.next_request()
        proxy.plane.apply_policy(policy(number=1, suspended=True))
        gate.respond(future)
        served, head = await navidrome.requests()
        assert b"Remote-User: alice" in head, "the request continues with its decision"
        await served.send(OK)
        client = await signed_in(proxy)
        assert b"Remote-User" not in await served.head()
        await served.send(OK)
        await client.read_response()


BUFFERED = 1 << 16


async def _send_until_paused(proxy: RunningProxy, client: Client) -> int:
    """Send until the shim stops reading; returns the maximum that it has read by then."""
    for count in range(4096):
        if proxy.reading_paused:
            return count << 12
        await client.send(bytes(1 << 12))
    raise AssertionError("the shim continues to read")


async def test_pipelined_data_is_buffered_up_to_its_limit_and_read_later(
    navidrome: Navidrome,
) -> None:
    gate = SlowGate()
    async with start_proxy(navidrome, gate=gate) as proxy:
        client = await proxy.client(EDGE)
        head = build_request("POST", "/api/x", *SIGNED_IN, f"Content-Length: {1 << 20}").encode()
        await client.send(head)
        future = await gate.next_request()
        sent = await _send_until_paused(proxy, client)
        assert BUFFERED < sent < 2 * BUFFERED
        gate.respond(future)
        served, _ = await navidrome.requests()
        rest = asyncio.create_task(client.send(bytes((1 << 20) - sent)))
        assert await served.read_exactly(1 << 20) == bytes(1 << 20)
        await rest
        await served.send(OK)
        assert (await client.read_response()).status == 200


async def test_buffered_data_does_not_resume_a_paused_upload(
    tmp_path: Path,
) -> None:
    gate = SlowGate()
    # A Unix socket buffers little for a reader that sleeps, so the buffered data is too much for
    # it.
    async with (
        navidrome_on_a_socket(tmp_path / "navidrome.sock") as navidrome,
        start_proxy(navidrome, gate=gate, limits=limits_with(max_buffered_bytes=1 << 20)) as proxy,
    ):
        client = await proxy.client(EDGE)
        head = build_request("POST", "/api/x", *SIGNED_IN, f"Content-Length: {1 << 40}").encode()
        await client.send(head)
        future = await gate.next_request()
        await client.send(*(bytes(50_000) for _ in range(12)))
        await proxy.wait_until_idle()
        gate.respond(future)
        await navidrome.accepted()
        await proxy.wait_until_idle()
        await _send_until_paused(proxy, client)


async def test_pipelined_requests_are_not_served_while_their_responses_are_unread(
    navidrome: Navidrome,
) -> None:
    limits = limits_with(send_timeout=20)
    async with start_proxy(navidrome, limits=limits, send_buffer=4096) as proxy:
        client = await proxy.client(receive_buffer=4096)
        await client.send(get("/cover").encode())
        served, _ = await navidrome.requests()
        await send_response_partly_read(proxy, client, served)
        # The response is complete, but not fully sent; the client sends without end.
        with pytest.raises(ConnectionError):
            await client.send(*[bytes(1 << 12)] * 4096)
        await proxy.until_no_client()
        assert [failure for failure, *_ in proxy.recorded.failures] == ["sent_ahead"]


async def test_requests_that_waited_for_a_slow_reader_are_served_after_it(
    navidrome: Navidrome,
) -> None:
    async with start_proxy(navidrome, send_buffer=4096) as proxy:
        await _read_everything(proxy, navidrome)


async def _read_everything(proxy: RunningProxy, navidrome: Navidrome) -> None:
    client = await proxy.client(receive_buffer=4096)
    await client.send(get("/cover").encode())
    served, _ = await navidrome.requests()
    left = await send_response_partly_read(proxy, client, served)
    heads = [get(f"/{number}", "X: " + "x" * 8000).encode() for number in range(7)]
    await client.send(*heads)
    await proxy.wait_until_idle()
    await client.read_exactly(left)
    for number in range(7):
        assert (await served.head()).startswith(b"GET /%d " % number)
        await served.send(OK)
        assert (await client.read_response()).body == b"ok"


async def test_a_head_longer_than_the_buffer_limit_is_read_in_its_turn(
    navidrome: Navidrome,
) -> None:
    limits = limits_with(header_bytes=1 << 18, max_buffered_bytes=1 << 16)
    async with start_proxy(navidrome, limits=limits) as proxy:
        client = await proxy.client()
        await client.send(get("/1").encode())
        served, _ = await navidrome.requests()
        head = get("/2", "X: " + "x" * (1 << 17)).encode()
        await client.send(*(head[at : at + 8192] for at in range(0, len(head), 8192)))
        await proxy.wait_until_idle()
        await served.send(OK)
        await client.read_response()
        assert (await served.head()).startswith(b"GET /2 ")


async def test_many_waiting_requests_that_are_evaluated_again_do_not_recurse(
    navidrome: Navidrome,
) -> None:
    raise_descriptor_limit()
    gate = SlowGate()
    gate.ready["alice"] = Account(b"alice")
    limits = limits_with(max_upstream_connections=1, max_connections=1000)
    async with start_proxy(navidrome, gate=gate, limits=limits) as proxy:
        first = await signed_in(proxy)
        served, _ = await navidrome.requests()
        waiting = [await signed_in(proxy) for _ in range(400)]
        await until(lambda: proxy.counters.upstream_waiting == 400)
        gate.ready.clear()
        await served.send(OK)
        assert (await first.read_response()).status == 200
        await until(lambda: gate.requests.qsize() == 400)
        await until(lambda: proxy.counters.upstream_idle == 1)
        for client in waiting:
            client.close()
