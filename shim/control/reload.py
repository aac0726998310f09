"""`POST /api/reload` of the control plane: reload the settings.

For the operator: only on the control plane's own listener, and not from a browser.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import Request

from shim.audit.events import Operator, Origin
from shim.control.access import Access, Caller
from shim.settings.reload import COMMAND_HEADER, ReloadResult


def add_reload_route(
    router: APIRouter, access: Access, reload: Callable[[Operator], Awaitable[ReloadResult]]
) -> None:
    """Add the route to `router`, which has to be the guarded one. `reload` reads the settings again."""
    authorize = Depends(access.authorize)

    @router.post("/api/reload")
    async def apply_settings(request: Request, caller: Caller = authorize) -> Response:
        if caller.user is not None:
            raise HTTPException(404)
        if "Origin" in request.headers or "Sec-Fetch-Site" in request.headers:
            raise HTTPException(403, "a browser must not call this")
        # The header proves nothing, so the actor is the one whom the token or the address shows.
        origin: Origin = "command" if COMMAND_HEADER in request.headers else "api"
        actor = "token" if "Authorization" in request.headers else "local"
        peer = None if request.client is None else request.client.host
        outcome = await reload(Operator(actor, origin, peer=peer, client=peer))
        if outcome.faults:
            return JSONResponse({"faults": list(outcome.faults)}, status_code=409)
        return JSONResponse(
            {"changed": list(outcome.changed), "pending_restart": list(outcome.pending_restart)}
        )
