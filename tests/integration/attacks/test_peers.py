"""Peers that imitate the edge."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import pytest

from tests.support.recorder import Recorder, recorder
from tests.support.shim_process import (
    EDGE,
    UNTRUSTED,
    Shim,
    assert_no_identity,
    assert_rejected,
    assert_stripped,
    build_request,
    edge_address,
    run_shim,
    untrusted_address,
)

ADMIN = "X-authentik-username: admin"


def test_only_the_edge_is_trusted(shim: Shim, upstream: Recorder) -> None:
    assert shim.request(build_request("GET /app/ HTTP/1.1", ADMIN), EDGE).statuses == [200]
    assert shim.decided(EDGE, upstream) == []
    (trusted_request,) = upstream.requested
    assert trusted_request.values("Remote-User") == ["admin"]
    upstream.clear()
    assert_stripped(
        shim, upstream, shim.request(build_request("GET /app/ HTTP/1.1", ADMIN)), UNTRUSTED
    )


@pytest.mark.parametrize(
    "field",
    [
        "X-Forwarded-For: 127.0.0.2",
        "X-Forwarded-For: 127.0.0.2, 127.0.0.2",
        "X_Forwarded_For: 127.0.0.2",
        "Forwarded: for=127.0.0.2",
        "X-Real-IP: 127.0.0.2",
        "True-Client-IP: 127.0.0.2",
        "CF-Connecting-IP: 127.0.0.2",
        "X-Client-IP: 127.0.0.2",
        "X-Cluster-Client-IP: 127.0.0.2",
        "X-Forwarded-Host: 127.0.0.2",
    ],
)
def test_a_forwarded_address_of_the_trusted_proxy_is_not_trusted(
    shim: Shim, upstream: Recorder, field: str
) -> None:
    untrusted_peer = untrusted_address()
    response = shim.request(build_request("GET /app/ HTTP/1.1", ADMIN, field), untrusted_peer)
    received = assert_stripped(shim, upstream, response, untrusted_peer)
    assert b"127.0.0.2" not in received.head
    assert received.values("X-Real-IP") == [untrusted_peer]
    assert received.values("X-Forwarded-For") == [untrusted_peer]


def assert_no_peer_trusted(shim: Shim, upstream: Recorder) -> None:
    for peer in (EDGE, UNTRUSTED):
        upstream.clear()
        response = shim.request(
            build_request("GET /app/ HTTP/1.1", ADMIN, "Remote-User: admin"), peer
        )
        assert_stripped(shim, upstream, response, peer)
    loaded = shim.wait_for_line(kind="configuration_loaded")
    assert any("WHITELIST" in warning for warning in loaded["warnings"])


def test_an_empty_whitelist_trusts_no_peer(upstream: Recorder, tmp_path: Path) -> None:
    with run_shim(upstream.port, tmp_path, REVERSE_PROXY_WHITELIST="") as shim:
        assert_no_peer_trusted(shim, upstream)


@pytest.mark.parametrize("name", ["ND_EXTAUTH_TRUSTEDSOURCES", "ND_REVERSEPROXYWHITELIST"])
def test_navidromes_own_trusted_list_is_not_used(
    upstream: Recorder, tmp_path: Path, name: str
) -> None:
    others = {name: "0.0.0.0/0", "REVERSE_PROXY_WHITELIST": ""}
    with run_shim(upstream.port, tmp_path, **others) as shim:
        assert_no_peer_trusted(shim, upstream)


def test_an_ipv4_mapped_address_equals_its_ipv4_address(upstream: Recorder, tmp_path: Path) -> None:
    settings = {"LISTEN": "[::]:0", "REVERSE_PROXY_WHITELIST": "127.0.0.2"}
    with run_shim(upstream.port, tmp_path, **settings) as shim:
        shim.request(build_request("GET /app/ HTTP/1.1", ADMIN), EDGE)
        response = shim.request(build_request("GET /app/ HTTP/1.1", ADMIN), UNTRUSTED)
        assert response.statuses == [200]
        assert [line["reason"] for line in shim.decided(UNTRUSTED, upstream)] == ["untrusted_peer"]
    trusted_request, stripped = upstream.requested
    assert trusted_request.values("Remote-User") == ["admin"]
    assert trusted_request.values("X-Real-IP") == ["127.0.0.2"]
    assert_no_identity(stripped)


def test_an_untrusted_peer_can_be_rejected(upstream: Recorder, tmp_path: Path) -> None:
    with run_shim(upstream.port, tmp_path, UNTRUSTED_PEERS="reject") as shim:
        for fields in ((), (ADMIN,)):
            untrusted_peer = untrusted_address()
            response = shim.request(build_request("GET /app/ HTTP/1.1", *fields), untrusted_peer)
            assert response.statuses == [403]
            assert response.closed
            shim.wait_for_line(
                kind="request_decision", peer=untrusted_peer, reason="untrusted_peer_rejected"
            )
        assert shim.request(build_request("GET /app/ HTTP/1.1", ADMIN), EDGE).statuses == [200]
    (received,) = upstream.requested
    assert received.values("Remote-User") == ["admin"]


def test_a_disconnected_peer_is_not_mistaken_for_a_unix_socket(tmp_path: Path) -> None:
    """A connection that was reset before it was accepted has no address, and its bytes are still read."""
    with (
        recorder() as upstream,
        run_shim(upstream.port, tmp_path, REVERSE_PROXY_WHITELIST="@,127.0.0.2") as shim,
    ):
        text = build_request("POST /api/user HTTP/1.1", ADMIN, "Content-Length: 2", body=b"{}")
        for _ in range(50):
            with socket.create_connection((shim.host, shim.port), 10, (UNTRUSTED, 0)) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.sendall(text)
        shim.decided(UNTRUSTED, upstream)
        for received in upstream.requested:
            assert_no_identity(received)
        assert all(b"Remote-User" not in incomplete for incomplete in upstream.incomplete)


def test_a_missing_or_wrong_proof_is_rejected(upstream: Recorder, tmp_path: Path) -> None:
    settings = {"PROXY_SECRET": "edge-secret-of-the-tests-0123456789", "REQUIRE_IDENTITY": "true"}
    sent = f"X-Shim-Proxy-Secret: {settings['PROXY_SECRET']}"
    with run_shim(upstream.port, tmp_path, **settings) as shim:
        for number, (fields, reason) in enumerate(
            (
                ((ADMIN,), "secret_missing"),
                ((ADMIN, "X-Shim-Proxy-Secret: guess"), "secret_mismatch"),
                ((ADMIN, sent, sent), "secret_mismatch"),
                ((ADMIN, f"{sent}, x"), "secret_mismatch"),
                ((), "identity_required"),
            )
        ):
            edge = f"127.2.200.{number + 1}"
            response = shim.request(build_request("GET /app/ HTTP/1.1", *fields), edge)
            assert_rejected(shim, upstream, response, edge, 401, reason)
        upstream.clear()
        assert shim.request(build_request("GET /app/ HTTP/1.1", ADMIN, sent), EDGE).statuses == [
            200
        ]
        shim.wait_for_line(kind="access", peer=EDGE)
        (received,) = upstream.requested
        assert received.values("Remote-User") == ["admin"]
        assert settings["PROXY_SECRET"].encode() not in received.head
        assert not any(settings["PROXY_SECRET"] in str(line) for line in shim.lines)


def test_a_user_name_in_navidromes_own_user_header_is_stripped(
    upstream: Recorder, tmp_path: Path
) -> None:
    user = "remote-user: ada"
    with run_shim(upstream.port, tmp_path, USERNAME_HEADER="Remote-User") as shim:
        assert shim.request(build_request("GET /app/ HTTP/1.1", user), EDGE).statuses == [200]
        (received,) = upstream.requested
        assert received.values("Remote-User") == ["ada"]
        upstream.clear()
        edge = edge_address()
        response = shim.request(
            build_request("GET /app/ HTTP/1.1", user, "Remote_User: root"), edge
        )
        assert_rejected(shim, upstream, response, edge, 400, "header_alias")
        upstream.clear()
        untrusted_peer = untrusted_address()
        response = shim.request(build_request("GET /app/ HTTP/1.1", user), untrusted_peer)
        assert_stripped(shim, upstream, response, untrusted_peer, "untrusted_peer")


def test_a_host_name_is_not_treated_as_an_address(shim: Shim, upstream: Recorder) -> None:
    untrusted_peer = untrusted_address()
    response = shim.request(
        build_request("GET /app/ HTTP/1.1", ADMIN, host="127.0.0.2"), untrusted_peer
    )
    assert_stripped(shim, upstream, response, untrusted_peer)
