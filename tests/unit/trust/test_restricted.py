"""Decisions while Navidrome rejects the user header, or while that is unknown."""

from __future__ import annotations

import pytest

from shim.app.factories import build_policy
from shim.monitors.user_header import UserHeaderState
from shim.settings import load
from shim.trust.peers import Peer
from shim.trust.policy import Policy
from shim.trust.reasons import Reason, Verdict
from tests.support.decisions import ADA, EDGE, UNTRUSTED, decided, head


def policy(state: UserHeaderState, **settings: str) -> Policy:
    all_settings = {"REVERSE_PROXY_WHITELIST": "127.0.0.2", "PROVISIONING": "false", **settings}
    return build_policy(
        load({f"SHIM_{name}": value for name, value in all_settings.items()}), user_header=state
    )


MISMATCH = policy(UserHeaderState(False, "X-Emby-Token"))
UNKNOWN = policy(UserHeaderState(None))


@pytest.mark.parametrize("path", ["/app/", "/api/song"])
def test_an_identity_is_rejected_while_navidrome_rejects_its_header(path: str) -> None:
    decision = decided(head(f"GET {path} HTTP/1.1", ADA), EDGE, MISMATCH)
    assert decision.outcome.reason is Reason.USER_HEADER_MISMATCH
    assert decision.outcome.status == 503
    assert "does not obey" in decision.detail


def test_an_identity_on_a_public_path_with_a_proof_is_rejected_as_well() -> None:
    with_secret = policy(
        UserHeaderState(False), PUBLIC_PATH_PROOF="secret", PROXY_SECRET="0123456789abcdef" * 2
    )
    fields = (ADA, f"X-Shim-Proxy-Secret: {'0123456789abcdef' * 2}")
    decision = decided(head("GET /rest/ping HTTP/1.1", *fields), EDGE, with_secret)
    assert decision.outcome.reason is Reason.USER_HEADER_MISMATCH
    assert decided(head("GET /rest/ping HTTP/1.1", ADA), EDGE, with_secret).outcome.reason is (
        Reason.PUBLIC_PATH
    )


def test_a_cookie_that_navidrome_takes_for_its_user_header_is_removed_with_its_token() -> None:
    cookie = policy(UserHeaderState(False, "Cookie"))
    for value in ("a=b", "jwt=a.b.c"):
        decision = decided(head("GET /app/ HTTP/1.1", f"Cookie: {value}"), EDGE, cookie)
        assert b"cookie" not in decision.render_head().lower()


def test_an_identity_passes_while_the_state_is_unknown() -> None:
    decision = decided(head("GET /app/ HTTP/1.1", ADA, "X-Anything: 1"), EDGE, UNKNOWN)
    assert decision.outcome.verdict is Verdict.AUTHENTICATED
    assert (
        b"Remote-User: ada" in decision.render_head()
        and b"X-Anything" not in decision.render_head()
    )


@pytest.mark.parametrize("peer", [EDGE, UNTRUSTED])
@pytest.mark.parametrize("rejection", [MISMATCH, UNKNOWN])
@pytest.mark.parametrize(
    "name",
    ["X-Own-Idea", "X-WebAuth-User", "x_webauth_user", "X-Forwarded-User", "X-ND-User", "From"],
)
def test_headers_that_are_not_on_the_allow_list_are_removed(
    name: str, rejection: Policy, peer: Peer
) -> None:
    decision = decided(head("GET /rest/ping HTTP/1.1", f"{name}: admin"), peer, rejection)
    assert decision.outcome.verdict is Verdict.ANONYMOUS
    assert b"admin" not in decision.render_head()
    assert decision.block is not None
    assert name in [field.sent_name for field in decision.block.removed]


@pytest.mark.parametrize(
    "line",
    [
        "Accept: */*",
        "Accept-Encoding: gzip",
        "Content-Type: application/json",
        "Cookie: a=b",
        "Authorization: Basic YTpi",
        "Range: bytes=0-",
        "If-None-Match: x",
        "Origin: https://music.example.com",
        "Sec-Fetch-Mode: cors",
        "X-ND-Authorization: Bearer x",
        "X-ND-Client-Unique-Id: x",
        "X-Emby-Authorization: MediaBrowser",
        "X-MediaBrowser-Token: x",
        "Last-Event-ID: 4",
    ],
)
@pytest.mark.parametrize("rejection", [MISMATCH, UNKNOWN])
def test_headers_that_clients_need_are_forwarded(line: str, rejection: Policy) -> None:
    decision = decided(head("GET /rest/ping HTTP/1.1", line), UNTRUSTED, rejection)
    assert f"{line}\r\n".encode() in decision.render_head()


@pytest.mark.parametrize("name", ["X-Emby-Token", "x-emby-token", "X_Emby_Token"])
def test_the_accepted_user_header_is_removed_even_if_it_is_on_the_allow_list(
    name: str,
) -> None:
    decision = decided(head("GET /rest/ping HTTP/1.1", f"{name}: admin"), UNTRUSTED, MISMATCH)
    assert b"admin" not in decision.render_head()


def test_framing_headers_are_parsed_as_before() -> None:
    alias = decided(head("GET /rest/ping HTTP/1.1", "Content_Length: 5"), UNTRUSTED, MISMATCH)
    assert alias.outcome.reason is Reason.FRAMING_ALIAS
    body = decided(head("POST /rest/ping HTTP/1.1", "Content-Length: 5"), UNTRUSTED, MISMATCH)
    assert body.block is not None and body.block.metadata.length == 5
