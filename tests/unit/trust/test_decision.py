"""The decision that combines request line and header block."""

from __future__ import annotations

from typing import Any

import pytest

from shim.proxy import failures
from shim.proxy.failures import Failure
from shim.trust import reasons
from shim.trust.policy import Policy, Proof
from shim.trust.reasons import (
    OUTCOMES,
    SUBSONIC_REASONS,
    Outcome,
    PathClass,
    Reason,
    Verdict,
    outcome,
)
from tests.support.decisions import ADA, EDGE, HOST, POLICY, UNTRUSTED, decided, head, trusting

HANDSHAKE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version: 13",
)


def without(*names: str) -> list[str]:
    return [line for line in HANDSHAKE if line.partition(":")[0] not in names]


# cross-site


@pytest.mark.parametrize(
    ("fields", "foreign"),
    [
        ((), False),
        (("Sec-Fetch-Site: same-origin",), False),
        (("Sec-Fetch-Site: none",), False),
        (("Sec-Fetch-Site: Same-Origin",), False),
        (("Sec-Fetch-Site: same-site",), True),
        (("Sec-Fetch-Site: cross-site",), True),
        (("Sec-Fetch-Site:",), True),
        (("Sec-Fetch-Site: something-new",), True),
        (("Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: cross-site"), True),
        ((f"Origin: https://{HOST}",), False),
        ((f"Origin: http://{HOST}",), False),
        ((f"Origin: https://{HOST.upper()}",), False),
        ((f"Origin: https://{HOST}:443",), False),
        ((f"Origin: http://{HOST}:80",), False),
        ((f"Origin: https://{HOST}:8443",), True),
        ((f"Origin: https://evil.{HOST}",), True),
        ((f"Origin: https://{HOST}.evil.example",), True),
        (("Origin: https://evil.example",), True),
        (("Origin: null",), True),
        (("Origin:",), True),
        ((f"Origin: {HOST}",), True),
        (("Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: same-origin"), True),
        ((f"Origin: https://{HOST}/",), True),
        ((f"Origin: ftp://{HOST}",), True),
        ((f"Origin: http://{HOST}:443",), True),
        ((f"Origin: https://eve@{HOST}",), True),
        ((f"Origin: https://{HOST}", "Origin: https://evil.example"), True),
        ((f"Origin: https://{HOST}", "Sec-Fetch-Site: cross-site"), True),
        # where the browser sends Sec-Fetch-Site, that alone decides
        (("Origin: https://evil.example", "Sec-Fetch-Site: same-origin"), False),
        (("Origin: null", "Sec-Fetch-Site: none"), False),
        # listing the headers in Connection has no effect
        (("Origin: https://evil.example", "Connection: origin"), True),
        (("Sec-Fetch-Site: cross-site", "Connection: sec-fetch-site"), True),
        # the edge reports the original host
        (("Origin: https://a.example", "X-Forwarded-Host: a.example"), False),
        (("Origin: https://a.example:8443", "X-Forwarded-Host: a.example:8443"), False),
        (("Origin: https://a.example", "X-Forwarded-Host: a.example:443"), False),
        (("Origin: https://b.example", "X-Forwarded-Host: b.example, a.example"), False),
        (("Origin: https://a.example", "X-Forwarded-Host: b.example, a.example"), True),
        (
            (
                "Origin: https://a.example",
                "X-Forwarded-Host: b.example",
                "X-Forwarded-Host: a.example",
            ),
            True,
        ),
        ((f"Origin: https://{HOST}", "X-Forwarded-Host: a.example"), False),
        (("Origin: null", "X-Forwarded-Host: null"), True),
    ],
)
def test_sec_fetch_site_decides_whether_a_request_is_cross_site(
    fields: tuple[str, ...], foreign: bool
) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        decision = decided(head(f"{method} /api/user HTTP/1.1", ADA, *fields))
        assert (decision.outcome.reason is Reason.CROSS_SITE) is foreign, method
        assert decision.outcome.status == (403 if foreign else 200)
    for method in ("GET", "HEAD"):
        decision = decided(head(f"{method} /api/user HTTP/1.1", ADA, *fields))
        assert decision.outcome.verdict is Verdict.AUTHENTICATED
    decision = decided(head("GET /api/events HTTP/1.1", ADA, *fields, *HANDSHAKE))
    if not any(field.startswith("Connection") for field in fields):
        assert (decision.outcome.reason is Reason.CROSS_SITE) is foreign


