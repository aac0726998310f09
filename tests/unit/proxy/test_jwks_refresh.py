"""A request whose token has an unknown key waits once for the key set, within a deadline."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from shim.proxy.server import Options
from shim.trust.jwks import read_key_set
from shim.trust.jwt import TokenRules
from shim.trust.reasons import Reason
from tests.support.jwt_minting import AUDIENCE, ISSUER, claims, jwk, key_set, rsa_key, token
from tests.support.running_proxy import EDGE, RunningProxy, policy, start_proxy
from tests.support.scripted_navidrome import OK, Navidrome

RULES = TokenRules(fetched=True, issuer=ISSUER, audiences=frozenset({AUDIENCE}), required=True)
KEYS = read_key_set(key_set(jwk(rsa_key(), "rsa-0")))
TOKEN = token(claims(iat=None, exp=2**40))
HEAD = f"GET /app/ HTTP/1.1\r\nHost: h\r\nX-authentik-jwt: {TOKEN}\r\n\r\n"


class Fetcher:
    """Gives each requester of a refresh a future, while `accepts`."""

    def __init__(self) -> None:
        self.futures: list[asyncio.Future[None]] = []
        self.accepts = True

    def request_refresh(self) -> asyncio.Future[None] | None:
        if not self.accepts:
            return None
        self.futures.append(asyncio.get_running_loop().create_future())
        return self.futures[-1]

    async def requested(self) -> asyncio.Future[None]:
        async with asyncio.timeout(5.0):
            while not self.futures:  # noqa: ASYNC110
                await asyncio.sleep(0)
        return self.futures[-1]


def ready(proxy: RunningProxy) -> Fetcher:
    fetcher = Fetcher()
    proxy.plane.apply_options(Options(keys=fetcher))
    return fetcher


def learn(proxy: RunningProxy) -> None:
    """The new keys are used from now on."""
    now = proxy.plane.decisions.policy
    proxy.plane.apply_policy(now.next_version(tokens=replace(RULES, keys=KEYS)))


async def test_a_request_continues_once_the_keys_are_fetched(navidrome: Navidrome) -> None:
    async with start_proxy(navidrome, by=policy(tokens=RULES)) as proxy:
        fetcher = ready(proxy)
        client = await proxy.client(EDGE)
        await client.send(HEAD.encode())
        future = await fetcher.requested()
        await client.send(HEAD.encode())  # pipelined: buffered until its turn
        await asyncio.sleep(0.01)
        learn(proxy)
        future.set_result(None)
        served, head = await navidrome.requests()
        assert b"\r\nRemote-User: ada\r\n" in head
        await served.send(OK)
        assert (await client.read_response()).status == 200
        assert b"\r\nRemote-User: ada\r\n" in await served.head()
        await served.send(OK)
        assert (await client.read_response()).status == 200
        assert len(fetcher.futures) == 1


async def test_a_request_is_rejected_where_the_new_keys_do_not_verify_it(
    navidrome: Navidrome,
) -> None:
    async with start_proxy(navidrome, by=policy(tokens=RULES)) as proxy:
        fetcher = ready(proxy)
        client = await proxy.client(EDGE)
        await client.send(HEAD.encode())
        (await fetcher.requested()).set_result(None)
        assert (await client.read_response()).status == 401
        assert len(fetcher.futures) == 1, "it waits once"
        assert [reason for reason, _ in proxy.recorded.decided_as] == [Reason.JWT_UNKNOWN_KEY]


async def test_a_request_is_rejected_at_once_where_no_refresh_is_possible(
    navidrome: Navidrome,
) -> None:
    async with start_proxy(navidrome, by=policy(tokens=RULES)) as proxy:
        assert (await proxy.request(HEAD, source=EDGE)).status == 401, "no fetch is started"
        ready(proxy).accepts = False
        assert (await proxy.request(HEAD, source=EDGE)).status == 401


async def test_a_request_waits_for_the_keys_only_until_its_deadline(navidrome: Navidrome) -> None:
    async with start_proxy(navidrome, by=policy(tokens=RULES)) as proxy:
        fetcher = ready(proxy)
        client = await proxy.client(EDGE)
        await client.send(HEAD.encode())
        future = await fetcher.requested()
        proxy.pass_time(proxy.plane.limits.upstream_response_timeout + 1)
        assert (await client.read_response()).status == 401
        assert future.cancelled()


async def test_a_disconnected_client_stops_waiting(navidrome: Navidrome) -> None:
    async with start_proxy(navidrome, by=policy(tokens=RULES)) as proxy:
        fetcher = ready(proxy)
        client = await proxy.client(EDGE)
        await client.send(HEAD.encode())
        future = await fetcher.requested()
        client.close()
        async with asyncio.timeout(5.0):
            while not future.cancelled():  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert proxy.recorded.decided_as == []
        await proxy.until_no_client()


async def test_a_shutdown_lets_the_request_finish(navidrome: Navidrome) -> None:
    async with start_proxy(navidrome, by=policy(tokens=RULES)) as proxy:
        fetcher = ready(proxy)
        client = await proxy.client(EDGE)
        await client.send(HEAD.encode())
        future = await fetcher.requested()
        for connection in list(proxy.plane.connections):
            connection.shutdown()  # type: ignore[attr-defined]
        learn(proxy)
        future.set_result(None)
        served, _ = await navidrome.requests()
        await served.send(OK)
        response = await client.read_response()
        assert (response.status, response.get("connection")) == (200, "close")
