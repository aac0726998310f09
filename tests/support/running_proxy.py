"""The data plane under test: real sockets on both sides, and a clock that the test controls."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from uvicorn.server import ServerState

from shim.proxy.client_connection import ClientConnection
from shim.proxy.counters import Counters
from shim.proxy.device_gate import DeviceGate
from shim.proxy.failures import Failure
from shim.proxy.gate import AccountGate
from shim.proxy.interfaces import KeyFetcher
from shim.proxy.limits import Limits
from shim.proxy.server import DataPlane, Options
from shim.proxy.tls_handshake import TlsHandshake
from shim.proxy.verification_queue import VerificationQueue
from shim.trust.decision import Decision
from shim.trust.peers import AddressList, parse_entry
from shim.trust.policy import Policy
from shim.trust.reasons import Reason
from tests.support.http_client import Client, Response
from tests.support.limits import limits_with
from tests.support.raw_connection import PATIENCE, SocketTransport, StreamTransport, until
from tests.support.scripted_navidrome import Navidrome

EDGE = "127.0.0.2"
UNTRUSTED = "127.0.0.1"


@dataclass
class RecordingObserver:
    """What the data plane reported to its observer."""

    logs_access: bool = False
    decided_as: list[tuple[Reason, str]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    cut: list[tuple[str, int, int]] = field(default_factory=list)
    failures: list[tuple[str, int, str]] = field(default_factory=list)
    accesses: list[tuple[str, int, int]] = field(default_factory=list)
    incomplete: list[tuple[str, int, int]] = field(default_factory=list)
    durations: list[float] = field(default_factory=list)
    upstream: list[str] = field(default_factory=list)
    tokens: list[tuple[str, ...]] = field(default_factory=list)
    void: list[tuple[str, ...]] = field(default_factory=list)

    used: list[tuple[str, str | None]] = field(default_factory=list)

    def identity_used(self, decision: Decision, request_id: str, account: str | None) -> None:
        assert request_id
        assert decision.identity is not None
        self.used.append((decision.identity.username, account))

    def navidrome_token_found(
        self, decision: Decision, request_id: str, account: str | None = None
    ) -> None:
        del account
        assert request_id
        self.tokens.append(decision.removed_tokens)
        self.void.append(decision.void)

    def request_decided(
        self, decision: Decision, request_id: str, status: int | None = None
    ) -> None:
        self.statuses.append(decision.outcome.status if status is None else status)
        self.decided_as.append((decision.outcome.reason, request_id))

    def failed(
        self,
        decision: Decision,
        request_id: str,
        failure: str,
        status: int,
        sent: int | None = None,
        *,
        account: str | None = None,
    ) -> None:
        del decision, account
        if sent is not None:
            self.cut.append((failure, status, sent))
        self.failures.append((failure, status, request_id))

    def request_completed(
        self,
        decision: Decision,
        request_id: str,
        status: int,
        sent: int,
        seconds: float,
        incomplete: Failure | None = None,
        *,
        account: str | None = None,
    ) -> None:
        del decision, account
        if incomplete:
            self.incomplete.append((incomplete, status, sent))
        assert 0 <= seconds < 3600
        self.durations.append(seconds)
        self.accesses.append((request_id, status, sent))

    def upstream_up(self) -> None:
        self.upstream.append("up")

    def upstream_down(self, reason: str) -> None:
        assert reason
        self.upstream.append("down")


def policy(**changes: Any) -> Policy:
    """Trust the edge, and no other peer."""
    return Policy(whitelist=AddressList([parse_entry(EDGE)]), **changes)


class RunningProxy:
    """A listening data plane. `notes` is what it reported."""

    def __init__(
        self, plane: DataPlane, recorded: RecordingObserver, address: tuple[str, int] | str
    ) -> None:
        self.plane = plane
        self.recorded = recorded
        self.state = ServerState()
        self._address = address
        self._clients: list[Client] = []

    @property
    def address(self) -> tuple[str, int]:
        """The TCP address that it listens on."""
        assert isinstance(self._address, tuple)
        return self._address

    @property
    def counters(self) -> Counters:
        """The totals, and the current gauges."""
        self.pass_time(0)
        return self.plane.counters

    @property
    def failures(self) -> dict[str, int]:
        """The failures that happened, with their counts."""
        counted = self.counters.failures.items()
        return {failure.value: count for failure, count in counted if count}

    async def client(
        self,
        source: str = UNTRUSTED,
        *,
        receive_buffer: int | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> Client:
        """Connect from this address, with a receive buffer of `receive_buffer` bytes."""
        if tls is not None:
            assert isinstance(self._address, tuple)
            host, port = self._address
            wire = StreamTransport(*await asyncio.open_connection(host, port, ssl=tls))
            return self._track(Client(wire))
        unix = isinstance(self._address, str)
        sock = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        if not unix:
            sock.bind((source, 0))
        async with asyncio.timeout(PATIENCE):
            await asyncio.get_running_loop().sock_connect(sock, self._address)
        return self._track(Client(SocketTransport(sock)))

    def _track(self, client: Client) -> Client:
        self._clients.append(client)
        return client

    async def request(self, head: str, *, source: str = UNTRUSTED, method: str = "GET") -> Response:
        """Send a request over a new connection."""
        client = await self.client(source)
        try:
            return await client.request(head, method=method)
        finally:
            client.close()

    async def wait_until_idle(self) -> None:
        """Wait until the shim has read everything that was sent before: it responds to a control
        request sent after it.
        """
        response = await self.request("BREW / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert response.status == 501
        self.recorded.decided_as.pop()

    @property
    def reading_paused(self) -> bool:
        """Return whether the shim has paused reading from one of the connections."""
        return any(each.read_paused for each in self._connections)

    @property
    def writing_paused(self) -> bool:
        """Return whether one of the connections has paused reading from the shim."""
        return any(each.write_paused for each in self._connections)

    def pause_writing_above(self, size: int) -> None:
        """Pause writing to the present clients while more than `size` bytes are buffered for one."""
        for each in self._connections:
            each.transport.set_write_buffer_limits(high=size)

    async def until_response_complete(self) -> None:
        """Wait until the shim has received every response completely."""
        await until(lambda: not self.counters.streams_open)

    @property
    def held(self) -> int:
        """The maximum of bytes that the shim buffers for one client."""
        return max(each.transport.get_write_buffer_size() for each in self._connections)

    @property
    def held_for_navidrome(self) -> int:
        """The maximum of bytes that the shim buffers for one upstream connection."""
        handlers = [each.handler for each in self._connections if each.handler is not None]
        upstreams = [each.upstream for each in handlers if each.upstream is not None]
        return max(each._transport.get_write_buffer_size() for each in upstreams)

    @property
    def _connections(self) -> list[ClientConnection]:
        return [cast("ClientConnection", each) for each in self.plane.connections]

    def connection_of(self, client: Client) -> ClientConnection:
        """The shim's side of this client's connection, which is TCP without TLS."""
        wire = client._wire
        assert isinstance(wire, SocketTransport)
        name = wire.sock.getsockname()
        return next(
            each for each in self._connections if each.transport.get_extra_info("peername") == name
        )

    def pass_time(self, seconds: float) -> None:
        """Advance the clock of every deadline by this time."""
        self.plane.sweep(self.plane.now + seconds)

    async def until_no_client(self) -> None:
        """Wait until the shim has noticed that all clients disconnected."""
        await until(lambda: not self.counters.client_connections)

    def close(self) -> None:
        for client in self._clients:
            client.close()


@asynccontextmanager
async def start_proxy(
    navidrome: Navidrome,
    *,
    limits: Limits | None = None,
    by: Policy | None = None,
    gate: AccountGate | None = None,
    devices: DeviceGate | None = None,
    logs_access: bool = False,
    path: Path | None = None,
    tls: ssl.SSLContext | None = None,
    send_buffer: int | None = None,
    keys: KeyFetcher | None = None,
    queue: VerificationQueue | None = None,
) -> AsyncIterator[RunningProxy]:
    """Start a data plane with this Navidrome as its upstream, on TCP or on a Unix socket at `path`.

    The kernel buffers `send_buffer` bytes for a client that does not read them.
    """
    loop = asyncio.get_running_loop()
    recorded = RecordingObserver(logs_access)
    plane = DataPlane(
        policy() if by is None else by,
        limits or limits_with(),
        Counters(),
        recorded,
        navidrome.address,
        gate=gate,
        devices=devices,
        options=Options(tls=tls, keys=keys),
        verification_queue=queue,
    )
    plane.sweep(loop.time())
    state = ServerState()

    def connection() -> ClientConnection | TlsHandshake:
        protocol = ClientConnection if tls is None else TlsHandshake
        return protocol(cast("Any", None), state, {"plane": plane}, loop)

    if path is None:
        listener = socket.socket()
        if send_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        listener.bind(("127.0.0.1", 0))
        server = await loop.create_server(connection, sock=listener)
        proxy = RunningProxy(plane, recorded, server.sockets[0].getsockname())
    else:
        server = await loop.create_unix_server(connection, str(path))
        proxy = RunningProxy(plane, recorded, str(path))
    proxy.state = state
    try:
        yield proxy
    finally:
        server.close()
        proxy.close()
        for left in list(plane.connections):
            cast("ClientConnection", left).abort()
        plane.stop()
        await proxy.until_no_client()
