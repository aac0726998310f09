"""The listening sockets: file mode, stale sockets, and address families."""

from __future__ import annotations

import os
import resource
import socket
import stat
from pathlib import Path

import pytest

from shim.app.sockets import bind, raise_descriptor_limit
from shim.proxy.keepalive import IDLE_SECONDS
from shim.settings import Endpoint


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mode", [0o660, 0o600, 0o666])
@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_a_unix_socket_has_the_configured_mode_whatever_the_umask(
    tmp_path: Path, mode: int, mask: int
) -> None:
    path = tmp_path / "shim.sock"
    before = os.umask(mask)
    try:
        with bind(Endpoint(path=str(path)), mode):
            assert _mode(path) == mode
            assert os.umask(mask) == mask, "the umask is unchanged"
    finally:
        os.umask(before)


def test_a_unix_socket_never_has_a_wider_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "shim.sock"
    seen: list[int] = []
    change = os.chmod

    def chmod(name: str | Path, mode: int) -> None:
        seen.append(_mode(path))
        change(name, mode)

    monkeypatch.setattr(os, "chmod", chmod)
    monkeypatch.setattr(Path, "chmod", chmod)
    before = os.umask(0)
    try:
        bind(Endpoint(path=str(path)), 0o600).close()
    finally:
        os.umask(before)
    assert seen
    assert not any(mode & 0o177 for mode in seen)


def test_the_default_mode_allows_the_group_only(tmp_path: Path) -> None:
    path = tmp_path / "shim.sock"
    with bind(Endpoint(path=str(path))):
        assert _mode(path) == 0o660


def test_a_stale_unix_socket_is_replaced(tmp_path: Path) -> None:
    endpoint = Endpoint(path=str(tmp_path / "shim.sock"))
    bind(endpoint).close()
    with bind(endpoint) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.listen()
        client.connect(str(endpoint.path))


def test_a_unix_socket_in_use_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "shim.sock"
    with bind(Endpoint(path=str(path))) as other:
        other.listen()
        with pytest.raises(OSError, match=r"cannot listen on unix:.*another process listens"):
            bind(Endpoint(path=str(path)))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_a_file_that_is_not_a_socket_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "precious.txt"
    path.write_text("music")
    with pytest.raises(OSError, match="is not a socket"):
        bind(Endpoint(path=str(path)))
    assert path.read_text() == "music"


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot listen on unix:.*nowhere"):
        bind(Endpoint(path=str(tmp_path / "nowhere" / "shim.sock")))


def test_a_port_in_use_is_named() -> None:
    with bind(Endpoint("127.0.0.1", 0)) as other:
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
            bind(Endpoint("127.0.0.1", port))


def test_the_ipv6_wildcard_accepts_ipv4_too() -> None:
    with bind(Endpoint("::", 0)) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        for host in ("127.0.0.1", "::1"):
            with socket.create_connection((host, port), timeout=5):
                listener.settimeout(5)
                accepted, peer = listener.accept()
                accepted.close()
                assert peer[0] in {"::ffff:127.0.0.1", "::1"}


def test_a_single_ipv6_address_accepts_ipv6_only() -> None:
    with bind(Endpoint("::1", 0)) as listener:
        assert listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
        assert listener.getsockname()[0] == "::1"


def test_a_bound_socket_is_non_blocking() -> None:
    with bind(Endpoint("127.0.0.1", 0)) as listener:
        listener.listen()
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_the_limit_of_open_files_is_raised_to_its_hard_limit() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[1]), before[1]))
        assert raise_descriptor_limit() == before[1]
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
        assert raise_descriptor_limit() == before[1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_client_that_vanishes_is_detected() -> None:
    with bind(Endpoint("127.0.0.1", 0)) as listener, socket.socket() as client:
        client.connect(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == IDLE_SECONDS
