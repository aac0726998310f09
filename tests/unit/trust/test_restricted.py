"""Decisions while Navidrome does not obey the user header, or is not known to."""

from __future__ import annotations

import pytest

from shim.compiled import policy_of
from shim.settings import load
from shim.trust.addresses import Peer
from shim.trust.policy import Policy
from shim.trust.reasons import Reason, Verdict
from shim.watch.user_header import UserHeaderState
from tests.unit.trust.asking import ADA, ANYONE, EDGE, head, judged


def policy(state: UserHeaderState, **settings: str) -> Policy:
    given = {"REVERSE_PROXY_WHITELIST": "127.0.0.2", "PROVISIONING": "false", **settings}
    return policy_of(
        load({f"SHIM_{name}": value for name, value in given.items()}), user_header=state
    )


MISMATCH = policy(UserHeaderState(False, "X-Emby-Token"))
UNKNOWN = policy(UserHeaderState(None))


@pytest.mark.parametrize("path", ["/app/", "/api/song"])
def test_an_identity_is_rejected_while_its_header_is_not_obeyed(path: str) -> None:
    decision = judged(head(f"GET {path} HTTP/1.1", ADA), EDGE, MISMATCH)
    assert decision.outcome.reason is Reason.USER_HEADER_MISMATCH
    assert decision.outcome.status == 503
    assert "does not obey" in decision.detail


def test_an_identity_on_a_public_path_with_a_proof_is_rejected_as_well() -> None:
    proved = policy(
        UserHeaderState(False), PUBLIC_PATH_PROOF="secret", PROXY_SECRET="0123456789abcdef" * 2
    )
    fields = (ADA, f"X-Shim-Proxy-Secret: {'0123456789abcdef' * 2}")
    decision = judged(head("GET /rest/ping HTTP/1.1", *fields), EDGE, proved)
    assert decision.outcome.reason is Reason.USER_HEADER_MISMATCH
    assert judged(head("GET /rest/ping HTTP/1.1", ADA), EDGE, proved).outcome.reason is (
        Reason.PUBLIC_PATH
    )


def test_an_identity_passes_while_nothing_is_known() -> None:
    decision = judged(head("GET /app/ HTTP/1.1", ADA, "X-Anything: 1"), EDGE, UNKNOWN)
    assert decision.outcome.verdict is Verdict.AUTHENTICATED
    assert b"Remote-User: ada" in decision.head() and b"X-Anything" not in decision.head()


@pytest.mark.parametrize("peer", [EDGE, ANYONE])
@pytest.mark.parametrize("refused", [MISMATCH, UNKNOWN])
@pytest.mark.parametrize(
    "name",
    ["X-Own-Idea", "X-WebAuth-User", "x_webauth_user", "X-Forwarded-User", "X-ND-User", "From"],
)
def test_headers_that_are_not_on_the_allow_list_do_not_pass(
    name: str, refused: Policy, peer: Peer
) -> None:
    decision = judged(head("GET /rest/ping HTTP/1.1", f"{name}: admin"), peer, refused)
    assert decision.outcome.verdict is Verdict.ANONYMOUS
    assert b"admin" not in decision.head()
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
@pytest.mark.parametrize("refused", [MISMATCH, UNKNOWN])
def test_headers_that_clients_need_pass(line: str, refused: Policy) -> None:
    decision = judged(head("GET /rest/ping HTTP/1.1", line), ANYONE, refused)
    assert f"{line}\r\n".encode() in decision.head()


@pytest.mark.parametrize("name", ["X-Emby-Token", "x-emby-token", "X_Emby_Token"])
def test_the_header_that_navidrome_obeys_does_not_pass_even_if_it_is_on_the_allow_list(
    name: str,
) -> None:
    decision = judged(head("GET /rest/ping HTTP/1.1", f"{name}: admin"), ANYONE, MISMATCH)
    assert b"admin" not in decision.head()


def test_what_frames_a_request_is_read_as_before() -> None:
    alias = judged(head("GET /rest/ping HTTP/1.1", "Content_Length: 5"), ANYONE, MISMATCH)
    assert alias.outcome.reason is Reason.FRAMING_ALIAS
    body = judged(head("POST /rest/ping HTTP/1.1", "Content-Length: 5"), ANYONE, MISMATCH)
    assert body.block is not None and body.block.envelope.length == 5
