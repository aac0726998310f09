"""The monitor of whether Navidrome accepts the configured user header, tested with the stand-in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from demo.navidrome import Fault, FaultKind, StandIn, StandInOptions
from shim.app.readiness import user_header_check
from shim.health import State
from shim.monitors.user_header import UserHeaderState, UserHeaderWatch, sources_beyond_shim
from shim.navidrome.api import Navidrome
from shim.navidrome.session import HeaderSession, LoginSession
from shim.navidrome.transport import Transport
from shim.settings import Settings, load

ADMIN = "navidrome-shim"


def settings_of(server: StandIn) -> Settings:
    return load({"SHIM_UPSTREAM": server.url, "SHIM_PROVISIONING": "false"})


@asynccontextmanager
async def probed_monitor(
    server: StandIn, api: Navidrome | None = None
) -> AsyncIterator[UserHeaderWatch]:
    """A monitor that has probed once."""
    configuration = None if api is None else api.external_authentication
    monitor = UserHeaderWatch(settings_of(server), configuration, lambda: None)
    await monitor.start()
    try:
        yield monitor
    finally:
        await monitor.close()
        if api is not None:
            await api.close()


def transport_to(server: StandIn) -> Transport:
    return Transport(settings_of(server).upstream, timeout=2)


async def with_admin(options: StandInOptions) -> StandIn:
    """A stand-in with the shim's account."""
    server = StandIn(options)
    await server.start()
    transport = transport_to(server)
    admin = {"username": ADMIN, "password": "secret"}
    await transport.send("POST", "/auth/createAdmin", body=admin)
    await transport.close()
    server.seen.clear()
    return server


def pings(server: StandIn) -> int:
    return sum(each.target.startswith("/rest/ping") for each in server.seen)


async def test_an_accepted_header_is_found_with_one_probe_that_creates_no_user() -> None:
    async with StandIn() as server, probed_monitor(server) as monitor:
        assert monitor.state == UserHeaderState(True)
        assert pings(server) == 1
        assert not server.accounts.by_id


@pytest.mark.parametrize("header", ["X-WebAuth-User", "X-authentik-username", "Remote-Email"])
async def test_another_known_header_that_is_accepted_is_named(header: str) -> None:
    async with (
        StandIn(StandInOptions(user_header=header)) as server,
        probed_monitor(server) as monitor,
    ):
        assert monitor.state == UserHeaderState(False, header)
        check = user_header_check(settings_of(server), monitor.state)
        assert check.state is State.FAILING
        assert check.remedy is not None
        assert f"SHIM_REVERSE_PROXY_USER_HEADER to {header}" in check.remedy
        assert "ND_EXTAUTH_USERHEADER to Remote-User" in check.remedy


@pytest.mark.parametrize(
    "options",
    [StandInOptions(trusted_sources="192.0.2.1/32"), StandInOptions(user_header="X-Own-Idea")],
)
async def test_a_header_that_is_not_accepted_is_a_mismatch_even_if_no_other_is_found(
    options: StandInOptions,
) -> None:
    async with StandIn(options) as server, probed_monitor(server) as monitor:
        assert monitor.state == UserHeaderState(False)
        assert user_header_check(settings_of(server), monitor.state).state is State.FAILING


@pytest.mark.parametrize("kind", [FaultKind.SERVER_ERROR, FaultKind.HTML, FaultKind.CUT])
async def test_an_ambiguous_response_leaves_it_unknown(kind: FaultKind) -> None:
    async with StandIn() as server:
        server.fault = Fault(kind, prefixes=("/rest/",))
        async with probed_monitor(server) as monitor:
            assert monitor.state.obeyed is None
            check = user_header_check(settings_of(server), monitor.state)
            assert (check.state, "not known" in check.detail) == (State.WARNING, True)


async def test_the_configuration_names_an_unknown_header_and_needs_no_probe() -> None:
    server = await with_admin(StandInOptions(user_header="X-Own-Idea"))
    transport = transport_to(server)
    api = Navidrome(transport, LoginSession(transport, ADMIN, lambda: "secret"), "Remote-User")
    async with probed_monitor(server, api) as monitor:
        assert monitor.state == UserHeaderState(False, "X-Own-Idea", "127.0.0.1/32")
        assert pings(server) == 0
    await server.stop()


