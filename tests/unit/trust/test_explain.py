"""The output of `explain --json`: the format that scripts rely on."""

from __future__ import annotations

import json

from shim.trust.peers import parse_peer
from shim.trust.policy import Policy
from shim.trust.reasons import Reason
from tests.support.decisions import ADA, UNTRUSTED, decided, head, trusting

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


def test_a_trusted_request_is_explained_completely() -> None:
    explained = decided(
        head(
            "GET /app/?x=1 HTTP/1.1",
            "Accept: */*",
            ADA,
            "X-authentik-groups: a|b",
            "Remote-User: eve",
            "Connection: keep-alive",
        )
    ).explain()
    assert list(explained) == KEYS
    assert explained == {
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
        "forwarded_headers": explained["forwarded_headers"],
        "removed_headers": explained["removed_headers"],
        "notes": ["Remote-User was sent from outside: spoofed"],
    }
    assert sorted(map(tuple, explained["forwarded_headers"])) == [  # type: ignore[call-overload]
        ("Accept", "*/*"),
        ("Host", "music.example.com"),
        ("Remote-User", "ada"),
        ("X-Forwarded-For", "127.0.0.2"),
        ("X-Forwarded-Host", "music.example.com"),
        ("X-Forwarded-Proto", "http"),
        ("X-Real-IP", "127.0.0.2"),
    ]
    assert sorted(explained["removed_headers"]) == [  # type: ignore[call-overload]
        "Connection",
        "Remote-User",
        "X-authentik-groups",
        "X-authentik-username",
    ]


def test_a_stripped_request_lists_the_spoofed_headers() -> None:
    explained = decided(
        head("GET /rest/ping HTTP/1.1", "X_authentik_username: admin", "X-Empty:"), UNTRUSTED
    ).explain()
    assert list(explained) == KEYS
    assert (explained["verdict"], explained["reason"]) == ("stripped", "untrusted_peer")
    assert (explained["status"], explained["identity"], explained["path_class"]) == (
        None,
        None,
        "public",
    )
    assert explained["removed_headers"] == ["X_authentik_username"]
    assert explained["notes"] == [
        "X_authentik_username is an alias of a header that carries an identity: spoofed"
    ]
    assert ["X-Empty", ""] in explained["forwarded_headers"]  # type: ignore[operator]


def test_a_rejected_request_has_a_status_and_forwards_nothing() -> None:
    explained = decided(head("GET /app/ HTTP/1.1", ADA, ADA)).explain()
    assert list(explained) == KEYS
    assert (explained["verdict"], explained["status"]) == ("rejected", 400)
    assert (explained["identity"], explained["forwarded_headers"]) == (None, [])
    assert explained["notes"] == ["x-authentik-username was sent twice"]


def test_a_malformed_head_is_explained_in_the_same_format() -> None:
    explained = decided(b"\xff\xfe").explain()
    assert list(explained) == KEYS
    assert (explained["verdict"], explained["status"], explained["path_class"]) == (
        "rejected",
        400,
        "protected",
    )
    assert explained["removed_headers"] == []


def test_every_explanation_is_json() -> None:
    policy = Policy(whitelist=trusting("@"))
    for text in (
        head("GET /app/ HTTP/1.1", b"X-authentik-username: \xc3\x84da", b"X-Odd: \xff\xfe"),
        head("GET /rest/ping HTTP/1.1", b"X-authentik-username: \xff"),
        head("GET /%ff HTTP/1.1"),
    ):
        explained = json.loads(json.dumps(decided(text, parse_peer("@"), policy).explain()))
        assert list(explained) == KEYS
        assert explained["peer"] == "@"


def test_the_scheme_of_the_listener_is_shown() -> None:
    explained = decided(head("GET / HTTP/1.1"), UNTRUSTED, scheme=b"https").explain()
    assert ["X-Forwarded-Proto", "https"] in explained["forwarded_headers"]  # type: ignore[operator]


def test_every_reason_is_explained_in_words() -> None:
    texts = [reason.text for reason in Reason]
    assert all(len(text.split()) >= 3 for text in texts)
    assert len(set(texts)) == len(texts)
