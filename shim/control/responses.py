"""Responses of the control plane that all its parts share: errors as JSON, and the security headers."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECURITY_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class SecurityHeaders:
    """Middleware that adds `SECURITY_HEADERS` to each response, unless it has its own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)


def error_response(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error as JSON: its name, which follows from the status, and what is wrong."""
    name = HTTPStatus(status).phrase.lower().replace(" ", "_")
    return JSONResponse({"error": name, "detail": detail}, status_code=status, headers=headers)


def internal_error() -> Response:
    """Return the response to an exception. It has the security headers, since it is created outside of the
    middleware, which may have failed."""
    return error_response(500, "internal error, see the log", SECURITY_HEADERS)
