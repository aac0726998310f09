"""The application of the pages.

| path | page |
|---|---|
| `/` | a person's own page (`person.py`); on the listener it leads to the console |
| `/admin/` | Overview; the other pages of the console are below it |
| `/static/` | style sheet, scripts, icon |

All links are relative, so the same pages work at `/` on the listener and at `/_shim/` behind the edge.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Final, TypeVar
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, FastAPI
from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import Request

from shim.audit.store.filters import FilterError
from shim.audit.store.reader import TrailReader
from shim.audit.store.results import CursorError, QueryTooSlow
from shim.control.access import Access
from shim.control.audit_api import Queries
from shim.control.pages.accounts import account_pages
from shim.control.pages.assets import IMMUTABLE, find_asset
from shim.control.pages.configuration import configuration_pages
from shim.control.pages.devices import device_pages
from shim.control.pages.event import event_page
from shim.control.pages.explain import explain_pages
from shim.control.pages.overview import (
    RANGES,
    chosen_range,
    health_findings,
    overview,
    read_activity,
)
from shim.control.pages.person import person_pages
from shim.control.pages.rendering import accepts_gzip, page, root_of
from shim.control.pages.trail import Query, read_page, trail
from shim.control.pages.visitor import Visitor, visitor_of
from shim.control.services import ControlServices
from shim.control.sign_in import accepts_html
from shim.store.errors import StoreError

T = TypeVar("T")

ADMIN: Final = "/admin"


def build_pages(access: Access, services: ControlServices) -> FastAPI:
    """Return the application. It authorizes each request itself, and has its own error pages."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.include_router(_open_routes(access))
    guarded = APIRouter(dependencies=[Depends(access.authorize)])
    queries = None if services.trail is None else Queries(services.trail)
    _add_overview(guarded, access, services, queries)
    _add_trail(guarded, access, services, queries)
    for add in (account_pages, device_pages, explain_pages, configuration_pages):
        add(guarded, access, services)
    app.include_router(guarded)
    # For people who are no administrators too.
    personal = APIRouter()
    person_pages(personal, access, services)
    app.include_router(personal)
    _add_error_pages(app)
    return app


def _open_routes(access: Access) -> APIRouter:
    """Return the routes that a browser needs before it has signed in."""
    router = APIRouter(dependencies=[Depends(access.check_host)])

    @router.get("/static/{name}")
    async def static(request: Request, name: str) -> Response:
        asset = find_asset(name)
        if asset is None:
            raise HTTPException(404)
        headers = {"Cache-Control": IMMUTABLE, "Vary": "Accept-Encoding"}
        if accepts_gzip(request):
            headers["Content-Encoding"] = "gzip"
            return Response(asset.compressed, headers=headers, media_type=asset.media_type)
        return Response(asset.plain, headers=headers, media_type=asset.media_type)

    return router


async def sign_in_page(
    request: Request, following: str, fault: HTTPException | None = None
) -> Response:
    """Return the form for the control token, on the control plane's own listener. `following` is the path to
    go to afterwards, `fault` says why the last try failed."""
    context = {"next": following, "fault": "" if fault is None else _sentence(fault.detail)}
    response = await page(
        request, "sign_in.html", None, context, 200 if fault is None else fault.status_code
    )
    response.headers.update((fault and fault.headers) or {})
    return response


def _add_overview(
    router: APIRouter, access: Access, services: ControlServices, queries: Queries | None
) -> None:
    visitor = Depends(visitor_of(access))

    @router.get(ADMIN)
    async def without_slash() -> Response:
        return RedirectResponse("admin/", 303)

    @router.get(ADMIN + "/")
    async def show(request: Request, visitor: Visitor = visitor) -> Response:
        name = request.query_params.get("range", RANGES[0].name)
        chosen = chosen_range(name)
        if chosen is None:
            accepted = ", ".join(each.name for each in RANGES)
            raise HTTPException(400, f"range: {name[:40]!r} is not one of {accepted}")
        checks = services.health.checks()
        context: dict[str, Any] = {"checks": checks, "live": f"?range={chosen.name}"}
        try:
            activity = await read_trail(queries, read_activity(chosen, _now()))
            context |= overview(chosen, activity, checks) | {"trail_fault": ""}
        except TrailFault as fault:
            findings = health_findings(checks)
            context |= {"chosen": chosen, "ranges": RANGES, "findings": findings}
            context["trail_fault"] = str(fault)
        return await page(request, "overview.html", visitor, context)


