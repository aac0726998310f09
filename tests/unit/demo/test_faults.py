"""A step passes only if every expectation is met."""

from __future__ import annotations

import json
from dataclasses import replace

import httpx
import pytest

from demo.environment import EntryPoint
from demo.scenario import (
    AccountState,
    Expectation,
    RequestSpec,
    Response,
    Step,
    StepResult,
    faults,
    identity_fields,
    read_response,
)
from demo.sidecar import ShimDecision
from shim.trust.reasons import PathClass, Reason, Verdict

EXPECTATION = Expectation(
    Reason.PUBLIC_PATH,
    (),
    200,
    contains=("error 40",),
    excludes=("admin",),
    accounts=(
        ("mallory", None),
        ("dora", AccountState("Dora", "dora@example.org", is_admin=True)),
    ),
)
STEP = Step(
    "a title",
    "a reason",
    RequestSpec("somebody", "127.0.0.9", EntryPoint.EDGE, "/rest/ping"),
    EXPECTATION,
)
EXPECTED_RESULT = StepResult(
    STEP,
    Response(200, "Subsonic: error 40, no"),
    ShimDecision(Verdict.STRIPPED, Reason.PUBLIC_PATH, PathClass.PUBLIC),
    (),
    EXPECTATION.accounts,
)


def _page(**auth: object) -> bytes:
    """The web app's page for a signed-in user."""
    config = json.dumps(json.dumps({"auth": auth}))
    return f"<title>T</title>\n  window.__APP_CONFIG__ = {config}\n".encode()


def test_a_step_that_meets_every_expectation_has_no_faults() -> None:
    assert list(faults(EXPECTED_RESULT)) == []


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (
            {"decision": ShimDecision(Verdict.ANONYMOUS, Reason.NO_IDENTITY, PathClass.PUBLIC)},
            "the shim decided anonymous (no_identity), not public_path",
        ),
        (
            {"decision": ShimDecision(Verdict.AUTHENTICATED, Reason.PUBLIC_PATH, PathClass.PUBLIC)},
            "the shim calls public_path authenticated",
        ),
        ({"decision": None}, "the shim decided nothing, not public_path"),
        (
            {"seen_identity": (("Remote-User", "admin"),)},
            "Navidrome saw Remote-User: admin, not no identity",
        ),
        ({"seen_identity": None}, "Navidrome saw no request, not no identity"),
        (
            {"response": Response(500, "Subsonic: error 40, no")},
            "the response's status is 500, not 200",
        ),
        ({"response": Response(200, "Subsonic: ok")}, "the response does not contain 'error 40'"),
        (
            {"response": Response(200, "error 40, dear admin")},
            "the response contains 'admin'",
        ),
        (
            {"accounts": (("mallory", AccountState("mallory")), EXPECTATION.accounts[1])},
            "the account mallory is AccountState(name='mallory', email='', is_admin=False), not None",
        ),
        (
            {
                "accounts": (
                    EXPECTATION.accounts[0],
                    ("dora", AccountState("Dora", "dora@example.org")),
                )
            },
            "the account dora is "
            "AccountState(name='Dora', email='dora@example.org', is_admin=False), "
            "not AccountState(name='Dora', email='dora@example.org', is_admin=True)",
        ),
    ],
)
def test_an_unmet_expectation_is_named(wrong: dict[str, object], named: str) -> None:
    result = replace(EXPECTED_RESULT, **wrong)  # type: ignore[arg-type]
    assert list(faults(result)) == [named]


def test_every_field_that_normalizes_to_an_identity_is_found() -> None:
    text = (
        ("Host", "music.example.org"),
        ("User-Agent", "curl"),
        ("X_Authentik_Username", "a"),
        ("x-AUTHENTIK-uid", "b"),
        ("X.Authentik~Groups", "c"),
        ("Remote_User", "d"),
        ("remote-user", "e"),
        ("X-Real-IP", "127.0.0.9"),
    )
    assert identity_fields(text) == text[2:7]


@pytest.mark.parametrize(
    ("kind", "body", "text"),
    [
        ("application/json", b'{"a": "\xc3\xa4"}', '{"a": "ä"}'),
        ("application/json", b'{"a": ', '{"a": '),
        (
            "application/json",
            b'{"subsonic-response": {"status": "failed", "error": {"code": 40, "message": "no"}}}',
            "Subsonic: error 40, no",
        ),
        (
            "application/json",
            b'{"subsonic-response": {"status": "ok", "version": "1.16.1", "users": 3}}',
            'Subsonic: ok, {"users": 3}',
        ),
        (
            "text/html; charset=utf-8",
            b"<title>403 Forbidden</title><p>Don&#x27;t</p>",
            "page “403 Forbidden”: Don't",
        ),
        (
            "text/html",
            _page(username="eve", name="Eve", isAdmin=False),
            "page “T”, logged in as eve (Eve), a regular user",
        ),
        (
            "text/html",
            _page(username="root", name="The Root", isAdmin=True),
            "page “T”, logged in as root (The Root), an admin",
        ),
        (
            "text/html",
            b'<title>T</title>\n  window.__APP_CONFIG__ = "{}"\n',
            "page “T”, no user logged in",
        ),
        ("text/plain", b"Share not found", "Share not found"),
        (
            "image/jpeg",
            b"\xff\xd8\xff\xe0and more",
            r"image/jpeg: 12 bytes, beginning b'\xff\xd8\xff\xe0'",
        ),
    ],
)
def test_a_response_is_described_by_its_kind(kind: str, body: bytes, text: str) -> None:
    response = httpx.Response(200, headers={"Content-Type": kind}, content=body)
    assert read_response(response) == Response(200, text)
