"""The stand-in as an ASGI application: reads a complete request, records it, sends its response.

Faults are injected here, since they affect the sending and not the content.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from email.utils import formatdate
from typing import Any, Final

from demo.navidrome.app import respond
from demo.navidrome.faults import Fault, FaultKind
from demo.navidrome.jellyfin import jellyfin_socket
from demo.navidrome.request import (
    ClientDisconnected,
    HeaderPairs,
    Params,
    Request,
    RequestBody,
    SeenRequest,
)
from demo.navidrome.responses import BUFFERED, Response, redirect
from demo.navidrome.sources import UNIX_PEER, TrustedSources
from demo.navidrome.state import State
from demo.navidrome.wire import EXTENSION, WireDetails

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

_DISCARDED: Final = 256 << 10
"""Bytes of an unread body that net/http reads to keep the connection."""
_RESPONSE_NEEDED: Final = {FaultKind.TRUNCATED_JSON, FaultKind.CUT}


class Serving:
    """The ASGI application over one state.

    seen: the last requests, oldest first.
    fault: the current fault, None for none.
    """

    def __init__(self, state: State) -> None:
        self.state = state
        self.trusted = TrustedSources.parse(state.options.trusted_sources)
        self.seen: deque[SeenRequest] = deque(maxlen=state.options.seen_limit)
        self.fault: Fault | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket."""
        seen = _seen(scope)
        self.seen.append(seen)
        if scope["type"] == "websocket":
            await jellyfin_socket(receive, send)
            return
        path, _, query = seen.target.partition("?")
        request = Request(
            method=seen.method,
            path=path,
            query=Params.parse(query),
            query_text=query,
            headers=seen.headers,
            body=RequestBody(receive),
            peer=seen.peer,
            trusted=self.trusted.trusts(seen.peer),
        )
        fault = self.fault
        below = path.removeprefix(self.state.options.base_path)
        try:
            if fault is not None and fault.hits(request.method, below):
                await request.body.read()
                await self._fail(fault, request, scope, receive, send)
                return
            response = _rejected(request, scope["http_version"])
            if response is None:
                response = await respond(self.state, request)
                if not request.body.is_read:
                    response = await _without_body(request, response)
        except ClientDisconnected:
            return
        await _send(response, request.method, receive, send)

    async def _fail(
        self, fault: Fault, request: Request, scope: Scope, receive: Receive, send: Send
    ) -> None:
        disconnected = Response()
        if fault.carried_out or fault.kind in _RESPONSE_NEEDED:
            disconnected = await respond(self.state, request)
        whole = disconnected.body if isinstance(disconnected.body, bytes) else b""
        half = whole[: len(whole) // 2]
        match fault.kind:
            case FaultKind.SERVER_ERROR:
                failing = _bare(500, "application/json", b'{"error":"database is locked"}')
            case FaultKind.HTML:
                failing = _bare(
                    200, "text/html; charset=utf-8", b"<html><body>Sign in</body></html>"
                )
            case FaultKind.TRUNCATED_JSON:
                failing = Response(disconnected.status, disconnected.headers, half)
            case FaultKind.REDIRECT:
                failing = redirect("/elsewhere/")
            case FaultKind.CUT:
                length = (("Content-Length", str(len(whole))), ("Connection", "close"))
                await send(_start(Response(disconnected.status, (*disconnected.headers, *length))))
                await send({"type": "http.response.body", "body": half, "more_body": True})
                return await _hang_up(scope, receive)
            case FaultKind.NOTHING:
                return await _hang_up(scope, receive)
            case FaultKind.HANG:
                return await self._hang(fault, scope, receive)
        await _send(failing, request.method, receive, send)
        return None

    async def _hang(self, fault: Fault, scope: Scope, receive: Receive) -> None:
        client_disconnect = asyncio.ensure_future(_disconnected(receive))
        while (
            self.fault is fault and not client_disconnect.done() and not self.state.closing.is_set()
        ):
            await asyncio.wait({client_disconnect}, timeout=0.02)
        client_disconnect.cancel()
        await _hang_up(scope, receive)


def _seen(scope: Scope) -> SeenRequest:
    details: WireDetails | None = scope.get("extensions", {}).get(EXTENSION)
    headers = details.headers if details is not None else scope["headers"]
    target = scope["raw_path"].decode("latin-1")
    if scope["query_string"]:
        target += "?" + scope["query_string"].decode("latin-1")
    pairs: HeaderPairs = tuple(
        (n.decode("latin-1"), v.decode("utf-8", "replace")) for n, v in headers
    )
    peer = scope["client"][0] if scope["client"] else UNIX_PEER
    return SeenRequest(scope.get("method", "GET"), target, pairs, peer)


def _rejected(request: Request, version: str) -> Response | None:
    """The response of net/http itself to a request that no handler sees, None if there is none."""
    hosts = request.values("Host")
    if len(hosts) > 1 or (not hosts and version != "1.0"):
        return _closing(400, "400 Bad Request")
    if request.values("Transfer-Encoding") not in ([], ["chunked"]):
        return _closing(501, "Unsupported transfer encoding")
    expected = request.header("Expect")
    if expected and expected.lower() != "100-continue":
        return Response(417, (("Connection", "close"),))
    return None


def _closing(status: int, text: str) -> Response:
    headers = ("Content-Type", "text/plain; charset=utf-8"), ("Connection", "close")
    return Response(status, headers, text.encode())


async def _without_body(request: Request, response: Response) -> Response:
    """The response to a request whose body no handler read. net/http closes the connection if it would
    have to ask for the body (`Expect: 100-continue`), or if the body is long.
    """
    length = request.header("Content-Length")
    has_body = bool(request.header("Transfer-Encoding")) or length not in {"", "0"}
    if not has_body:
        return response
    if request.header("Expect"):
        return response.adding(("Connection", "close"))
    if len(await request.body.read()) > _DISCARDED:
        return response.adding(("Connection", "close"))
    return response


async def _send(reply: Response, method: str, receive: Receive, send: Send) -> None:
    body = reply.body
    if body and isinstance(body, bytes) and not reply.has("Content-Type"):
        reply = reply.adding(("Content-Type", "text/plain; charset=utf-8"))
    if isinstance(body, bytes):
        counted = len(body) <= BUFFERED and (body or method != "HEAD")
        known = reply.status == 304 or reply.has("Content-Length")
        if counted and not known:
            reply = Response(
                reply.status, (*reply.headers, ("Content-Length", str(len(body)))), body
            )
        await send(_start(reply))
        await send({"type": "http.response.body", "body": body})
        return
    await send(_start(reply))
    if method != "HEAD":
        client_disconnect = asyncio.ensure_future(_disconnected(receive))
        try:
            async for piece in _until(body, client_disconnect):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            if client_disconnect.done():
                return
        finally:
            client_disconnect.cancel()
            await body.aclose()
    await send({"type": "http.response.body", "body": b""})


async def _until(
    pieces: AsyncGenerator[bytes, None], client_disconnect: asyncio.Future[bytes | None]
) -> AsyncGenerator[bytes, None]:
    """The pieces of a body, until the client disconnects."""
    while True:
        following: asyncio.Future[bytes | None] = asyncio.ensure_future(anext(pieces, None))
        try:
            await asyncio.wait({following, client_disconnect}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if client_disconnect.done() or not following.done():
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
        if client_disconnect.done():
            return
        piece = following.result()
        if piece is None:
            return
        yield piece


async def _disconnected(receive: Receive) -> bytes | None:
    while (await receive())["type"] != "http.disconnect":
        pass
    return None


async def _hang_up(scope: Scope, receive: Receive) -> None:
    """Close the connection after the written data, and wait until it is closed."""
    details: WireDetails = scope["extensions"][EXTENSION]
    details.transport.close()
    await _disconnected(receive)


def _start(reply: Response) -> dict[str, object]:
    headers = [("Date", formatdate(usegmt=True)), *reply.headers]
    return {
        "type": "http.response.start",
        "status": reply.status,
        "headers": [(n.encode("latin-1"), v.encode()) for n, v in headers],
    }


def _bare(status: int, content_type: str, body: bytes) -> Response:
    return Response(status, (("Content-Type", content_type),), body)