def _add_trail(
    router: APIRouter, access: Access, services: ControlServices, queries: Queries | None
) -> None:
    visitor = Depends(visitor_of(access))

    @router.get(ADMIN + "/trail")
    async def show(request: Request, visitor: Visitor = visitor) -> Response:
        query, fault, status = Query({}), "", 200
        try:
            query = Query.parse(request.query_params.multi_items())
            filters = query.filters(_now())
            found = await read_trail(queries, read_page(filters, query.cursor))
        except (FilterError, CursorError) as error:
            found, fault, status = None, f"{error}", 400
        except TrailFault as error:
            found, fault, status = None, f"{error}", 503
        return await page(request, "trail.html", visitor, trail(query, found, fault), status)

    @router.get(ADMIN + "/trail/{event_id}")
    async def show_event(request: Request, event_id: str, visitor: Visitor = visitor) -> Response:
        try:
            found = await read_trail(queries, lambda reader: reader.get(event_id))
        except TrailFault as fault:
            raise HTTPException(503, str(fault)) from None
        if found is None:
            raise HTTPException(404, "The trail has no event with this id. It may be too old.")
        context = event_page(found, services.settings().username_header)
        return await page(request, "event.html", visitor, context)


class TrailFault(Exception):
    """The trail cannot be read; the message is for the reader of a page."""


async def read_trail(queries: Queries | None, work: Callable[[TrailReader], T]) -> T:
    """Return the result of `work` in the reader's thread. Raises `TrailFault`, and what a filter raises."""
    if queries is None:
        raise TrailFault("SHIM_AUDIT_DATABASE_URL is none, so events are only in the log.")
    try:
        return await queries.run(work)
    except QueryTooSlow:
        raise TrailFault("The query took longer than 2 seconds. Choose a shorter period.") from None
    except StoreError as error:
        raise TrailFault(f"The trail cannot be read: {error}") from None


def _add_error_pages(app: FastAPI) -> None:
    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, fault: HTTPException) -> Response:
        path: str = request.scope["path"]
        if not accepts_html(request) or path.startswith("/api/"):
            name = HTTPStatus(fault.status_code).phrase.lower().replace(" ", "_")
            content = {"error": name, "detail": fault.detail}
            return JSONResponse(content, fault.status_code, fault.headers)
        if fault.status_code == 401 and request.method in ("GET", "HEAD"):
            following = f"{path}?{request.url.query}" if request.url.query else path
            query = urlencode({"next": following})
            return RedirectResponse(f"{root_of(request)}sign-in?{query}", 303)
        return await error_page(request, fault)

    @app.exception_handler(Exception)
    async def on_error(request: Request, _fault: Exception) -> Response:
        return await error_page(request, HTTPException(500, "internal error, see the log"))


_HEADINGS: Final[Mapping[int, str]] = {
    400: "This request cannot be used",
    401: "Sign in",
    403: "Not allowed",
    404: "There is no such page",
    421: "Wrong address",
    429: "Too many tries",
    503: "Not available now",
}


async def error_page(request: Request, fault: HTTPException) -> Response:
    """Return a page that says what is wrong."""
    status = fault.status_code
    detail = fault.detail if fault.detail != HTTPStatus(status).phrase else ""
    context = {
        "heading": _HEADINGS.get(status, HTTPStatus(status).phrase),
        "detail": _sentence(detail) or "Check the address.",
    }
    response = await page(request, "error.html", None, context, status)
    response.headers.update(fault.headers or {})
    return response


def _sentence(text: str) -> str:
    return text if not text or text.endswith(".") else f"{text[0].upper()}{text[1:]}."


def _now() -> int:
    return time.time_ns() // 1000
