"""`/rest/…`: authentication by Subsonic's rules, and the response's envelope.

The user header replaces `u`, `p`, `t` and `s`: with it only `v` and `c` are required.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping

from demo.navidrome.accounts import Account
from demo.navidrome.goform import Json, json_bytes
from demo.navidrome.login_api import subsonic_token
from demo.navidrome.request import FormError, Params, Request
from demo.navidrome.responses import Response, not_found
from demo.navidrome.state import State
from demo.navidrome.subsonic_calls import CALLS, PLAYERLESS, SubsonicCall, SubsonicError

_EXTENSIONS: list[Json] = [
    {"name": name, "versions": list(versions)}
    for name, versions in (
        ("transcodeOffset", (1,)),
        ("formPost", (1,)),
        ("songLyrics", (1, 2)),
        ("indexBasedQueue", (1,)),
        ("transcoding", (1,)),
        ("playbackReport", (1,)),
        ("topSongsByArtistId", (1,)),
    )
]
_NOT_IMPLEMENTED = Response(
    501,
    (("Cache-Control", "no-cache"),),
    b"This endpoint is not implemented, but may be in future releases",
)
_GONE = Response(410, (), b"This endpoint will not be implemented")
_WITHOUT_IMPLEMENTATION = {
    **dict.fromkeys(
        (
            "createUser",
            "updateUser",
            "deleteUser",
            "changePassword",
            "jukeboxControl",
            "getPodcasts",
        ),
        _NOT_IMPLEMENTED,
    ),
    **dict.fromkeys(("search", "getChatMessages", "addChatMessage", "getVideos", "hls"), _GONE),
}
"""Calls that authenticate and do nothing."""
COOKIE_SECONDS = 365 * 24 * 3600
_CALLBACK = re.compile(r"[a-zA-Z_$][a-zA-Z0-9_$.]*")


async def subsonic(state: State, request: Request) -> Response:
    """Respond to a request below `/rest`, whatever its method; the path begins with what follows."""
    name = request.path.removeprefix("/").removesuffix(".view")
    try:
        params = await request.form()
    except FormError as error:
        return _failed(request.query, SubsonicError(0, str(error)))
    if name == "getOpenSubsonicExtensions":
        return _enveloped(params, {"openSubsonicExtensions": _EXTENSIONS})
    call = CALLS.get(name)
    if call is None and name not in _WITHOUT_IMPLEMENTATION:
        return not_found()
    try:
        account = _authenticated(state, request, params)
        state.accounts.access(account, "rest")
    except SubsonicError as error:
        return _failed(params, error)
    if call is None:
        return _WITHOUT_IMPLEMENTATION[name]
    response = _called(state, account, request, params, call)
    if name in PLAYERLESS:
        return response
    return response.adding(("Set-Cookie", _player_cookie(state, account, request, params)))


def _authenticated(state: State, request: Request, params: Params) -> Account:
    by_header = state.header_user(request)
    for parameter in ("v", "c") if by_header else ("u", "v", "c"):
        if not params.first(parameter):
            raise SubsonicError(10, f"missing parameter: '{parameter}'")
    account = state.accounts.find(by_header or params.first("u"))
    if account is None or not (by_header or _is_password_correct(state, account, params)):
        raise SubsonicError(40, "Wrong username or password")
    return account


def _is_password_correct(state: State, account: Account, params: Params) -> bool:
    # `validateCredentials`: the first of jwt, p and t that is present decides.
    token, password, digest = (params.first(name) for name in ("jwt", "p", "t"))
    if token:
        claims = state.tokens.read(token)
        return claims is not None and claims.subject == account.user_name
    if password:
        return _password(password) == account.password
    return bool(digest) and digest == subsonic_token(account.password, params.first("s"))


def _password(text: str) -> str:
    if not text.startswith("enc:"):
        return text
    try:
        return bytes.fromhex(text[4:]).decode("utf-8", "replace")
    except ValueError:
        return text


def _called(
    state: State, account: Account, request: Request, params: Params, call: SubsonicCall
) -> Response:
    try:
        result = call(state, account, request, params)
    except SubsonicError as error:
        return _failed(params, error)
    return result if isinstance(result, Response) else _enveloped(params, result)


def _player_cookie(state: State, account: Account, request: Request, params: Params) -> str:
    named = state.header_user(request) or params.first("u")
    player = state.player(account, request, params.first("c"))
    return (
        f"nd-player-{named.encode().hex()}={player}; Path={state.options.base_path or '/'}; "
        f"Max-Age={COOKIE_SECONDS}; HttpOnly; SameSite=Strict"
    )


def _failed(params: Params, error: SubsonicError) -> Response:
    detail: Json = {"code": error.code, "message": str(error)}
    return _enveloped(params, {"error": detail}, status="failed")


def _enveloped(params: Params, payload: Mapping[str, Json], status: str = "ok") -> Response:
    content: dict[str, Json] = {
        "status": status,
        "version": "1.16.1",
        "type": "navidrome",
        "serverVersion": "dev",
        "openSubsonic": True,
        **payload,
    }
    requested_format = params.first("f")
    wrapped = json_bytes({"subsonic-response": content})
    if requested_format == "json":
        return Response(200, (("Content-Type", "application/json"),), wrapped)
    if requested_format == "jsonp":
        callback = params.first("callback")
        if not _CALLBACK.fullmatch(callback):
            error: Json = {"code": 0, "message": "invalid callback parameter"}
            return _enveloped(Params((("f", "json"),)), {"error": error}, "failed")
        kind = ("Content-Type", "application/javascript")
        return Response(200, (kind,), callback.encode() + b"(" + wrapped + b")")
    content = {"xmlns": "http://subsonic.org/restapi", **content}
    return Response(
        200, (("Content-Type", "application/xml"),), _xml("subsonic-response", content).encode()
    )


def _xml(name: str, value: Mapping[str, Json]) -> str:
    attributes: list[str] = []
    children: list[str] = []
    for key, item in value.items():
        if isinstance(item, Mapping):
            children.append(_xml(key, item))
        elif isinstance(item, list):
            children.extend(_xml_item(key, each) for each in item)
        elif item is not None:
            attributes.append(f' {key}="{_scalar(item)}"')
    return f"<{name}{''.join(attributes)}>{''.join(children)}</{name}>"


def _xml_item(name: str, item: Json) -> str:
    if isinstance(item, Mapping):
        return _xml(name, item)
    return f"<{name}>{_scalar(item)}</{name}>"


def _scalar(value: Json) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    # Go writes quotation marks as numbers.
    text = html.escape(str(value), quote=False)
    return text.replace('"', "&#34;").replace("'", "&#39;")
