"""A client's connection, below HTTP: what was read and not looked at yet, pausing both ways, deadlines, and
the ways to end it.

Nothing here knows a request. Whoever builds on it says what is done with what was read, and what has to
be dropped when the client goes.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from enum import IntEnum, auto
from typing import TYPE_CHECKING, Any, cast

from shim.proxy.answers import NO_ID, own_answer
from shim.proxy.plane import NEVER, DataPlane
from shim.trust.addresses import Peer, parse_peer

if TYPE_CHECKING:
    from uvicorn.server import ServerState

_AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset


class Phase(IntEnum):
    """Where a connection is."""

    HEAD = auto()  # idle, or a head is not whole yet
    PROOF = auto()  # a token waits for being looked at
    KEYS = auto()  # the key set is fetched anew, once
    ACCOUNT = auto()  # the gate is asked
    BODY = auto()  # a form is read before the request is sent on
    CONNECTION = auto()  # the pool is asked
    EXCHANGE = auto()  # the request goes to Navidrome, the answer comes back
    TUNNEL = auto()
    CLOSING = auto()  # the last answer is out; what still comes is not read


# Members of an enumeration are dear to look up; what a request passes has them at hand.
_HEAD, _CLOSING = Phase.HEAD, Phase.CLOSING


class ClientConnection(asyncio.Protocol):
    """A client's socket.

    `keep_alive`: another request may follow. `write_paused`: the client takes nothing for now.
    """

    __slots__ = (
        "_kept",
        "_peer",
        "_phase",
        "_plane",
        "_read_paused",
        "_server_state",
        "_stranger",
        "_transport",
        "deadline",
        "keep_alive",
        "stall_deadline",
        "write_paused",
    )

    def __init__(self, plane: DataPlane, server_state: ServerState) -> None:
        self._plane = plane
        self._server_state = server_state
        self._transport: asyncio.Transport
        self._phase = Phase.HEAD
        self._kept = bytearray()  # what was read and not looked at yet
        self._read_paused = False
        self._peer: Peer
        self._stranger = False
        self.keep_alive = True
        self.write_paused = False
        self.deadline = NEVER
        self.stall_deadline = NEVER

    # what is built on it has to say

    def _serve(self) -> None:
        """Go on with what is kept, if nothing is under way."""
        raise NotImplementedError

    def _abandon(self) -> None:
        """Drop what was asked of others."""
        raise NotImplementedError

    def expired(self) -> None:
        """The deadline of the phase has passed."""
        raise NotImplementedError

    def check_account(self) -> None:
        """An account was revoked: end what is under way, if it is for that one."""
        raise NotImplementedError

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        plane = self._plane
        plane.timed.add(self)
        self._server_state.connections.add(cast("Any", self))
        self.deadline = plane.now + plane.limits.head_timeout
        peername = transport.get_extra_info("peername")
        if peername is None:
            # Reset before it was accepted: it has no address any more, and is not a Unix peer for that.
            plane.counters.client_connections += 1
            self._phase = _CLOSING
            self._transport.abort()
            return
        self._peer = parse_peer(peername[0] if isinstance(peername, tuple) else "")
        self._stranger = plane.enter(self._peer)
        if plane.crowded(stranger=self._stranger):
            self._turn_away()

    def _turn_away(self) -> None:
        most = self._plane.limits.max_connections
        if self._plane.counters.client_connections > most + max(8, most // 8):
            # Even saying so takes a descriptor for a while.
            self._phase = _CLOSING
            self._transport.abort()
        else:
            self._last_words(own_answer(503, None, NO_ID, retry_after=5))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._plane.leave(stranger=self._stranger)
        self._plane.timed.discard(self)
        self._server_state.connections.discard(cast("Any", self))
        if self._phase is Phase.TUNNEL:
            self._plane.counters.tunnels_open -= 1
        self._abandon()
        self._phase = _CLOSING

    def shutdown(self) -> None:
        """The server stops: go when nothing is under way, else after this answer."""
        self.keep_alive = False
        if self._phase is _HEAD and not self._kept:
            self._leave()

    def abort(self) -> None:
        """End it now, whatever is under way, with a reset: a FIN would end a body that has neither length
        nor chunks as if it were whole."""
        self._abandon()
        self._transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE
        )
        self._transport.abort()

    def stalled(self) -> None:
        """What was written to the client has not been taken in time."""
        self.abort()

    # reading

    def _keep(self, data: bytes) -> None:
        self._kept += data
        if len(self._kept) > self._plane.limits.kept_bytes and not self._read_paused:
            self._pause_reading()
            self.deadline = min(self.deadline, self._plane.now + self._plane.limits.stall_timeout)

    def _pause_reading(self) -> None:
        if not self._read_paused:
            self._read_paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        # Between requests what is kept is the beginning of a head, which has a bound of its own.
        unfinished = self._phase is _HEAD and not self.write_paused
        if self._read_paused and (unfinished or len(self._kept) <= self._plane.limits.kept_bytes):
            self._read_paused = False
            self._transport.resume_reading()

    def _rest(self) -> None:
        """An answer is out, and another request may come."""
        self._phase = _HEAD
        self.deadline = self._plane.now + self._plane.limits.idle_timeout

    def _go_on(self) -> None:
        """Serve what was kept while something was under way."""
        if self._phase is _HEAD:
            if self._kept:
                self._serve()
            if self._read_paused:
                self._resume_reading()

    # leaving

    def _last_words(self, answer: bytes) -> None:
        """Send this, say goodbye, and give the client a moment to read it.

        Closing at once would reset a connection on which bytes are still unread, and the client might
        lose the answer with them (RFC 9112 §9.6)."""
        self._phase = _CLOSING
        self._kept.clear()
        transport = self._transport
        if answer:
            transport.write(answer)
        self._linger()
        if self._read_paused:
            self._read_paused = False
            transport.resume_reading()
        if transport.can_write_eof():
            transport.write_eof()
        else:
            transport.close()

    def _leave(self) -> None:
        """End an idle connection."""
        self._phase = _CLOSING
        self._linger()
        self._transport.close()

    def _linger(self) -> None:
        """Wait a moment for the client to leave; longer where it has not taken all that was written."""
        limits = self._plane.limits
        transport = self._transport
        # With TLS nobody can tell what is still to be sent; uvloop ends such a goodbye by itself.
        unsent = transport.get_write_buffer_size() or not transport.can_write_eof()
        self.deadline = self._plane.now + (
            limits.stall_timeout if unsent else limits.linger_timeout
        )
