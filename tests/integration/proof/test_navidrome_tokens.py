"""Navidrome's own tokens through a running shim."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.jwt_minting import SECRET, token
from tests.support.recorder import Recorder
from tests.support.shim_process import (
    assert_rejected,
    build_request,
    edge_address,
    run_shim,
    untrusted_address,
)

ADA = "X-authentik-username: ada"
OLD = token({"sub": "bob", "uid": "b0b"}, key=SECRET, algorithm="HS256", kid=None)


def everywhere(line: str, *fields: str) -> bytes:
    return build_request(
        line.format(OLD), f"X-ND-Authorization: Bearer {OLD}", f"Cookie: a=b; jwt={OLD}", *fields
    )


def test_an_old_token_of_another_account_does_not_override_the_user_header(
    upstream: Recorder, tmp_path: Path
) -> None:
    with run_shim(upstream.port, tmp_path) as shim:
        peer = edge_address()
        response = shim.request(everywhere("GET /api/user?a=1&%6Awt={}&b=2 HTTP/1.1", ADA), peer)
        assert response.status == 200
        (received,) = upstream.requested
        assert received.values("Remote-User") == ["ada"]
        assert b"eyJ" not in received.head
        assert received.target == "/api/user?a=1&b=2"
        assert received.values("Cookie") == ["a=b"]
        line = shim.wait_for_line(kind="navidrome_token_found", peer=peer)
        assert (line["reason"], line["user"]) == ("token_mismatch", "ada")
        assert set(line["locations"]) == {"X-ND-Authorization", "cookie jwt", "query jwt"}
        assert OLD not in json.dumps(shim.lines, default=str)


def test_a_token_without_an_identity_is_forwarded_and_logged(
    upstream: Recorder, tmp_path: Path
) -> None:
    with run_shim(upstream.port, tmp_path) as shim:
        peer = untrusted_address()
        shim.request(everywhere("GET /api/user?jwt={} HTTP/1.1"), peer)
        (received,) = upstream.requested
        assert received.head.count(OLD.encode()) == 3
        line = shim.wait_for_line(kind="navidrome_token_found", peer=peer)
        assert line["reason"] == "token_without_identity"
        assert OLD not in json.dumps(shim.lines, default=str)


def test_tokens_on_public_paths_are_forwarded(upstream: Recorder, tmp_path: Path) -> None:
    with run_shim(upstream.port, tmp_path) as shim:
        for line in ("GET /rest/ping?jwt={} HTTP/1.1", "GET /share/s/x?jwt={} HTTP/1.1"):
            shim.request(everywhere(line), edge_address())
        assert [one.head.count(OLD.encode()) for one in upstream.requested] == [3, 3]
        shim.decided(untrusted_address(), upstream)
        assert not [line for line in shim.lines if line.get("kind") == "navidrome_token_found"]


def test_where_public_paths_carry_an_identity_no_other_accounts_token_is_forwarded(
    upstream: Recorder, tmp_path: Path
) -> None:
    secret = "0123456789abcdef" * 3
    settings = {"PROXY_SECRET": secret, "PUBLIC_PATH_PROOF": "secret"}
    with run_shim(upstream.port, tmp_path, **settings) as shim:
        peer = edge_address()
        emby = f'X-Emby-Authorization: MediaBrowser Client="c", Token="{OLD}"'
        proof = f"X-Shim-Proxy-Secret: {secret}"
        shim.request(everywhere("GET /jellyfin/items?ApiKey={} HTTP/1.1", ADA, proof, emby), peer)
        (received,) = upstream.requested
        assert received.values("Remote-User") == ["ada"]
        assert OLD.encode() not in received.head
        assert received.values("X-Emby-Authorization") == ['MediaBrowser Client="c", Token=""']
        line = shim.wait_for_line(kind="navidrome_token_found", peer=peer)
        assert (line["reason"], line["user"]) == ("token_mismatch", "ada")
        assert "query apikey" in line["locations"]


def test_a_long_body_for_the_user_api_is_rejected(upstream: Recorder, tmp_path: Path) -> None:
    with run_shim(upstream.port, tmp_path) as shim:
        peer = untrusted_address()
        length = "Content-Length: 11300000"
        response = shim.request(build_request("PUT /api/user/1 HTTP/1.1", length), peer)
        assert_rejected(shim, upstream, response, peer, 413, "body_too_large")
