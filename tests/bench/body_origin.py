"""The upstream of `streams` and `transfers`: endless events and very large bodies, in one small
process.

`python -m tests.bench.body_origin PORT`. It serves three targets and everything else with a short
JSON:

- `GET /api/events`: server-sent events, one at once and then one every 15 seconds, as Navidrome
does;
- `GET /api/track?bytes=N`: N bytes of the pattern;
- `POST /api/upload?rate=R`: reads the body at R MB/s (0: without a limit), returns its length and
CRC-32.
"""

from __future__ import annotations

import asyncio
import json
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.bench.pattern import BLOCK, pattern
from tests.bench.processes import running
from tests.bench.read_rate import ReadRate
from tests.support.ports import free_port

_PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
_EVENTS = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache, no-transform\r\n"
    b"Transfer-Encoding: chunked\r\nX-Accel-Buffering: no\r\n\r\n"
)
_EVENT = (
    b'id: %d\nevent: serverStart\ndata: {"startTime":"2026-08-21T10:00:00Z","version":"0.63.2"}\n\n'
)
_KEEP_ALIVE_SECONDS = 15


@contextmanager
def body_origin(folder: Path, cores: frozenset[int]) -> Iterator[int]:
    """Runs it in a process of its own and gives its port on 127.0.0.1."""
    port = free_port()
    root = str(Path(__file__).parents[2])
    command = (sys.executable, "-m", "tests.bench.body_origin", str(port))
    with running(
        "body-origin", command, folder=folder, env={"PYTHONPATH": root}, cores=cores
    ) as process:
        process.wait_for_port(port)
        yield port


async def serve(port: int) -> None:
    server = await asyncio.start_server(_serve_client, "127.0.0.1", port, limit=BLOCK, backlog=4096)
    async with server:
        await server.serve_forever()


async def _serve_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            await _respond(head, reader, writer)
            await writer.drain()
    writer.close()


async def _respond(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    target = urlsplit(head.split(b" ", 2)[1].decode())
    query = parse_qs(target.query)
    match target.path:
        case "/api/events":
            await _send_events(writer)
        case "/api/track":
            await _send_track(int(query["bytes"][0]), writer)
        case "/api/upload":
            await _take_upload(_content_length(head), float(query["rate"][0]), reader, writer)
        case _:
            seen = {"user": _value(head, "remote-user"), "for": _value(head, "x-forwarded-for")}
            body = json.dumps(seen).encode()
            writer.write(_PLAIN % (len(body), body))


async def _send_events(writer: asyncio.StreamWriter) -> None:
    writer.write(_EVENTS)
    number = 0
    while not writer.is_closing():
        event = _EVENT % number
        writer.write(b"%x\r\n%s\r\n" % (len(event), event))
        await writer.drain()
        number += 1
        await asyncio.sleep(_KEEP_ALIVE_SECONDS)


async def _send_track(size: int, writer: asyncio.StreamWriter) -> None:
    writer.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: audio/flac\r\nContent-Length: %d\r\n\r\n" % size
    )
    for block in pattern(size):
        writer.write(block)
        await writer.drain()


async def _take_upload(
    size: int, rate: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    rate_limit, crc, taken = ReadRate(rate), 0, 0
    while taken < size:
        data = await reader.read(min(BLOCK, size - taken))
        if not data:
            return
        taken += len(data)
        crc = zlib.crc32(data, crc)
        await asyncio.sleep(rate_limit.delay(taken))
    body = json.dumps({"bytes": taken, "crc32": crc}).encode()
    writer.write(_PLAIN % (len(body), body))


def _content_length(head: bytes) -> int:
    return int(_value(head, "content-length"))


def _value(head: bytes, wanted: str) -> str:
    """All lines of one field, joined (RFC 9110 §5.3)."""
    return ", ".join(value for name, value in _fields(head) if name == wanted)


def _fields(head: bytes) -> Iterator[tuple[str, str]]:
    for line in head.decode("latin-1").split("\r\n")[1:-2]:
        name, _, value = line.partition(":")
        yield name.lower(), value.strip()


def main(arguments: Sequence[str]) -> None:
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(int(arguments[0])))


if __name__ == "__main__":
    main(sys.argv[1:])
