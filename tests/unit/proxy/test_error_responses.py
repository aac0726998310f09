"""The shim's own responses: in the format that the client reads, with the request id of the log."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest

from shim.app.factories import sign_out_url
from shim.proxy.error_responses import error_response
from shim.settings import load
from shim.trust.decision import reject
from shim.trust.reasons import Reason
from shim.trust.rejection import RequestRejected
from tests.support.decisions import ADA, decided, head
from tests.support.http_client import Response, build_request, get
from tests.support.limits import limits_with
from tests.support.running_proxy import EDGE, RunningProxy, policy, start_proxy
from tests.support.scripted_navidrome import Navidrome

_SUBSONIC = "{http://subsonic.org/restapi}"


async def down(
    proxy: RunningProxy, navidrome: Navidrome, target: str, method: str = "GET"
) -> Response:
    """The response to this request while Navidrome is down."""
    await navidrome.stop_listening()
    return await proxy.request(build_request(method, target), method=method)


def _id_of(proxy: RunningProxy) -> str:
    _, _, request_id = proxy.recorded.failures[-1]
    assert len(request_id) >= 8
    return request_id


@pytest.mark.parametrize(
    "target", ["/rest/getSong?id=1", "/rest/ping.view?f=xml", "/music/REST/ping"]
)
async def test_subsonic_clients_get_xml(
    proxy: RunningProxy, navidrome: Navidrome, target: str
) -> None:
    response = await down(proxy, navidrome, target)
    assert (response.status, response.get("content-type")) == (502, "application/xml")
    root = ET.fromstring(response.body)
    assert (root.tag, root.get("status")) == (f"{_SUBSONIC}subsonic-response", "failed")
    error = root.find(f"{_SUBSONIC}error")
    assert error is not None
    assert error.get("code") == "0"
    assert _id_of(proxy) in str(error.get("message"))


async def test_subsonic_clients_that_ask_for_json_get_it(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    response = await down(proxy, navidrome, "/rest/getSong?u=a&f=json&c=x")
    payload = json.loads(response.body)["subsonic-response"]
    assert (payload["status"], payload["error"]["code"]) == ("failed", 0)
    assert _id_of(proxy) in payload["error"]["message"]


@pytest.mark.parametrize("target", ["/api/song", "/auth/login"])
async def test_the_web_app_gets_json(
    proxy: RunningProxy, navidrome: Navidrome, target: str
) -> None:
    response = await down(proxy, navidrome, target)
    assert response.get("content-type") == "application/json"
    payload = json.loads(response.body)
    assert (payload["status"], payload["requestId"]) == (502, _id_of(proxy))


async def test_browsers_get_a_page(proxy: RunningProxy, navidrome: Navidrome) -> None:
    response = await down(proxy, navidrome, "/app/")
    assert response.get("content-type") == "text/html; charset=utf-8"
    assert _id_of(proxy) in response.body.decode()


@pytest.mark.parametrize("target", ["/app/", "/api/song", "/rest/ping"])
async def test_every_error_response_has_its_request_id_and_is_not_cacheable(
    proxy: RunningProxy, navidrome: Navidrome, target: str
) -> None:
    response = await down(proxy, navidrome, target)
    assert response.get("x-request-id") == _id_of(proxy)
    assert response.get("cache-control") == "no-store"
    assert response.get("connection") == "close"
    assert response.get("retry-after") == "5"


@pytest.mark.parametrize("target", ["/app/", "/api/song", "/rest/ping"])
async def test_a_head_request_gets_the_header_without_a_body(
    proxy: RunningProxy, navidrome: Navidrome, target: str
) -> None:
    await navidrome.stop_listening()
    client = await proxy.client()
    response = await client.request(build_request("HEAD", target), method="HEAD")
    assert response.status == 502
    assert int(response.get("content-length") or 0) > 0
    assert await client.read_to_end() == b""


async def test_an_error_response_contains_no_details_of_the_decision(
    navidrome: Navidrome,
) -> None:
    by = policy(secrets=(b"s3cret",))
    async with start_proxy(navidrome, by=by) as proxy:
        response = await proxy.request(get("/api/user", "X-authentik-username: alice"), source=EDGE)
        assert response.status == 401
        assert proxy.recorded.decided_as == [(Reason.SECRET_MISSING, response.get("x-request-id"))]
        for failure in (b"secret", b"Secret", b"alice", b"127.0.0", b"peer"):
            assert failure not in response.body


@pytest.mark.parametrize(("status", "code"), [(403, "50"), (400, "0")])
async def test_subsonic_error_codes_follow_the_status(
    navidrome: Navidrome, status: int, code: str
) -> None:
    by = policy(reject_untrusted=status == 403)
    lines = ("Host: two",) if status == 400 else ("X-authentik-username: alice",)
    async with start_proxy(navidrome, by=by) as proxy:
        response = await proxy.request(get("/rest/ping", *lines))
        assert response.status == status
        error = ET.fromstring(response.body).find(f"{_SUBSONIC}error")
        assert error is not None
        assert error.get("code") == code


async def test_data_of_the_target_is_escaped(proxy: RunningProxy, navidrome: Navidrome) -> None:
    response = await down(proxy, navidrome, "/rest/%3Cb%3E?f=%22%3E%3Cscript%3E")
    assert b"script" not in response.body
    ET.fromstring(response.body)


async def test_a_connection_over_the_limit_gets_a_503(navidrome: Navidrome) -> None:
    async with start_proxy(navidrome, limits=limits_with(max_connections=2)) as proxy:
        first, second = await proxy.client(EDGE), await proxy.client(EDGE)
        third = await proxy.client(EDGE)
        response = await third.read_response()
        assert (response.status, response.get("retry-after")) == (503, "5")
        assert await third.read_to_end() == b""
        assert proxy.counters.clients_rejected == 1
        third.close()
        first.close()
        second.close()
        await proxy.until_no_client()
        assert (await proxy.request("BREW / HTTP/1.1\r\nHost: h\r\n\r\n")).status == 501


async def test_untrusted_peers_can_use_half_of_the_connections(navidrome: Navidrome) -> None:
    async with start_proxy(navidrome, limits=limits_with(max_connections=4)) as proxy:
        untrusted = [await proxy.client() for _ in range(3)]
        assert (await untrusted[2].read_response()).status == 503
        edges = [await proxy.client(EDGE) for _ in range(1)]
        assert (await edges[0].request("BREW / HTTP/1.1\r\nHost: h\r\n\r\n")).status == 501
        for client in (*untrusted, *edges):
            client.close()
        await proxy.until_no_client()
        assert (await proxy.request("BREW / HTTP/1.1\r\nHost: h\r\n\r\n")).status == 501


async def test_a_connection_far_over_the_limit_is_closed_without_a_response(
    navidrome: Navidrome,
) -> None:
    async with start_proxy(navidrome, limits=limits_with(max_connections=1)) as proxy:
        clients = [await proxy.client(EDGE) for _ in range(10)]
        assert (await clients[8].read_response()).status == 503
        with pytest.raises((EOFError, ConnectionError)):
            await clients[9].read_response()
        for client in clients:
            client.close()


async def test_a_head_over_the_size_limit_is_a_431_in_any_slicing(navidrome: Navidrome) -> None:
    limits = limits_with(header_bytes=300)
    async with start_proxy(navidrome, limits=limits) as proxy:
        served = None
        for size in (299, 300, 301, 302):
            for at in (0, 10, size + 1, size + 2, size + 3):
                head = get("/", "X: ").encode()
                head = head.replace(b"X: ", b"X: " + b"x" * (size + 4 - len(head)))
                assert len(head) == size + 4
                client = await proxy.client()
                await client.send(*filter(None, (head[:at], head[at:])))
                if size > 300:
                    assert (await client.read_response()).status == 431
                else:
                    served = served or await navidrome.accepted()
                    await served.head()
                    await served.send(b"HTTP/1.1 204 No Content\r\n\r\n")
                    assert (await client.read_response()).status == 204
                client.close()


async def test_a_head_without_end_is_a_431(navidrome: Navidrome) -> None:
    async with start_proxy(navidrome, limits=limits_with(header_bytes=300)) as proxy:
        client = await proxy.client()
        response = await client.request(b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 400)
        assert response.status == 431
        assert proxy.recorded.decided_as == [(Reason.HEAD_TOO_LARGE, response.get("x-request-id"))]


async def test_too_many_header_lines_are_a_431(proxy: RunningProxy, navidrome: Navidrome) -> None:
    lines = [f"X-{number}: y" for number in range(99)]
    assert (await proxy.request(get("/", *lines, "One: more"))).status == 431
    client = await proxy.client()
    await client.send(get("/", *lines).encode())
    await navidrome.requests()


async def test_the_access_log_contains_error_responses(navidrome: Navidrome) -> None:
    async with start_proxy(navidrome, logs_access=True) as proxy:
        client = await proxy.client()
        await client.send(get().encode())
        served, _ = await navidrome.requests()
        await served.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        await client.read_response()
        assert [(status, sent) for _, status, sent in proxy.recorded.accesses] == [
            (200, len(client.received))
        ]
        refused = await proxy.client()
        response = await refused.request("BREW / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert proxy.recorded.accesses[1] == (
            response.get("x-request-id"),
            501,
            len(refused.received),
        )


@pytest.mark.parametrize(
    ("query", "wants_json"),
    [
        ("f=json", True),
        ("u=a&%66=%6Ason", True),
        ("f=json&f=xml", True),
        ("f=xml&f=json", False),
        ("xf=json", False),
        ("u=f=json", False),
        ("f=json%00", False),
    ],
)
async def test_the_first_f_of_the_query_names_the_subsonic_format(
    proxy: RunningProxy, navidrome: Navidrome, query: str, wants_json: bool
) -> None:
    response = await down(proxy, navidrome, f"/rest/ping?{query}")
    assert (response.get("content-type") == "application/json") is wants_json


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (get("/rest/a;b?f=json"), 400),
        (get("/rest/ping?f=json", "Host: again"), 400),
        (get("/rest/ping?f=json", "bad line"), 400),
        (get("/rest/ping?f=json", "X: " + "x" * 70_000), 431),
        (build_request("BREW", "/rest/ping?f=json"), 501),
    ],
)
async def test_every_rejection_below_rest_is_a_subsonic_error(
    proxy: RunningProxy, head: str, status: int
) -> None:
    response = await proxy.request(head)
    assert response.status == status
    assert json.loads(response.body)["subsonic-response"]["status"] == "failed"


_ACCOUNT_REASONS = (
    Reason.GROUP_NOT_ALLOWED,
    Reason.IDENTITY_CONFLICT,
    Reason.RESERVED_ACCOUNT,
    Reason.RENAME_NOT_FOLLOWED,
    Reason.NAME_HELD,
    Reason.ACCOUNT_PENDING,
    Reason.NAVIDROME_UNAVAILABLE,
    Reason.NAVIDROME_ACCESS_DENIED,
    Reason.STORE_UNAVAILABLE,
    Reason.DATABASE_UNCONFIRMED,
    Reason.ACCOUNT_UNAVAILABLE,
)


def page_for(reason: Reason, **parts: str) -> str:
    """The page that a browser gets when its request is rejected for this reason."""
    decision = decided(head("GET /app/ HTTP/1.1", ADA))
    rejected = reject(
        RequestRejected(reason, "why"), decision.source, decision.request_line, decision.block
    )
    return error_response(rejected.outcome.status, rejected, "0" * 16, **parts).decode()  # type: ignore[arg-type]


def test_every_account_reason_has_its_own_page() -> None:
    assert len({page_for(reason) for reason in _ACCOUNT_REASONS}) == len(_ACCOUNT_REASONS)
    renamed = page_for(Reason.RENAME_NOT_FOLLOWED)
    assert "The account is yours" in renamed and "SHIM_FOLLOW_RENAMES" in renamed


def test_a_user_who_is_denied_is_offered_to_sign_in_with_another_account() -> None:
    page = page_for(Reason.GROUP_NOT_ALLOWED, sign_out='/out?a="b', contact="ask@example.org")
    assert '<a href="/out?a=&quot;b">Sign out and use another account</a>' in page
    assert "ask@example.org" in page
    assert "Sign out" not in page_for(Reason.GROUP_NOT_ALLOWED)
    assert "Sign out" not in page_for(Reason.NAVIDROME_UNAVAILABLE, sign_out="/out")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ""),
        ({"SHIM_SIGN_OUT_URL": "/bye"}, "/bye"),
        ({"ND_EXTAUTH_LOGOUTURL": "https://auth.example.org/out"}, "https://auth.example.org/out"),
        (
            {"SHIM_SIGN_IN_URL": "https://a.example.org/outpost.goauthentik.io/start?rd=/"},
            "https://a.example.org/outpost.goauthentik.io/sign_out",
        ),
        ({"SHIM_SIGN_IN_URL": "/outpost.goauthentik.io/start"}, "/outpost.goauthentik.io/sign_out"),
        ({"SHIM_SIGN_IN_URL": "/oauth2/start"}, ""),
    ],
)
def test_the_sign_out_url_is_a_setting_or_authentiks(
    settings: dict[str, str], expected: str
) -> None:
    assert sign_out_url(load(settings)) == expected
