"""The data plane reports the identities that are in use, and not each of their requests."""

from __future__ import annotations

import asyncio

from shim.proxy import server
from tests.support.http_client import get
from tests.support.running_proxy import EDGE, UNTRUSTED, RunningProxy, start_proxy
from tests.support.scripted_navidrome import Navidrome
from tests.unit.proxy.account_gate import Accounts

ADA = "X-authentik-username: ada"


async def request(
    proxy: RunningProxy, navidrome: Navidrome, *lines: str, source: str = EDGE
) -> None:
    async def respond() -> None:
        upstream, _ = await navidrome.requests()
        await upstream.send(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        upstream.close()

    response, _ = await asyncio.gather(
        proxy.request(get("/app/", *lines), source=source), respond()
    )
    assert response.status == 204


async def test_repeated_requests_are_reported_once_until_a_minute_passed(
    navidrome: Navidrome,
) -> None:
    async with start_proxy(navidrome) as proxy:
        for _ in range(2):
            await request(proxy, navidrome, ADA)  # the header block is in the cache from now on
        reported = len(proxy.recorded.used)
        for _ in range(3):
            await request(proxy, navidrome, ADA)
        assert len(proxy.recorded.used) == reported
        assert set(proxy.recorded.used) == {("ada", None)}

        proxy.pass_time(server._IDENTITY_SECONDS)
        await request(proxy, navidrome, ADA)
        assert len(proxy.recorded.used) == reported + 1


async def test_each_client_address_of_an_identity_is_reported(navidrome: Navidrome) -> None:
    async with start_proxy(navidrome) as proxy:
        for address in ("203.0.113.7", "203.0.113.8"):
            for _ in range(3):
                await request(proxy, navidrome, ADA, f"X-Forwarded-For: {address}")
        before = len(proxy.recorded.used)
        await request(proxy, navidrome, ADA, "X-Forwarded-For: 203.0.113.9")
        assert len(proxy.recorded.used) == before + 1


async def test_the_account_is_reported_also_for_a_request_that_waited(
    navidrome: Navidrome,
) -> None:
    accounts = Accounts()
    async with start_proxy(navidrome, gate=accounts) as proxy:
        await request(proxy, navidrome, ADA)
        accounts.outdated.add("bob")
        response = await proxy.request(get("/app/", "X-authentik-username: bob"), source=EDGE)

    assert response.status == 403
    assert proxy.recorded.used == [("ada", "ada")], "a rejected request does not count as use"


async def test_an_untrusted_identity_is_not_reported(navidrome: Navidrome) -> None:
    async with start_proxy(navidrome) as proxy:
        await request(proxy, navidrome, ADA, source=UNTRUSTED)
        await request(proxy, navidrome)
        assert proxy.recorded.used == []


async def test_the_cache_of_reported_identities_is_bounded(
    navidrome: Navidrome,
) -> None:
    async with start_proxy(navidrome) as proxy:
        await request(proxy, navidrome, ADA)
        (result,) = proxy.plane.identities.values()
        proxy.plane.identities |= dict.fromkeys(range(server._IDENTITIES - 1), result)
        await request(proxy, navidrome, "X-authentik-username: bob")
        assert len(proxy.plane.identities) == 1
