"""`/api/…`: authentication, and the routing of calls.

A token takes precedence over the header (`server.Authenticator`): a stale one of another user wins.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Final

from demo.navidrome import user_api
from demo.navidrome.accounts import Account
from demo.navidrome.goform import Json, json_bytes, new_id, read_json, time_text
from demo.navidrome.listing import OffsetWithoutLimitError, Row, page_of
from demo.navidrome.request import Request
from demo.navidrome.responses import (
    Response,
    json_error,
    json_response,
    method_not_allowed,
    not_found,
    text_error,
)
from demo.navidrome.songs import RELEASED, Song
from demo.navidrome.state import Share, State
from demo.navidrome.tokens import AUTHORIZATION

_ADMINS_ONLY: Final = "Access denied: admin privileges required"
_MOUNTED: Final = frozenset({"user", "song", "share", "library"})
"""Routers of their own: they authenticate before they look for a route and its methods."""


async def native_api(state: State, request: Request) -> Response:
    """Respond to a request below `/api`; the path begins with what follows it."""
    parts = request.path.split("/")[1:]
    mounted = parts[:1] and parts[0] in _MOUNTED
    if mounted and len(parts) > 1 and not parts[-1]:
        del parts[-1]
    hidden = parts[:1] == ["config"] and not state.options.show_configuration
    methods = None if hidden else _methods(parts)
    if not mounted:
        if methods is None:
            return not_found()
        if methods and request.method not in methods:
            return method_not_allowed(*methods)
    if parts == ["translation"]:
        # The one public route.
        return json_response([], headers=[("X-Total-Count", "0")])
    session = state.session(request)
    name = session.subject if session is not None else state.header_user(request)
    caller = state.accounts.find(name) if name else None
    if caller is None:
        return json_error(401, "Not authenticated")
    if parts != ["events"]:
        state.accounts.access(caller, "api")
    if methods is None:
        response = not_found()
    elif _is_for_admins(parts) and not caller.is_admin:
        response = text_error(403, _ADMINS_ONLY)
    elif methods and request.method not in methods:
        response = method_not_allowed(*methods)
    else:
        try:
            response = await _route(state, caller, request, parts)
        except OffsetWithoutLimitError:
            response = json_error(500, 'near "OFFSET": syntax error').followed_by(b"null")
    if session is None:
        return response
    return response.adding((AUTHORIZATION, state.tokens.refresh(session)))


def _methods(parts: list[str]) -> tuple[str, ...] | None:
    """The methods of a route, () for all; None if there is no such route."""
    match parts:
        case ["events"]:
            return ()
        case ["translation" | "song"] | ["song", _] | ["keepalive" | "config", _, *_]:
            return ("GET",)
        case ["user" | "share" | "library"]:
            return ("GET", "POST")
        case ["user" | "share" | "library", _]:
            return ("GET", "PUT", "DELETE")
        case ["user", _, "library"]:
            return ("GET", "PUT")
    return None


def _is_for_admins(parts: list[str]) -> bool:
    return parts[0] in {"library", "config"} or parts[2:] == ["library"]


async def _route(state: State, caller: Account, request: Request, parts: list[str]) -> Response:
    match parts:
        case ["events"]:
            return _events(state)
        case ["keepalive", *_]:
            return Response(body=b'{"response":"ok", "id":"keepalive"}')
        case ["config", *_]:
            return _configuration(state)
        case ["user", *remainder]:
            return await _users(state, caller, request, remainder)
        case ["library", *remainder]:
            return _libraries(state, request, remainder)
        case ["song", *remainder]:
            return _songs(state, caller, request, remainder)
        case ["share", *remainder]:
            return await _shares(state, caller, request, remainder)
    return not_found()


async def _users(state: State, caller: Account, request: Request, remainder: list[str]) -> Response:
    match (request.method, remainder):
        case ("GET", []):
            return user_api.list_users(state, caller, request.query)
        case ("POST", []):
            return await user_api.create_user(state, caller, request)
        case ("GET", [account_id]):
            return user_api.read_user(state, caller, account_id)
        case ("PUT", [account_id]):
            return await user_api.update_user(state, caller, account_id, request)
        case ("DELETE", [account_id]):
            return user_api.delete_user(state, caller, account_id)
        case ("GET", [account_id, "library"]):
            return user_api.user_libraries(state, account_id)
        case ("PUT", [account_id, "library"]):
            return await user_api.set_user_libraries(state, account_id, request)
    return not_found()


def _configuration(state: State) -> Response:
    """`GET /api/config/*`: the current settings, as far as the stand-in has them."""
    options = state.options
    external: Json = {
        "TrustedSources": options.trusted_sources,
        "UserHeader": options.user_header,
        "LogoutURL": "",
    }
    config: Json = {
        "BasePath": options.base_path,
        "EnableUserEditing": options.enable_user_editing,
        "ExtAuth": external,
    }
    return json_response({"id": "config", "configFile": "", "config": config})


def _libraries(state: State, request: Request, remainder: list[str]) -> Response:
    if request.method != "GET":
        return json_error(501, "the stand-in changes no libraries")
    rows = [user_api.library_shown(state, library.id) for library in state.accounts.libraries]
    if not remainder:
        shown, total = page_of(rows, request.query)
        return json_response(shown, headers=[("X-Total-Count", str(total))])
    found = [row for row in rows if str(row["id"]) == remainder[0]]
    if not found:
        number = remainder[0].isdecimal()
        message = "data not found" if number else f"library(id:{remainder[0]}) not found"
        return json_error(500 if number else 404, message)
    return json_response(found[0])


def _songs(state: State, caller: Account, request: Request, remainder: list[str]) -> Response:
    rows = [_song_json(song) for song in state.catalogue.within(caller.libraries)]
    if not remainder:
        shown, total = page_of(rows, request.query)
        return json_response(shown, headers=[("X-Total-Count", str(total))])
    found = [row for row in rows if row["id"] == remainder[0]]
    return (
        json_response(found[0]) if found else json_error(404, f"song(id:{remainder[0]}) not found")
    )


def _song_json(song: Song) -> Row:
    return {
        "id": song.id,
        "libraryId": song.library_id,
        "title": song.title,
        "album": song.album,
        "albumId": song.album_id,
        "artist": song.artist,
        "artistId": song.artist_id,
        "albumArtist": song.artist,
        "albumArtistId": song.artist_id,
        "trackNumber": song.track,
        "path": f"{song.artist}/{song.album}/{song.title}.wav",
        "suffix": "wav",
        "size": song.tone.size,
        "duration": song.tone.seconds,
        "bitRate": 128,
        "sampleRate": 8000,
        "channels": 1,
        "hasCoverArt": False,
        "createdAt": RELEASED,
        "updatedAt": RELEASED,
    }


async def _shares(
    state: State, caller: Account, request: Request, remainder: list[str]
) -> Response:
    rows: dict[str, Row] = {
        share.id: {"id": share.id, "resourceIds": share.resource_ids, "userId": share.owner_id}
        for share in state.shares.values()
        if caller.is_admin or share.owner_id == caller.id
    }
    match (request.method, remainder):
        case ("POST", []):
            return await _make_share(state, caller, request)
        case ("GET", []):
            shown, total = page_of(list(rows.values()), request.query)
            return json_response(shown, headers=[("X-Total-Count", str(total))])
        case ("GET", [share_id]):
            found = rows.get(share_id)
            return json_error(500, "data not found") if found is None else json_response(found)
        case ("DELETE", [share_id]):
            if share_id not in rows:
                return json_error(404, f"share(id:{share_id}) not found")
            del state.shares[share_id]
            return json_response({})
    return json_error(501, "the stand-in changes no shares")


async def _make_share(state: State, caller: Account, request: Request) -> Response:
    try:
        body = read_json(await request.body.read())
    except ValueError:
        body = None
    if not isinstance(body, dict):
        return json_error(422, "Invalid request payload")
    resource_ids = str(body.get("resourceIds", ""))
    if not state.catalogue.by_id(resource_ids.partition(",")[0]):
        return json_error(500, "data not found")
    share = Share(
        id=new_id(10),
        resource_ids=resource_ids,
        description=str(body.get("description", "")),
        downloadable=body.get("downloadable") is True,
        owner_id=caller.id,
    )
    state.shares[share.id] = share
    return json_response({"id": share.id})


def _events(state: State) -> Response:
    """`GET /api/events`: one event at once, then periodic keep-alives."""
    headers = (
        ("Content-Type", "text/event-stream"),
        ("Cache-Control", "no-cache, no-transform"),
        ("Connection", "keep-alive"),
        ("X-Accel-Buffering", "no"),
    )
    return Response(200, headers, _event_stream(state))


async def _event_stream(state: State) -> AsyncGenerator[bytes, None]:
    inbox: asyncio.Queue[bytes] = asyncio.Queue()
    state.listeners.add(inbox)
    started: Json = {"startTime": time_text(state.clock()), "version": "dev"}
    number = 0
    try:
        yield event(number, "serverStart", started)
        while not state.closing.is_set():
            number += 1
            try:
                yield await asyncio.wait_for(inbox.get(), state.options.events_every)
            except TimeoutError:
                yield event(number, "keepAlive", {"ts": int(state.clock())})
    finally:
        state.listeners.discard(inbox)


def event(number: int, name: str, data: Json) -> bytes:
    """One server-sent event."""
    return f"id: {number}\nevent: {name}\ndata: ".encode() + json_bytes(data) + b"\n\n"
