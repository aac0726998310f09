"""Navidrome's own tokens in the data plane: void ones are removed, and their streams are ended."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from shim.proxy.gate import AccountDenied
from shim.trust.policy import Proof
from shim.trust.reasons import OUTCOMES, Reason
from tests.support.http_client import Client, build_request, get
from tests.support.limits import limits_with
from tests.support.raw_connection import run_loop_turns, until
from tests.support.running_proxy import EDGE, UNTRUSTED, RunningProxy, policy, start_proxy
from tests.support.scripted_navidrome import OK, Navidrome, Served
from tests.unit.proxy.account_gate import ISSUED, Accounts, AdasDevice, navidrome_token

FORM = "Content-Type: application/x-www-form-urlencoded"
ADA, BOB = navidrome_token("ada"), navidrome_token("bob")
IDENTITY = ("X-authentik-username: ada", "X-authentik-uid: u1")
STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"


def locked() -> Accounts:
    """Ada is locked, bob is not."""
    accounts = Accounts()
    accounts.lock("ada")
    return accounts


async def received(navidrome: Navidrome, served: Served | None = None) -> tuple[Served, bytes]:
    if served is None:
        return await navidrome.requests()
    return served, await served.head()


@pytest.mark.parametrize("source", [EDGE, UNTRUSTED])
@pytest.mark.parametrize("path", ["/rest/ping", "/api/song", "/share/x", "/jellyfin/items", "/x"])
@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("", "X-ND-Authorization: Bearer {}"),
        ("", "Cookie: a=b; jwt={}"),
        ("", 'Authorization: MediaBrowser Client="x", Token="{}"'),
        ("", 'X-Emby-Authorization: Emby Token="{}", Client="x"'),
        ("", "X-Emby-Token: {}"),
        ("", "X-MediaBrowser-Token: {}"),
        ("?a=b&%6Awt={}", "Accept: */*"),
    ],
)
async def test_a_void_token_is_removed_on_every_path_and_a_valid_one_is_forwarded(
    navidrome: Navidrome, source: str, path: str, query: str, field: str
) -> None:
    async with start_proxy(navidrome, gate=locked()) as proxy:
        client = await proxy.client(source)
        served = None
        for text, passes in ((BOB, True), (ADA, False), ("junk", False)):
            await client.send(get(path + query.format(text), field.format(text)).encode())
            served, head = await received(navidrome, served)
            assert (text.encode() in head) is passes
            await served.send(OK)
            assert (await client.read_response()).status == 200
        assert len([each for each in proxy.recorded.void if each]) == 2
        counted = [row for row in OUTCOMES if row.reason is Reason.NAVIDROME_TOKEN_VOID]
        assert sum(proxy.counters.requests[row.index] for row in counted) == 2


@pytest.mark.parametrize("key", ["api_key", "ApiKey", "api%E2%84%AAey", "API_%4bEY", "ap%C4%B0key"])
async def test_jellyfins_query_keys_are_read_as_go_folds_them(
    navidrome: Navidrome, key: str
) -> None:
    async with start_proxy(navidrome, gate=locked()) as proxy:
        client = await proxy.client()
        await client.send(get(f"/jellyfin/socket?{key}={ADA}&x=1").encode())
        served, head = await navidrome.requests()
        assert b"GET /jellyfin/socket?x=1 HTTP/1.1\r\n" in head
        await served.send(OK)
        await client.read_response()


async def test_subsonics_api_key_is_unchanged(navidrome: Navidrome) -> None:
    async with start_proxy(navidrome, gate=locked()) as proxy:
        client = await proxy.client()
        await client.send(get("/rest/ping?apiKey=abc&u=ada").encode())
        _, head = await navidrome.requests()
        assert b"GET /rest/ping?apiKey=abc&u=ada HTTP/1.1\r\n" in head


async def test_one_void_token_among_valid_ones_is_removed_alone(navidrome: Navidrome) -> None:
    async with start_proxy(navidrome, gate=locked()) as proxy:
        client = await proxy.client()
        emby = f'X-Emby-Authorization: Emby Token="{ADA}", Token="{quote(BOB)}", Client="c"'
        await client.send(get(f"/rest/x?jwt={ADA}&jwt={BOB}", f"Cookie: jwt={BOB}", emby).encode())
        _, head = await navidrome.requests()
        assert ADA.encode() not in head
        assert head.count(BOB.encode()) == 3
        assert b'X-Emby-Authorization: Emby Token="", Token="' in head


async def test_a_public_path_with_an_identity_accepts_no_token_of_another_account(
    navidrome: Navidrome,
) -> None:
    by = policy(secrets=(b"s3cret" * 6,), public_path_proof=Proof.SECRET)
    async with start_proxy(navidrome, gate=Accounts(), by=by) as proxy:
        client = await proxy.client(EDGE)
        secret = f"X-Shim-Proxy-Secret: {'s3cret' * 6}"
        for text, passes in ((BOB, False), (ADA, True)):
            fields = (*IDENTITY, secret, f"X-ND-Authorization: Bearer {text}")
            await client.send(get(f"/rest/ping?jwt={text}", *fields).encode())
            served, head = await navidrome.requests()
            assert b"Remote-User: ada\r\n" in head
            assert (b"eyJ" in head) is passes
            await served.send(OK.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"))
            await client.read_response()
        assert [removed for removed in proxy.recorded.tokens if removed] == [
            ("X-ND-Authorization", "query jwt")
        ]


async def test_a_token_waits_until_the_users_are_listed(navidrome: Navidrome) -> None:
    accounts = Accounts()
    accounts.listed = False
    async with start_proxy(navidrome, gate=accounts) as proxy:
        client = await proxy.client(UNTRUSTED)
        await client.send(get("/api/song", f"X-ND-Authorization: Bearer {ADA}").encode())
        await until(lambda: len(accounts.listings) == 1)
        assert not any(proxy.recorded.void), "the token is not evaluated before"
        accounts.listings[0].set_result(None)
        served, head = await navidrome.requests()
        assert ADA.encode() in head, "the token is evaluated with the new list"
        await served.send(OK)
        await client.read_response()
        # A condition of one request does not apply to the next one.
        await client.send(get("/api/song", f"X-ND-Authorization: Bearer {ADA}").encode())
        await until(lambda: len(accounts.listings) == 2)
        denied = AccountDenied(Reason.NAVIDROME_UNAVAILABLE, "the users could not be listed", 7)
        accounts.listings[1].set_result(denied)
        response = await client.read_response()
        assert response.status == 503
        assert proxy.recorded.decided_as[-1][0] is Reason.NAVIDROME_UNAVAILABLE
        assert not any(proxy.recorded.void)


async def test_a_token_beside_its_own_identity_does_not_wait_for_the_users(
    navidrome: Navidrome,
) -> None:
    accounts = Accounts()
    accounts.listed = False
    async with start_proxy(navidrome, gate=accounts) as proxy:
        client, served = await proxy.client(EDGE), None
        for text, passes in ((ADA, True), (BOB, False)):
            field = f"X-ND-Authorization: Bearer {text}"
            await client.send(get("/api/song", *IDENTITY, field).encode())
            served, head = await received(navidrome, served)
            assert (text.encode() in head) is passes
            await served.send(OK)
            await client.read_response()
        assert not accounts.listings


async def test_requests_without_a_token_do_not_wait_for_the_users(navidrome: Navidrome) -> None:
    accounts = Accounts()
    accounts.listed = False
    async with start_proxy(navidrome, gate=accounts) as proxy:
        client = await proxy.client(UNTRUSTED)
        await client.send(get("/api/song").encode())
        served, _ = await navidrome.requests()
        await served.send(OK)
        await client.read_response()
        await form(client, b"u=ada&p=secret")
        _, head = await received(navidrome, served)
        assert head.startswith(b"POST /rest/ping")
        assert not accounts.listings


@pytest.mark.parametrize("listed", [True, False])
async def test_a_token_in_a_form_waits_for_the_users_and_pipelined_requests_wait_behind_it(
    navidrome: Navidrome, *, listed: bool
) -> None:
    accounts = Accounts()
    accounts.listed = False
    async with start_proxy(navidrome, gate=accounts) as proxy:
        client = await proxy.client(UNTRUSTED)
        body = f"u=ada&jwt={ADA}".encode()
        await form(client, body)
        await until(lambda: len(accounts.listings) == 1)
        await client.send(get("/rest/next").encode())
        denied = AccountDenied(Reason.NAVIDROME_UNAVAILABLE, "the users could not be listed", 7)
        accounts.listings[0].set_result(None if listed else denied)
        if not listed:
            assert (await client.read_response()).status == 503
            assert proxy.recorded.decided_as[-1][0] is Reason.NAVIDROME_UNAVAILABLE
            assert not any(proxy.recorded.void)
            return
        served, head = await navidrome.requests()
        assert head.startswith(b"POST /rest/ping")
        assert await served.read_exactly(len(body)) == body
        await served.send(OK)
        await client.read_response()
        _, head = await received(navidrome, served)
        assert head.startswith(b"GET /rest/next")


async def test_a_client_that_disconnects_while_users_are_listed_ends_the_wait(
    navidrome: Navidrome,
) -> None:
    accounts = Accounts()
    accounts.listed = False
    async with start_proxy(navidrome, gate=accounts) as proxy:
        client = await proxy.client(UNTRUSTED)
        await client.send(get("/api/song", f"X-ND-Authorization: Bearer {ADA}").encode())
        await until(lambda: len(accounts.listings) == 1)
        client.close()
        await until(accounts.listings[0].cancelled)


# forms


async def form(client: Client, body: bytes, *fields: str, target: str = "/rest/ping") -> None:
    length = f"Content-Length: {len(body)}"
    await client.send(build_request("POST", target, FORM, length, *fields).encode(), body)


@pytest.mark.parametrize("content_type", [FORM, FORM.replace("application", "APPLICATION") + "; x"])
async def test_a_void_token_in_a_form_is_removed_and_the_rest_is_forwarded(
    navidrome: Navidrome, content_type: str
) -> None:
    async with start_proxy(navidrome, gate=locked()) as proxy:
        client = await proxy.client()
        body = f"u=ada&jwt={ADA}&v=1&%6awt={ADA}".encode()
        head = build_request("POST", "/rest/ping", content_type, f"Content-Length: {len(body)}")
        # In one piece with the next request, and then byte by byte.
        await client.send(head.encode() + body + get("/rest/next").encode())
        served, head_seen = await navidrome.requests()
        assert b"\r\nContent-Length: 9\r\n" in head_seen
        assert await served.read_exactly(9) == b"u=ada&v=1"
        await served.send(OK)
        await client.read_response()
        assert b"/rest/next" in await served.head()
        await served.send(OK)
        await client.read_response()
        await client.send(head.encode())
        await client.send_each_byte(body)
        assert b"Content-Length: 9\r\n" in await served.head()
        assert await served.read_exactly(9) == b"u=ada&v=1"
        await served.send(OK)
        await client.read_response()
        assert proxy.plane.body_budget.used == 0
        assert proxy.recorded.void == [("form jwt",)] * 2


async def test_a_valid_token_in_a_form_is_forwarded_and_a_form_may_be_chunked(
    navidrome: Navidrome,
) -> None:
    async with start_proxy(navidrome, gate=locked()) as proxy:
        client = await proxy.client()
        body = f"u=bob&jwt={BOB}".encode()
        head = build_request("POST", "/rest/ping", FORM, "Transfer-Encoding: chunked").encode()
        await client.send(head + b"5\r\n%b\r\n%x\r\n" % (body[:5], len(body) - 5), body[5:])
        await client.send(b"\r\n0\r\n\r\n")
        served, seen = await navidrome.requests()
        assert b"\r\nContent-Length: %d\r\n" % len(body) in seen
        assert b"Transfer-Encoding" not in seen
        assert await served.read_exactly(len(body)) == body


async def test_a_form_with_only_a_void_token_is_sent_without_a_body(
    navidrome: Navidrome,
) -> None:
    async with start_proxy(navidrome, gate=locked()) as proxy:
        client = await proxy.client()
        for _ in range(2):
            await form(client, f"jwt={ADA}".encode(), "Expect: 100-continue")
        assert b"100 Continue" in await client.read_until(b"\r\n\r\n")
        served, head = await navidrome.requests()
        assert b"\r\nContent-Length: 0\r\n" in head
        await served.send(OK)
        await client.read_response()
        assert b"\r\nContent-Length: 0\r\n" in await served.head()


@pytest.mark.parametrize("chunked", [True, False])
async def test_a_form_that_is_too_large_is_rejected_in_subsonics_format(
    navidrome: Navidrome, *, chunked: bool
) -> None:
    limits = limits_with(form_bytes=100)
    async with start_proxy(navidrome, gate=locked(), limits=limits) as proxy:
        client = await proxy.client()
        if chunked:
            head = build_request("POST", "/rest/ping?f=json", FORM, "Transfer-Encoding: chunked")
            await client.send(head.encode(), b"65\r\n" + bytes(101))
        else:
            await form(client, bytes(101), target="/rest/ping?f=json")
        response = await client.read_response()
        assert response.status == 413
        assert b'"subsonic-response"' in response.body
        assert navidrome.count == 0
        assert proxy.recorded.decided_as[-1][0] is Reason.BODY_TOO_LARGE
        assert proxy.plane.body_budget.used == 0


async def test_buffered_forms_share_a_budget_and_have_a_deadline(navidrome: Navidrome) -> None:
    limits = limits_with(form_bytes=100, buffered_bytes=800)
    async with start_proxy(navidrome, gate=locked(), limits=limits) as proxy:
        head = build_request("POST", "/rest/ping", FORM, "Content-Length: 100").encode()
        slow = [await proxy.client(f"127.0.0.{number}") for number in range(3, 7)]
        for client in slow:
            await client.send(head, bytes(90))
        await proxy.wait_until_idle()
        full = await proxy.client()
        await full.send(head, bytes(90))
        assert (await full.read_response()).status == 503
        trusted = await proxy.client(EDGE)
        await trusted.send(head, bytes(100))
        served, _ = await navidrome.requests()
        await served.read_exactly(100)
        proxy.pass_time(limits.form_timeout + 1)
        for client in slow:
            assert (await client.read_response()).status == 408
        await served.send(OK)
        await trusted.read_response()
        closed_client = await proxy.client()
        await closed_client.send(head, bytes(50))
        await proxy.wait_until_idle()
        assert proxy.plane.body_budget.used == 50
        closed_client.close()
        await proxy.wait_until_idle()
        assert proxy.plane.body_budget.used == 0


async def test_one_client_behind_the_edge_cannot_use_the_whole_form_budget(
    navidrome: Navidrome,
) -> None:
    limits = limits_with(form_bytes=100, buffered_bytes=800)
    async with start_proxy(navidrome, gate=locked(), limits=limits) as proxy:

        async def begin(address: str, count: int) -> Client:
            fields = (FORM, "Content-Length: 100", f"X-Forwarded-For: {address}")
            client = await proxy.client(EDGE)
            await client.send(build_request("POST", "/rest/ping", *fields).encode(), bytes(count))
            await proxy.wait_until_idle()
            return client

        await begin("192.0.2.1", 99)
        assert (await (await begin("192.0.2.1", 2)).read_response()).status == 503
        assert proxy.plane.body_budget.used == 99
        await begin("192.0.2.2", 100)
        served, _ = await navidrome.requests()
        await served.read_exactly(100)


async def test_other_bodies_below_rest_and_forms_elsewhere_are_not_buffered(
    navidrome: Navidrome,
) -> None:
    async with start_proxy(navidrome, gate=locked()) as proxy:
        for target, kind in (("/rest/x", "Content-Type: application/json"), ("/api/x", FORM)):
            client = await proxy.client()
            await client.send(build_request("POST", target, kind, "Content-Length: 9").encode())
            _, head = await navidrome.requests()
            assert b"Content-Length: 9" in head


# requests in progress


async def streaming(proxy: RunningProxy, navidrome: Navidrome, *fields: str, target: str) -> Client:
    client = await proxy.client(EDGE)
    await client.send(get(target, *fields).encode())
    served, _ = await navidrome.requests()
    await served.send(STREAM)
    await client.read_response_head()
    await client.chunk()
    return client


async def is_cut(client: Client) -> bool:
    try:
        await client.read_to_end()
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    raise AssertionError("the stream ended as if it were complete")


async def test_streams_of_a_revoked_identity_or_token_are_ended(navidrome: Navidrome) -> None:
    accounts = Accounts()
    async with start_proxy(navidrome, gate=accounts) as proxy:
        by_identity = await streaming(proxy, navidrome, *IDENTITY, target="/api/events")
        by_token = await streaming(proxy, navidrome, target=f"/rest/stream?jwt={ADA}")
        of_bob = await streaming(proxy, navidrome, target=f"/rest/stream?jwt={BOB}")
        without_account = await streaming(proxy, navidrome, target="/rest/stream?u=ada&t=x")
        accounts.lock("ada")
        proxy.pass_time(0.5)
        assert await is_cut(by_identity)
        assert await is_cut(by_token)
        await proxy.wait_until_idle()
        assert proxy.counters.streams_open == 2
        assert proxy.failures["account_revoked"] == 2
        for left in (of_bob, without_account):
            left.close()


async def test_a_tunnel_and_a_request_without_a_response_are_ended(
    navidrome: Navidrome,
) -> None:
    accounts = Accounts()
    async with start_proxy(navidrome, gate=accounts) as proxy:
        tunnel = await proxy.client()
        upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
        await tunnel.send(get(f"/jellyfin/socket?api_key={ADA}", *upgrade, key).encode())
        served, _ = await navidrome.requests()
        await served.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        )
        await tunnel.read_response_head()
        pending = await proxy.client(EDGE)
        await pending.send(get("/api/song", *IDENTITY).encode())
        await navidrome.requests()
        accounts.lock("ada")
        proxy.pass_time(0.5)
        assert await is_cut(tunnel)
        assert (await pending.read_response()).status == 403


async def test_many_connections_are_checked_over_several_turns(
    navidrome: Navidrome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shim.proxy.server._CHECKS_PER_TURN", 2)
    accounts = Accounts()
    async with start_proxy(navidrome, gate=accounts) as proxy:
        target = f"/rest/stream?jwt={ADA}"
        clients = [await streaming(proxy, navidrome, target=target) for _ in range(5)]
        accounts.lock("ada")
        proxy.pass_time(0.5)
        assert proxy.plane.counters.streams_open == 3, (
            "two in this turn, the others in the next ones"
        )
        await run_loop_turns(4)
        for client in clients:
            assert await is_cut(client)


async def test_a_form_is_not_sent_if_its_identity_was_revoked_meanwhile(
    navidrome: Navidrome,
) -> None:
    accounts = Accounts()
    by = policy(secrets=(b"s3cret" * 6,), public_path_proof=Proof.SECRET)
    async with start_proxy(navidrome, gate=accounts, by=by) as proxy:
        by_identity, by_token = await proxy.client(EDGE), await proxy.client()
        secret = f"X-Shim-Proxy-Secret: {'s3cret' * 6}"
        start = build_request("POST", "/rest/x", FORM, "Content-Length: 4", *IDENTITY, secret)
        await by_identity.send(start.encode())
        unauthenticated = build_request("POST", f"/rest/x?jwt={ADA}", FORM, "Content-Length: 4")
        await by_token.send(unauthenticated.encode())
        await proxy.wait_until_idle()
        accounts.lock("ada")
        for client in (by_identity, by_token):
            await client.send(b"a=bc")
            assert (await client.read_response()).status == 403
        assert navidrome.count == 0


async def test_a_request_that_waits_for_a_connection_is_checked_before_it_is_sent(
    navidrome: Navidrome,
) -> None:
    accounts = Accounts()
    limits = limits_with(max_upstream_connections=1)
    async with start_proxy(navidrome, gate=accounts, limits=limits) as proxy:
        first = await proxy.client()
        await first.send(get("/rest/ping").encode())
        served, _ = await navidrome.requests()
        waiting = await proxy.client()
        await waiting.send(get(f"/rest/stream?jwt={ADA}").encode())
        await proxy.wait_until_idle()
        accounts.lock("ada")
        await served.send(OK)
        assert (await waiting.read_response()).status == 403


@pytest.mark.parametrize("revoked", [True, False])
async def test_a_device_that_waits_for_a_connection_is_checked_before_its_request_is_sent(
    navidrome: Navidrome, *, revoked: bool
) -> None:
    accounts, device = Accounts(), AdasDevice()
    limits = limits_with(max_upstream_connections=1)
    async with start_proxy(navidrome, gate=accounts, devices=device, limits=limits) as proxy:
        first = await proxy.client()
        await first.send(get("/app/").encode())
        served, _ = await navidrome.requests()
        waiting = await proxy.client(EDGE)
        await waiting.send(get("/rest/stream?u=ada&p=x").encode())
        await proxy.wait_until_idle()
        if revoked:
            device.revoke()
        await served.send(OK)
        await first.read_response()
        if revoked:
            await until(lambda: accounts.listings)
            accounts.listings[0].set_result(None)
            assert (await waiting.read_response()).status == 403
            assert navidrome.count == 1
            return
        assert b"\r\nRemote-User: ada\r\n" in await served.head()
        await served.send(OK)
        assert (await waiting.read_response()).status == 200


async def test_a_device_request_is_sent_with_its_account_and_without_credentials(
    navidrome: Navidrome,
) -> None:
    async with start_proxy(navidrome, gate=Accounts(), devices=AdasDevice()) as proxy:
        client = await proxy.client(EDGE)
        fields = ("Authorization: Basic YTpi", f"X-ND-Authorization: Bearer {BOB}", "X-Other: 1")
        await client.send(get(f"/rest/ping?u=ada&p=x&id=7&jwt={BOB}", *fields).encode())
        served, head = await navidrome.requests()
        assert head.startswith(b"GET /rest/ping?id=7 HTTP/1.1\r\n")
        assert b"\r\nRemote-User: ada\r\n" in head and b"\r\nX-Other: 1\r\n" in head
        assert b"authorization" not in head.lower()
        await served.send(OK)
        assert (await client.read_response()).status == 200


# users that change


async def test_the_gate_is_notified_of_each_request_that_can_change_users(
    navidrome: Navidrome,
) -> None:
    accounts = Accounts()
    async with start_proxy(navidrome, gate=accounts) as proxy:
        client = await proxy.client(EDGE)
        put = build_request("PUT", "/api/user/1", "Content-Length: 2", *IDENTITY).encode()
        await client.send(put, b"{}")
        served, _ = await navidrome.requests()
        assert accounts.changes == 1, "the head was sent"
        assert accounts.writes["id-ada"] == 1
        await served.send(OK)
        await client.read_response()
        assert accounts.changes == 2, "the response came"
        assert accounts.writes["id-ada"] == 0
        await client.send(build_request("DELETE", "/api/user/1", *IDENTITY).encode())
        await served.head()
        assert accounts.changes == 3
        assert accounts.writes["id-ada"] == 1
        served.close()
        assert (await client.read_response()).status == 502
        assert accounts.changes == 4
        assert accounts.writes["id-ada"] == 0
        assert accounts.without_response == 1
        for line in ("GET /api/user", "HEAD /api/user/1", "POST /api/song"):
            method, target = line.split(" ")
            await (await proxy.client(EDGE)).send(build_request(method, target, *IDENTITY).encode())
            await navidrome.requests()
        assert accounts.changes == 4


@pytest.mark.parametrize("source", [EDGE, UNTRUSTED])
async def test_a_request_without_an_account_is_not_reported_as_changing_users(
    navidrome: Navidrome, source: str
) -> None:
    accounts = locked()
    served = None
    async with start_proxy(navidrome, gate=accounts) as proxy:
        for path in ("/api/user/1", "/rest/api/user"):
            for fields in ((), (f"X-ND-Authorization: Bearer {ADA}",)):
                client = await proxy.client(source)
                await client.send(build_request("DELETE", path, *fields).encode())
                served, _ = await received(navidrome, served)
                await served.send(OK)
                await client.read_response()
        assert accounts.changes == 0
        client = await proxy.client(source)
        signed_in = build_request("DELETE", "/api/user/1", f"X-ND-Authorization: Bearer {BOB}")
        await client.send(signed_in.encode())
        await received(navidrome, served)
        assert accounts.changes == 1


async def test_a_preflight_request_is_not_reported_as_changing_users(navidrome: Navidrome) -> None:
    accounts = Accounts()
    async with start_proxy(navidrome, gate=accounts) as proxy:
        client = await proxy.client(EDGE)
        await client.send(build_request("OPTIONS", "/api/user/1", *IDENTITY).encode())
        await navidrome.requests()
        assert accounts.changes == 0


async def test_a_change_of_users_is_attributed_to_the_account_of_its_token(
    navidrome: Navidrome,
) -> None:
    accounts = Accounts()
    async with start_proxy(navidrome, gate=accounts) as proxy:
        client = await proxy.client()
        bearer = f"X-ND-Authorization: Bearer {ADA}"
        await client.send(build_request("DELETE", "/api/user/1", bearer).encode())
        await navidrome.requests()
        assert accounts.writes["id-ada"] == 1


@pytest.mark.parametrize("by", ["identity", "token"])
@pytest.mark.parametrize("chunked", [True, False])
async def test_a_change_of_users_is_sent_once_its_body_is_complete_and_its_account_is_still_valid(
    navidrome: Navidrome, by: str, *, chunked: bool
) -> None:
    accounts = Accounts()
    fields = IDENTITY if by == "identity" else (f"X-ND-Authorization: Bearer {ADA}",)
    framing = "Transfer-Encoding: chunked" if chunked else "Content-Length: 4"
    head = build_request("PUT", "/api/user/1", framing, *fields).encode()
    body = b"4\r\n1234\r\n0\r\n\r\n" if chunked else b"1234"
    async with start_proxy(navidrome, gate=accounts) as proxy:
        whole, late = await proxy.client(EDGE), await proxy.client(EDGE)
        for client in (whole, late):
            await client.send(head, body[:-1])
        await proxy.wait_until_idle()
        assert navidrome.count == 0
        await whole.send(body[-1:])
        served, seen = await navidrome.requests()
        assert b"\r\nContent-Length: 4\r\n" in seen
        assert await served.read_exactly(4) == b"1234"
        accounts.lock("ada")
        proxy.pass_time(0.5)
        await late.send(body[-1:])
        assert (await late.read_response()).status == 403
        assert navidrome.count == 1
        await served.send(OK)
        assert (await whole.read_response()).status == 200, (
            "Navidrome received the complete request"
        )
        assert proxy.plane.body_budget.used == 0


async def test_a_buffered_body_is_not_sent_for_claims_that_a_later_request_replaced(
    navidrome: Navidrome,
) -> None:
    accounts = Accounts()
    async with start_proxy(navidrome, gate=accounts) as proxy:
        client = await proxy.client(EDGE)
        head = build_request("PUT", "/api/user/1", "Content-Length: 2", *IDENTITY).encode()
        await client.send(head, b"{")
        await proxy.wait_until_idle()
        accounts.outdated.add("ada")
        await client.send(b"}")
        assert (await client.read_response()).status == 503
        assert navidrome.count == 0


async def test_no_change_of_users_is_sent_while_its_account_is_held(navidrome: Navidrome) -> None:
    accounts = Accounts()
    accounts.held.add("id-ada")
    async with start_proxy(navidrome, gate=accounts) as proxy:
        for method, fields in (("PUT", ("Content-Length: 2",)), ("DELETE", ())):
            client = await proxy.client(EDGE)
            await client.send(
                build_request(method, "/api/user/1", *fields, *IDENTITY).encode(),
                b"{}" if fields else b"",
            )
            assert (await client.read_response()).status == 503
        assert accounts.changes == 0
        assert proxy.plane.body_budget.used == 0
        other = await proxy.client(EDGE)
        await other.send(get("/api/song", *IDENTITY).encode())
        _, seen = await navidrome.requests()
        assert seen.startswith(b"GET /api/song ")


@pytest.mark.parametrize("provisioning", [True, False])
async def test_bodies_for_the_user_api_are_limited(
    navidrome: Navidrome, *, provisioning: bool
) -> None:
    gate = Accounts() if provisioning else None
    async with start_proxy(navidrome, gate=gate) as proxy:
        client = await proxy.client(EDGE)
        head = build_request("PUT", "/api/user/1", "Content-Length: 65537", *IDENTITY).encode()
        await client.send(head)
        assert (await client.read_response()).status == 413
        assert navidrome.count == 0
        client = await proxy.client(EDGE)
        head = build_request("PUT", "/api/user/1", "Content-Length: 65536", *IDENTITY).encode()
        await client.send(head, bytes(65536))
        served, _ = await navidrome.requests()
        await served.read_exactly(65536)
        chunked = await proxy.client(EDGE)
        head = build_request("PUT", "/api/user/1", "Transfer-Encoding: chunked", *IDENTITY).encode()
        chunk = b"8000\r\n" + bytes(32768) + b"\r\n"
        await chunked.send(head + chunk + chunk)
        if not provisioning:
            served, _ = await navidrome.requests()
            await served.read_exactly(65536)
        await chunked.send(b"1\r\nx\r\n")
        assert (await chunked.read_response()).status == 413
        if provisioning:
            assert navidrome.count == 1
        else:
            await served.wait_closed()
            assert b"x" not in served.received[served.received.index(b"\r\n\r\n") + 4 :]


async def test_a_token_is_as_old_as_its_issue(navidrome: Navidrome) -> None:
    accounts = Accounts()
    accounts.valid_from["ada"] = ISSUED
    async with start_proxy(navidrome, gate=accounts) as proxy:
        later = navidrome_token("ada", issued_at=ISSUED + 1)
        client = await proxy.client()
        await client.send(get("/rest/x", f"Cookie: jwt={ADA}; jwt={later}").encode())
        _, head = await navidrome.requests()
        assert f"Cookie: jwt={later}\r\n".encode() in head
