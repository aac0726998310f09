"""The stand-in's test features beside Navidrome's: start, observation and faults."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import websockets

from demo.navidrome import Fault, FaultKind, StandIn, StandInOptions, StandInThread, user_api

ADMIN = {"Remote-User": "navidrome-shim"}


@pytest.fixture
async def stand_in() -> AsyncIterator[StandIn]:
    responses = StandIn(StandInOptions(trusted_sources="127.0.0.1/32", events_every=0.01))
    async with responses:
        async with httpx.AsyncClient(base_url=responses.url) as client:
            await client.get("/app/", headers=ADMIN)
        responses.seen.clear()
        yield responses


@pytest.fixture
async def client(stand_in: StandIn) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=stand_in.url, headers=ADMIN, timeout=5) as responses:
        yield responses


async def test_it_records_its_requests(stand_in: StandIn, client: httpx.AsyncClient) -> None:
    await client.get("/rest/ping?v=1&c=x%20y", headers={"X-Mixed-Case": "kept"})
    seen = stand_in.seen[-1]
    assert (seen.method, seen.target, seen.peer) == ("GET", "/rest/ping?v=1&c=x%20y", "127.0.0.1")
    assert ("X-Mixed-Case", "kept") in seen.headers
    assert seen.values("remote-user") == ["navidrome-shim"]


async def test_it_drops_the_oldest_recorded_requests() -> None:
    async with StandIn(StandInOptions(seen_limit=3)) as stand_in:
        async with httpx.AsyncClient(base_url=stand_in.url) as client:
            for number in range(5):
                await client.get(f"/ping?{number}")
        assert [seen.target for seen in stand_in.seen] == ["/ping?2", "/ping?3", "/ping?4"]


async def test_it_stops_with_open_streams_and_restarts_with_its_data(
    stand_in: StandIn, client: httpx.AsyncClient
) -> None:
    async with client.stream("GET", "/api/events") as events:
        lines = events.aiter_lines()
        assert await anext(lines) == "id: 0"
        assert stand_in.event_streams == 1
        where = stand_in.listen
        await asyncio.wait_for(stand_in.stop(), 5)
        with pytest.raises(httpx.TransportError):
            async for _ in lines:
                pass
    assert stand_in.event_streams == 0
    await stand_in.start(where)
    assert (await client.get("/api/song?_end=1")).status_code == 200


async def test_a_client_disconnect_ends_its_event_stream(
    stand_in: StandIn, client: httpx.AsyncClient
) -> None:
    async with client.stream("GET", "/api/events") as events:
        await anext(events.aiter_lines())
    for _ in range(200):
        if stand_in.event_streams == 0:
            break
        await asyncio.sleep(0.01)
    assert stand_in.event_streams == 0


async def test_events_are_sent_periodically_and_on_demand(
    stand_in: StandIn, client: httpx.AsyncClient
) -> None:
    async with client.stream("GET", "/api/events") as events:
        kinds: set[str] = set()
        async for line in events.aiter_lines():
            if line == "event: keepAlive":
                stand_in.send_event("refreshResource", {"*": "*"})
            kinds.add(line)
            if 'data: {"*":"*"}' in kinds:
                break
    assert {"event: serverStart", "event: keepAlive", "event: refreshResource"} <= kinds


async def test_peers_of_its_unix_socket_have_the_address_at(tmp_path: Path) -> None:
    path = str(tmp_path / "n.sock")
    for listed, status in (("@", 200), ("127.0.0.1/32", 401)):
        stand_in = StandIn(StandInOptions(trusted_sources=listed))
        await stand_in.start(f"unix:{path}")
        transport = httpx.AsyncHTTPTransport(uds=path)
        async with httpx.AsyncClient(transport=transport, base_url=stand_in.url) as client:
            await client.get("/app/", headers=ADMIN)
            assert (await client.get("/api/user", headers=ADMIN)).status_code == status
        assert stand_in.seen[-1].peer == "@"
        await stand_in.stop()


async def test_other_paths_below_a_base_path_redirect_to_the_app() -> None:
    options = StandInOptions(trusted_sources="127.0.0.1/32", base_path="/music")
    async with StandIn(options) as stand_in:
        origin = f"http://{stand_in.listen}"
        async with httpx.AsyncClient(base_url=origin, headers=ADMIN) as client:
            assert (await client.get("/music/app/")).status_code == 200
            assert (await client.get("/music/api/user")).status_code == 200
            assert (await client.get("/ping")).text == "."
            for target in ("/", "/api/user", "/music", "/music/", "/musical/api/user"):
                response = await client.get(target)
                assert (response.status_code, response.headers["location"]) == (302, "/music/app/")
            cookie = (await client.get("/music/rest/ping?v=1&c=x")).headers["set-cookie"]
            assert "; Path=/music; " in cookie


async def test_two_cases_of_a_name_can_race_and_equal_names_cannot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ["RaCe", "rAcE", *["same"] * 5]
    all_checked = asyncio.Barrier(len(names))

    async def pause_before_writing(seconds: float) -> None:
        assert seconds == 1.0
        await all_checked.wait()

    monkeypatch.setattr(user_api, "pause_before_writing", pause_before_writing)
    options = StandInOptions(trusted_sources="127.0.0.1/32", name_race_probability=1.0)
    async with StandIn(options) as stand_in:
        async with httpx.AsyncClient(base_url=stand_in.url, headers=ADMIN) as client:
            await client.get("/app/")
            responses = await asyncio.gather(
                *(client.post("/api/user", json={"userName": name}) for name in names)
            )
        assert sorted(response.status_code for response in responses) == [200] * 3 + [400] * 4


async def test_the_websocket_echoes(stand_in: StandIn) -> None:
    where = stand_in.url.replace("http", "ws") + "/jellyfin/Socket"
    async with websockets.connect(where, proxy=None) as connection:
        assert json.loads(await connection.recv()) == {"MessageType": "ForceKeepAlive", "Data": 60}
        for message in ('{"MessageType": "KeepAlive"}', b"\x00\xff" * 1000):
            await connection.send(message)
            assert await connection.recv() == message
    assert stand_in.seen[-1].target == "/jellyfin/Socket"


def _rows(response: httpx.Response) -> list[object]:
    try:
        rows: object = response.json()
    except ValueError:
        return []
    return rows if isinstance(rows, list) else []


@pytest.mark.parametrize("kind", list(FaultKind))
async def test_each_fault_behaves_as_documented(
    stand_in: StandIn, client: httpx.AsyncClient, kind: FaultKind
) -> None:
    stand_in.fault = Fault(kind)
    if kind in {FaultKind.CUT, FaultKind.NOTHING}:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/api/user")
    elif kind is FaultKind.HANG:
        with pytest.raises(httpx.ReadTimeout):
            await client.get("/api/user", timeout=0.1)
    else:
        response = await client.get("/api/user")
        expected = {FaultKind.SERVER_ERROR: 500, FaultKind.REDIRECT: 302}.get(kind, 200)
        assert response.status_code == expected
        assert not _rows(response)
    assert (await client.get("/rest/ping?v=1&c=x")).status_code == 200
    stand_in.fault = None
    assert (await client.get("/api/user")).json()[0]["userName"] == "navidrome-shim"


async def test_a_fault_can_be_delayed_limited_and_drop_only_the_response(
    stand_in: StandIn, client: httpx.AsyncClient
) -> None:
    stand_in.fault = Fault(
        FaultKind.SERVER_ERROR,
        methods=frozenset({"POST"}),
        skip=1,
        times=1,
        carried_out=True,
    )
    statuses = [
        (await client.post("/api/user", json={"userName": f"u{number}"})).status_code
        for number in range(3)
    ]
    assert statuses == [200, 500, 200]
    assert stand_in.accounts.find("u1") is not None


async def test_a_fault_before_the_request_changes_nothing(
    stand_in: StandIn, client: httpx.AsyncClient
) -> None:
    before = stand_in.accounts.snapshot()
    stand_in.fault = Fault(FaultKind.NOTHING)
    with pytest.raises(httpx.RemoteProtocolError):
        await client.post("/api/user", json={"userName": "lost"})
    assert stand_in.accounts.snapshot() == before


async def test_a_long_response_is_chunked_and_a_short_one_has_its_length(
    client: httpx.AsyncClient,
) -> None:
    assert "content-length" in (await client.get("/api/user")).headers
    for number in range(4):
        await client.post("/api/user", json={"userName": f"u{number}"})
    plain = {"Accept-Encoding": "identity"}
    response = await client.get("/api/user", headers=plain)
    assert response.headers["transfer-encoding"] == "chunked"


def test_two_instances_can_run_in_threads_at_once() -> None:
    with StandInThread() as one, StandInThread(listen="[::1]:0") as two:
        assert one.listen != two.listen
        for stand_in in (one, two):
            assert httpx.get(f"{stand_in.url}/ping").text == "."


def test_an_address_in_use_is_reported_at_the_start() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="in use"):
            StandInThread(listen=f"127.0.0.1:{taken.getsockname()[1]}").start()
