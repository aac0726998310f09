"""`POST /api/reload` of the control plane: reload the settings."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse, Response

from shim.control.access import Access
from shim.settings.reload import ReloadResult


def add_reload_route(
    router: APIRouter, access: Access, reload: Callable[[], Awaitable[ReloadResult]]
) -> None:
    """Add the route to `router`, which has to be the guarded one. `reload` reads the settings again."""

    @router.post("/api/reload", dependencies=[Depends(access.authorize_reload)])
    async def apply_settings() -> Response:
        outcome = await reload()
        if outcome.faults:
            return JSONResponse({"faults": list(outcome.faults)}, status_code=409)
        return JSONResponse(
            {"changed": list(outcome.changed), "pending_restart": list(outcome.pending_restart)}
        )
