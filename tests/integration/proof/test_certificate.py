"""The shim with a certificate of its own: renewed while it runs, and where it can't be used."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest

from tests.support.certificates import Certificates, make_certificates
from tests.support.recorder import Recorder
from tests.support.shim_process import Shim, shim_before
from tests.support.shim_settings import command, eventually, hang_up

EDGE = "127.0.0.2"
HEAD = b"GET /app/ HTTP/1.1\r\nHost: h\r\nX-authentik-username: ada\r\n\r\n"


@pytest.fixture
def made(tmp_path: Path) -> Certificates:
    return make_certificates(tmp_path)


def settings(made: Certificates) -> dict[str, str]:
    return {"TLS_CERT": str(made.certificate), "TLS_KEY": str(made.key)}


def connected(shim: Shim, made: Certificates) -> ssl.SSLSocket:
    """A connection of the edge's, which trusts the authority as it is now."""
    raw = socket.create_connection((shim.host, shim.port), 10.0, (EDGE, 0))
    return made.client().wrap_socket(raw, server_hostname="127.0.0.1")


def asked(connection: ssl.SSLSocket, upstream: Recorder) -> list[str]:
    """Whom Navidrome is told of by another request on this connection."""
    upstream.clear()
    connection.sendall(HEAD)
    assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    assert upstream.requested[-1].values("X-Forwarded-Proto") == ["https"]
    return upstream.requested[-1].values("Remote-User")


def test_a_renewed_certificate_is_shown_and_open_connections_go_on(
    upstream: Recorder, tmp_path: Path, made: Certificates
) -> None:
    with (
        shim_before(
            upstream.port, tmp_path, REVERSE_PROXY_WHITELIST=EDGE, **settings(made)
        ) as shim,
        connected(shim, made) as before,
    ):
        assert asked(before, upstream) == ["ada"]
        first = shown(shim)
        make_certificates(tmp_path)  # under the same names
        hang_up(shim)
        eventually(lambda: shown(shim) != first, True)
        with connected(shim, made) as after:
            assert asked(after, upstream) == ["ada"]
        assert asked(before, upstream) == ["ada"]


def test_one_that_can_not_be_used_leaves_that_from_before(
    upstream: Recorder, tmp_path: Path, made: Certificates
) -> None:
    with shim_before(upstream.port, tmp_path, **settings(made)) as shim:
        first = shown(shim)
        made.key.write_text("half of a key")
        hang_up(shim)
        refused = shim.wait_for_line(kind="reload_rejected")
        assert "expected a certificate chain and its key in PEM" in str(refused["faults"])
        assert "half of a key" not in str(refused)
        assert shown(shim) == first


def test_the_commands_say_what_is_wrong_with_the_files(tmp_path: Path, made: Certificates) -> None:
    made.key.write_text("half of a key")
    given = {**settings(made), "LISTEN": "127.0.0.1:0", "CONTROL_LISTEN": "127.0.0.1:0"}
    for name in ("serve", "check"):
        done = command(tmp_path, name, settings={**given, "PROVISIONING": "false"})
        assert done.returncode == 1
        said = done.stdout + done.stderr
        assert "expected a certificate chain and its key in PEM" in " ".join(said.split())
        assert "Traceback" not in said


def shown(shim: Shim) -> str:
    """The certificate that a new connection gets to see."""
    return ssl.get_server_certificate((shim.host, shim.port), timeout=10.0)