@pytest.mark.parametrize(
    ("fields", "values"),
    [
        (("Sec-Fetch-Site: cross-site",), "Sec-Fetch-Site is 'cross-site'"),
        (("Origin: https://evil.example",), f"Origin is 'https://evil.example', Host is '{HOST}'"),
        (
            ("Origin: null", "X-Forwarded-Host: a.example"),
            f"Origin is 'null', Host is '{HOST}', X-Forwarded-Host is 'a.example'",
        ),
        (("Origin: \u202e\u00e9",), f"Origin is '\\u202e\u00e9', Host is '{HOST}'"),
    ],
)
def test_a_cross_site_rejection_names_the_values_that_were_compared(
    fields: tuple[str, ...], values: str
) -> None:
    decision = decided(head("POST /api/user HTTP/1.1", ADA, *fields))
    assert decision.detail == f"the browser reports that another site sent it: {values}"


def test_a_cross_site_request_without_a_trusted_identity_is_forwarded() -> None:
    foreign = "Sec-Fetch-Site: cross-site"
    assert decided(head("POST /api/user HTTP/1.1", foreign)).outcome.verdict is Verdict.ANONYMOUS
    stripped = decided(head("POST /rest/ping HTTP/1.1", ADA, foreign))
    assert stripped.outcome.verdict is Verdict.STRIPPED
    untrusted = decided(head("POST /api/user HTTP/1.1", ADA, foreign), UNTRUSTED)
    assert untrusted.outcome.verdict is Verdict.STRIPPED


def test_the_forwarded_host_of_an_untrusted_peer_is_ignored() -> None:
    policy = Policy(whitelist=trusting("127.0.0.1"))
    fields = (ADA, "Origin: https://evil.example", "X-Forwarded-Host: evil.example")
    trusted = decided(head("POST /api/user HTTP/1.1", *fields), UNTRUSTED, policy)
    assert trusted.outcome.verdict is Verdict.AUTHENTICATED  # a trusted peer's is used
    assert decided(head("POST /x HTTP/1.1", *fields), EDGE, policy).identity is None


def test_an_untrusted_peers_forwarded_host_is_not_compared() -> None:
    fields = (ADA, "Origin: https://evil.example", "X-Forwarded-Host: evil.example")
    whole = head("POST /rest/createPlaylist HTTP/1.1", *fields)
    envelope = decided(whole, UNTRUSTED).block
    assert envelope is not None
    assert "X-Forwarded-Host" not in envelope.metadata.cross_site
    assert envelope.metadata.cross_site


@pytest.mark.parametrize("path", ["/rest/createPlaylist", "/_shim/api/x"])
def test_cross_site_requests_are_rejected_wherever_an_identity_is_trusted(path: str) -> None:
    policy = Policy(
        whitelist=trusting("127.0.0.2"),
        secrets=(b"s",),
        public_path_proof=Proof.SECRET,
        admin_groups=frozenset({"admins"}),
    )
    fields = (ADA, "X-Shim-Proxy-Secret: s", "X-authentik-groups: admins")
    assert decided(head(f"POST {path} HTTP/1.1", *fields), policy=policy).outcome.status == 200
    foreign = decided(
        head(f"POST {path} HTTP/1.1", *fields, "Origin: https://evil.example"), policy=policy
    )
    assert foreign.outcome.reason is Reason.CROSS_SITE


# upgrades


