"""`/jellyfin/…`: enough of it to tell that a request got there, and its WebSocket.

The router below the mount is case-blind, the mount is not. Unlike the real one, the socket asks
for no credentials and sends every message but `KeepAlive` back, for tests of tunnels.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from shim.demo.navidrome.answers import Answer, json_answer, text_error
from shim.demo.navidrome.request import Request

SOCKET = "/jellyfin/socket"
_KEEP_ALIVE_SECONDS = 60

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


def jellyfin(request: Request) -> Answer:
    """The public server information; 401 for the rest."""
    path = request.path.lower()
    if path == "/system/info/public":
        return json_answer({"ServerName": "Navidrome", "ProductName": "Jellyfin Server"})
    if path == "/socket":
        return text_error(400, "Bad Request", [("Sec-Websocket-Version", "13")])
    return Answer(401)


def is_socket(base_path: str, path: str) -> bool:
    """Whether a path is the WebSocket's."""
    mount = f"{base_path}/jellyfin"
    return path.startswith(mount) and f"/jellyfin{path[len(mount) :].lower()}" == SOCKET


async def jellyfin_socket(receive: Receive, send: Send) -> None:
    """`/jellyfin/socket`: a first message, then an answer to each until the client leaves."""
    message = await receive()
    if message["type"] != "websocket.connect":
        return
    await send({"type": "websocket.accept"})
    hello = {"MessageType": "ForceKeepAlive", "Data": _KEEP_ALIVE_SECONDS}
    await send({"type": "websocket.send", "text": json.dumps(hello)})
    while (message := await receive())["type"] == "websocket.receive":
        text, data = message.get("text"), message.get("bytes")
        if text is not None:
            await send({"type": "websocket.send", "text": text})
        else:
            await send({"type": "websocket.send", "bytes": data})
