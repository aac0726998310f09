"""TCP keepalive: a peer that vanished without a word is noticed within two minutes."""

from __future__ import annotations

import socket

IDLE_SECONDS = 60
INTERVAL_SECONDS = 15
PROBES = 4


def enable_keepalive(sock: socket.socket) -> None:
    """Probe the other end of a TCP socket that is silent. Set on a listener, accepted sockets inherit it."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = (
        ("TCP_KEEPIDLE", IDLE_SECONDS),
        ("TCP_KEEPINTVL", INTERVAL_SECONDS),
        ("TCP_KEEPCNT", PROBES),
    )
    for name, value in options:
        # Not every system has all of them.
        if (option := getattr(socket, name, None)) is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
