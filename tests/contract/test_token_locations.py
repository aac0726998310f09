"""Where the real Navidrome reads its own tokens, and that the shim's decision removes them there.

The stand-in's Jellyfin API accepts no tokens, so this runs on the real one alone.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from shim.trust.decision import decide
from shim.trust.navidrome_tokens import NavidromeClaims, filter_form, read_claims
from shim.trust.peers import AddressList, parse_entry, parse_peer
from shim.trust.policy import Policy
from tests.support.navidrome_client import ADMIN, ADMIN_PASSWORD, EDGE, UNTRUSTED, NavidromeClient
from tests.support.real_navidrome import real_navidrome

_POLICY = Policy(whitelist=AddressList([parse_entry(EDGE)]))
JELLYFIN, API, REST = "/jellyfin/Users/Me", "/api/song", "/rest/ping?u={u}&v=1&c=x&f=json"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NavidromeClient]:
    if "NAVIDROME_BIN" not in os.environ:
        pytest.skip("NAVIDROME_BIN names no binary")
    folder = tmp_path_factory.mktemp("navidrome")
    with real_navidrome(
        os.environ["NAVIDROME_BIN"], folder, f"{EDGE}/32", ND_JELLYFIN_ENABLED="true"
    ) as port:
        client = NavidromeClient(port)
        admin = {"username": ADMIN, "password": ADMIN_PASSWORD}
        assert client.request("POST", "/auth/createAdmin", None, body=admin).status == 200
        yield client


def _opens(port: int, request: bytes) -> bool:
    """Return whether Navidrome authenticates the request."""
    with socket.create_connection(("127.0.0.1", port), 10, (UNTRUSTED, 0)) as client:
        client.sendall(request)
        received = b"".join(iter(lambda: client.recv(65536), b""))
    status, _, body = received.partition(b"\r\n\r\n")
    return status.startswith(b"HTTP/1.1 200") and b'"status":"failed"' not in body


def _head(target: str, field: str, method: str = "GET") -> bytes:
    lines = (f"{method} {target} HTTP/1.1", "Host: h", "Connection: close", field, "", "")
    return "\r\n".join(lines).encode()


def _without_tokens(head: bytes) -> bytes:
    decision = decide(head, parse_peer(UNTRUSTED), _POLICY)
    rendered = decision.without_void_tokens(lambda _: False).render_head()
    return rendered.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")


@pytest.mark.parametrize(
    ("target", "field"),
    [
        (API, "X-ND-Authorization: Bearer {t}"),
        (API, "X-ND-Authorization: bEaReRx{t}"),
        (API, "Cookie: a=b; jwt={t}"),
        (API, 'Cookie: jwt="{t}"'),
        (API, "Cookie:a=b ;\t jwt={t}"),
        (API + "?jwt={t}", "A: b"),
        (API + "?a=b;c&%6a%77%74={t}", "A: b"),
        (REST + "&jwt={t}", "A: b"),
        (REST + "&j%77t={t}", "A: b"),
        (JELLYFIN, 'Authorization: MediaBrowser Token="{t}"'),
        (JELLYFIN, 'Authorization: Emby Client="x", Token="{t}", Device="y"'),
        (JELLYFIN, 'Authorization: MediaBrow\u017fer Token="{t}"'),
        (JELLYFIN, 'Authorization: emby Device="Token="Token="{t}"'),
        (JELLYFIN, 'Authorization: emby Token="x" Token="{e}"'),
        (JELLYFIN, 'X-Emby-Authorization: MediaBrowser Token="{e}"'),
        (JELLYFIN, "X-Emby-Token: {t}"),
        (JELLYFIN, "x-mediabrowser-token: {t}"),
        (JELLYFIN + "?api_key={t}", "A: b"),
        (JELLYFIN + "?ApiKey={e}", "A: b"),
        (JELLYFIN + "?API%5fKEY={t}", "A: b"),
        (JELLYFIN + "?api%E2%84%AAey={t}", "A: b"),
        (JELLYFIN + "?ap%C4%B0key={t}", "A: b"),
    ],
)
def test_a_token_is_accepted_in_this_location_and_removed_there(
    server: NavidromeClient, target: str, field: str
) -> None:
    name = server.new_name()
    server.create(name)
    token = server.token(name)
    values = {"t": token, "e": token.replace(".", "%2e"), "u": name}
    head = _head(target.format(**values), field.format(**values))
    assert _opens(server.port, head)
    assert not _opens(server.port, _without_tokens(head))


@pytest.mark.parametrize(
    "content_type",
    ["application/x-www-form-urlencoded", "APPL\u0130CATION/x-www-form-urlencoded;a=b"],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_a_token_is_accepted_in_a_form_below_rest_and_removed_there(
    server: NavidromeClient, content_type: str, method: str
) -> None:
    name = server.new_name()
    server.create(name)
    body = f"u={name}&v=1&c=x&f=json&%6Awt={server.token(name)}".encode()
    rest, removed, _ = filter_form(body, lambda _: False)
    assert removed
    outcomes = []
    for sent in (body, rest):
        fields = f"Content-Type: {content_type}\r\nContent-Length: {len(sent)}"
        head = _head("/rest/ping", fields, method)
        assert decide(head, parse_peer(UNTRUSTED), _POLICY).form
        outcomes.append(_opens(server.port, head + sent))
    assert outcomes[1] is False
    if method == "POST":
        assert outcomes[0] is True


def test_the_claims_of_a_real_token_are_read(server: NavidromeClient) -> None:
    name = server.new_name()
    account_id = server.create(name)
    for text in (server.token(name), _jellyfin_token(server, name)):
        claims = read_claims(text.encode())
        assert claims is not None
        assert claims == NavidromeClaims(name, account_id, claims.issued_at)
        assert claims.issued_at > 1_700_000_000


def _jellyfin_token(server: NavidromeClient, name: str) -> str:
    login = {"Username": name, "Pw": "pw"}
    reply = server.request("POST", "/jellyfin/Users/AuthenticateByName", None, body=login)
    assert reply.status == 200, reply.body
    text: str = reply.json()["AccessToken"]
    return text
