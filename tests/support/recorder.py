"""An upstream that records the bytes it receives, and parses them as strictly as Navidrome.

It responds to every request, so that the next one on the connection arrives too, and redirects
unknown pages to its web app, as Navidrome does. It accepts a WebSocket at `SOCKET` alone.
"""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

SOCKET = b"/jellyfin/socket"
SYNC_PATH = "/rest/fence/"
_RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
_SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Received:
    """A complete request. `head` is without its empty line."""

    head: bytes
    body: bytes = b""

    @property
    def target(self) -> str:
        return self.head.split(b" ", 2)[1].decode()

    def values(self, name: str) -> list[str]:
        """The values of a header, by its exact name in any case, with one leading blank removed."""
        found = []
        for line in self.head.split(b"\r\n")[1:]:
            key, _, value = line.partition(b":")
            if key.lower() == name.lower().encode():
                found.append(value.removeprefix(b" ").decode())
        return found


@dataclass
class Recorder:
    """Everything received. `requests` are complete; `pending` holds, by connection, the bytes
    behind them and incomplete ones.
    """

    port: int
    base_path: str
    requests: list[Received] = field(default_factory=list)
    pending: dict[int, bytes] = field(default_factory=dict)
    tunnelled: bytearray = field(default_factory=bytearray)

    @property
    def requested(self) -> list[Received]:
        """The requests without the fences."""
        return [each for each in list(self.requests) if not each.target.startswith(SYNC_PATH)]

    @property
    def incomplete(self) -> list[bytes]:
        """Everything received that is not a complete request."""
        return [data for data in list(self.pending.values()) if data]

    def clear(self) -> None:
        """Delete the record."""
        self.requests.clear()
        self.pending.clear()
        self.tunnelled.clear()

    def wait_for(self, target: str) -> Received:
        """The request for this target, once it has arrived."""
        end = time.monotonic() + _SECONDS
        while True:
            for each in list(self.requests):
                if each.target == target:
                    return each
            assert time.monotonic() < end, f"{target} never arrived"
            time.sleep(0.002)


@contextmanager
def recorder(base_path: str = "/") -> Iterator[Recorder]:
    """A recorder on a free port, until the block ends."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            connection: socket.socket = self.request
            connection.settimeout(30.0)
            with suppress(OSError):
                _serve(connection, record)

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as server:
        record = Recorder(server.server_address[1], base_path)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield record
        finally:
            server.shutdown()
            thread.join()


def _serve(connection: socket.socket, record: Recorder) -> None:
    data = b""
    while True:
        while (request := _complete_request(data)) is None:
            record.pending[id(connection)] = data
            more = connection.recv(65536)
            if not more:
                return
            data += more
        received, data = request
        record.pending[id(connection)] = data
        if received.values("Host") == [f"127.0.0.1:{record.port}"]:
            connection.sendall(_respond_to_the_shim(received, record.base_path))
            continue
        record.requests.append(received)
        if received.values("Upgrade"):
            data += _read_early_data(connection)
            record.pending[id(connection)] = data
            if received.target.startswith(SOCKET.decode()):
                _tunnel(connection, record)
                return
        connection.sendall(
            _RESPONSE.replace(b"ok", b"") if received.head[:4] == b"HEAD" else _RESPONSE
        )


def _respond_to_the_shim(received: Received, base_path: str) -> bytes:
    """The shim's own requests, which check that Navidrome is up: they carry no user."""
    web_app = f"{base_path}app/"
    if received.target.startswith(f"{base_path}rest/ping?"):
        # It accepts every user header, and has no accounts.
        payload = b'{"subsonic-response":{"status":"failed","error":{"code":40}}}'
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(payload), payload)
    if received.target.startswith(web_app):
        return _RESPONSE
    return f"HTTP/1.1 302 Found\r\nLocation: {web_app}\r\nContent-Length: 0\r\n\r\n".encode()


def _read_early_data(connection: socket.socket) -> bytes:
    """The bytes that come before the response to a handshake, which is delayed for a moment."""
    connection.settimeout(0.2)
    try:
        return connection.recv(65536)
    except TimeoutError:
        return b""
    finally:
        connection.settimeout(30.0)


def _tunnel(connection: socket.socket, record: Recorder) -> None:
    connection.sendall(_SWITCH)
    while more := connection.recv(65536):
        record.tunnelled += more
        connection.sendall(b"echo " + more)


def _complete_request(data: bytes) -> tuple[Received, bytes] | None:
    head, end, rest = data.partition(b"\r\n\r\n")
    if not end:
        return None
    fields = [line.partition(b":") for line in head.lower().split(b"\r\n")[1:]]
    framing = {name: value.strip() for name, _, value in fields}
    if framing.get(b"transfer-encoding") == b"chunked":
        body = b""
        while True:
            size, end, rest = rest.partition(b"\r\n")
            if not end:
                return None
            length = int(size, 16)
            if len(rest) < length + 2:
                return None
            body, rest = body + rest[:length], rest[length + 2 :]
            if not length:
                return Received(head, body), rest
    length = int(framing.get(b"content-length", b"0"))
    if len(rest) < length:
        return None
    return Received(head, rest[:length]), rest[length:]
