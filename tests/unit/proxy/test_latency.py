"""The latency histogram: the shim's share of each request, counted once, without Navidrome's share."""

from __future__ import annotations

import pytest

from shim.proxy import client_connection, request_handler
from shim.proxy.counters import LATENCY_BOUNDS
from shim.proxy.gate import Account
from tests.support.http_client import build_request, get
from tests.support.running_proxy import EDGE, RunningProxy, start_proxy
from tests.support.scripted_navidrome import OK, Navidrome
from tests.support.slow_gate import SlowGate
from tests.unit.proxy.account_gate import Accounts


class Clock:
    """`perf_counter` of the data plane, which only a test advances."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (client_connection, request_handler):
        monkeypatch.setattr(module, "perf_counter", clock)
    return clock


def counted(proxy: RunningProxy) -> dict[float, int]:
    """The number of requests by the upper bound of their bucket."""
    counts = zip((*LATENCY_BOUNDS, float("inf")), proxy.counters.latency, strict=True)
    return {bound: count for bound, count in counts if count}


async def test_navidromes_time_to_respond_is_not_counted(
    proxy: RunningProxy, navidrome: Navidrome, clock: Clock
) -> None:
    client = await proxy.client()
    await client.send(get().encode())
    served, _ = await navidrome.requests()
    assert sum(counted(proxy).values()) == 1
    clock.now += 30
    await served.send(OK)
    await client.read_response()
    assert counted(proxy) == {0.0001: 1}
    assert proxy.counters.latency_seconds == 0


async def test_a_request_over_an_idle_connection_is_counted_once(
    proxy: RunningProxy, navidrome: Navidrome, clock: Clock
) -> None:
    client = await proxy.client()
    served = None
    for number in (1, 2):
        await client.send(get().encode())
        if served is None:
            served, _ = await navidrome.requests()
        else:
            await served.head()
        await served.send(OK)
        await client.read_response()
        assert counted(proxy) == {0.0001: number}
    assert clock.now == 1000.0


async def test_the_wait_for_an_account_is_part_of_the_shims_share(
    navidrome: Navidrome, clock: Clock
) -> None:
    gate = SlowGate()
    async with start_proxy(navidrome, gate=gate) as proxy:
        client = await proxy.client(EDGE)
        await client.send(get("/app/", "X-authentik-username: alice").encode())
        future = await gate.next_request()
        assert counted(proxy) == {}
        clock.now += 2
        gate.ready["alice"] = Account(b"alice")
        future.set_result(gate.ready["alice"])
        served, _ = await navidrome.requests()
        await served.send(OK)
        await client.read_response()
        assert counted(proxy) == {2.5: 1}
        assert proxy.counters.latency_seconds == 2


async def test_the_wait_for_a_form_is_the_clients_share(navidrome: Navidrome, clock: Clock) -> None:
    async with start_proxy(navidrome, gate=Accounts()) as proxy:
        client = await proxy.client()
        form = "Content-Type: application/x-www-form-urlencoded"
        await client.send(build_request("POST", "/rest/ping", form, "Content-Length: 3").encode())
        await proxy.wait_until_idle()
        before = sum(counted(proxy).values())
        clock.now += 5
        await client.send(b"a=b")
        served, _ = await navidrome.requests()
        await served.send(OK)
        await client.read_response()
        assert counted(proxy) == {0.0001: before}
        assert before == 2  # the form, and the request of `wait_until_idle`


async def test_a_rejected_request_is_counted(proxy: RunningProxy, clock: Clock) -> None:
    response = await proxy.request("BREW / HTTP/1.1\r\nHost: h\r\n\r\n")
    assert response.status == 501
    assert counted(proxy) == {0.0001: 1}
    assert clock.now == 1000.0


async def test_a_failure_after_the_request_was_sent_is_counted_once(
    proxy: RunningProxy, navidrome: Navidrome, clock: Clock
) -> None:
    client = await proxy.client()
    await client.send(build_request("POST", "/api/x", "Content-Length: 0").encode())
    served, _ = await navidrome.requests()
    clock.now += 5
    served.close()
    assert (await client.read_response()).status == 502
    assert counted(proxy) == {0.0001: 1}


async def test_a_request_that_is_retried_is_counted_once(
    proxy: RunningProxy, navidrome: Navidrome, clock: Clock
) -> None:
    client = await proxy.client()
    await client.send(get().encode())
    served, _ = await navidrome.requests()
    await served.send(OK)
    await client.read_response()
    await client.send(get("/again").encode())
    await served.head()
    clock.now += 5
    served.close()
    other, head = await navidrome.requests()
    assert head.startswith(b"GET /again ")
    await other.send(OK)
    await client.read_response()
    assert proxy.counters.retries == 1
    assert counted(proxy) == {0.0001: 2}
