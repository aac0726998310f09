"""Tokens, the login limit and routing that the recording does not cover, on both servers."""

from __future__ import annotations

import json
import re
import socket
from typing import Any

import jwt
import pytest

from tests.support.navidrome_client import EDGE, UNTRUSTED, NavidromeClient


@pytest.mark.parametrize("prefix", ["Bearer ", "bEaReRx", "BEARER\t"])
def test_the_header_is_read_after_any_seven_characters_that_begin_with_bearer(
    client: NavidromeClient, prefix: str
) -> None:
    name = client.new_name()
    client.create(name)
    headers = {"X-ND-Authorization": prefix + client.token(name)}
    assert client.request("GET", "/api/user", headers=headers).status == 403


def test_a_token_is_found_in_an_escaped_query_and_in_a_quoted_cookie(
    client: NavidromeClient,
) -> None:
    name = client.new_name()
    client.create(name)
    token = client.token(name)
    assert client.request("GET", f"/api/user?%6Awt={token}").status == 403
    assert (
        client.request("GET", "/api/user", headers={"Cookie": f'a=b; jwt="{token}"'}).status == 403
    )


def test_an_empty_location_is_skipped_and_an_invalid_token_falls_back_to_the_user_header(
    client: NavidromeClient,
) -> None:
    name = client.new_name()
    client.create(name)
    cookie = {"Cookie": f"jwt={client.token(name)}"}
    for header, status in (("Basic abcdef", 403), ("Bearer", 403), ("Bearer abcdef", 200)):
        sent_headers = {**cookie, "X-ND-Authorization": header}
        assert client.request("GET", "/api/user", headers=sent_headers).status == status, header


def test_a_token_outlives_a_rename_and_belongs_to_the_next_user_of_the_name(
    client: NavidromeClient,
) -> None:
    name = client.new_name()
    account_id = client.create(name)
    headers = {"X-ND-Authorization": f"Bearer {client.token(name)}"}
    client.request("PUT", f"/api/user/{account_id}", body={"userName": f"{name}-renamed"})
    assert client.request("GET", "/api/song", None, headers=headers).status == 401
    client.create(name, isAdmin=True)
    assert client.request("GET", "/api/user", None, headers=headers, source=UNTRUSTED).status == 200


def test_subsonic_tokens_end_with_the_password(client: NavidromeClient) -> None:
    name = client.new_name()
    account_id = client.create(name)
    assert client.subsonic_opens(name, "pw")
    client.request("PUT", f"/api/user/{account_id}", body={"userName": name, "password": "other"})
    assert not client.subsonic_opens(name, "pw")


def test_the_page_contains_a_valid_subsonic_token_and_no_session_token(
    client: NavidromeClient,
) -> None:
    name = client.new_name()
    page = client.request("GET", "/app/", name).body.decode()
    found = re.search(r"__APP_CONFIG__ = (\".*\")", page)
    assert found is not None
    auth = json.loads(json.loads(found[1]))["auth"]
    assert sorted(auth) == ["id", "isAdmin", "name", "subsonicSalt", "subsonicToken", "username"]
    query = f"u={name}&t={auth['subsonicToken']}&s={auth['subsonicSalt']}"
    pinged = client.request("GET", f"/rest/ping?v=1&c=x&f=json&{query}", None, source=UNTRUSTED)
    assert pinged.json()["subsonic-response"]["status"] == "ok"


def test_the_login_limit_applies_until_another_address_is_claimed(client: NavidromeClient) -> None:
    wrong = {"username": "nobody", "password": "x"}

    def guess(header: str, address: str) -> int:
        reply = client.request("POST", "/auth/login", None, headers={header: address}, body=wrong)
        return reply.status

    assert [guess("X-Forwarded-For", "10.9.9.9, 10.1.1.1") for _ in range(6)] == [401] * 5 + [429]
    assert guess("X-Real-IP", "10.9.9.9") == 429
    assert [guess("True-Client-IP", f"10.9.8.{n}") for n in range(6)] == [401] * 6


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/rest/../api/user", 404),
        ("/rest/%70ing?v=1&c=x", 404),
        ("/%72est/ping?v=1&c=x", 302),
        ("/Rest/ping?v=1&c=x", 302),
        ("/api/nonsense", 404),
        ("/auth/login", 405),
        ("/app/nonsense", 404),
        ("/share/a/b/c", 404),
        ("/PING", 200),
        ("//api/user", 302),
    ],
)
def test_routing_is_on_the_escaped_path(client: NavidromeClient, target: str, status: int) -> None:
    assert client.request("GET", target).status == status


