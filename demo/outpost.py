"""A stand-in for authentik's outpost: the forward-auth responses that an edge receives.

Its responses are authentik's where an edge or the shim can see a difference, and nothing more:
there are no passwords, and `/outpost.goauthentik.io/start?user=NAME` signs in any known user.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self
from urllib.parse import quote, urlsplit

import jwt
import uvicorn
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

PREFIX: Final = "/outpost.goauthentik.io"
COOKIE: Final = "authentik_proxy_navidrome"
VERSION: Final = "2026.8.1"
_STOP_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class OutpostUser:
    """A user of the identity provider.

    username: also the id for `start?user=`.
    uid: stable for a user and opaque; derived like authentik's from the first name, where none is
        given: `dataclasses.replace` renames a user.
    additional_headers: authentik's `additionalHeaders` attribute, sent beside the twelve.
    """

    username: str
    name: str = ""
    email: str = ""
    groups: tuple[str, ...] = ()
    entitlements: tuple[str, ...] = ()
    additional_headers: tuple[tuple[str, str], ...] = ()
    uid: str = ""

    def __post_init__(self) -> None:
        if not self.uid:
            uid = hashlib.sha256(f"authentik user {self.username}".encode()).hexdigest()
            object.__setattr__(self, "uid", uid)


@dataclass(frozen=True, slots=True)
class OutpostOptions:
    """The configuration of the provider.

    users: users who can sign in.
    open_paths: the provider's unauthenticated paths, regular expressions, searched in the path.
    slug: the application's; client_id: the provider's, the audience of its tokens.
    token_seconds: lifetime of a token, counted from signing in.
    """

    users: tuple[OutpostUser, ...] = ()
    open_paths: tuple[str, ...] = ()
    slug: str = "navidrome"
    client_id: str = "navidrome-client-id"
    token_seconds: float = 86400.0


class Outpost:
    """An outpost that listens in its own thread from `start` to `stop`; a context manager.

    options: see `OutpostOptions`.
    listen: `host:port`; port 0 is any free one.
    """

    def __init__(
        self, options: OutpostOptions | None = None, *, listen: str = "127.0.0.1:0"
    ) -> None:
        self.options = options or OutpostOptions()
        self._listen = listen
        self._users = {user.username: user for user in self.options.users}
        self._open_paths = tuple(re.compile(path) for path in self.options.open_paths)
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._key_id = secrets.token_hex(16)
        self._sessions: dict[str, tuple[OutpostUser, str]] = {}
        self._url = ""
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen. Raises `OSError` if the address is not available."""
        host, _, port = self._listen.rpartition(":")
        bound = socket.create_server((host, int(port)), backlog=128)
        self._url = f"http://{host}:{bound.getsockname()[1]}"
        config = uvicorn.Config(
            self.application(), lifespan="off", log_config=None, access_log=False, ws="none"
        )
        self._server = server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=lambda: server.run(sockets=[bound]), name="outpost", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Close every connection, and return once the thread has ended."""
        if self._server is None or self._thread is None:
            return
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(_STOP_SECONDS)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """`http://host:port`, with no slash at its end."""
        return self._url

    @property
    def issuer(self) -> str:
        """The issuer of its tokens; the key set is at `jwks/` below it."""
        return f"{self._url}/application/o/{self.options.slug}/"

    def sign_in(self, username: str) -> str:
        """Open a session for a user, and return the value of its cookie `COOKIE`.

        Raises `KeyError` for an unknown user.
        """
        return self.admit(self._users[username])

    def admit(self, user: OutpostUser) -> str:
        """The same for any user, even one who is not in the options."""
        session = secrets.token_urlsafe(32)
        self._sessions[session] = (user, self.token(user, session))
        return session

    def token(self, user: OutpostUser, session: str = "") -> str:
        """A fresh ID token of a user, signed with the provider's key."""
        now = int(time.time())
        claims = {
            "iss": self.issuer,
            "sub": user.uid,
            "aud": self.options.client_id,
            "exp": now + int(self.options.token_seconds),
            "iat": now,
            "auth_time": now,
            "acr": "goauthentik.io/providers/oauth2/default",
            "amr": ["pwd"],
            "sid": hashlib.sha256(session.encode()).hexdigest(),
            "ak_proxy": {"user_attributes": {}, "is_superuser": False},
            "email": user.email,
            "email_verified": True,
            "name": user.name,
            "given_name": user.name,
            "preferred_username": user.username,
            "nickname": user.username,
            "groups": list(user.groups),
            "entitlements": list(user.entitlements),
        }
        return jwt.encode(claims, self._key, algorithm="RS256", headers={"kid": self._key_id})

    def application(self) -> Starlette:
        """The outpost as an ASGI application."""
        return Starlette(
            routes=[
                Route(f"{PREFIX}/auth/traefik", self._authenticate_forwarded),
                Route(f"{PREFIX}/auth/caddy", self._authenticate_forwarded),
                Route(f"{PREFIX}/auth/nginx", self._authenticate_nginx),
                Route(f"{PREFIX}/start", self._start),
                Route(f"{PREFIX}/sign_out", self._sign_out),
                Route(f"/application/o/{self.options.slug}/jwks/", self._key_set),
            ]
        )

    # The edge sends the client's headers, and the original request in X-Forwarded-*.
    async def _authenticate_forwarded(self, request: Request) -> Response:
        scheme, host, target = (
            request.headers.get(f"X-Forwarded-{what}", "") for what in ("Proto", "Host", "Uri")
        )
        if not scheme or not host:
            return Response("cannot tell what was asked for: no X-Forwarded headers", 400)
        allowed = self._allowed(request, urlsplit(target).path)
        if allowed is not None:
            return allowed
        wanted = quote(f"{scheme}://{host}{target}", safe="")
        return RedirectResponse(f"{scheme}://{host}{PREFIX}/start?rd={wanted}", 302)

    # nginx's auth_request supports no redirect: it requires a 401, and redirects by itself.
    async def _authenticate_nginx(self, request: Request) -> Response:
        wanted = urlsplit(request.headers.get("X-Original-URL", ""))
        return self._allowed(request, wanted.path) or Response(status_code=401)

    def _allowed(self, request: Request, path: str) -> Response | None:
        session = self._sessions.get(request.cookies.get(COOKIE, ""))
        if session is not None:
            return _with_headers(self._identity_headers(*session))
        if any(pattern.search(path) for pattern in self._open_paths):
            return Response()
        return None

    def _identity_headers(self, user: OutpostUser, token: str) -> Iterable[tuple[str, str]]:
        # Spelt as Go's net/http writes them, not as in authentik's source.
        yield "X-Authentik-Username", user.username
        yield "X-Authentik-Groups", "|".join(user.groups)
        yield "X-Authentik-Entitlements", "|".join(user.entitlements)
        yield "X-Authentik-Email", user.email
        yield "X-Authentik-Name", user.name
        yield "X-Authentik-Uid", user.uid
        yield "X-Authentik-Jwt", token
        yield "X-Authentik-Meta-Jwks", f"{self.issuer}jwks/"
        yield "X-Authentik-Meta-Outpost", "authentik Embedded Outpost"
        yield "X-Authentik-Meta-Provider", "Navidrome"
        yield "X-Authentik-Meta-App", self.options.slug
        yield "X-Authentik-Meta-Version", f"goauthentik.io/outpost/{VERSION}"
        yield from user.additional_headers

    async def _start(self, request: Request) -> Response:
        return_url = urlsplit(request.query_params.get("rd", "/"))
        # The path alone: the stand-in redirects to no other host.
        target = (
            "/" + return_url.path.lstrip("/") + (f"?{return_url.query}" if return_url.query else "")
        )
        name = request.query_params.get("user")
        if name is None:
            return HTMLResponse(self._choice(target))
        if name not in self._users:
            return HTMLResponse("no user of that name", 404)
        response = RedirectResponse(target, 302)
        response.set_cookie(COOKIE, self.sign_in(name), path="/", httponly=True, samesite="lax")
        return response

    def _choice(self, target: str) -> str:
        links = "".join(
            f'<li><a href="{PREFIX}/start?user={quote(name)}&amp;rd={quote(target, safe="")}">'
            f"{html.escape(name)}</a></li>"
            for name in self._users
        )
        return f"<!doctype html><title>Sign in</title><h1>Sign in as</h1><ul>{links}</ul>"

    async def _sign_out(self, request: Request) -> Response:
        self._sessions.pop(request.cookies.get(COOKIE, ""), None)
        response = HTMLResponse("<!doctype html><title>Signed out</title>")
        response.delete_cookie(COOKIE, path="/")
        return response

    async def _key_set(self, request: Request) -> Response:
        del request
        key = json.loads(RSAAlgorithm.to_jwk(self._key.public_key()))
        key |= {"kid": self._key_id, "use": "sig", "alg": "RS256"}
        return JSONResponse({"keys": [key]})


def _with_headers(fields: Iterable[tuple[str, str]]) -> Response:
    response = Response()
    # authentik sends raw UTF-8, which a str header of Starlette's cannot be.
    response.raw_headers += [(name.encode(), value.encode()) for name, value in fields]
    return response
