"""The whole process: start, changes of its environment, and shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from shim.app.factories import build_policy
from shim.app.policy_updater import PolicyUpdater
from shim.audit.events import Event, PolicyChanged
from shim.proxy.counters import Counters
from shim.proxy.pool import UpstreamAddress
from shim.proxy.server import DataPlane
from shim.settings import load
from shim.trust.peers import parse_peer
from tests.support.http_client import Client, get
from tests.support.limits import limits_with
from tests.support.program import PATIENCE, Program, ScriptedNavidrome, program, started
from tests.support.running_proxy import EDGE, RecordingObserver
from tests.support.scripted_navidrome import OK, Navidrome, Served, navidrome_on_a_socket


@pytest.fixture
async def navidrome() -> AsyncIterator[Navidrome]:
    async with navidrome_on_a_socket() as served:
        yield served


async def _request_in_progress(shim: Program, recorded: ScriptedNavidrome) -> tuple[Client, Served]:
    client = await shim.client()
    await client.send(get("/track").encode())
    served, _ = await recorded.next()
    return client, served


async def test_it_logs_its_start_and_exits_with_0(tmp_path: Path, navidrome: Navidrome) -> None:
    secret = "do-not-tell-0123456789abcdef"
    async with started(tmp_path, navidrome, proxy_secret=secret) as (shim, _):
        in_force = await shim.event("configuration_loaded")
        shown = " ".join(in_force["settings"])
        assert any("May sign in: all users" in sentence for sentence in in_force["summary"])
        assert "SHIM_REVERSE_PROXY_WHITELIST=127.0.0.2" in shown
        assert "do-not-tell" not in shown
        idle = await shim.client()
        shim.stop()
        assert await idle.read_to_end() == b"", "idle connections are closed"
        assert await shim.ended() == 0
        stopped = await shim.event("stopped")
        assert (stopped["trigger"], stopped["aborted_connections"]) == ("SIGTERM", 0)


async def test_an_interrupt_stops_it(tmp_path: Path, navidrome: Navidrome) -> None:
    async with started(tmp_path, navidrome) as (shim, _):
        shim.stop(signal.SIGINT)
        assert await shim.ended() == 0
        assert (await shim.event("stopped"))["trigger"] == "SIGINT"


async def test_a_reload_during_shutdown_does_not_change_the_exit(
    tmp_path: Path, navidrome: Navidrome
) -> None:
    async with started(tmp_path, navidrome) as (shim, _):
        shim.stop()
        await _refused(shim)
        ending = asyncio.create_task(shim.ended())
        while not ending.done():
            with contextlib.suppress(ProcessLookupError):
                shim.stop(signal.SIGHUP)
            await asyncio.sleep(0.002)
        assert await ending == 0


async def test_requests_in_progress_finish_and_health_is_served_until_then(
    tmp_path: Path, navidrome: Navidrome
) -> None:
    async with started(tmp_path, navidrome) as (shim, recorded):
        client, served = await _request_in_progress(shim, recorded)
        beginning = await shim.client()
        await beginning.send(b"GET /late HTTP/1.1\r\n")
        shim.stop()
        await _refused(shim)
        async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as http:
            assert (await http.get(f"http://{shim.control}/healthz")).status_code == 200
        await served.send(OK)
        response = await client.read_response()
        assert (response.body, response.get("connection")) == (b"ok", "close")
        assert await client.read_to_end() == b""
        client.close()
        await beginning.send(b"Host: h\r\n\r\n")
        assert (await served.head()).startswith(b"GET /late ")
        await served.send(OK)
        response = await beginning.read_response()
        assert (response.body, response.get("connection")) == (b"ok", "close")
        beginning.close()
        assert await shim.ended() == 0
        assert (await shim.event("stopped"))["aborted_connections"] == 0


async def test_a_keep_alive_connection_can_send_one_more_request_during_shutdown(
    tmp_path: Path, navidrome: Navidrome
) -> None:
    async with started(tmp_path, navidrome) as (shim, recorded):
        client, served = await _request_in_progress(shim, recorded)
        await served.send(OK)
        assert (await client.read_response()).get("connection") is None
        shim.stop()
        await _refused(shim)
        await client.send(get("/more").encode())
        assert (await served.head()).startswith(b"GET /more ")
        await served.send(OK)
        response = await client.read_response()
        assert (response.body, response.get("connection")) == (b"ok", "close")
        assert await client.read_to_end() == b""
        client.close()
        assert await shim.ended() == 0


async def _refused(shim: Program) -> None:
    """Wait until new connections are refused."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                (await shim.client()).close()
            except ConnectionError:
                return
            await asyncio.sleep(0)