def test_bytes_after_an_upgrade_that_no_route_accepts_are_the_next_request(
    client: NavidromeClient,
) -> None:
    upgrade = (
        "GET /api/translation HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    smuggled = (
        "GET /api/user HTTP/1.1\r\nHost: x\r\nRemote-User: navidrome-shim\r\n"
        "Connection: close\r\n\r\n"
    )
    address = ("127.0.0.1", client.port)
    with socket.create_connection(address, timeout=10, source_address=(EDGE, 0)) as connection:
        connection.sendall((upgrade + smuggled).encode())
        responses = b"".join(iter(lambda: connection.recv(65536), b""))
    assert responses.count(b"HTTP/1.1 200 OK") == 2
    assert b'"userName":"navidrome-shim"' in responses


def test_a_client_id_is_returned_as_a_cookie(client: NavidromeClient) -> None:
    reply = client.request("GET", "/api/keepalive/x", headers={"X-ND-Client-Unique-Id": "abc"})
    assert reply.body == b'{"response":"ok", "id":"keepalive"}'
    assert reply.headers["set-cookie"] == (
        "X-ND-Client-Unique-Id=abc; Path=/; Max-Age=31536000; HttpOnly; Secure; SameSite=Strict"
    )


def _claims(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return claims


def test_a_refreshed_token_is_valid_and_keeps_its_claims(client: NavidromeClient) -> None:
    name = client.new_name()
    account_id = client.create(name)
    token = client.token(name)
    reply = client.request(
        "GET", "/api/song?_end=1", None, headers={"X-ND-Authorization": f"Bearer {token}"}
    )
    before, after = _claims(token), _claims(reply.headers["x-nd-authorization"])
    assert {**before, "exp": 0} == {**after, "exp": 0}
    assert (before["sub"], before["uid"], before["iss"]) == (name, account_id, "ND")
    assert "adm" not in before
    assert after["exp"] - before["iat"] >= 48 * 3600
    refreshed = {"Cookie": f"jwt={reply.headers['x-nd-authorization']}"}
    assert (
        client.request("GET", "/api/song", None, headers=refreshed, source=UNTRUSTED).status == 200
    )


@pytest.mark.parametrize(
    ("method", "target", "status", "refreshed"),
    [
        ("GET", "/api/user", 403, True),
        ("GET", "/api/user/none", 403, True),
        ("HEAD", "/api/user", 405, True),
        ("POST", "/api/user", 422, True),
        ("GET", "/api/song/none/none", 404, True),
        ("GET", "/api/keepalive/x", 200, True),
        ("POST", "/api/keepalive/x", 405, False),
        ("GET", "/api/nonsense", 404, False),
        ("GET", "/ping", 200, False),
        ("GET", "/app/nonsense", 404, False),
        ("GET", "/rest/ping?v=1&c=x", 200, False),
    ],
)
def test_a_token_is_refreshed_by_every_response_of_an_authenticated_route(
    client: NavidromeClient, method: str, target: str, status: int, refreshed: bool
) -> None:
    name = client.new_name()
    client.create(name)
    headers = {"X-ND-Authorization": f"Bearer {client.token(name)}"}
    reply = client.request(method, target, None, headers=headers, source=UNTRUSTED)
    assert (reply.status, "x-nd-authorization" in reply.headers) == (status, refreshed)


def test_a_token_of_a_deleted_account_beats_the_user_header_and_is_not_refreshed(
    client: NavidromeClient,
) -> None:
    name = client.new_name()
    account_id = client.create(name)
    token = client.token(name)
    client.request("DELETE", f"/api/user/{account_id}")
    for headers in ({"X-ND-Authorization": f"Bearer {token}"}, {"Cookie": f"jwt={token}"}):
        reply = client.request("GET", "/api/user", headers=headers)
        assert (reply.status, "x-nd-authorization" in reply.headers) == (401, False)


def test_a_login_ignores_the_case_of_the_name_and_its_token_has_the_stored_one(
    client: NavidromeClient,
) -> None:
    name = client.new_name()
    client.create(name)
    token = client.token(name.upper())
    assert _claims(token)["sub"] == name
    query = f"v=1&c=x&f=json&jwt={token}"
    for user, status in ((name, "ok"), (name.upper(), "ok"), ("navidrome-shim", "failed")):
        reply = client.request("GET", f"/rest/ping?{query}&u={user}", None, source=UNTRUSTED)
        assert reply.json()["subsonic-response"]["status"] == status


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("null", 401),
        ("{}", 401),
        ('{"username":"NAME","password":"pw"} and more', 200),
        ('{"Username":"NAME","Password":"pw"}', 401),
        ('{"username":"NAME","password":null}', 401),
        ('{"username":"NAME","password":1}', 422),
        ('{"username":"NAME","password":"pw","more":1}', 422),
        ("[]", 422),
    ],
)
def test_a_login_reads_two_strings(client: NavidromeClient, body: str, status: int) -> None:
    name = client.new_name()
    client.create(name)
    claimed = {"X-Real-IP": f"10.4.{name.removeprefix('user')}.1"}
    sent = body.replace("NAME", name)
    reply = client.request("POST", "/auth/login", None, headers=claimed, body=sent)
    assert reply.status == status