def test_a_complete_websocket_handshake_is_forwarded() -> None:
    for line in (
        HANDSHAKE,
        ("connection: keep-alive, UPGRADE", "upgrade: WebSocket", *HANDSHAKE[2:]),
    ):
        decision = decided(head("GET /jellyfin/socket HTTP/1.1", *line))
        assert decision.outcome.status == 200
        assert decision.upgrade
        rendered = decision.render_head()
        assert rendered.count(b"Connection: Upgrade\r\nUpgrade: websocket\r\n") == 1
        assert b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n" in rendered
        assert b"Sec-WebSocket-Version: 13\r\n" in rendered


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("GET /x HTTP/1.1", [*without("Sec-WebSocket-Key"), "Upgrade: h2c"]),
        ("GET /x HTTP/1.1", without("Sec-WebSocket-Key")),
        ("GET /x HTTP/1.1", [*without("Sec-WebSocket-Key"), "Sec-WebSocket-Key:"]),
        ("GET /x HTTP/1.1", [*HANDSHAKE, "Sec-WebSocket-Key: again"]),
        ("GET /x HTTP/1.1", without("Sec-WebSocket-Version")),
        ("GET /x HTTP/1.1", [*without("Sec-WebSocket-Version"), "Sec-WebSocket-Version: 12"]),
        ("GET /x HTTP/1.1", [*HANDSHAKE, "Sec-WebSocket-Version: 13"]),
        ("GET /x HTTP/1.1", [*HANDSHAKE, "Content-Length: 0"]),
        ("GET /x HTTP/1.1", [*HANDSHAKE, "Content-Length: 5"]),
        ("GET /x HTTP/1.1", [*HANDSHAKE, "Transfer-Encoding: chunked"]),
        ("POST /x HTTP/1.1", [*HANDSHAKE]),
        ("HEAD /x HTTP/1.1", [*HANDSHAKE]),
        ("OPTIONS /x HTTP/1.1", [*HANDSHAKE]),
    ],
)
def test_an_incomplete_websocket_handshake_is_rejected(line: str, fields: list[str]) -> None:
    for peer in (EDGE, UNTRUSTED):
        decision = decided(head(line, *fields), peer)
        assert (decision.outcome.reason, decision.outcome.status) == (Reason.UPGRADE_REJECTED, 400)


@pytest.mark.parametrize(
    "fields",
    [
        without("Connection"),
        [*without("Connection"), "Connection: keep-alive"],
        [*without("Connection"), "Connection: upgraded"],
        ["Upgrade: h2c"],
        # nginx with a Connection header that is always there
        ["Connection: upgrade"],
        ["Connection: upgrade, close"],
        # Java's client, curl --http2, and offers of something else
        ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQ"],
        [*without("Upgrade"), "Upgrade: h2c"],
        [*without("Upgrade"), "Upgrade:"],
        [*without("Upgrade"), "Upgrade: TLS/1.0"],
        [*without("Upgrade"), "Upgrade: websocket/13"],
        ["Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQ"],
    ],
)
def test_an_upgrade_to_another_protocol_is_ignored(fields: list[str]) -> None:
    for line in ("POST /x HTTP/1.1", "GET /x HTTP/1.1", "GET /x HTTP/1.0"):
        decision = decided(head(line, *fields))
        assert decision.outcome.status == 200
        assert not decision.upgrade
        rendered = decision.render_head().lower()
        assert b"upgrade" not in rendered
        assert b"http2-settings" not in rendered


@pytest.mark.parametrize("offer", ["h2c, websocket", "websocket , h2c", "WebSocket,websocket"])
def test_a_list_of_upgrades_that_names_websocket_is_a_handshake(offer: str) -> None:
    decision = decided(head("GET /x HTTP/1.1", *without("Upgrade"), f"Upgrade: {offer}"))
    assert decision.upgrade
    assert decision.render_head().count(b"Upgrade: websocket\r\n") == 1


def test_an_upgrade_in_http_1_0_is_ignored() -> None:
    decision = decided(head("GET /x HTTP/1.0", *HANDSHAKE))
    assert (decision.outcome.status, decision.upgrade) == (200, False)
    assert b"upgrade" not in decision.render_head().lower()


# the call that creates the first admin


@pytest.mark.parametrize("peer", [EDGE, UNTRUSTED])
@pytest.mark.parametrize("fields", [(), (ADA,)])
def test_create_admin_is_disabled_while_the_shim_provisions_accounts(
    peer: object, fields: tuple[str, ...]
) -> None:
    source = EDGE if peer is EDGE else UNTRUSTED
    for path in ("/auth/createAdmin", "/auth/CreateAdmin", "/auth/createAdmin/?x"):
        decision = decided(head(f"POST {path} HTTP/1.1", *fields), source)
        assert decision.outcome.reason is Reason.CREATE_ADMIN_DISABLED
        assert decision.outcome.status == 403
    opened = Policy(whitelist=trusting("127.0.0.2"), create_admin_disabled=False)
    assert decided(head("POST /auth/createAdmin HTTP/1.1"), source, opened).outcome.status == 200
    assert decided(head("GET /auth/createAdmin HTTP/1.1"), source).outcome.status == 200
    assert decided(head("POST /auth/login HTTP/1.1"), source).outcome.status == 200


