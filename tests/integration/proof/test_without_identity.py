"""Requests without an identity, where one is required."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.support.recorder import Recorder, recorder
from tests.support.shim_process import (
    Response,
    Shim,
    build_request,
    edge_address,
    run_shim,
    untrusted_address,
)

ADA = "X-authentik-username: ada"
PAGE = "Accept: text/html,application/xhtml+xml"
SIGN_IN = "/outpost.goauthentik.io/start"


@contextmanager
def requiring(upstream: Recorder, folder: Path, **settings: str) -> Iterator[Shim]:
    all_settings = {"REQUIRE_IDENTITY": "true", "SIGN_IN_URL": SIGN_IN, **settings}
    with run_shim(upstream.port, folder, **all_settings) as shim:
        yield shim


def location(response: Response) -> str:
    (line,) = [ln for ln in response.raw.split(b"\r\n") if ln.lower().startswith(b"location:")]
    return line.partition(b":")[2].strip().decode()


def test_a_page_redirects_to_sign_in_and_back_to_the_requested_host(
    upstream: Recorder, tmp_path: Path
) -> None:
    with requiring(upstream, tmp_path) as shim:
        line = "GET /app/?a=b&rd=https://evil.example/ HTTP/1.1"
        response = shim.request(
            build_request(line, PAGE, "Sec-Fetch-Mode: navigate"), untrusted_address()
        )
        assert response.status == 302
        where = urlsplit(location(response))
        assert (where.scheme, where.netloc, where.path) == ("", "", SIGN_IN)
        back = "http://music.example.com/app/?a=b&rd=https://evil.example/"
        assert parse_qs(where.query) == {"rd": [back]}
        # Scheme and host from the edge are used, those from other peers are not.
        forwarded_fields = (
            "X-Forwarded-Proto: https",
            "X-Forwarded-Host: evil.example, music.home.arpa",
        )
        response = shim.request(
            build_request("GET /app/ HTTP/1.1", PAGE, *forwarded_fields), edge_address()
        )
        assert parse_qs(urlsplit(location(response)).query)["rd"] == [
            "https://music.home.arpa/app/"
        ]
        response = shim.request(
            build_request("GET /app/ HTTP/1.1", PAGE, *forwarded_fields), untrusted_address()
        )
        assert parse_qs(urlsplit(location(response)).query)["rd"] == [
            "http://music.example.com/app/"
        ]
        assert upstream.requested == []
        assert shim.wait_for_line(reason="identity_required")["status"] == 302


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("GET /api/song HTTP/1.1", [PAGE]),
        ("GET /api/song HTTP/1.1", []),
        ("POST /app/ HTTP/1.1", [PAGE]),
        ("DELETE /api/user/1 HTTP/1.1", []),
        ("GET /auth/login HTTP/1.1", [PAGE]),
        ("GET /app/main.js HTTP/1.1", ["Accept: */*"]),
        ("GET /app/ HTTP/1.1", ["Accept: */*"]),
        ("GET /app/x.png HTTP/1.1", [PAGE, "Sec-Fetch-Mode: no-cors"]),
        ("GET /app/x.json HTTP/1.1", [PAGE, "Sec-Fetch-Mode: cors"]),
        ("GET /app/ HTTP/1.1", [PAGE, "Cookie: a=b; shim-signing-in=1"]),
        ("GET /app/ HTTP/1.1", ["Remote-User: root"]),
        (f"GET {SIGN_IN} HTTP/1.1", [PAGE]),
        (f"GET {SIGN_IN}?rd=x HTTP/1.1", [PAGE]),
        ("GET /app/ HTTP/1.1", [ADA]),
    ],
)
def test_every_other_request_gets_401(
    upstream: Recorder, tmp_path: Path, line: str, fields: list[str]
) -> None:
    with requiring(upstream, tmp_path) as shim:
        response = shim.request(build_request(line, *fields), untrusted_address())
        assert response.status == 401
        assert b"ocation:" not in response.raw
        assert upstream.requested == []


@pytest.mark.parametrize(
    "host", ["", "evil.example/x", "music.home.arpa@evil.example", "a b", "evil.example\\x", "[::1"]
)
def test_no_page_redirects_to_an_invalid_host(
    upstream: Recorder, tmp_path: Path, host: str
) -> None:
    with requiring(upstream, tmp_path) as shim:
        forwarded_fields = f"X-Forwarded-Host: {host}"
        response = shim.request(
            build_request("GET /app/ HTTP/1.1", PAGE, forwarded_fields), edge_address()
        )
        assert response.status == 401
        assert b"ocation:" not in response.raw


def test_a_page_that_returns_without_an_identity_does_not_redirect_in_a_loop(
    upstream: Recorder, tmp_path: Path
) -> None:
    with requiring(upstream, tmp_path) as shim:
        first = shim.request(build_request("GET /app/ HTTP/1.1", PAGE), untrusted_address())
        (cookie,) = [ln for ln in first.raw.split(b"\r\n") if ln.startswith(b"Set-Cookie: ")]
        pair, *attributes = cookie.decode().removeprefix("Set-Cookie: ").split("; ")
        assert {"HttpOnly", "SameSite=Lax", "Path=/"} <= set(attributes)
        second = shim.request(
            build_request("GET /app/ HTTP/1.1", PAGE, f"Cookie: {pair}"), untrusted_address()
        )
        assert second.status == 401


def test_without_a_sign_in_url_pages_get_401_too(upstream: Recorder, tmp_path: Path) -> None:
    with run_shim(upstream.port, tmp_path, REQUIRE_IDENTITY="true") as shim:
        assert (
            shim.request(build_request("GET /app/ HTTP/1.1", PAGE), untrusted_address()).status
            == 401
        )


def test_public_paths_and_requests_with_an_identity_are_forwarded(
    upstream: Recorder, tmp_path: Path
) -> None:
    with requiring(upstream, tmp_path) as shim:
        for line in ("GET /rest/ping?u=a HTTP/1.1", "GET /share/abc HTTP/1.1"):
            assert shim.request(build_request(line, PAGE), untrusted_address()).status == 200
        assert (
            shim.request(build_request("GET /app/ HTTP/1.1", PAGE, ADA), edge_address()).status
            == 200
        )
        assert [one.values("Remote-User") for one in upstream.requested] == [[], [], ["ada"]]


LOGINS = ["/auth/login", "/auth/login/", "/AUTH/Login", "/auth/createAdmin", "/auth/createadmin"]


@pytest.mark.parametrize("fields", [[], [ADA]], ids=["nobody", "somebody"])
def test_navidromes_own_login_is_disabled(
    upstream: Recorder, tmp_path: Path, fields: list[str]
) -> None:
    with requiring(upstream, tmp_path) as shim:
        for path in LOGINS:
            peer = edge_address()
            response = shim.request(
                build_request(f"POST {path} HTTP/1.1", "Content-Length: 0", *fields), peer
            )
            assert response.status == (403 if fields else 401), path
            (line,) = shim.decided(peer, upstream)
            assert line["reason"] == ("local_login_disabled" if fields else "identity_required")
        assert upstream.requested == []


def test_navidromes_own_login_can_be_enabled(upstream: Recorder, tmp_path: Path) -> None:
    with requiring(upstream, tmp_path, LOCAL_LOGIN="true") as shim:
        login = "POST /auth/login HTTP/1.1"
        assert shim.request(build_request(login, "Content-Length: 0"), edge_address()).status == 200
        assert (
            shim.request(build_request(login, "Content-Length: 0", ADA), edge_address()).status
            == 200
        )
        peer = untrusted_address()
        assert shim.request(build_request(login, "Content-Length: 0", ADA), peer).status == 200
        (line,) = shim.decided(peer, upstream)
        assert (line["verdict"], line["reason"]) == ("stripped", "untrusted_peer")
        assert [one.values("Remote-User") for one in upstream.requested] == [[], ["ada"], []]
        # Only the login itself: other requests still require an identity.
        assert shim.request(build_request("GET /app/ HTTP/1.1"), edge_address()).status == 401
        assert shim.request(build_request("GET /auth/login HTTP/1.1"), edge_address()).status == 401


def test_a_login_is_enabled_while_no_identity_is_required(
    upstream: Recorder, tmp_path: Path
) -> None:
    with run_shim(upstream.port, tmp_path) as shim:
        response = shim.request(
            build_request("POST /auth/login HTTP/1.1", "Content-Length: 0"),
            untrusted_address(),
        )
        assert response.status == 200


def test_redirects_work_below_a_base_path(tmp_path: Path) -> None:
    with (
        recorder("/music/") as upstream,
        requiring(upstream, tmp_path, BASE_PATH="/music") as shim,
    ):
        assert (
            shim.request(
                build_request("GET /music/app/ HTTP/1.1", PAGE), untrusted_address()
            ).status
            == 302
        )
        assert (
            shim.request(
                build_request("GET /music/api/x HTTP/1.1", PAGE), untrusted_address()
            ).status
            == 401
        )
        login = "POST /music/auth/login HTTP/1.1"
        assert (
            shim.request(build_request(login, "Content-Length: 0", ADA), edge_address()).status
            == 403
        )
