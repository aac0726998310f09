"""Peers that would like to be taken for the edge."""

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
    an_edge,
    assert_no_identity,
    assert_rejected,
    assert_stripped,
    build_request,
    shim_before,
    someone,
)

ADMIN = "X-authentik-username: admin"


def test_the_edge_is_trusted_and_anyone_is_not(front: Shim, upstream: Recorder) -> None:
    assert front.request(build_request("GET /app/ HTTP/1.1", ADMIN), EDGE).statuses == [200]
    assert front.decided(EDGE, upstream) == []
    (believed,) = upstream.requested
    assert believed.values("Remote-User") == ["admin"]
    upstream.clear()
    assert_stripped(
        front, upstream, front.request(build_request("GET /app/ HTTP/1.1", ADMIN)), UNTRUSTED
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
def test_a_forwarded_address_that_names_the_trusted_proxy(
    front: Shim, upstream: Recorder, field: str
) -> None:
    anyone = someone()
    response = front.request(build_request("GET /app/ HTTP/1.1", ADMIN, field), anyone)
    received = assert_stripped(front, upstream, response, anyone)
    assert b"127.0.0.2" not in received.head
    assert received.values("X-Real-IP") == [anyone]
    assert received.values("X-Forwarded-For") == [anyone]


def nobody_is_believed(shim: Shim, upstream: Recorder) -> None:
    for peer in (EDGE, UNTRUSTED):
        upstream.clear()
        response = shim.request(
            build_request("GET /app/ HTTP/1.1", ADMIN, "Remote-User: admin"), peer
        )
        assert_stripped(shim, upstream, response, peer)
    said = shim.wait_for_line(kind="configuration_loaded")
    assert any("WHITELIST" in warning for warning in said["warnings"])


def test_a_trusted_set_that_is_left_out_is_nobody(upstream: Recorder, tmp_path: Path) -> None:
    with shim_before(upstream.port, tmp_path, REVERSE_PROXY_WHITELIST="") as shim:
        nobody_is_believed(shim, upstream)


@pytest.mark.parametrize("name", ["ND_EXTAUTH_TRUSTEDSOURCES", "ND_REVERSEPROXYWHITELIST"])
def test_navidromes_own_trusted_list_is_not_the_front_doors(
    upstream: Recorder, tmp_path: Path, name: str
) -> None:
    others = {name: "0.0.0.0/0", "REVERSE_PROXY_WHITELIST": ""}
    with shim_before(upstream.port, tmp_path, **others) as shim:
        nobody_is_believed(shim, upstream)


def test_a_mapped_address_is_the_address_that_it_maps(upstream: Recorder, tmp_path: Path) -> None:
    settings = {"LISTEN": "[::]:0", "REVERSE_PROXY_WHITELIST": "127.0.0.2"}
    with shim_before(upstream.port, tmp_path, **settings) as shim:
        shim.request(build_request("GET /app/ HTTP/1.1", ADMIN), EDGE)
        response = shim.request(build_request("GET /app/ HTTP/1.1", ADMIN), UNTRUSTED)
        assert response.statuses == [200]
        assert [line["reason"] for line in shim.decided(UNTRUSTED, upstream)] == ["untrusted_peer"]
    believed, stripped = upstream.requested
    assert believed.values("Remote-User") == ["admin"]
    assert believed.values("X-Real-IP") == ["127.0.0.2"]
    assert_no_identity(stripped)


def test_whoever_is_not_listed_may_be_rejected(upstream: Recorder, tmp_path: Path) -> None:
    with shim_before(upstream.port, tmp_path, UNTRUSTED_PEERS="reject") as shim:
        for fields in ((), (ADMIN,)):
            anyone = someone()
            response = shim.request(build_request("GET /app/ HTTP/1.1", *fields), anyone)
            assert response.statuses == [403]
            assert response.closed
            shim.wait_for_line(
                kind="request_decision", peer=anyone, reason="untrusted_peer_rejected"
            )
        assert shim.request(build_request("GET /app/ HTTP/1.1", ADMIN), EDGE).statuses == [200]
    (received,) = upstream.requested
    assert received.values("Remote-User") == ["admin"]


def test_a_peer_that_is_gone_is_not_one_on_the_unix_socket(tmp_path: Path) -> None:
    """A connection that was reset before it was accepted has no address, and its bytes are still read."""
    with (
        recorder() as upstream,
        shim_before(upstream.port, tmp_path, REVERSE_PROXY_WHITELIST="@,127.0.0.2") as shim,
    ):
        text = build_request("POST /api/user HTTP/1.1", ADMIN, "Content-Length: 2", body=b"{}")
        for _ in range(50):
            with socket.create_connection((shim.host, shim.port), 10, (UNTRUSTED, 0)) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.sendall(text)
        shim.decided(UNTRUSTED, upstream)
        for received in upstream.requested:
            assert_no_identity(received)
        assert all(b"Remote-User" not in torn for torn in upstream.torn)


def test_a_required_proof_that_is_missing_or_wrong(upstream: Recorder, tmp_path: Path) -> None:
    settings = {"PROXY_SECRET": "edge-secret-of-the-tests-0123456789", "REQUIRE_IDENTITY": "true"}
    sent = f"X-Shim-Proxy-Secret: {settings['PROXY_SECRET']}"
    with shim_before(upstream.port, tmp_path, **settings) as shim:
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


def test_a_user_name_in_navidromes_own_user_header(upstream: Recorder, tmp_path: Path) -> None:
    user = "remote-user: ada"
    with shim_before(upstream.port, tmp_path, USERNAME_HEADER="Remote-User") as shim:
        assert shim.request(build_request("GET /app/ HTTP/1.1", user), EDGE).statuses == [200]
        (received,) = upstream.requested
        assert received.values("Remote-User") == ["ada"]
        upstream.clear()
        edge = an_edge()
        response = shim.request(
            build_request("GET /app/ HTTP/1.1", user, "Remote_User: root"), edge
        )
        assert_rejected(shim, upstream, response, edge, 400, "header_alias")
        upstream.clear()
        anyone = someone()
        response = shim.request(build_request("GET /app/ HTTP/1.1", user), anyone)
        assert_stripped(shim, upstream, response, anyone, "untrusted_peer")


def test_a_host_is_no_address(front: Shim, upstream: Recorder) -> None:
    anyone = someone()
    response = front.request(build_request("GET /app/ HTTP/1.1", ADMIN, host="127.0.0.2"), anyone)
    assert_stripped(front, upstream, response, anyone)
