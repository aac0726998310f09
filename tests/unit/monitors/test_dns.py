"""Host names of the whitelist: their addresses, how long they are valid, and when a change is
reported.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import socket
import threading
from collections.abc import Iterator, Sequence

import pytest

from shim.monitors.dns import DnsMonitor
from tests.support.raw_connection import until
from tests.support.recorded_sleeps import record_sleeps

LookupResult = Sequence[str] | Exception


class NameServer:
    """The result of a look-up: addresses, or what it raises."""

    def __init__(self) -> None:
        self.results_by_name: dict[str, LookupResult] = {}
        self.lookups: list[str] = []

    def getaddrinfo(self, host: str, port: None, **_: int) -> list[tuple[object, ...]]:
        assert port is None
        self.lookups.append(host)
        result = self.results_by_name[host]
        if isinstance(result, Exception):
            raise result
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in result]


@pytest.fixture
def name_server(monkeypatch: pytest.MonkeyPatch) -> NameServer:
    server = NameServer()
    monkeypatch.setattr(socket, "getaddrinfo", server.getaddrinfo)
    return server


def found(watch: DnsMonitor, host: str = "edge") -> set[str]:
    return {str(address) for address in watch.addresses()[host]}


async def test_a_name_that_was_not_resolved_matches_no_peer(name_server: NameServer) -> None:
    del name_server
    assert DnsMonitor(("edge",), 300).addresses() == {"edge": frozenset()}


async def test_a_name_has_each_of_its_addresses_once(name_server: NameServer) -> None:
    name_server.results_by_name = {
        "edge": ["192.0.2.1", "192.0.2.1", "2001:db8::1", "::ffff:192.0.2.2"]
    }
    watch = DnsMonitor(("edge",), 300)
    assert await watch.resolve()
    assert found(watch) == {"192.0.2.1", "2001:db8::1", "192.0.2.2"}
    assert ipaddress.ip_address("192.0.2.1") in watch.addresses()["edge"]


async def test_a_changed_address_replaces_the_old_one(name_server: NameServer) -> None:
    name_server.results_by_name = {"edge": ["192.0.2.1"]}
    watch = DnsMonitor(("edge",), 300)
    assert await watch.resolve()
    assert not await watch.resolve(), "an equal result is not reported as a change"
    name_server.results_by_name = {"edge": ["192.0.2.9"]}
    assert await watch.resolve()
    assert found(watch) == {"192.0.2.9"}


FAULTS = [
    socket.gaierror(-2, "Name or service not known"),
    UnicodeError("label too long"),
    TimeoutError(),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
async def test_a_failed_lookup_keeps_the_last_addresses_and_reports_why(
    name_server: NameServer, fault: Exception
) -> None:
    name_server.results_by_name = {"edge": ["192.0.2.1"]}
    watch = DnsMonitor(("edge",), stale_seconds=300)
    await watch.resolve()
    name_server.results_by_name = {"edge": fault}
    assert not await watch.resolve()
    assert found(watch) == {"192.0.2.1"}
    (state,) = watch.states
    assert state.fault
    name_server.results_by_name = {"edge": ["192.0.2.1"]}
    await watch.resolve()
    assert watch.states[0].fault is None


async def test_the_last_addresses_expire(name_server: NameServer) -> None:
    name_server.results_by_name = {"edge": ["192.0.2.1"]}
    watch = DnsMonitor(("edge",), stale_seconds=-1)
    await watch.resolve()
    name_server.results_by_name = {"edge": socket.gaierror(-3, "Temporary failure")}
    assert await watch.resolve()
    assert found(watch) == set()


async def test_a_new_monitor_copies_the_addresses_with_their_age(
    name_server: NameServer,
) -> None:
    name_server.results_by_name = {"edge": ["192.0.2.1"], "former": ["192.0.2.2"]}
    before = DnsMonitor(("edge", "former"), stale_seconds=300)
    await before.resolve()
    name_server.results_by_name = {"edge": OSError("no network"), "new": OSError("no network")}
    after, early = (
        DnsMonitor(("edge", "new"), stale_seconds=300),
        DnsMonitor(("edge",), stale_seconds=-1),
    )
    for watch in (after, early):
        watch.copy_state_from(before)
        await watch.resolve()
    assert after.addresses() == {"edge": before.addresses()["edge"], "new": frozenset()}
    assert found(early) == set()


async def test_a_name_that_never_resolved_matches_no_peer(name_server: NameServer) -> None:
    name_server.results_by_name = {"edge": socket.gaierror(-2, "Name or service not known")}
    watch = DnsMonitor(("edge",), stale_seconds=300)
    assert not await watch.resolve()
    assert found(watch) == set()


async def test_one_failed_name_does_not_affect_another(name_server: NameServer) -> None:
    name_server.results_by_name = {"edge": OSError("no network"), "other": ["192.0.2.5"]}
    watch = DnsMonitor(("edge", "other"), stale_seconds=300)
    assert await watch.resolve()
    assert (found(watch), found(watch, "other")) == (set(), {"192.0.2.5"})


class SilentNameServer:
    """Blocks every look-up until it is released; `lookups` counts."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.lookups = 0

    def getaddrinfo(self, *_: object, **__: object) -> list[tuple[object, ...]]:
        self.lookups += 1
        assert self.released.wait(30.0)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.7", 0))]


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[SilentNameServer]:
    server = SilentNameServer()
    monkeypatch.setattr(socket, "getaddrinfo", server.getaddrinfo)
    yield server
    server.released.set()


