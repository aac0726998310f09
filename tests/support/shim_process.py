"""The shim as a process, its log, and a client that sends and receives bytes.

The edge is 127.0.0.2, any other peer 127.0.0.1. Where a test is one row of many, each row uses an
address of its own (127.2.x.y is trusted like the edge, 127.1.x.y is untrusted), since the log
coalesces repeated events of one peer.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import shim
from tests.support.event_schema import faults_of_line
from tests.support.recorder import SYNC_PATH, Received, Recorder

EDGE = "127.0.0.2"
UNTRUSTED = "127.0.0.1"
HOST = "music.example.com"
TRUSTED = "127.0.0.2,127.2.0.0/16"

Line = Mapping[str, Any]
_START_SECONDS = 30.0
_RESPONSE_SECONDS = 10.0
_fresh = itertools.count(1)


def edge_address() -> str:
    """A trusted address that no test has used yet."""
    return _fresh_address("127.2")


def untrusted_address() -> str:
    """An untrusted address that no test has used yet."""
    return _fresh_address("127.1")


def _fresh_address(network: str) -> str:
    third, fourth = divmod(next(_fresh), 254)
    return f"{network}.{third}.{fourth + 1}"


@dataclass(frozen=True, slots=True)
class Response:
    """Everything received. `closed`: the shim closed the connection."""

    raw: bytes
    closed: bool

    @property
    def status(self) -> int:
        """The status of the first response; 0 if there is none."""
        return int(self.raw[9:12] or b"0")

    @property
    def statuses(self) -> list[int]:
        """The statuses of all responses, in order."""
        starts = self.raw.split(b"HTTP/1.1 ")[1:]
        return [int(start[:3]) for start in starts]


class Shim:
    """A running shim. `lines` are those of its log so far, `faults` their schema errors."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.lines: list[Line] = []
        self.faults: list[str] = []
        self.host, self.port = "", 0
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for text in self.process.stdout:
            with self._changed:
                try:
                    line = json.loads(text)
                    self.lines.append(line)
                    self.faults += faults_of_line(line)
                except ValueError:
                    self.lines.append({"text": text.decode("utf-8", "replace")})
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait_for_line(self, seconds: float = _RESPONSE_SECONDS, **fields: object) -> Line:
        """Wait for the first line of the log with these fields."""

        def found() -> Line | None:
            matching = (
                line for line in self.lines if all(line.get(k) == v for k, v in fields.items())
            )
            return next(matching, None)

        with self._changed:
            self._changed.wait_for(lambda: self._ended or found() is not None, seconds)
            line = found()
        assert line is not None, (fields, self.lines)
        return line

    def request(self, data: bytes, source: str = UNTRUSTED) -> Response:
        """Send these bytes from an address, and read until the shim closes the connection."""
        with self.connect(source) as client:
            client.sendall(data)
            return read_to_the_end(client)

    def connect(self, source: str) -> socket.socket:
        """A connection from this address."""
        client = socket.create_connection((self.host, self.port), 10.0, (source, 0))
        client.settimeout(_RESPONSE_SECONDS)
        return client

    def decided(self, peer: str, upstream: Recorder) -> list[Line]:
        """The log records of stripped or rejected requests of this peer.

        Waits until everything that was sent before has been logged and has arrived upstream.
        """
        mark = f"{SYNC_PATH}{next(_fresh)}"
        self.request(f"GET {mark} HTTP/1.0\r\n\r\n".encode())
        upstream.wait_for(mark)
        self.wait_for_line(kind="access", path=mark)
        return [
            line
            for line in self.lines
            if line.get("kind") == "request_decision" and line.get("peer") == peer
        ]


def read_to_the_end(client: socket.socket) -> Response:
    """Read until the other side closes the connection, or sends nothing for too long."""
    raw = b""
    try:
        while more := client.recv(65536):
            raw += more
    except ConnectionResetError:
        return Response(raw, closed=True)
    except TimeoutError:
        return Response(raw, closed=False)
    return Response(raw, closed=True)


@contextmanager
def run_shim(
    port: int,
    folder: Path,
    *,
    without: Collection[str] = (),
    before: Sequence[str] = (),
    **settings: str,
) -> Iterator[Shim]:
    """Run a shim with an upstream, until the block ends; `settings` without their prefix, and names
    that begin with `ND_` unchanged. Those in `without` are left to the folder's `.env`; `before`
    precedes its command line.
    """
    all_settings = {
        "LISTEN": "127.0.0.1:0",
        "CONTROL_LISTEN": "127.0.0.1:0",
        "UPSTREAM": f"http://127.0.0.1:{port}",
        "REVERSE_PROXY_WHITELIST": TRUSTED,
        "PROVISIONING": "false",
        "ACCESS_LOG": "true",
        "LOG_FORMAT": "json",
        **settings,
    }
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "PYTHONPATH": str(Path(shim.__file__).parents[1]),
        **{
            name if name.startswith("ND_") else f"SHIM_{name}": value
            for name, value in all_settings.items()
            if name not in without
        },
    }
    process = subprocess.Popen(
        [*before, sys.executable, "-m", "shim", "serve"],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    running = Shim(process)
    try:
        started = running.wait_for_line(_START_SECONDS, kind="started")
        host, _, number = str(started["listen"]).rpartition(":")
        running.host = UNTRUSTED if host == "[::]" else host
        running.port = int(number)
        yield running
        assert not running.faults, running.faults
    finally:
        process.terminate()
        try:
            process.wait(15.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        running._thread.join(5.0)
        assert process.stdout is not None
        process.stdout.close()


def assert_rejected(
    shim: Shim, upstream: Recorder, response: Response, peer: str, status: int, *reasons: str
) -> None:
    """Assert one response and a close, one line in the log, and nothing upstream."""
    assert response.statuses == [status], response.raw
    assert response.closed
    assert b"connection: close" in response.raw.lower()
    (line,) = shim.decided(peer, upstream)
    assert line["verdict"] == "rejected"
    assert line["reason"] in reasons
    assert line["status"] == status
    assert not upstream.requested, upstream.requested
    assert not upstream.incomplete


def assert_stripped(
    shim: Shim, upstream: Recorder, response: Response, peer: str, *reasons: str
) -> Received:
    """Assert Navidrome's response, one line in the log, and one request upstream without any identity."""
    assert response.statuses == [200], response.raw
    (line,) = shim.decided(peer, upstream)
    assert line["verdict"] == "stripped"
    assert not reasons or line["reason"] in reasons
    (received,) = upstream.requested
    assert_no_identity(received)
    assert upstream.incomplete == []
    return received


def assert_no_identity(received: Received) -> None:
    """Assert that no stack reads a user header or an identity header in it, under any alias."""
    for line in received.head.split(b"\r\n")[1:]:
        name = bytes(
            byte if chr(byte).isalnum() else 45 for byte in line.partition(b":")[0].lower()
        )
        assert name != b"remote-user", received
        assert not name.startswith(b"x-authentik-"), received
        assert name != b"x-shim-proxy-secret", received


def build_request(
    line: str, *fields: str | bytes, body: bytes = b"", host: str | None = HOST
) -> bytes:
    """Build a request that is the last of its connection."""
    lines: list[str | bytes] = [line]
    if host is not None:
        lines.append(f"Host: {host}")
    lines += fields
    if not any(b"connection" in _bytes(each).lower() for each in fields):
        lines.append("Connection: close")
    return b"\r\n".join(map(_bytes, lines)) + b"\r\n\r\n" + body


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text