async def test_connections_that_are_open_after_the_shutdown_timeout_are_aborted(
    tmp_path: Path, navidrome: Navidrome
) -> None:
    async with started(tmp_path, navidrome, shutdown_timeout="1") as (shim, recorded):
        client, served = await _request_in_progress(shim, recorded)
        await served.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await client.read_response_head()
        assert await client.chunk() == b"a"
        shim.stop()
        with pytest.raises((EOFError, ConnectionError)):
            await client.chunk()
        assert await shim.ended() == 0
        assert (await shim.event("stopped"))["aborted_connections"] == 1


async def test_a_second_signal_ends_it_at_once(tmp_path: Path, navidrome: Navidrome) -> None:
    async with started(tmp_path, navidrome, shutdown_timeout="3600") as (shim, recorded):
        client, served = await _request_in_progress(shim, recorded)
        await served.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await client.read_response_head()
        shim.stop()
        await _refused(shim)
        shim.stop()
        assert await shim.ended() == 0


async def test_unix_sockets_are_removed_at_shutdown(tmp_path: Path, navidrome: Navidrome) -> None:
    path, control = tmp_path / "shim.sock", tmp_path / "control.sock"
    stale_socket = socket.socket(socket.AF_UNIX)
    stale_socket.bind(str(path))
    stale_socket.close()
    settings = {"listen": f"unix:{path}", "control_listen": f"unix:{control}"}
    async with started(
        tmp_path, navidrome, **settings, reverse_proxy_whitelist="@", listen_socket_mode="0600"
    ) as (shim, recorded):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        client = await shim.client()
        await client.send(get("/", "X-authentik-username: alice").encode())
        served, head = await recorded.next()
        assert b"\r\nRemote-User: alice\r\n" in head
        await served.send(OK)
        assert (await client.read_response()).status == 200
        async with program(tmp_path, None, **settings) as second:
            assert await _exit_status_alone(second) == 1
        assert path.exists(), "the second shim did not remove the socket"
        client.close()
        shim.stop()
        assert await shim.ended() == 0
        assert not path.exists()
        assert not control.exists()


async def _exit_status_alone(shim: Program) -> int:
    assert shim.process.stdout is not None
    async with asyncio.timeout(PATIENCE):
        shown = await shim.process.stdout.read()
        assert b"cannot listen on" in shown, shown
        return await shim.process.wait()


async def test_a_port_in_use_is_reported_and_it_exits_with_1(
    tmp_path: Path, navidrome: Navidrome
) -> None:
    taken = f"127.0.0.1:{navidrome.address.port}"
    async with program(tmp_path, None, listen=taken) as shim:
        assert await _exit_status_alone(shim) == 1


