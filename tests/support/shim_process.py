"""The shim as a process, what it logs, and a client that speaks to it in bytes.

The edge is 127.0.0.2, anyone else 127.0.0.1. Where a test is one row of many, each row speaks from an
address of its own (127.2.x.y is listed like the edge, 127.1.x.y like nobody), since the log sums up what
one peer repeats.
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
from tests.support.recorder import FENCE, Received, Recorder

EDGE = "127.0.0.2"
ANYONE = "127.0.0.1"
HOST = "music.example.com"
TRUSTED = "127.0.0.2,127.2.0.0/16"

Line = Mapping[str, Any]
_START_SECONDS = 30.0
_RESPONSE_SECONDS = 10.0
_fresh = itertools.count(1)


def an_edge() -> str:
    """An address that is listed, and that nobody has spoken from yet."""
    return _fresh_address("127.2")


def someone() -> str:
    """An address that is not listed, and that nobody has spoken from yet."""
    return _fresh_address("127.1")


def _fresh_address(network: str) -> str:
    third, fourth = divmod(next(_fresh), 254)
    return f"{network}.{third}.{fourth + 1}"


@dataclass(frozen=True, slots=True)
class Response:
    """Everything that came back. `closed`: the shim ended the connection."""

    raw: bytes
    closed: bool

    @property
    def status(self) -> int:
        """Of the first response; 0 where none came."""
        return int(self.raw[9:12] or b"0")

    @property
    def statuses(self) -> list[int]:
        """Of all answers, in order."""
        starts = self.raw.split(b"HTTP/1.1 ")[1:]
        return [int(start[:3]) for start in starts]


class Shim:
    """A shim that runs. `lines` are those of its log so far."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.lines: list[Line] = []
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
                    self.lines.append(json.loads(text))
                except ValueError:
                    self.lines.append({"kind": text.decode("utf-8", "replace")})
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait_for_line(self, seconds: float = _RESPONSE_SECONDS, **fields: object) -> Line:
        """The first line of the log with these fields, once it is there."""

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

    def request(self, data: bytes, source: str = ANYONE) -> Response:
        """Send these bytes from an address, and read until the shim ends the connection."""
        with self.connect(source) as client:
            client.sendall(data)
            return read_to_the_end(client)

    def connect(self, source: str) -> socket.socket:
        """A connection from this address."""
        client = socket.create_connection((self.host, self.port), 10.0, (source, 0))
        client.settimeout(_RESPONSE_SECONDS)
        return client

    def decided(self, peer: str, upstream: Recorder) -> list[Line]:
        """What the log says was stripped or rejected of this peer, once everything that was asked before
        has been logged and has arrived upstream."""
        mark = f"{FENCE}{next(_fresh)}"
        self.request(f"GET {mark} HTTP/1.0\r\n\r\n".encode())
        upstream.wait_for(mark)
        self.wait_for_line(kind="access", path=mark)
        return [
            line
            for line in self.lines
            if line.get("kind") == "request_decision" and line.get("peer") == peer
        ]


def read_to_the_end(client: socket.socket) -> Response:
    """Read until the other side ends the connection, or falls silent for too long."""
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
def shim_before(
    port: int,
    folder: Path,
    *,
    without: Collection[str] = (),
    before: Sequence[str] = (),
    **settings: str,
) -> Iterator[Shim]:
    """A shim before an upstream, until the block ends; `settings` without their prefix, and names that
    begin with `ND_` as they are. Those in `without` are left to the folder's `.env`; `before` stands
    before its command line."""
    given = {
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
            for name, value in given.items()
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
        running.host = ANYONE if host == "[::]" else host
        running.port = int(number)
        yield running
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
    front: Shim, upstream: Recorder, response: Response, peer: str, status: int, *reasons: str
) -> None:
    """One response and an end, one line in the log, and nothing upstream."""
    assert response.statuses == [status], response.raw
    assert response.closed
    assert b"connection: close" in response.raw.lower()
    (line,) = front.decided(peer, upstream)
    assert line["verdict"] == "rejected"
    assert line["reason"] in reasons
    assert line["status"] == status
    assert not upstream.requested, upstream.requested
    assert not upstream.torn


def assert_stripped(
    front: Shim, upstream: Recorder, response: Response, peer: str, *reasons: str
) -> Received:
    """Navidrome's response, one line in the log, and one request upstream that names nobody."""
    assert response.statuses == [200], response.raw
    (line,) = front.decided(peer, upstream)
    assert line["verdict"] == "stripped"
    assert not reasons or line["reason"] in reasons
    (received,) = upstream.requested
    assert_names_nobody(received)
    assert upstream.torn == []
    return received


def assert_names_nobody(received: Received) -> None:
    """Whatever stack reads it: no user header, no identity header, under any alias."""
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
    """A request that is the last of its connection."""
    lines: list[str | bytes] = [line]
    if host is not None:
        lines.append(f"Host: {host}")
    lines += fields
    if not any(b"connection" in _bytes(each).lower() for each in fields):
        lines.append("Connection: close")
    return b"\r\n".join(map(_bytes, lines)) + b"\r\n\r\n" + body


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text
