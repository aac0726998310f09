"""From a request to its response: mounts, middlewares, and unmatched routes.

Routing is on the escaped path as received (chi's `RawPath`): `/rest/../api/user` is a Subsonic
request and `/%72est/ping` is not. Middlewares run only where a route matched, so a 405 without a
route has no headers.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote

from demo.navidrome import login_api, pages
from demo.navidrome.jellyfin import jellyfin
from demo.navidrome.native_api import native_api
from demo.navidrome.request import Request
from demo.navidrome.responses import Response, method_not_allowed, not_found, redirect
from demo.navidrome.state import State
from demo.navidrome.subsonic import COOKIE_SECONDS, subsonic

CLIENT_ID: Final = "X-ND-Client-Unique-Id"
_ALWAYS: Final = (
    ("Permissions-Policy", "autoplay=(), camera=(), microphone=(), usb=()"),
    ("Referrer-Policy", "same-origin"),
    ("Vary", "Origin"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
)


async def respond(state: State, request: Request) -> Response:
    """Respond to one request whose path still includes the base path."""
    mount, below = _mounted(state.options.base_path, request.path)
    if mount == "other" and request.method != "GET":
        return Response(405, (("Allow", "GET"),))
    return (await _routed(state, _with_path(request, below), mount)).adding(
        *_ALWAYS, *_cors(request), *_client_id(state, request)
    )


async def _routed(state: State, request: Request, mount: str) -> Response:
    decoded = unquote(request.path if mount == "other" else f"/{mount}{request.path}")
    if mount == "other" and decoded.lower() == "/ping":
        return Response(200, (("Content-Type", "text/plain"),), b".")
    if decoded.endswith("/robots.txt"):
        return pages.asset("robots.txt") or not_found()
    match mount:
        case "app":
            return pages.app(state, request)
        case "share":
            return pages.share(state, request)
        case "api":
            return await native_api(state, request)
        case "rest":
            return subsonic(state, request)
        case "auth":
            return _login_routes(state, request)
        case "jellyfin" if state.options.jellyfin:
            return jellyfin(state, request)
    return redirect(f"{state.options.base_path}/app/")


def _login_routes(state: State, request: Request) -> Response:
    routes = {"/login": login_api.login, "/createAdmin": login_api.create_admin}
    route = routes.get(request.path)
    if route is None:
        return not_found()
    return route(state, request) if request.method == "POST" else method_not_allowed()


def _mounted(base_path: str, path: str) -> tuple[str, str]:
    """The mount of a path and the rest of it, or "other" and all of it."""
    if path.startswith(base_path + "/"):
        name, slash, remainder = path[len(base_path) + 1 :].partition("/")
        if name in {"app", "share", "api", "rest", "auth", "jellyfin"}:
            return name, slash + remainder
    return "other", path


def _with_path(request: Request, path: str) -> Request:
    return Request(
        method=request.method,
        path=path,
        query=request.query,
        headers=request.headers,
        body=request.body,
        peer=request.peer,
        trusted=request.trusted,
    )


def _cors(request: Request) -> tuple[tuple[str, str], ...]:
    if not request.header("Origin"):
        return ()
    exposed = "X-Content-Duration, X-Total-Count, X-Nd-Authorization"
    return (("Access-Control-Allow-Origin", "*"), ("Access-Control-Expose-Headers", exposed))


def _client_id(state: State, request: Request) -> tuple[tuple[str, str], ...]:
    client = request.header(CLIENT_ID)
    if not client:
        return ()
    path = state.options.base_path or "/"
    cookie = (
        f"{CLIENT_ID}={client}; Path={path}; Max-Age={COOKIE_SECONDS}; "
        "HttpOnly; Secure; SameSite=Strict"
    )
    return (("Set-Cookie", cookie),)
