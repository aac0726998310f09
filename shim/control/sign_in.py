"""`POST /sign-in` and `POST /sign-out`: a session on the control plane's own listener."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Depends
from fastapi.responses import RedirectResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import Request

from shim.control.access import CHANNEL_HEADER, Access, Caller
from shim.control.forms import read_form
from shim.control.on_demand import load
from shim.control.sessions import SESSION_COOKIE, SESSION_SECONDS


def sign_in_routes(access: Access) -> APIRouter:
    """Return the routes. Both redirect to a page; `POST /sign-in` takes the fields `token` and `next`, a path
    of the control plane."""
    router = APIRouter(include_in_schema=False)
    identify = Depends(access.authorize)

    @router.get("/sign-in", dependencies=[Depends(access.check_host)])
    async def form(request: Request) -> Response:
        if not access.has_sign_in or CHANNEL_HEADER in request.headers:
            raise HTTPException(404)
        return await _page(request, request.query_params.get("next", ""))

    @router.post("/sign-in")
    async def sign_in(request: Request) -> Response:
        form = await read_form(request)
        try:
            cookie = await access.sign_in(request, form.get("token", "").strip())
        except HTTPException as fault:
            if fault.status_code not in (401, 429) or not accepts_html(request):
                raise
            return await _page(request, form.get("next", ""), fault)
        response = RedirectResponse(local_path(form.get("next", "")), 303)
        response.set_cookie(
            SESSION_COOKIE,
            cookie,
            max_age=SESSION_SECONDS,
            httponly=True,
            samesite="strict",
            # Without TLS a browser would drop a Secure cookie.
            secure=request.headers.get("X-Forwarded-Proto", request.url.scheme) == "https",
        )
        return response

    @router.post("/sign-out")
    async def sign_out(request: Request, caller: Caller = identify) -> Response:
        await access.check_csrf(request, caller)
        access.sign_out(caller)
        response = RedirectResponse("/", 303)
        response.delete_cookie(SESSION_COOKIE, httponly=True, samesite="strict")
        return response

    return router


async def _page(request: Request, following: str, fault: HTTPException | None = None) -> Response:
    def load_page() -> Callable[[Request, str, HTTPException | None], Awaitable[Response]]:
        from shim.control.pages.routes import sign_in_page  # noqa: PLC0415

        return sign_in_page

    return await (await load(load_page))(request, following, fault)


def accepts_html(request: Request) -> bool:
    """Return whether the client is a browser that shows a page, and not a program."""
    return "text/html" in request.headers.get("Accept", "")


def local_path(text: str) -> str:
    """Return the path if it is one of the control plane, else `/`: a sign-in must not lead to another
    site."""
    local = text.startswith("/") and not text.startswith(("//", "/\\"))
    return text if local and text.isprintable() and "\\" not in text else "/"