def test_responses_to_logins_tell_the_limit(client: NavidromeClient) -> None:
    wrong = {"username": "nobody", "password": "x"}
    claimed = {"X-Real-IP": "10.5.5.5"}
    replies = [
        client.request("POST", "/auth/login", None, headers=claimed, body=wrong) for _ in range(6)
    ]
    assert [reply.headers["x-ratelimit-limit"] for reply in replies] == ["5"] * 6
    remaining = [reply.headers["x-ratelimit-remaining"] for reply in replies]
    assert remaining == ["4", "3", "2", "1", "0", "0"]
    assert all(reply.headers["x-ratelimit-reset"].isdigit() for reply in replies)
    assert [reply.headers.get("retry-after") for reply in replies] == [None] * 5 + ["20"]


def test_a_client_id_is_a_valid_cookie_value(client: NavidromeClient) -> None:
    headers = {"X-ND-Client-Unique-Id": 'a b"c;d\\e,f'}
    reply = client.request("GET", "/api/keepalive/x", headers=headers)
    assert reply.headers["set-cookie"].startswith('X-ND-Client-Unique-Id="a bcde,f"; Path=/;')
    for target in ("/ping", "/robots.txt"):
        assert "set-cookie" not in client.request("GET", target, headers=headers).headers


def test_a_player_cookie_has_the_name_as_sent_and_the_id_of_the_player(
    client: NavidromeClient,
) -> None:
    name = client.new_name()
    client.create(name)
    ids = set()
    for sent in (name, name, name.upper()):
        reply = client.request("GET", "/rest/ping?v=1&c=x", sent, headers={"User-Agent": "x"})
        cookie, _, attributes = reply.headers["set-cookie"].partition("; ")
        named, _, player = cookie.partition("=")
        assert named == f"nd-player-{sent.encode().hex()}"
        assert attributes == "Path=/; Max-Age=31536000; HttpOnly; SameSite=Strict"
        ids.add(player)
    assert len(ids) == 1


@pytest.mark.parametrize(
    "target",
    [
        "/rest/ping?c=x",
        "/rest/ping?v=1&c=x&u=navidrome-shim&p=no",
        "/rest/getOpenSubsonicExtensions",
    ],
)
def test_a_request_that_is_not_authenticated_gets_no_cookie(
    client: NavidromeClient, target: str
) -> None:
    assert "set-cookie" not in client.request("GET", target, None).headers
