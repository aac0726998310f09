"""The API: reload, the settings in force, explain, and the OpenAPI document.

The routes of accounts and of the audit trail are in files of their own, which load the database code.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request

from shim.audit.events import Operator, Origin
from shim.control.access import Access, Caller
from shim.control.explain import ExplainedRequest, InvalidRequest
from shim.control.on_demand import load
from shim.control.services import ControlServices
from shim.proxy.edge_probe import MANIFEST, PROTECTED
from shim.settings import warnings
from shim.settings.effective import effective_settings
from shim.settings.summary import summary


class Body(BaseModel):
    """The JSON body of a request. An unknown name is an error."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class ExplainBody(Body):
    """A request to explain."""

    peer: Annotated[str, Field(description="Address that connects to the shim, or @.")]
    path: Annotated[str, Field(description="Path and query of the request.")]
    method: str = "GET"
    headers: Annotated[list[str], Field(description="Lines `Name: value`.", max_length=200)] = []
    with_secret: Annotated[bool, Field(description="Add the first of SHIM_PROXY_SECRET.")] = False


class EdgeProbeBody(Body):
    """A request for a path that shows what the edge does."""

    prefix: Annotated[
        str,
        Field(
            description=f"A prefix of SHIM_PUBLIC_PATHS, {MANIFEST} or {PROTECTED}.", max_length=200
        ),
    ]


def operator_of(caller: Caller, origin: Origin = "api") -> Operator:
    """Return who does an administrative action, for the trail."""
    return Operator(caller.actor, origin, client=caller.client or None)


def api_routes(access: Access, services: ControlServices) -> APIRouter:
    """Return the routes, for the guarded router."""
    router = APIRouter(prefix="/api")
    may_read, may_reload = Depends(access.authorize), Depends(access.authorize_reload)

    @router.get("/session", summary="Who you are, and the CSRF token for your writes")
    async def session(caller: Caller = may_read) -> Response:
        return JSONResponse(
            {
                "actor": caller.actor,
                "uid": caller.uid,
                "may_write": caller.may_write,
                "may_reload": caller.may_reload,
                "csrf_token": access.csrf_token(caller) or None,
            }
        )

    @router.post("/reload", summary="Read the settings again")
    async def reload(caller: Caller = may_reload) -> Response:
        done = await services.reload(operator_of(caller))
        outcome, note = done.value, {} if done.note is None else {"note": done.note}
        if outcome.faults:
            return JSONResponse({"faults": list(outcome.faults), **note}, 409)
        changed, waiting = list(outcome.changed), list(outcome.pending_restart)
        return JSONResponse({"changed": changed, "pending_restart": waiting, **note})

    @router.post(
        "/edge-probe",
        summary="A path for one GET within 30 seconds: the response names the headers that arrived",
        dependencies=[may_reload],
    )
    async def edge_probe(body: EdgeProbeBody) -> Response:
        if services.start_edge_probe is None:
            raise HTTPException(404)
        try:
            return JSONResponse({"path": services.start_edge_probe(body.prefix)})
        except ValueError as error:
            raise HTTPException(400, f"prefix: {error}") from None

    @router.get("/config", summary="The settings in force, with their sources; secrets are masked")
    async def config() -> Response:
        settings = services.settings()
        return JSONResponse(
            {
                "settings": [asdict(each) for each in effective_settings(settings)],
                "pending_restart": list(services.pending_restart()),
                "summary": list(summary(settings)),
                "warnings": list(warnings(settings)),
            }
        )

    @router.post(
        "/explain", summary="Explain the decision about a request, which is not sent to Navidrome"
    )
    async def explain(request: Request, body: ExplainBody) -> Response:
        # It changes nothing, so it needs no CSRF token; but no other site may make a browser send it.
        access.check_not_foreign(request)
        explained_request = ExplainedRequest(
            body.peer, body.path, body.method, tuple(body.headers), body.with_secret
        )
        try:
            return JSONResponse(await services.explain(explained_request))
        except InvalidRequest as error:
            raise HTTPException(400, f"{error.part}: {error}") from None

    return router


def add_openapi_route(app: FastAPI, router: APIRouter) -> None:
    """Add the OpenAPI document of the application's routes to the guarded router."""

    @router.get("/api/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return JSONResponse(await load(lambda: _openapi_document(app)))


def _openapi_document(app: FastAPI) -> dict[str, Any]:
    from shim.control.openapi import openapi_document  # noqa: PLC0415 - loaded with the first request for it

    return openapi_document(app)