async def test_navidrome_can_be_down_at_the_start(tmp_path: Path) -> None:
    async with navidrome_on_a_socket() as unreachable:
        port = unreachable.address.port
        await unreachable.stop_listening()
        async with program(tmp_path, None, upstream=f"http://127.0.0.1:{port}") as shim:
            shim.listen = (await shim.event("started"))["listen"]
            for _ in range(3):
                response = await shim.request(get())
                assert (response.status, response.get("retry-after")) == (502, "5")
            async with navidrome_on_a_socket(port=port) as back:
                client = await shim.client()
                await client.send(get("/first").encode())
                recorded = ScriptedNavidrome(back)
                served, head = await recorded.next()
                assert head.startswith(b"GET /first ")
                await served.send(OK)
                assert (await client.read_response()).body == b"ok"
                client.close()
                await shim.event("upstream_up")
                await recorded.stop()
            shim.stop()
            assert await shim.ended() == 0
            changes = [
                e["kind"] for e in shim.events if e["kind"] in {"upstream_up", "upstream_down"}
            ]
            assert changes == ["upstream_down", "upstream_up"]


async def test_a_base_path_mismatch_suspends_trust(tmp_path: Path, navidrome: Navidrome) -> None:
    async with started(tmp_path, navidrome, "/music/app/") as (shim, recorded):
        changed = await shim.event("policy_changed")
        assert changed["needs_attention"] is True
        client = await shim.client(EDGE)
        await client.send(get("/", "X-authentik-username: alice").encode())
        _, head = await recorded.next()
        assert b"Remote-User" not in head
        assert b"authentik" not in head
        async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as http:
            ready = await http.get(f"http://{shim.control}/readyz")
        assert ready.status_code == 503
        assert "/music/" in ready.text


async def test_a_matching_base_path_does_not_suspend_trust(
    tmp_path: Path, navidrome: Navidrome
) -> None:
    async with started(tmp_path, navidrome, "/music/app/", base_path="/music") as (shim, recorded):
        client = await shim.client(EDGE)
        await client.send(get("/music/app/", "X-authentik-username: alice").encode())
        _, head = await recorded.next()
        assert b"\r\nRemote-User: alice\r\n" in head


async def test_the_client_limit_leaves_file_descriptors_for_the_shim(
    tmp_path: Path, navidrome: Navidrome
) -> None:
    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 128))

    async with started(tmp_path, navidrome, "/app/", few) as (shim, _):
        shown = " ".join((await shim.event("configuration_loaded"))["warnings"])
        assert "capped at 32: 128 files may be open" in shown
        clients = [await shim.client(EDGE) for _ in range(32)]
        assert (await clients[31].request("BREW / HTTP/1.1\r\nHost: h\r\n\r\n")).status == 501
        refused = await shim.client(EDGE)
        response = await refused.read_response()
        assert (response.status, response.get("retry-after")) == (503, "5")
        for client in (*clients, refused):
            client.close()


async def test_a_host_name_whose_address_changes_is_updated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    addresses = ["192.0.2.1"]

    def getaddrinfo(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        assert host == "edge.test"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, 0)) for each in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    settings = load({"SHIM_REVERSE_PROXY_WHITELIST": "edge.test", "SHIM_PROVISIONING": "false"})
    plane = DataPlane(
        build_policy(settings), limits_with(), Counters(), RecordingObserver(), UpstreamAddress()
    )
    events: list[Event] = []
    enforcement = PolicyUpdater(settings, plane, events.append)
    listed = [parse_peer("192.0.2.1"), parse_peer("192.0.2.2")]

    def trusted() -> list[bool]:
        return [plane.decisions.policy.trusts(peer) for peer in listed]

    assert trusted() == [False, False], "no peer, before the name is resolved"
    await enforcement.names.resolve()
    enforcement.update_policy("start")
    assert trusted() == [True, False]
    first = plane.decisions
    await enforcement.names.resolve()
    enforcement.update_policy("whitelist")
    assert plane.decisions is first, "unchanged settings are not applied again"
    addresses[:] = ["192.0.2.2"]
    await enforcement.names.resolve()
    enforcement.update_policy("whitelist")
    assert trusted() == [False, True]
    assert plane.decisions.policy.number > first.policy.number
    changed = events[-1]
    assert isinstance(changed, PolicyChanged)
    assert changed.added == ("edge.test=192.0.2.2",)
    assert changed.removed == ("edge.test=192.0.2.1",)
    await enforcement.stop()
