"""From a request to its response: mounts, middlewares, and unmatched routes.

Routing is on the escaped path as received (chi's `RawPath`): `/rest/../api/user` is a Subsonic
request and `/%72est/ping` is not. Middlewares run only where a route matched, so a 405 without a
route has no headers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final
from urllib.parse import unquote

from demo.navidrome import login_api, pages
from demo.navidrome.compression import compressed
from demo.navidrome.jellyfin import jellyfin
from demo.navidrome.native_api import native_api
from demo.navidrome.request import Request
from demo.navidrome.responses import Response, method_not_allowed, not_found, redirect
from demo.navidrome.state import State
from demo.navidrome.subsonic import COOKIE_SECONDS, subsonic

CLIENT_ID: Final = "X-ND-Client-Unique-Id"
_CORS_METHODS: Final = frozenset({"HEAD", "GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
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
        return method_not_allowed("GET")
    if _is_preflight(request):
        return _preflight(request).adding(*_ALWAYS)
    below_mount = replace(request, path=below)
    response = _before_routing(below_mount, mount)
    if response is None:
        response = await _routed(state, below_mount, mount)
        response = compressed(response.adding(*_client_id(state, request)), request)
    return response.adding(*_ALWAYS, *_cors(request))


def _is_preflight(request: Request) -> bool:
    requested = request.header("Access-Control-Request-Method")
    return request.method == "OPTIONS" and bool(requested and request.values("Origin"))


def _before_routing(request: Request, mount: str) -> Response | None:
    """The responses of middlewares that pass nothing on: they set no cookie and are not compressed."""
    decoded = unquote(request.path if mount == "other" else f"/{mount}{request.path}")
    if mount == "other" and decoded.lower() == "/ping":
        return Response(200, (("Content-Type", "text/plain"),), b".")
    if decoded.endswith("/robots.txt"):
        return pages.asset("robots.txt") or not_found()
    return None


async def _routed(state: State, request: Request, mount: str) -> Response:
    match mount:
        case "app":
            return pages.app(state, request)
        case "share":
            return pages.share(state, request)
        case "api":
            return await native_api(state, request)
        case "rest":
            return await subsonic(state, request)
        case "auth":
            return await _login_routes(state, request)
        case "jellyfin" if state.options.jellyfin:
            return await jellyfin(state, request)
    return redirect(f"{state.options.base_path}/app/")


async def _login_routes(state: State, request: Request) -> Response:
    routes = {"/login": login_api.login, "/createAdmin": login_api.create_admin}
    route = routes.get(request.path)
    if route is None:
        return not_found()
    return await route(state, request) if request.method == "POST" else method_not_allowed("POST")


def _mounted(base_path: str, path: str) -> tuple[str, str]:
    """The mount of a path and the rest of it, or "other" and all of it."""
    if path.startswith(base_path + "/"):
        name, slash, remainder = path[len(base_path) + 1 :].partition("/")
        if name in {"app", "share", "api", "rest", "auth", "jellyfin"}:
            return name, slash + remainder
    return "other", path


def _preflight(request: Request) -> Response:
    """The response to a CORS preflight request, which no route sees."""
    method = request.header("Access-Control-Request-Method")
    names = request.header("Access-Control-Request-Headers")
    vary = ("Vary", "Access-Control-Request-Method"), ("Vary", "Access-Control-Request-Headers")
    if method.upper() not in _CORS_METHODS:
        return Response(200, vary)
    allowed = (
        ("Access-Control-Allow-Origin", "*"),
        ("Access-Control-Allow-Methods", method.upper()),
        *((("Access-Control-Allow-Headers", names),) if names else ()),
    )
    return Response(200, (*vary, *allowed))


def _cors(request: Request) -> tuple[tuple[str, str], ...]:
    if not request.values("Origin") or request.method not in _CORS_METHODS:
        return ()
    exposed = "X-Content-Duration, X-Total-Count, X-Nd-Authorization"
    return (("Access-Control-Allow-Origin", "*"), ("Access-Control-Expose-Headers", exposed))


def _client_id(state: State, request: Request) -> tuple[tuple[str, str], ...]:
    client = request.header(CLIENT_ID)
    if not client:
        return ()
    path = state.options.base_path or "/"
    value = "".join(c for c in client if " " <= c <= "~" and c not in '";\\')
    value = f'"{value}"' if " " in value or "," in value else value
    cookie = (
        f"{CLIENT_ID}={value}; Path={path}; Max-Age={COOKIE_SECONDS}; "
        "HttpOnly; Secure; SameSite=Strict"
    )
    return (("Set-Cookie", cookie),)
