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

from shim.proxy.error_responses import UNASSIGNED_REQUEST_ID, error_response
from shim.proxy.server import NEVER, DataPlane
from shim.trust.peers import Peer, parse_peer

if TYPE_CHECKING:
    from uvicorn.server import ServerState

SHUTDOWN_IDLE_SECONDS = 0.5
RELEASE_SECONDS = 2.0  # an idle connection keeps what belongs to its last request for so long
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset


class Phase(IntEnum):
    """Where a connection is."""

    HEAD = auto()  # idle, or a head is not whole yet
    VERIFYING = auto()  # a token waits for being looked at
    FETCHING_JWKS = auto()  # the key set is fetched again, once
    PROVISIONING = auto()  # the gate is asked
    BODY = auto()  # a form is read before the request is sent on
    CONNECTING = auto()  # the pool is asked
    FORWARDING = auto()  # the request goes to Navidrome, the response comes back
    TUNNEL = auto()
    CLOSING = auto()  # the last response is out; what still comes is not read


# Members of an enumeration are dear to look up; what a request passes has them at hand.
_HEAD, _CLOSING = Phase.HEAD, Phase.CLOSING


class ClientConnection(asyncio.Protocol):
    """A client's socket.

    `keep_alive`: another request may follow. `write_paused`: the client takes nothing for now.
    """

    __slots__ = (
        "_aborted",
        "_peer",
        "_phase",
        "_plane",
        "_queued",
        "_read_buffer",
        "_read_paused",
        "_release_due",
        "_server_state",
        "_transport",
        "_untrusted",
        "deadline",
        "keep_alive",
        "send_deadline",
        "write_paused",
    )

    def __init__(self, plane: DataPlane, server_state: ServerState) -> None:
        self._plane = plane
        self._server_state = server_state
        self._transport: asyncio.Transport
        self._phase = Phase.HEAD
        self._read_buffer = bytearray()  # what was read and not looked at yet
        self._queued = False  # in the lane, for a turn of its own
        self._read_paused = False
        self._release_due = False  # the deadline of an idle connection is that for its last request
        self._peer: Peer
        self._untrusted = False
        self._aborted = False  # by the shim, which has logged why
        self.keep_alive = True
        self.write_paused = False
        self.deadline = NEVER
        self.send_deadline = NEVER

    # what is built on it has to say

    def _serve(self) -> None:
        """Go on with what is kept, if nothing is under way."""
        raise NotImplementedError

    def _cancel_pending(self) -> None:
        """Drop what was asked of others."""
        raise NotImplementedError

    def expired(self) -> None:
        """The deadline of the phase has passed."""
        raise NotImplementedError

    def check_account(self) -> None:
        """An account was revoked: end what is under way, if it is for that one."""
        raise NotImplementedError

    def _over_read_limit(self) -> None:
        """Pause reading, or end the connection: more is kept than the limit allows."""
        raise NotImplementedError

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        plane = self._plane
        plane.connections.add(self)
        self._server_state.connections.add(cast("Any", self))
        self.deadline = plane.now + plane.limits.request_header_timeout
        peername = transport.get_extra_info("peername")
        if peername is None:
            # Reset before it was accepted: it has no address any more, and is not a Unix peer for that.
            plane.counters.client_connections += 1
            self._phase = _CLOSING
            self._transport.abort()
            return
        self._peer = parse_peer(peername[0] if isinstance(peername, tuple) else "")
        self._untrusted = plane.connection_opened(self._peer)
        if plane.over_limit(untrusted=self._untrusted):
            self._reject_over_limit()

    def _reject_over_limit(self) -> None:
        limit = self._plane.limits.max_connections
        if self._plane.counters.client_connections > limit + max(8, limit // 8):
            # Even saying so takes a descriptor for a while.
            self._phase = _CLOSING
            self._transport.abort()
        else:
            self._send_and_close(error_response(503, None, UNASSIGNED_REQUEST_ID, retry_after=5))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._plane.connection_closed(untrusted=self._untrusted)
        self._plane.connections.discard(self)
        self._plane.paused.pop(self, None)
        self._server_state.connections.discard(cast("Any", self))
        if self._phase is Phase.TUNNEL:
            self._plane.counters.tunnels_open -= 1
        if not self._aborted:
            self._response_incomplete("client_left")
        self._cancel_pending()
        self._phase = _CLOSING

    def shutdown(self) -> None:
        """The server stops: end the connection after the next response. An idle one is kept for a moment,
        since a request may be on its way."""
        self.keep_alive = False
        if self._phase is _HEAD and not self._read_buffer:
            now = asyncio.get_running_loop().time()
            self.deadline = min(self.deadline, now + SHUTDOWN_IDLE_SECONDS)

    def abort(self) -> None:
        """End it now, whatever is under way, with a reset: a FIN would end a body that has neither length
        nor chunks as if it were whole."""
        self._cancel_pending()
        self._read_buffer.clear()
        self._aborted = True
        self._transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE
        )
        self._transport.abort()

    def abort_at_shutdown(self) -> None:
        """End it now, since the time to stop in is over."""
        self._response_incomplete("shutdown")
        self.abort()

    def send_timed_out(self) -> None:
        """What was written to the client has not been taken in time."""
        if not self._aborted:
            self._response_incomplete("send_timeout")
            self.abort()

    # reading

    def _buffer_data(self, data: bytes) -> None:
        self._read_buffer += data
        if len(self._read_buffer) > self._plane.limits.max_buffered_bytes:
            self._over_read_limit()

    def _pause_reading(self) -> None:
        if not self._read_paused:
            self._read_paused = True
            self._transport.pause_reading()
            self._plane.paused[self] = None

    def _resume_reading(self) -> None:
        # Between requests what is kept is the beginning of a head, which has a bound of its own.
        if self._queued or not self._read_paused:
            return
        unfinished = self._phase is _HEAD and not self.write_paused
        if unfinished or len(self._read_buffer) <= self._plane.limits.max_buffered_bytes:
            self._read_paused = False
            self._transport.resume_reading()
            self._plane.paused.pop(self, None)

    def descriptor(self) -> int:
        """Return the file descriptor of the client's socket, -1 where it is closed."""
        descriptor: int = self._transport.get_extra_info("socket").fileno()
        return descriptor

    def _response_incomplete(self, reason: str) -> None:
        """Count and log the response that is under way, if there is one: it does not become whole."""
        raise NotImplementedError

    def _send_timeout(self) -> float:
        """Return how many seconds written bytes may wait for the client."""
        raise NotImplementedError

    def hung_up(self, *, reset: bool) -> None:
        """End the connection whose client has left while reading is paused; `reset`: both directions ended.

        What the client sent into a tunnel before it left is still for Navidrome, so only a reset ends one."""
        if reset or self._phase is not Phase.TUNNEL:
            self._response_incomplete("client_left")
            self.abort()

    # work that others must not wait for

    def _enqueue(self) -> None:
        """Have `turn` called in one of the next turns of the loop, and read nothing until then."""
        if not self._queued:
            self._queued = True
            self._plane.verification_queue.enqueue(self)

    def run(self) -> None:
        """Go on with what was left for this turn."""
        raise NotImplementedError

    def _enter_keep_alive(self) -> None:
        """A response is out, and another request may come."""
        self._phase = _HEAD
        self._release_due = True
        self.deadline = self._plane.now + RELEASE_SECONDS  # the idle timeout follows it

    def _resume(self) -> None:
        """Serve what was kept while something was under way."""
        if self._phase is _HEAD:
            if self._read_buffer:
                self._serve()
            if self._read_paused:
                self._resume_reading()

    # leaving

    def _send_and_close(self, response: bytes) -> None:
        """Send this, say goodbye, and give the client a moment to read it.

        Closing at once would reset a connection on which bytes are still unread, and the client might
        lose the response with them (RFC 9112 §9.6)."""
        self._phase = _CLOSING
        self._read_buffer.clear()
        transport = self._transport
        if response:
            transport.write(response)
        self._linger()
        if self._read_paused:
            self._read_paused = False
            self._plane.paused.pop(self, None)
            transport.resume_reading()
        if transport.can_write_eof():
            transport.write_eof()
        else:
            transport.close()

    def _close_idle(self) -> None:
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
            self._send_timeout() if unsent else limits.linger_timeout
        )
