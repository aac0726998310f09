"""Tokens of the provider at a running shim."""

from __future__ import annotations

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shim.trust.reasons import Reason
from tests.support.jwt_minting import SECRET, claims, encoded, jwk, pem, rsa_key, token
from tests.support.provider import Provider
from tests.support.recorder import Recorder
from tests.support.shim_process import (
    build_request,
    edge_address,
    run_shim,
    untrusted_address,
)
from tests.support.shim_settings import checks, command, eventually

APP = "GET /app/ HTTP/1.1"
_PATIENCE = 10.0


def request_with_token(text: str, *fields: str, line: str = APP) -> bytes:
    return build_request(line, f"X-authentik-jwt: {text}", *fields)


def test_a_verified_token_names_the_user_and_is_not_forwarded(
    upstream: Recorder, issuer: Provider, tmp_path: Path
) -> None:
    with run_shim(upstream.port, tmp_path, **issuer.settings()) as shim:
        response = shim.request(
            request_with_token(issuer.token(), "X-authentik-groups: family|admins"), edge_address()
        )
        assert response.status == 200
        (received,) = upstream.requested
        assert received.values("Remote-User") == ["ada"]
        assert b"eyJ" not in received.head
        assert issuer.requests == 1
        (fetched,) = [line for line in shim.lines if line.get("kind") == "key_set_fetched"]
        assert "rsa-0 (RS256)" in str(fetched["keys"])
        assert checks(shim)["keys"]["state"] == "ok"


def attacks(by: Provider) -> dict[str, tuple[str, str]]:
    """Forged tokens and tokens for another purpose, and the reason why each is rejected."""
    now = int(time.time())
    entries = claims(iat=now - 5, exp=now + 300)
    assert rsa_key() is by.keys["rsa-0"], "the token is valid apart from one fault"
    closed_port = "http://127.0.0.1:9/"
    public = pem(rsa_key())
    return {
        "alg none": (f"{encoded({'alg': 'none'})}.{encoded(entries)}.", "jwt_invalid"),
        "the public key as the secret": (
            token(entries, key=public, algorithm="HS256", kid=None),
            "jwt_invalid",
        ),
        "any secret": (token(entries, key=SECRET, algorithm="HS256"), "jwt_invalid"),
        "another key under a known name": (by.token(key=rsa_key(1)), "jwt_invalid"),
        "a key that it brings": (
            token(entries, key=rsa_key(1), jwk=jwk(rsa_key(1))),
            "jwt_invalid",
        ),
        "an address that it brings": (
            token(entries, key=rsa_key(1), jku=closed_port, x5u=closed_port),
            "jwt_invalid",
        ),
        "another issuer": (by.token(iss="https://evil.example/"), "jwt_invalid"),
        "another audience": (by.token(aud="another-client"), "jwt_invalid"),
        "no end": (by.token(exp=None), "jwt_invalid"),
        "a logout token": (token(entries, typ="logout+jwt"), "jwt_invalid"),
        "expired": (by.token(exp=now - 1), "jwt_expired"),
        "not yet": (by.token(nbf=now + 1000), "jwt_not_yet_valid"),
        "no name": (by.token(preferred_username=None), "identity_incomplete"),
        "a control": (by.token(preferred_username="a\r\nRemote-User: b"), "identity_invalid"),
        "nothing": ("no-token-at-all", "jwt_invalid"),
    }


def test_each_forged_token_is_rejected_and_never_logged(
    upstream: Recorder, issuer: Provider, tmp_path: Path
) -> None:
    with run_shim(upstream.port, tmp_path, **issuer.settings()) as shim:
        for name, (text, reason) in attacks(issuer).items():
            peer = edge_address()
            response = shim.request(
                request_with_token(text, "X-authentik-meta-jwks: http://127.0.0.1:9/jwks"), peer
            )
            (line,) = shim.decided(peer, upstream)
            assert response.status == Reason(reason).status, name
            assert (line["verdict"], line["status"]) == ("rejected", response.status), name
            assert line["reason"] == reason, name
            assert text.encode() not in response.raw
            assert text not in json.dumps(shim.lines, default=str), name
        assert upstream.requested == []
        assert issuer.requests == 1, "none of them triggers a fetch"


