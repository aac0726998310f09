"""TCP keepalive: a peer that vanished without closing is detected within two minutes."""

from __future__ import annotations

import socket

IDLE_SECONDS = 60
INTERVAL_SECONDS = 15
PROBES = 4


def enable_keepalive(sock: socket.socket) -> None:
    """Enable keepalive probes on a TCP socket. Accepted sockets inherit the options of a listener."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = (
        ("TCP_KEEPIDLE", IDLE_SECONDS),
        ("TCP_KEEPINTVL", INTERVAL_SECONDS),
        ("TCP_KEEPCNT", PROBES),
    )
    for name, value in options:
        # Some systems lack some of these options.
        if (option := getattr(socket, name, None)) is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
