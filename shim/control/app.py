"""The control plane's application: health, metrics, signing in, the API, and the pages.

The code of accounts and of the trail is loaded only with them.

Every route except `/healthz` and `POST /sign-in` is in the guarded router, so that a new route is closed by
default.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from fastapi import APIRouter, Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import shim
from shim.audit.admin_actions import NotStored
from shim.control.access import Access
from shim.control.api import add_openapi_route, api_routes
from shim.control.on_demand import OnDemandApp
from shim.control.probes import alive, exposition, readiness
from shim.control.responses import SecurityHeaders, error_response, internal_error
from shim.control.services import ControlServices
from shim.control.sign_in import sign_in_routes
from shim.health import HealthSource

# No request has a longer body: forms and small JSON documents.
MAX_BODY: Final = 32768


def create_app(services: ControlServices, access: Access) -> FastAPI:
    """Return the application for the control plane's listener and for the private channel."""
    app = FastAPI(
        title="navidrome-shim",
        version=shim.__version__,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.include_router(_open_routes(access))
    app.include_router(sign_in_routes(access))
    guarded = _guarded_routes(services.health, services.metrics, access)
    guarded.include_router(api_routes(access, services))
    if services.accounts is not None:
        from shim.control.accounts_api import account_routes  # noqa: PLC0415

        guarded.include_router(account_routes(access, services.accounts))
    if services.devices is not None:
        from shim.control.devices_api import device_routes  # noqa: PLC0415

        guarded.include_router(device_routes(access, services.devices))
    if services.trail is not None and services.live is not None:
        from shim.control.audit_api import audit_routes  # noqa: PLC0415

        guarded.include_router(audit_routes(access, services.trail, services.live))
    add_openapi_route(app, guarded)
    app.include_router(guarded)
    _add_error_handlers(app)
    if services.accounts is not None or services.trail is not None:
        _add_store_error_handlers(app)
    app.router.default = _pages(access, services)
    app.add_middleware(BodyLimit)
    app.add_middleware(SecurityHeaders)
    return app


def _open_routes(access: Access) -> APIRouter:
    router = APIRouter(dependencies=[Depends(access.check_host)])

    @router.head("/healthz", include_in_schema=False)
    @router.get("/healthz", summary="Whether the process runs")
    async def healthz() -> Response:
        return alive()

    return router


def _guarded_routes(health: HealthSource, metrics: CollectorRegistry, access: Access) -> APIRouter:
    router = APIRouter(dependencies=[Depends(access.authorize)])

    @router.head("/readyz", include_in_schema=False)
    @router.get("/readyz", summary="The state of each part, with its remedy")
    async def readyz() -> Response:
        return readiness(health)

    @router.get("/metrics", summary="Metrics for Prometheus")
    def read_metrics(
        request: Request,
    ) -> Response:  # not a coroutine: runs in a thread, because it reads /proc
        return exposition(metrics, request.headers.get("Accept", ""))

    return router


def _pages(access: Access, services: ControlServices) -> ASGIApp:
    """Return the application of the pages, for every path that is not in the API. Their code is loaded with
    the first request for one."""

    def build() -> ASGIApp:
        from shim.control.pages.routes import build_pages  # noqa: PLC0415

        return build_pages(access, services)

    return OnDemandApp(build)


class BodyLimit:
    """Middleware that rejects a request with a body of more than `MAX_BODY` bytes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        received = 0

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY:
                raise HTTPException(413, f"the body has more than {MAX_BODY} bytes")
            return message

        await self._app(scope, receive_limited, send)


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(HTTPException)
    async def on_http_error(_request: Request, fault: HTTPException) -> Response:
        return error_response(fault.status_code, fault.detail, fault.headers)

    @app.exception_handler(RequestValidationError)
    async def on_validation_error(_request: Request, fault: RequestValidationError) -> Response:
        wrong = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in fault.errors())
        return error_response(400, "; ".join(wrong))

    @app.exception_handler(NotStored)
    async def on_not_stored(_request: Request, fault: NotStored) -> Response:
        return error_response(503, str(fault))

    @app.exception_handler(Exception)
    async def on_error(_request: Request, _fault: Exception) -> Response:
        return internal_error()


def _add_store_error_handlers(app: FastAPI) -> None:
    """Add the errors of accounts and of the trail."""
    from shim.audit.store.filters import FilterError  # noqa: PLC0415 - loads the database code
    from shim.audit.store.results import CursorError, QueryTooSlow  # noqa: PLC0415
    from shim.devices.models import DeviceError, UnknownDevice, UnknownOwner  # noqa: PLC0415
    from shim.navidrome.errors import NavidromeError  # noqa: PLC0415
    from shim.provisioning.operations import OperationError, UnknownAccount  # noqa: PLC0415
    from shim.store.errors import StoreError  # noqa: PLC0415

    statuses: dict[type[Exception], int] = {
        FilterError: 400,
        CursorError: 400,
        UnknownAccount: 404,
        UnknownDevice: 404,
        UnknownOwner: 404,
        DeviceError: 409,
        OperationError: 409,
        QueryTooSlow: 503,
        StoreError: 503,
        NavidromeError: 503,
    }

    def handler(status: int) -> Callable[[Request, Exception], Awaitable[Response]]:
        async def on_fault(_request: Request, fault: Exception) -> Response:
            return error_response(status, str(fault))

        return on_fault

    for kind, status in statuses.items():
        app.add_exception_handler(kind, handler(status))