async def test_a_dns_server_that_does_not_respond_is_not_waited_for(
    silent: SilentNameServer,
) -> None:
    watch = DnsMonitor(("edge",), stale_seconds=300, timeout=0.001)
    for _ in range(3):
        assert not await watch.resolve()
        assert watch.states[0].fault == "no response in time"
    assert silent.lookups == 1, "only one thread waits"
    silent.released.set()
    late = watch._names["edge"].pending
    assert late is not None
    await until(late.done)
    assert await watch.resolve(), "a late result is used"
    assert (found(watch), watch.states[0].fault) == ({"192.0.2.7"}, None)


async def test_a_blocked_lookup_uses_no_thread_of_the_default_executor(
    silent: SilentNameServer,
) -> None:
    watch = DnsMonitor(
        tuple(f"edge{number}" for number in range(64)), stale_seconds=300, timeout=0.001
    )
    await watch.resolve()
    try:
        async with asyncio.timeout(5.0):
            assert await asyncio.to_thread(lambda: "done") == "done"
    finally:
        silent.released.set()


async def test_a_name_without_an_address_is_retried_soon(
    name_server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = record_sleeps(monkeypatch, "shim.monitors.dns", 3)
    name_server.results_by_name = {"edge": OSError("not yet"), "other": ["192.0.2.5"]}
    watch = DnsMonitor(("edge", "other"), stale_seconds=300)
    await watch.resolve()
    results: Iterator[LookupResult] = iter([OSError("not yet"), ["192.0.2.1"], ["192.0.2.1"]])

    def looked() -> None:
        name_server.results_by_name["edge"] = next(results)

    with pytest.raises(asyncio.CancelledError):
        await watch.run(30.0, lambda: None, looked)
    assert pauses == [5.0, 5.0, 5.0, 30.0]


async def test_only_a_change_is_reported(name_server: NameServer) -> None:
    name_server.results_by_name = {"edge": ["192.0.2.1"]}
    watch = DnsMonitor(("edge",), stale_seconds=300)
    changes: asyncio.Queue[set[str]] = asyncio.Queue()
    running = asyncio.create_task(watch.run(0, lambda: changes.put_nowait(found(watch))))
    async with asyncio.timeout(5):
        assert await changes.get() == {"192.0.2.1"}
        name_server.results_by_name = {"edge": ["192.0.2.2"]}
        assert await changes.get() == {"192.0.2.2"}
        before = len(name_server.lookups)
        await until(lambda: len(name_server.lookups) >= before + 3)
    running.cancel()
    assert changes.empty()


async def test_without_names_there_is_no_task() -> None:
    async with asyncio.timeout(5):
        await DnsMonitor((), stale_seconds=300).run(3600, lambda: None)


async def test_the_age_of_a_name_is_the_time_since_its_last_successful_lookup(
    name_server: NameServer,
) -> None:
    now = [100.0]
    watch = DnsMonitor(("edge",), stale_seconds=300, clock=lambda: now[0])
    assert [state.age for state in watch.states] == [math.inf]
    name_server.results_by_name = {"edge": ["192.0.2.1"]}
    await watch.resolve()
    now[0] += 7
    name_server.results_by_name = {"edge": TimeoutError()}
    await watch.resolve()
    assert [state.age for state in watch.states] == [7.0]