def test_headers_that_contradict_the_token_are_rejected(
    upstream: Recorder, issuer: Provider, tmp_path: Path
) -> None:
    with run_shim(upstream.port, tmp_path, **issuer.settings()) as shim:
        peer = edge_address()
        response = shim.request(
            request_with_token(issuer.token(), "X-authentik-username: root"), peer
        )
        assert response.status == 401
        (line,) = shim.decided(peer, upstream)
        assert line["reason"] == "jwt_claim_mismatch"
        assert "'root'" in str(line["notes"]) and "'ada'" in str(line["notes"])
        peer = edge_address()
        response = shim.request(
            request_with_token(issuer.token(), "X-authentik-groups: family|admins|root"), peer
        )
        assert response.status == 401
        assert upstream.requested == []


def test_an_expired_token_is_rejected_on_an_open_connection(
    upstream: Recorder, issuer: Provider, tmp_path: Path
) -> None:
    with run_shim(upstream.port, tmp_path, **issuer.settings()) as shim:
        text = issuer.token(exp=time.time() + 2.5)
        head = f"{APP}\r\nHost: h\r\nX-authentik-jwt: {text}\r\n\r\n".encode()
        with shim.connect(edge_address()) as client:
            statuses: list[bytes] = []
            end = time.monotonic() + _PATIENCE
            while b"401" not in statuses:
                assert time.monotonic() < end, statuses
                client.sendall(head)
                response = b""
                while b"\r\n\r\n" not in response:
                    response += client.recv(65536)
                statuses.append(response.split(b" ")[1])
                time.sleep(0.02)
        assert statuses[:4] == [b"200"] * 4, "the result is cached"
        assert set(statuses) == {b"200", b"401"}
        assert shim.wait_for_line(reason="jwt_expired")


def test_rotating_keys_under_load_rejects_no_user(
    upstream: Recorder, issuer: Provider, tmp_path: Path
) -> None:
    with (
        run_shim(upstream.port, tmp_path, **issuer.settings()) as shim,
        ThreadPoolExecutor(8) as pool,
    ):
        peer = edge_address()
        old = [issuer.token(sub=str(n)) for n in range(8)]
        assert {
            a.status for a in pool.map(lambda t: shim.request(request_with_token(t), peer), old)
        } == {200}
        # The provider signs with the new key at once, and publishes both for a while.
        issuer.keys["rsa-1"] = rsa_key(1)
        new = [issuer.token(kid="rsa-1", sub=str(n)) for n in range(32)]
        mixed = [text for pair in zip(new, old * 4, strict=True) for text in pair]
        statuses = [
            a.status for a in pool.map(lambda t: shim.request(request_with_token(t), peer), mixed)
        ]
        assert statuses == [200] * 64
        assert issuer.requests == 2
        changed = shim.wait_for_line(kind="policy_changed", subject="keys")
        assert "rsa-1" in str(changed["added"])
        # The old key is removed, and with it all of its tokens, cached or not.
        del issuer.keys["rsa-0"]
        issuer.keys["rsa-2"] = rsa_key(2)
        shim.process.send_signal(signal.SIGHUP)
        end = time.monotonic() + _PATIENCE
        while shim.request(request_with_token(issuer.token(kid="rsa-2")), peer).status != 200:
            assert time.monotonic() < end
            time.sleep(0.1)
        for text in old:
            assert shim.request(request_with_token(text), peer).status == 401


def test_a_key_that_is_replaced_under_its_kid_is_used_after_the_next_fetch(
    upstream: Recorder, issuer: Provider, tmp_path: Path
) -> None:
    settings = issuer.settings(JWKS_REFRESH_SECONDS="1")
    with run_shim(upstream.port, tmp_path, **settings) as shim:
        old = issuer.token()
        assert shim.request(request_with_token(old), edge_address()).status == 200
        issuer.keys = {"rsa-0": rsa_key(1)}
        eventually(
            lambda: shim.request(request_with_token(issuer.token()), edge_address()).status, 200
        )
        assert shim.request(request_with_token(old), edge_address()).status == 401


