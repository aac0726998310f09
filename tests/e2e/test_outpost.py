"""The stand-in outpost responds like authentik: its headers, its tokens, its rejections."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import jwt
import pytest

from demo.outpost import COOKIE, Outpost, OutpostOptions, OutpostUser
from tests.e2e.test_edges import NAMES

ZOE = OutpostUser(
    "zoë",
    "Zoë Łuk",
    "zoe@example.org",
    ("family", "listeners"),
    ("app user",),
    additional_headers=(("X-Extra", "from an attribute"),),
)
ORIGINAL_REQUEST = {
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "music.example.org",
    "X-Forwarded-Uri": "/app/?a=b",
}
TRAEFIK = "/outpost.goauthentik.io/auth/traefik"


@pytest.fixture(scope="module")
def outpost() -> Iterator[Outpost]:
    with Outpost(OutpostOptions(users=(ZOE,), open_paths=("^/open/",))) as started:
        yield started


def auth_request(
    outpost: Outpost, path: str = TRAEFIK, *, session: str = "", **headers: str
) -> httpx.Response:
    """Send an edge's auth request; `headers` with `_` for `-`, beside or instead of the default ones."""
    sent_headers = {
        **ORIGINAL_REQUEST,
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    if session:
        sent_headers["Cookie"] = f"{COOKIE}={session}"
    return httpx.get(outpost.url + path, headers=sent_headers, trust_env=False)


@pytest.mark.parametrize("edge", ["traefik", "caddy", "nginx"])
def test_a_session_gives_the_twelve_headers(outpost: Outpost, edge: str) -> None:
    path = f"/outpost.goauthentik.io/auth/{edge}"
    response = auth_request(outpost, path, session=outpost.sign_in("zoë"))
    assert response.status_code == httpx.codes.OK
    raw = {name.lower(): value.decode() for name, value in response.headers.raw}
    sent = {name.decode(): value for name, value in raw.items() if b"authentik" in name}
    assert set(sent) == {name.lower() for name in NAMES}
    assert sent["x-authentik-username"] == "zoë"
    assert sent["x-authentik-name"] == "Zoë Łuk"
    assert sent["x-authentik-groups"] == "family|listeners"
    assert sent["x-authentik-uid"] == ZOE.uid
    assert raw[b"x-extra"] == "from an attribute"


def test_the_token_is_signed_with_a_key_of_the_set(outpost: Outpost) -> None:
    session = outpost.sign_in("zoë")
    token = auth_request(outpost, session=session).headers["X-Authentik-Jwt"]
    keys = jwt.PyJWKClient(f"{outpost.issuer}jwks/")
    claims = jwt.decode(
        token,
        keys.get_signing_key_from_jwt(token),
        algorithms=["RS256"],
        audience=outpost.options.client_id,
        issuer=outpost.issuer,
        options={"require": ["exp", "iat", "sub", "aud", "iss", "sid"]},
    )
    assert claims["preferred_username"] == "zoë"
    assert claims["groups"] == ["family", "listeners"]
    assert claims["sub"] == ZOE.uid
    # The same for the whole session, so that an edge repeats its header block.
    assert auth_request(outpost, session=session).headers["X-Authentik-Jwt"] == token


@pytest.mark.parametrize("session", ["", "no such session"])
def test_without_a_session_the_client_is_redirected_to_sign_in(
    outpost: Outpost, session: str
) -> None:
    response = auth_request(outpost, session=session)
    assert response.status_code == httpx.codes.FOUND
    assert response.headers["Location"] == (
        "https://music.example.org/outpost.goauthentik.io/start"
        "?rd=https%3A%2F%2Fmusic.example.org%2Fapp%2F%3Fa%3Db"
    )


def test_nginx_gets_only_a_status(outpost: Outpost) -> None:
    path = "/outpost.goauthentik.io/auth/nginx"
    original_url = "https://music.example.org"
    assert auth_request(outpost, path, X_Original_URL=f"{original_url}/app/").status_code == 401
    assert auth_request(outpost, path, X_Original_URL=f"{original_url}/open/x").status_code == 200


def test_an_open_path_is_allowed_without_an_identity(outpost: Outpost) -> None:
    response = auth_request(outpost, X_Forwarded_Uri="/open/x?y")
    assert response.status_code == httpx.codes.OK
    assert [name for name in response.headers if "authentik" in name] == []
    elsewhere = auth_request(outpost, X_Forwarded_Uri="/app/?x=/open/")
    assert elsewhere.status_code == httpx.codes.FOUND


def test_an_edge_that_does_not_send_the_original_request_is_rejected(outpost: Outpost) -> None:
    assert httpx.get(outpost.url + TRAEFIK, trust_env=False).status_code == 400


@pytest.mark.parametrize(
    ("back", "target"),
    [
        ("https://music.example.org/app/?a=b", "/app/?a=b"),
        ("https://evil.example//evil.example/x", "/evil.example/x"),
        ("//evil.example", "/"),
    ],
)
def test_signing_in_redirects_back_to_the_same_host(
    outpost: Outpost, back: str, target: str
) -> None:
    response = httpx.get(
        f"{outpost.url}/outpost.goauthentik.io/start",
        params={"rd": back, "user": "zoë"},
        trust_env=False,
    )
    assert response.headers["Location"] == target
    assert auth_request(outpost, session=response.cookies[COOKIE]).status_code == httpx.codes.OK


def test_an_unknown_user_cannot_sign_in(outpost: Outpost) -> None:
    start = f"{outpost.url}/outpost.goauthentik.io/start"
    response = httpx.get(start, params={"user": "mallory"}, trust_env=False)
    assert response.status_code == httpx.codes.NOT_FOUND
    assert COOKIE not in response.cookies
    assert "zoë" in httpx.get(start, trust_env=False).text
