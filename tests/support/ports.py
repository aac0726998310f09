"""Ports for programs that cannot choose one themselves."""

from __future__ import annotations

import random
import socket

# Below the ports that the system gives to outgoing connections and to port 0, so that nothing takes the
# port before the program listens.
_PORTS = range(20_000, 32_000)
_TRIES = 100


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing uses."""
    for port in random.sample(_PORTS, _TRIES):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"{_TRIES} ports of 127.0.0.1 are in use")
