"""The control plane's application: `/healthz`, `/readyz`, `/metrics`, `/api/reload`.

Every route except `/healthz` is in the guarded router, so that a new route is closed by default. Every
response except the metrics is JSON.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Final

from fastapi import APIRouter, Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shim.audit.events import Operator
from shim.control.access import Access
from shim.control.reload import add_reload_route
from shim.health import HealthSource, is_ready
from shim.settings.reload import ReloadResult

SECURITY_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def create_app(
    *,
    health: HealthSource,
    metrics: CollectorRegistry,
    access: Access,
    reload: Callable[[Operator], Awaitable[ReloadResult]],
) -> FastAPI:
    """Return the application for the control plane's listener and for the private channel. `reload` reads
    the settings again."""
    app = FastAPI(
        title="navidrome-shim",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.include_router(_open_routes(access))
    guarded = _guarded_routes(health, metrics, access)
    add_reload_route(guarded, access, reload)
    app.include_router(guarded)
    _add_error_handlers(app)
    app.add_middleware(SecurityHeaders)
    return app


def _open_routes(access: Access) -> APIRouter:
    router = APIRouter(dependencies=[Depends(access.check_host)])

    @router.api_route("/healthz", methods=["GET", "HEAD"])
    async def healthz() -> Response:
        return Response("ok\n", media_type="text/plain")

    return router


def _guarded_routes(health: HealthSource, metrics: CollectorRegistry, access: Access) -> APIRouter:
    router = APIRouter(dependencies=[Depends(access.authorize)])

    @router.api_route("/readyz", methods=["GET", "HEAD"])
    async def readyz() -> Response:
        checks = health.checks()
        ready = is_ready(checks)
        found = {
            check.name: {"state": check.state, "detail": check.detail, "remedy": check.remedy}
            for check in checks
        }
        return JSONResponse({"ready": ready, "checks": found}, status_code=200 if ready else 503)

    @router.get("/metrics")
    def read_metrics(
        request: Request,
    ) -> Response:  # not a coroutine: runs in a thread, because it reads /proc
        encode, media_type = choose_encoder(request.headers.get("Accept", ""))
        return Response(encode(metrics), media_type=media_type)

    return router


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


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(HTTPException)
    async def on_http_error(_request: Request, fault: HTTPException) -> Response:
        return _error(fault.status_code, fault.detail, fault.headers)

    @app.exception_handler(RequestValidationError)
    async def on_validation_error(_request: Request, fault: RequestValidationError) -> Response:
        wrong = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in fault.errors())
        return _error(422, "; ".join(wrong))

    @app.exception_handler(Exception)
    async def on_error(_request: Request, _fault: Exception) -> Response:
        # Created outside the middleware, because the middleware may have failed.
        return _error(500, "internal error, see the log", SECURITY_HEADERS)


def _error(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    name = HTTPStatus(status).phrase.lower().replace(" ", "_")
    return JSONResponse({"error": name, "detail": detail}, status_code=status, headers=headers)
