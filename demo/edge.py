"""A scripted edge: what Traefik with authentik's forward auth does, as far as the demo needs it.

One request per connection, so that no message has to be framed: the head is read and rewritten,
then bytes are only copied. Its routes are those of the usual guide, the open ones with their
weakness: any claimed identity on `/rest/` and `/share/` is forwarded. For the demo only.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import parse_qs, quote, urlsplit

import httpx

from demo.outpost import PREFIX

OPEN_ROUTES: Final = ("/rest/", "/share/")
"""Where no session is asked for: apps and share links can't sign in on a page."""
IDENTITY_PREFIX: Final = "x-authentik-"

_COPIED: Final = 64 * 1024
_SECONDS: Final = 10.0
# Set again for the upstream, never forwarded.
_HOP: Final = frozenset(
    {"connection", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip"}
)


@dataclass(frozen=True, slots=True)
class _Head:
    """A request's head. The fields keep their spelling and order."""

    method: str
    target: str
    fields: tuple[tuple[str, str], ...]

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    def value(self, name: str) -> str:
        return next((value for key, value in self.fields if key.lower() == name), "")


class Edge:
    """An edge that listens from `start` to `stop`; an async context manager.

    before: `http://host:port` of its upstream.
    outpost: `http://host:port` of the provider's outpost.
    address: the loopback address that it connects from.
    port: its port on 127.0.0.1; 0 is any free one.
    """

    def __init__(self, before: str, outpost: str, *, address: str, port: int = 0) -> None:
        self._before = urlsplit(before)
        self._outpost = urlsplit(outpost)
        self._address = address
        self._port = port
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()
        # A connection for each request: the outpost may close an idle one just when it is used again.
        limits = httpx.Limits(max_keepalive_connections=0)
        transport = httpx.AsyncHTTPTransport(local_address=address, limits=limits)
        self._outpost_client = httpx.AsyncClient(
            transport=transport, trust_env=False, timeout=_SECONDS
        )

    async def start(self) -> None:
        """Listen. Raises `OSError` if the port is not available."""
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self._port, limit=_COPIED
        )
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close the socket and every connection."""
        if self._server is not None:
            self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await self._outpost_client.aclose()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        """`http://host:port`, with no slash at its end."""
        return f"http://127.0.0.1:{self._port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            head = await self._read(reader)
            if head is not None:
                await self._route(head, reader, writer)
        except (OSError, httpx.HTTPError):
            with contextlib.suppress(OSError):
                writer.write(_response("502 Bad Gateway"))
                await writer.drain()
        except asyncio.CancelledError:
            pass  # the edge stops
        finally:
            self._serving.discard(task)
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> _Head | None:
        try:
            async with asyncio.timeout(_SECONDS):
                text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
            return None
        request_line, *lines = text.removesuffix("\r\n\r\n").split("\r\n")
        words = request_line.split(" ")
        if len(words) != 3:
            return None
        fields = (
            (name, value.strip()) for name, _, value in (line.partition(":") for line in lines)
        )
        return _Head(words[0], words[1], tuple(fields))

    async def _route(
        self, head: _Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        user = parse_qs(urlsplit(head.target).query).get("user")
        target = "/app/" if head.path == "/" else head.path
        if head.path in ("/", "/_shim/") and user:
            where = f"{PREFIX}/start?user={quote(user[0])}&rd={quote(target)}"
            writer.write(_response("302 Found", ("Location", where)))
            await writer.drain()
        elif head.path.startswith(f"{PREFIX}/"):
            await self._forward(head, self._outpost.port, reader, writer)
        elif head.path.startswith(OPEN_ROUTES):
            await self._forward(head, self._before.port, reader, writer)
        else:
            await self._authenticate(head, reader, writer)

    async def _authenticate(
        self, head: _Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Request authentication from the outpost: its identity headers, or a redirect to sign in."""
        auth_response = await self._outpost_client.get(
            f"{self._outpost.geturl()}{PREFIX}/auth/traefik",
            headers={
                "Cookie": head.value("cookie"),
                "X-Forwarded-Proto": "http",
                "X-Forwarded-Host": head.value("host"),
                "X-Forwarded-Uri": head.target,
            },
        )
        if auth_response.status_code != httpx.codes.OK:
            status = f"{auth_response.status_code} {auth_response.reason_phrase}"
            location = auth_response.headers.get("Location", "")
            writer.write(_response(status, *([("Location", location)] if location else [])))
            await writer.drain()
            return
        # By exact name, like Traefik: an alias (`X_authentik_username`) is forwarded.
        forwarded = [f for f in head.fields if not f[0].lower().startswith(IDENTITY_PREFIX)]
        identity_fields = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in auth_response.headers.raw
            if name.lower().startswith(IDENTITY_PREFIX.encode())
        ]
        authenticated = _Head(head.method, head.target, (*forwarded, *identity_fields))
        await self._forward(authenticated, self._before.port, reader, writer)

    async def _forward(
        self,
        head: _Head,
        port: int | None,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        peer = writer.get_extra_info("peername")[0]
        fields = [field for field in head.fields if field[0].lower() not in _HOP]
        fields += [
            ("X-Forwarded-For", peer),
            ("X-Forwarded-Host", head.value("host")),
            ("X-Forwarded-Proto", "http"),
            ("Connection", "close"),
        ]
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
        upstream_reader, upstream_writer = await asyncio.open_connection(
            "127.0.0.1", port, local_addr=(self._address, 0)
        )
        try:
            upstream_writer.write(
                f"{head.method} {head.target} HTTP/1.1\r\n{lines}\r\n".encode("latin-1")
            )
            copy_tasks = {
                asyncio.create_task(_copy(reader, upstream_writer)),
                asyncio.create_task(_copy(upstream_reader, writer)),
            }
            # The first side that ends closes both: the response is complete, or the client has
            # disconnected.
            try:
                await asyncio.wait(copy_tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in copy_tasks:
                    task.cancel()
                await asyncio.gather(*copy_tasks, return_exceptions=True)
        finally:
            upstream_writer.close()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(_COPIED):
            target.write(data)
            await target.drain()


def _response(status: str, *fields: tuple[str, str]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
    return f"HTTP/1.1 {status}\r\n{lines}Content-Length: 0\r\nConnection: close\r\n\r\n".encode()
