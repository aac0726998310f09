"""`/jellyfin/…`: the login, the current user, and the WebSocket.

The router below the mount is case-insensitive, the mount is not. Unlike the real one, the socket
requires no credentials and echoes every message but `KeepAlive`, for tests of tunnels.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from demo.navidrome.accounts import Account
from demo.navidrome.goform import Json, read_json
from demo.navidrome.request import Request
from demo.navidrome.responses import Response, json_response, text_error
from demo.navidrome.state import State

SOCKET = "/jellyfin/socket"
_KEEP_ALIVE_SECONDS = 60
_TOKEN_HEADERS = ("X-Emby-Token", "X-MediaBrowser-Token")

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


async def jellyfin(state: State, request: Request) -> Response:
    """The public server information, the login and its account; 401 for the rest."""
    path = request.path.lower()
    if path == "/system/info/public":
        return json_response({"ServerName": "Navidrome", "ProductName": "Jellyfin Server"})
    if path == "/socket":
        return text_error(400, "Bad Request", [("Sec-Websocket-Version", "13")])
    if path == "/users/authenticatebyname" and request.method == "POST":
        return await _authenticate(state, request)
    account = _account(state, request)
    if account is not None and path == "/users/me" and request.method == "GET":
        return json_response(_user(account))
    return Response(401)


async def _authenticate(state: State, request: Request) -> Response:
    """`POST /Users/AuthenticateByName`. An empty password never logs in here."""
    try:
        body = read_json(await request.body.read())
    except ValueError:
        body = None
    if not isinstance(body, dict):
        return text_error(400, "Bad Request")
    account = state.accounts.find(str(body.get("Username", "")))
    password = body.get("Pw")
    if not password or account is None or account.password != password:
        return text_error(401, "Unauthorized")
    state.accounts.log_in(account)
    return json_response({"User": _user(account), "AccessToken": state.tokens.issue(account)})


def _account(state: State, request: Request) -> Account | None:
    """The account that the token of a header names, by its user name alone.

    Only some of the locations where the real one finds a token are read.
    """
    token = next(filter(None, map(request.header, _TOKEN_HEADERS)), "")
    claims = state.tokens.read(token) if token else None
    return None if claims is None else state.accounts.find(claims.subject)


def _user(account: Account) -> dict[str, Json]:
    identifier = account.id.encode().hex()
    policy: Json = {"IsAdministrator": account.is_admin}
    return {"Name": account.user_name, "Id": identifier, "Policy": policy}


def is_socket(base_path: str, path: str) -> bool:
    """Whether a path is the WebSocket's."""
    mount = f"{base_path}/jellyfin"
    return path.startswith(mount) and f"/jellyfin{path[len(mount) :].lower()}" == SOCKET


async def jellyfin_socket(receive: Receive, send: Send) -> None:
    """`/jellyfin/socket`: a first message, then a response to each until the client disconnects."""
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
