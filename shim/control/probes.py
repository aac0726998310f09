"""What other programs ask the control plane again and again: `/healthz`, `/readyz` and `/metrics`.

These need neither FastAPI nor the API and the pages, which take 20 MB: all that is loaded with the first
request for something else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from shim.control.access import Access
from shim.control.responses import SecurityHeaders, error_response, internal_error
from shim.health import HealthSource, is_ready

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


class Probes:
    """The application of the control plane: it responds to the probes, and `rest` to all else.

    `metrics` returns the registry. It is called in a thread, with the first request for metrics.
    """

    def __init__(
        self,
        access: Access,
        health: HealthSource,
        metrics: Callable[[], CollectorRegistry],
        rest: ASGIApp,
    ) -> None:
        self._access = access
        self._health = health
        self._metrics = metrics
        self._rest = rest
        self._respond = SecurityHeaders(self._probe)
        self._probes: dict[tuple[str, str], Callable[[Request], Awaitable[Response]]] = {
            ("GET", "/healthz"): self._healthz,
            ("HEAD", "/healthz"): self._healthz,
            ("GET", "/readyz"): self._readyz,
            ("HEAD", "/readyz"): self._readyz,
            ("GET", "/metrics"): self._read_metrics,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_probe = (scope["method"], scope["path"]) in self._probes
        await (self._respond if is_probe else self._rest)(scope, receive, send)

    async def _probe(self, scope: Scope, receive: Receive, send: Send) -> None:
        probe = self._probes[scope["method"], scope["path"]]
        try:
            response = await probe(Request(scope, receive))
        except HTTPException as fault:
            response = error_response(fault.status_code, fault.detail, fault.headers)
        except Exception:
            await internal_error()(scope, receive, send)
            raise  # the server logs it
        await response(scope, receive, send)

    async def _healthz(self, request: Request) -> Response:
        await self._access.check_host(request)
        return alive()

    async def _readyz(self, request: Request) -> Response:
        await self._access.authorize(request)
        return readiness(self._health)

    async def _read_metrics(self, request: Request) -> Response:
        await self._access.authorize(request)
        accept = request.headers.get("Accept", "")
        return await asyncio.to_thread(lambda: exposition(self._metrics(), accept))


def alive() -> Response:
    """Return the response of a process that runs."""
    return Response("ok\n", media_type="text/plain")


def readiness(health: HealthSource) -> Response:
    """Return the state of each part as JSON, with status 503 if one of them fails."""
    checks = health.checks()
    ready = is_ready(checks)
    found = {
        check.name: {"state": check.state, "detail": check.detail, "remedy": check.remedy}
        for check in checks
    }
    return JSONResponse({"ready": ready, "checks": found}, status_code=200 if ready else 503)


def exposition(metrics: CollectorRegistry, accept: str) -> Response:
    """Return the metrics in the format that `accept` asks for. Call it in a thread, because it reads
    /proc."""
    from prometheus_client.exposition import choose_encoder  # noqa: PLC0415

    encode, media_type = choose_encoder(accept)
    return Response(encode(metrics), media_type=media_type)
