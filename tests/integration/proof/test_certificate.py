"""The shim with its own TLS certificate: renewal while it runs, and invalid files."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest

from tests.support.certificates import Certificates, make_certificates
from tests.support.recorder import Recorder
from tests.support.shim_process import Shim, run_shim
from tests.support.shim_settings import command, eventually, send_sighup

EDGE = "127.0.0.2"
HEAD = b"GET /app/ HTTP/1.1\r\nHost: h\r\nX-authentik-username: ada\r\n\r\n"


@pytest.fixture
def issued(tmp_path: Path) -> Certificates:
    return make_certificates(tmp_path)


def settings(issued: Certificates) -> dict[str, str]:
    return {"TLS_CERT": str(issued.certificate), "TLS_KEY": str(issued.key)}


def connected(shim: Shim, issued: Certificates) -> ssl.SSLSocket:
    """A connection from the edge, which trusts the current authority."""
    raw = socket.create_connection((shim.host, shim.port), 10.0, (EDGE, 0))
    return issued.client().wrap_socket(raw, server_hostname="127.0.0.1")


def users_received(connection: ssl.SSLSocket, upstream: Recorder) -> list[str]:
    """The users that Navidrome received with another request on this connection."""
    upstream.clear()
    connection.sendall(HEAD)
    assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    assert upstream.requested[-1].values("X-Forwarded-Proto") == ["https"]
    return upstream.requested[-1].values("Remote-User")


def test_a_renewed_certificate_is_used_and_open_connections_continue(
    upstream: Recorder, tmp_path: Path, issued: Certificates
) -> None:
    with (
        run_shim(upstream.port, tmp_path, REVERSE_PROXY_WHITELIST=EDGE, **settings(issued)) as shim,
        connected(shim, issued) as before,
    ):
        assert users_received(before, upstream) == ["ada"]
        first = shown(shim)
        make_certificates(tmp_path)  # with the same file names
        send_sighup(shim)
        eventually(lambda: shown(shim) != first, True)
        with connected(shim, issued) as after:
            assert users_received(after, upstream) == ["ada"]
        assert users_received(before, upstream) == ["ada"]


def test_an_invalid_certificate_leaves_the_previous_one_in_use(
    upstream: Recorder, tmp_path: Path, issued: Certificates
) -> None:
    with run_shim(upstream.port, tmp_path, **settings(issued)) as shim:
        first = shown(shim)
        issued.key.write_text("half of a key")
        send_sighup(shim)
        refused = shim.wait_for_line(kind="reload_rejected")
        assert "expected a certificate chain and its key in PEM" in str(refused["faults"])
        assert "half of a key" not in str(refused)
        assert shown(shim) == first


def test_the_commands_report_what_is_wrong_with_the_files(
    tmp_path: Path, issued: Certificates
) -> None:
    issued.key.write_text("half of a key")
    all_settings = {**settings(issued), "LISTEN": "127.0.0.1:0", "CONTROL_LISTEN": "127.0.0.1:0"}
    for name in ("serve", "check"):
        done = command(tmp_path, name, settings={**all_settings, "PROVISIONING": "false"})
        assert done.returncode == 1
        output = done.stdout + done.stderr
        assert "expected a certificate chain and its key in PEM" in " ".join(output.split())
        assert "Traceback" not in output


def shown(shim: Shim) -> str:
    """The certificate that a new connection receives."""
    return ssl.get_server_certificate((shim.host, shim.port), timeout=10.0)