async def test_a_configuration_that_was_read_by_header_needs_no_probe() -> None:
    server = await with_admin(StandInOptions(trusted_sources="127.0.0.0/8,192.0.2.1/32"))
    api = Navidrome(transport_to(server), HeaderSession("Remote-User", ADMIN), "Remote-User")
    async with probed_monitor(server, api) as monitor:
        assert monitor.state.obeyed is True
        assert pings(server) == 0
        check = user_header_check(settings_of(server), monitor.state)
        assert check.state is State.WARNING
        assert "obeys Remote-User from 127.0.0.0/8, 192.0.2.1/32: any client" in check.detail
        assert check.remedy is not None
        assert "only the shim's address 127.0.0.1/32" in check.remedy
    await server.stop()


async def test_a_configuration_that_was_read_with_a_password_does_not_prove_the_trust() -> None:
    server = await with_admin(StandInOptions(trusted_sources="192.0.2.1/32"))
    transport = transport_to(server)
    api = Navidrome(transport, LoginSession(transport, ADMIN, lambda: "secret"), "Remote-User")
    async with probed_monitor(server, api) as monitor:
        assert monitor.state == UserHeaderState(False, "", "192.0.2.1/32")
    await server.stop()


async def test_without_an_account_the_probe_decides() -> None:
    async with StandIn() as server:
        api = Navidrome(transport_to(server), HeaderSession("Remote-User", ADMIN), "Remote-User")
        async with probed_monitor(server, api) as monitor:
            assert monitor.state == UserHeaderState(True)


async def test_a_restart_makes_it_unknown_at_once_and_it_is_probed_again() -> None:
    states: asyncio.Queue[UserHeaderState] = asyncio.Queue()
    server = StandIn()
    await server.start()
    listen = server.listen
    monitor = UserHeaderWatch(settings_of(server), None, lambda: states.put_nowait(monitor.state))
    await monitor.start()
    running = asyncio.create_task(monitor.run())
    async with asyncio.timeout(10):
        await server.stop()
        assert (await states.get()).obeyed is None
        again = StandIn(StandInOptions(user_header="X-Forwarded-User"))
        await again.start(listen)
        while (state := await states.get()).obeyed is None:
            pass
        assert state == UserHeaderState(False, "X-Forwarded-User")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await monitor.close()
    await again.stop()


@pytest.mark.parametrize(
    ("sources", "wide"),
    [
        ("172.20.0.5/32,@", ()),
        ("10.0.0.5", ()),
        ("0.0.0.0/0,::1/128", ("0.0.0.0/0",)),
        ("172.20.0.0/24,fd00::/64", ("172.20.0.0/24", "fd00::/64")),
        ("::ffff:10.0.0.0/104", ("::ffff:10.0.0.0/104",)),
        ("::ffff:10.0.0.5/128", ()),
        # Navidrome ignores a netmask.
        ("10.0.0.0/255.0.0.0", ()),
        ("", ()),
    ],
)
def test_sources_that_trust_more_than_one_address(sources: str, wide: tuple[str, ...]) -> None:
    assert sources_beyond_shim(sources) == wide


@pytest.mark.parametrize(
    ("sources", "own", "others"),
    [
        ("172.20.0.5/32", "172.20.0.5", ()),
        ("172.20.0.5/32,172.20.0.9/32", "172.20.0.5", ("172.20.0.9/32",)),
        ("172.20.0.0/16,172.20.0.9/32", "172.20.0.5", ("172.20.0.0/16", "172.20.0.9/32")),
        # Navidrome sees the shim under another address.
        ("192.168.1.1/32,172.20.0.9/32", "172.20.0.5", ()),
        ("127.0.0.1/32,::1/128", "127.0.0.1", ()),
        ("@,172.20.0.9/32", "@", ()),
        ("::ffff:172.20.0.5/128,172.20.0.9/32", "172.20.0.5", ("172.20.0.9/32",)),
        ("172.20.0.5/32,::ffff:172.20.0.5/128", "172.20.0.5", ()),
        ("fd00::5/128,fd00::9/128", "fd00::5", ("fd00::9/128",)),
        ("172.20.0.5/32,172.20.0.9/32", "", ()),
    ],
)
def test_sources_beside_the_shims_own_address(
    sources: str, own: str, others: tuple[str, ...]
) -> None:
    assert sources_beyond_shim(sources, own) == others
