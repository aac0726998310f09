"""What `explain --json` prints: the shape that scripts rely on."""

from __future__ import annotations

import json

from shim.trust.peers import parse_peer
from shim.trust.policy import Policy
from tests.support.decisions import ADA, ANYONE, decided, head, trusting

KEYS = [
    "verdict",
    "status",
    "reason",
    "peer",
    "peer_trusted",
    "path_class",
    "identity",
    "forwarded_headers",
    "removed_headers",
    "notes",
]


def test_a_trusted_request_is_told_whole() -> None:
    told = decided(
        head(
            "GET /app/?x=1 HTTP/1.1",
            "Accept: */*",
            ADA,
            "X-authentik-groups: a|b",
            "Remote-User: eve",
            "Connection: keep-alive",
        )
    ).explain()
    assert list(told) == KEYS
    assert told == {
        "verdict": "authenticated",
        "status": None,
        "reason": "trusted_peer",
        "peer": "127.0.0.2",
        "peer_trusted": True,
        "path_class": "protected",
        "identity": {
            "username": "ada",
            "name": None,
            "email": None,
            "groups": ("a", "b"),
            "uid": None,
            "uid_source": "",
        },
        "forwarded_headers": told["forwarded_headers"],
        "removed_headers": told["removed_headers"],
        "notes": ["Remote-User was sent from outside: spoofed"],
    }
    assert sorted(map(tuple, told["forwarded_headers"])) == [  # type: ignore[call-overload]
        ("Accept", "*/*"),
        ("Host", "music.example.com"),
        ("Remote-User", "ada"),
        ("X-Forwarded-For", "127.0.0.2"),
        ("X-Forwarded-Host", "music.example.com"),
        ("X-Forwarded-Proto", "http"),
        ("X-Real-IP", "127.0.0.2"),
    ]
    assert sorted(told["removed_headers"]) == [  # type: ignore[call-overload]
        "Connection",
        "Remote-User",
        "X-authentik-groups",
        "X-authentik-username",
    ]


def test_a_stripped_request_says_what_was_spoofed() -> None:
    told = decided(
        head("GET /rest/ping HTTP/1.1", "X_authentik_username: admin", "X-Empty:"), ANYONE
    ).explain()
    assert list(told) == KEYS
    assert (told["verdict"], told["reason"]) == ("stripped", "untrusted_peer")
    assert (told["status"], told["identity"], told["path_class"]) == (None, None, "public")
    assert told["removed_headers"] == ["X_authentik_username"]
    assert told["notes"] == [
        "X_authentik_username is an alias of a header that carries an identity: spoofed"
    ]
    assert ["X-Empty", ""] in told["forwarded_headers"]  # type: ignore[operator]


def test_a_rejected_request_has_a_status_and_forwards_nothing() -> None:
    told = decided(head("GET /app/ HTTP/1.1", ADA, ADA)).explain()
    assert list(told) == KEYS
    assert (told["verdict"], told["status"]) == ("rejected", 400)
    assert (told["identity"], told["forwarded_headers"]) == (None, [])
    assert told["notes"] == ["x-authentik-username was sent twice"]


def test_a_head_that_can_not_be_read_is_told_in_the_same_shape() -> None:
    told = decided(b"\xff\xfe").explain()
    assert list(told) == KEYS
    assert (told["verdict"], told["status"], told["path_class"]) == ("rejected", 400, "protected")
    assert told["removed_headers"] == []


def test_every_explanation_is_json() -> None:
    policy = Policy(whitelist=trusting("@"))
    for text in (
        head("GET /app/ HTTP/1.1", b"X-authentik-username: \xc3\x84da", b"X-Odd: \xff\xfe"),
        head("GET /rest/ping HTTP/1.1", b"X-authentik-username: \xff"),
        head("GET /%ff HTTP/1.1"),
    ):
        told = json.loads(json.dumps(decided(text, parse_peer("@"), policy).explain()))
        assert list(told) == KEYS
        assert told["peer"] == "@"


def test_the_listeners_scheme_is_told() -> None:
    told = decided(head("GET / HTTP/1.1"), ANYONE, scheme=b"https").explain()
    assert ["X-Forwarded-Proto", "https"] in told["forwarded_headers"]  # type: ignore[operator]