# which rejection takes precedence


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (head("GET // HTTP/1.1", ADA, ADA, host=None), Reason.AMBIGUOUS_TARGET),
        (head("GET /app/ HTTP/1.1", ADA, ADA, host=None), Reason.AMBIGUOUS_HOST),
        (head("GET /app/ HTTP/1.1", ADA, ADA, "Content_Length: 1"), Reason.FRAMING_ALIAS),
        (head("GET /app/ HTTP/1.1", ADA, ADA, "Content-Length: x"), Reason.AMBIGUOUS_FRAMING),
        (head("POST /app/ HTTP/1.1", ADA, ADA, *HANDSHAKE), Reason.UPGRADE_REJECTED),
    ],
)
def test_an_ambiguous_request_is_rejected_before_its_peer_is_evaluated(
    text: bytes, expected: Reason
) -> None:
    assert decided(text).outcome.reason is expected


def test_a_rejection_contains_no_data_of_the_request() -> None:
    for text in (
        head("GET /app/ HTTP/1.1", "X-authentik-username: hunter2\u0085"),
        head("GET /app/%zzhunter2 HTTP/1.1"),
        head("GET /app/ HTTP/1.1", "hunter2"),
        head("GET /app/ HTTP/1.1", host="hunter2 x"),
    ):
        decision = decided(text)
        assert decision.outcome.verdict is Verdict.REJECTED
        assert "hunter2" not in decision.detail


@pytest.mark.parametrize(
    ("line", "requested"),
    [
        ("GET /a b HTTP/1.1", (b"GET", b"/a")),
        ("TRACE /a HTTP/1.1", (b"TRACE", b"/a")),
        ("GET http://h/a b HTTP/1.1", (b"GET", b"http://h/a")),
        ("GET junk HTTP/1.1", (b"", b"")),
        ("GET", (b"", b"")),
        ("\x16\x03 /a HTTP/1.1", (b"", b"")),
    ],
)
def test_method_and_target_of_a_rejected_request_line_are_reported_if_it_has_them(
    line: str, requested: tuple[bytes, bytes]
) -> None:
    decision = decided(head(line, ADA))
    assert decision.outcome.verdict is Verdict.REJECTED and decision.request_line is None
    assert decision.requested == requested


# the table


@pytest.mark.parametrize(("table", "row"), [(Reason, reasons._Row), (Failure, failures._Row)])
def test_the_attributes_of_a_member_are_the_values_of_its_row(
    table: type[reasons.RowEnum], row: type[Any]
) -> None:
    assert tuple(table.__annotations__) == row._fields[1:]


def test_every_reason_has_one_verdict_one_status_and_a_row_for_each_class() -> None:
    assert len(OUTCOMES) == len(Reason) * len(PathClass)
    assert [row.index for row in OUTCOMES] == list(range(len(OUTCOMES)))
    for reason in Reason:
        rows = [outcome(reason, path_class) for path_class in PathClass]
        assert len({(row.verdict, row.status) for row in rows}) == 1
        assert [row.path_class for row in rows] == list(PathClass)
        rejected = rows[0].verdict is Verdict.REJECTED
        assert (rows[0].status == 200) == (not rejected or reason in SUBSONIC_REASONS)
        assert reason == reason.lower().replace(" ", "_")


def test_equal_outcomes_are_the_same_object() -> None:
    first = decided(head("GET /app/ HTTP/1.1", ADA)).outcome
    assert isinstance(first, Outcome)
    assert OUTCOMES[first.index] is first


def test_a_changed_policy_has_the_next_generation() -> None:
    renewed = POLICY.next_version(suspended=True)
    assert (renewed.number, renewed.suspended) == (POLICY.number + 1, True)
    assert renewed.whitelist is POLICY.whitelist


@pytest.mark.parametrize("path", ["/rest/createPlaylist?name=x", "/REST/scrobble", "/rest/getUser"])
def test_a_get_that_changes_state_is_rejected_cross_site(path: str) -> None:
    policy = Policy(
        whitelist=trusting("127.0.0.2"),
        secrets=(b"a-secret-of-the-edge",),
        public_path_proof=Proof.SECRET,
    )

    def reason_for(*fields: str) -> Reason:
        proof = "X-Shim-Proxy-Secret: a-secret-of-the-edge"
        return decided(
            head(f"GET {path} HTTP/1.1", ADA, proof, *fields), policy=policy
        ).outcome.reason

    assert reason_for() is Reason.PROXY_SECRET
    assert reason_for("Sec-Fetch-Site: same-origin") is Reason.PROXY_SECRET
    assert reason_for("Sec-Fetch-Site: cross-site") is Reason.CROSS_SITE
    assert reason_for("Origin: https://evil.example") is Reason.CROSS_SITE