def test_forged_key_ids_cause_a_limited_number_of_fetches(
    upstream: Recorder, issuer: Provider, tmp_path: Path
) -> None:
    with run_shim(upstream.port, tmp_path, **issuer.settings()) as shim:
        peer, valid = edge_address(), issuer.token()
        payload = encoded(claims(iat=None, exp=2_000_000_000))
        for number in range(300):
            forged = f"{encoded({'alg': 'RS256', 'kid': f'k{number}'})}.{payload}.AAAA"
            assert shim.request(request_with_token(forged), peer).status == 401
            if number % 30 == 0:
                assert shim.request(request_with_token(valid), peer).status == 200
        assert issuer.requests == 2, "one at the start, one for all of them"
        assert shim.wait_for_line(reason="jwt_unknown_key")


def test_no_identity_is_trusted_until_the_key_set_is_available(
    upstream: Recorder, issuer: Provider, tmp_path: Path
) -> None:
    issuer.status = 503
    with run_shim(upstream.port, tmp_path, **issuer.settings(JWKS_REFRESH_SECONDS="1")) as shim:
        assert shim.request(request_with_token(issuer.token()), edge_address()).status == 401
        keys = checks(shim)["keys"]
        assert keys["state"] == "failing" and "503" in keys["detail"]
        failed = shim.wait_for_line(kind="key_set_failed")
        assert failed["severity"] == "error"
        issuer.status = 200
        end = time.monotonic() + _PATIENCE
        while shim.request(request_with_token(issuer.token()), edge_address()).status != 200:
            assert time.monotonic() < end
            time.sleep(0.1)
        assert checks(shim)["keys"]["state"] == "ok"
        # Down again: the fetched key set remains valid.
        issuer.status = 503
        before = issuer.requests
        unknown = token(claims(iat=None, exp=2_000_000_000), key=rsa_key(1), kid="unknown")
        while issuer.requests == before:
            assert shim.request(request_with_token(unknown), edge_address()).status == 401
            assert time.monotonic() < end
        assert shim.request(request_with_token(issuer.token()), edge_address()).status == 200
        assert checks(shim)["keys"]["state"] == "warning"


def test_a_native_client_can_use_a_bearer_token_on_a_public_path(
    upstream: Recorder, issuer: Provider, tmp_path: Path
) -> None:
    settings = issuer.settings(JWT_BEARER="true", PUBLIC_PATH_PROOF="jwt")
    with run_shim(upstream.port, tmp_path, **settings) as shim:
        line = "GET /rest/ping?v=1.16.1&c=x HTTP/1.1"
        response = shim.request(
            build_request(line, f"Authorization: Bearer {issuer.token()}"), edge_address()
        )
        assert response.status == 200
        (received,) = upstream.requested
        assert received.values("Remote-User") == ["ada"]
        assert received.values("Authorization") == []
        upstream.clear()
        spoofed = build_request(line, "X-authentik-username: root", "X-authentik-uid: 1")
        assert shim.request(spoofed, edge_address()).status == 200
        assert (
            shim.request(request_with_token(issuer.token(), line=line), untrusted_address()).status
            == 200
        )
        share = build_request("GET /share/x HTTP/1.1", f"Authorization: Bearer {issuer.token()}")
        assert shim.request(share, edge_address()).status == 200
        assert [one.values("Remote-User") for one in upstream.requested] == [[], [], []]
        forged = build_request(line, f"Authorization: Bearer {issuer.token(key=rsa_key(1))}")
        response = shim.request(forged, edge_address())
        assert response.status == 401 and b"subsonic-response" in response.raw


@pytest.mark.parametrize("name", ["check", "explain"])
def test_the_commands_check_the_key_set(
    issuer: Provider, upstream: Recorder, tmp_path: Path, name: str
) -> None:
    settings = {
        "UPSTREAM": f"http://127.0.0.1:{upstream.port}",
        "PROVISIONING": "false",
        "REVERSE_PROXY_WHITELIST": "127.0.0.2",
        **issuer.settings(),
    }
    arguments = ["check", "--json"]
    if name == "explain":
        header = f"X-authentik-jwt: {issuer.token()}"
        arguments = ["explain", "--peer", "127.0.0.2", "--path", "/app/", "-H", header, "--json"]
    done = command(tmp_path, *arguments, settings=settings)
    assert done.returncode == 0, done.stderr
    explained = json.loads(done.stdout)
    if name == "check":
        assert explained["checks"]["keys"]["state"] == "ok"
    else:
        assert explained["reason"] == "verified_jwt"
        assert "eyJ" not in done.stdout
