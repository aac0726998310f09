"""Bind the sockets that the shim listens on.

A Unix socket gets its configured mode before any client can connect, since every client that can reach it
is a trusted peer. A stale socket file is removed only if no process listens on it. `[::]` accepts IPv4
too.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import stat
from pathlib import Path

from shim.proxy.keepalive import enable_keepalive
from shim.settings import Endpoint

BACKLOG = 2048


def bind(endpoint: Endpoint, mode: int = 0o660) -> socket.socket:
    """Create a listening, non-blocking socket for this endpoint. `mode` is the file mode of a Unix
    socket.

    The socket listens at once, so that clients that connect while the shim starts wait a moment, and so
    that another shim finds the Unix socket in use.
    Raises OSError with a message that names the endpoint.
    """
    try:
        if endpoint.path is not None:
            return _bind_unix(endpoint.path, mode)
        return _bind_tcp(endpoint.host, endpoint.port)
    except OSError as error:
        raise OSError(
            error.errno, f"cannot listen on {endpoint}: {error.strerror or error}"
        ) from error


def raise_descriptor_limit() -> int:
    """Raise the limit of open files to the maximum for this process, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft


def _bind_tcp(host: str, port: int) -> socket.socket:
    v6 = ":" in host
    listener = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    enable_keepalive(listener)
    if v6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
    try:
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def _bind_unix(path: str, mode: int) -> socket.socket:
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o777 & ~mode)
    try:
        listener.bind(path)
        Path(path).chmod(mode)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def _remove_stale(path: str) -> None:
    try:
        if not stat.S_ISSOCK(Path(path).stat().st_mode):
            raise FileExistsError(17, f"{path} exists and is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
        else:
            raise OSError(98, f"another process listens on {path}")
