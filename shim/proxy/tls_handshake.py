"""The TLS handshake of a client: a client that never completes it is counted, and disconnected in time.

The server could do handshakes by itself, but would not report one that fails or does not end.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING, Any, cast

from shim.proxy.client_connection import ClientConnection
from shim.trust.peers import parse_peer

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from shim.proxy.server import DataPlane


class TlsHandshake(asyncio.Protocol):
    """A client's socket until the handshake is complete; a `ClientConnection` follows."""

    __slots__ = ("_app_state", "_config", "_plane", "_server_state", "_task", "_untrusted")

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._config = config
        self._server_state = server_state
        self._app_state = app_state
        self._plane: DataPlane = app_state["plane"]
        self._untrusted: bool | None = None  # None while the connection is not counted
        self._task: asyncio.Task[bool]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        peername = transport.get_extra_info("peername")
        # The transport would read before it can be paused: drop it, and keep its socket.
        sock = (
            None if peername is None else _dup_socket(transport.get_extra_info("socket").fileno())
        )
        cast("asyncio.Transport", transport).abort()
        if sock is None:
            return
        peer = parse_peer(peername[0] if isinstance(peername, tuple) else "")
        untrusted = self._untrusted = self._plane.connection_opened(peer)
        if self._plane.over_limit(untrusted=untrusted):
            self.release_slot()
            sock.close()
            return
        self._server_state.connections.add(cast("Any", self))
        self._task = asyncio.get_running_loop().create_task(self._start_tls(sock))
        # Not within the task: a task that is cancelled before its first step runs none of its code.
        self._task.add_done_callback(lambda task: self._finished(task, sock))

    def shutdown(self) -> None:
        """Close the connection, since the server stops."""
        self._task.cancel()

    def release_slot(self) -> None:
        """Stop counting the handshake: it has ended, or a `ClientConnection` counts itself."""
        untrusted, self._untrusted = self._untrusted, None
        if untrusted is not None:
            self._plane.connection_closed(untrusted=untrusted)

    async def _start_tls(self, sock: socket.socket) -> bool:
        """Run the handshake. Return whether a `ClientConnection` owns the socket from now on."""
        plane = self._plane
        tls = plane.options.tls
        if tls is None:
            return False
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._downstream,
                sock,
                ssl=tls,
                ssl_handshake_timeout=plane.limits.request_header_timeout,
            )
        except OSError:
            return False  # no TLS, no supported version, or not in time
        return True

    def _finished(self, task: asyncio.Task[bool], sock: socket.socket) -> None:
        self.release_slot()
        self._server_state.connections.discard(cast("Any", self))
        handed_over = False
        try:
            handed_over = not task.cancelled() and task.result()
        finally:
            if not handed_over:
                sock.close()

    def _downstream(self) -> ClientConnection:
        connection = _TlsClientConnection(self._config, self._server_state, self._app_state)
        connection.handshake = self
        return connection


class _TlsClientConnection(ClientConnection):
    """A connection whose handshake is complete; it replaces the `TlsHandshake`."""

    __slots__ = ("handshake",)

    handshake: TlsHandshake

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.handshake.release_slot()
        del self.handshake
        super().connection_made(transport)


def _dup_socket(descriptor: int) -> socket.socket | None:
    """Duplicate the descriptor of a socket; return None if no more files may be open."""
    try:
        return socket.socket(fileno=os.dup(descriptor))
    except OSError:
        return None
