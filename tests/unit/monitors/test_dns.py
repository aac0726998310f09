"""Host names of the list: whose addresses count, for how long, and when a change is told."""

from __future__ import annotations

import asyncio
import ipaddress
import math
import socket
import threading
from collections.abc import Iterator, Sequence

import pytest

from shim.monitors.dns import DnsMonitor
from tests.support.pauses import note_pauses
from tests.support.socket_ends import until

Answer = Sequence[str] | Exception


class NameServer:
    """What a look-up answers: addresses, or what it raises."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []

    def getaddrinfo(self, host: str, port: None, **_: int) -> list[tuple[object, ...]]:
        assert port is None
        self.asked.append(host)
        answer = self.answers[host]
        if isinstance(answer, Exception):
            raise answer
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in answer]


@pytest.fixture
def name_server(monkeypatch: pytest.MonkeyPatch) -> NameServer:
    server = NameServer()
    monkeypatch.setattr(socket, "getaddrinfo", server.getaddrinfo)
    return server


def found(watch: DnsMonitor, host: str = "edge") -> set[str]:
    return {str(address) for address in watch.addresses()[host]}


async def test_a_name_that_was_not_looked_up_lists_nobody(name_server: NameServer) -> None:
    del name_server
    assert DnsMonitor(("edge",), 300).addresses() == {"edge": frozenset()}


async def test_a_name_has_all_its_addresses_each_once(name_server: NameServer) -> None:
    name_server.answers = {"edge": ["192.0.2.1", "192.0.2.1", "2001:db8::1", "::ffff:192.0.2.2"]}
    watch = DnsMonitor(("edge",), 300)
    assert await watch.resolve()
    assert found(watch) == {"192.0.2.1", "2001:db8::1", "192.0.2.2"}
    assert ipaddress.ip_address("192.0.2.1") in watch.addresses()["edge"]


async def test_an_address_that_changes_replaces_the_old_one(name_server: NameServer) -> None:
    name_server.answers = {"edge": ["192.0.2.1"]}
    watch = DnsMonitor(("edge",), 300)
    assert await watch.resolve()
    assert not await watch.resolve(), "the same answer is no change"
    name_server.answers = {"edge": ["192.0.2.9"]}
    assert await watch.resolve()
    assert found(watch) == {"192.0.2.9"}


FAULTS = [
    socket.gaierror(-2, "Name or service not known"),
    UnicodeError("label too long"),
    TimeoutError(),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
async def test_a_failing_look_up_keeps_the_last_answer_and_says_why(
    name_server: NameServer, fault: Exception
) -> None:
    name_server.answers = {"edge": ["192.0.2.1"]}
    watch = DnsMonitor(("edge",), stale_seconds=300)
    await watch.resolve()
    name_server.answers = {"edge": fault}
    assert not await watch.resolve()
    assert found(watch) == {"192.0.2.1"}
    (state,) = watch.states
    assert state.fault
    name_server.answers = {"edge": ["192.0.2.1"]}
    await watch.resolve()
    assert watch.states[0].fault is None


async def test_the_last_answer_does_not_outlive_its_time(name_server: NameServer) -> None:
    name_server.answers = {"edge": ["192.0.2.1"]}
    watch = DnsMonitor(("edge",), stale_seconds=-1)
    await watch.resolve()
    name_server.answers = {"edge": socket.gaierror(-3, "Temporary failure")}
    assert await watch.resolve()
    assert found(watch) == set()


async def test_what_one_watch_knows_another_takes_over_with_its_age(
    name_server: NameServer,
) -> None:
    name_server.answers = {"edge": ["192.0.2.1"], "former": ["192.0.2.2"]}
    before = DnsMonitor(("edge", "former"), stale_seconds=300)
    await before.resolve()
    name_server.answers = {"edge": OSError("no network"), "new": OSError("no network")}
    after, hasty = (
        DnsMonitor(("edge", "new"), stale_seconds=300),
        DnsMonitor(("edge",), stale_seconds=-1),
    )
    for watch in (after, hasty):
        watch.copy_state_from(before)
        await watch.resolve()
    assert after.addresses() == {"edge": before.addresses()["edge"], "new": frozenset()}
    assert found(hasty) == set()


async def test_a_name_that_never_resolved_lists_nobody(name_server: NameServer) -> None:
    name_server.answers = {"edge": socket.gaierror(-2, "Name or service not known")}
    watch = DnsMonitor(("edge",), stale_seconds=300)
    assert not await watch.resolve()
    assert found(watch) == set()


async def test_one_failing_name_does_not_harm_another(name_server: NameServer) -> None:
    name_server.answers = {"edge": OSError("no network"), "other": ["192.0.2.5"]}
    watch = DnsMonitor(("edge", "other"), stale_seconds=300)
    assert await watch.resolve()
    assert (found(watch), found(watch, "other")) == (set(), {"192.0.2.5"})


class SilentNameServer:
    """Answers nobody until it is told to; `asked` counts."""

    def __init__(self) -> None:
        self.speaks = threading.Event()
        self.asked = 0

    def getaddrinfo(self, *_: object, **__: object) -> list[tuple[object, ...]]:
        self.asked += 1
        assert self.speaks.wait(30.0)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.7", 0))]


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[SilentNameServer]:
    server = SilentNameServer()
    monkeypatch.setattr(socket, "getaddrinfo", server.getaddrinfo)
    yield server
    server.speaks.set()


async def test_a_name_server_that_never_answers_is_not_waited_for(
    silent: SilentNameServer,
) -> None:
    watch = DnsMonitor(("edge",), stale_seconds=300, timeout=0.001)
    for _ in range(3):
        assert not await watch.resolve()
        assert watch.states[0].fault == "no response in time"
    assert silent.asked == 1, "one thread waits, and no more"
    silent.speaks.set()
    late = watch._names["edge"].pending
    assert late is not None
    await until(late.done)
    assert await watch.resolve(), "what came late counts"
    assert (found(watch), watch.states[0].fault) == ({"192.0.2.7"}, None)


async def test_it_keeps_no_thread_from_those_who_look_up_something_else(
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
        silent.speaks.set()


async def test_a_name_without_an_address_is_looked_up_soon(
    name_server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = note_pauses(monkeypatch, "shim.monitors.dns", 3)
    name_server.answers = {"edge": OSError("not yet"), "other": ["192.0.2.5"]}
    watch = DnsMonitor(("edge", "other"), stale_seconds=300)
    await watch.resolve()
    told: Iterator[Answer] = iter([OSError("not yet"), ["192.0.2.1"], ["192.0.2.1"]])

    def looked() -> None:
        name_server.answers["edge"] = next(told)

    with pytest.raises(asyncio.CancelledError):
        await watch.run(30.0, lambda: None, looked)
    assert pauses == [5.0, 5.0, 5.0, 30.0]


async def test_a_change_is_told_and_nothing_else(name_server: NameServer) -> None:
    name_server.answers = {"edge": ["192.0.2.1"]}
    watch = DnsMonitor(("edge",), stale_seconds=300)
    changes: asyncio.Queue[set[str]] = asyncio.Queue()
    running = asyncio.create_task(watch.run(0, lambda: changes.put_nowait(found(watch))))
    async with asyncio.timeout(5):
        assert await changes.get() == {"192.0.2.1"}
        name_server.answers = {"edge": ["192.0.2.2"]}
        assert await changes.get() == {"192.0.2.2"}
        before = len(name_server.asked)
        await until(lambda: len(name_server.asked) >= before + 3)
    running.cancel()
    assert changes.empty()


async def test_without_names_there_is_nothing_to_watch() -> None:
    async with asyncio.timeout(5):
        await DnsMonitor((), stale_seconds=300).run(3600, lambda: None)


async def test_the_age_of_a_name_is_the_time_since_its_last_successful_lookup(
    name_server: NameServer,
) -> None:
    now = [100.0]
    watch = DnsMonitor(("edge",), stale_seconds=300, clock=lambda: now[0])
    assert [state.age for state in watch.states] == [math.inf]
    name_server.answers = {"edge": ["192.0.2.1"]}
    await watch.resolve()
    now[0] += 7
    name_server.answers = {"edge": TimeoutError()}
    await watch.resolve()
    assert [state.age for state in watch.states] == [7.0]
