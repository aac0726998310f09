"""The page Explain: build a request, and see the decision step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Depends
from fastapi.responses import Response
from starlette.requests import Request

from shim.audit.words import reason_of
from shim.control.access import Access
from shim.control.explain import ExplainedRequest, InvalidRequest
from shim.control.forms import read_form
from shim.control.pages.rendering import page
from shim.control.pages.visitor import Visitor, visitor_of
from shim.control.services import ControlServices
from shim.settings import Settings

_PATH: Final = "/admin/explain"
METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_FIELDS: Final = ("peer", "method", "path", "headers", "with_secret")


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the decision."""

    name: str
    result: str
    explanation: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """The decision in words. `forwarded` is the head that Navidrome would get, empty if it gets none."""

    verdict: str
    sentence: str
    remedy: str
    status: int | None
    steps: tuple[Step, ...]
    forwarded: str
    removed: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Example:
    """A request to start from."""

    label: str
    query: str


def explain_pages(router: APIRouter, access: Access, services: ControlServices) -> None:
    """Add the routes. The form is sent with POST, because its headers may contain a token."""
    visitor = Depends(visitor_of(access))

    @router.get(_PATH)
    async def show(request: Request, visitor: Visitor = visitor) -> Response:
        form = _form(request.query_params, services.settings())
        return await page(request, "explain.html", visitor, _context(form, services.settings()))

    @router.post(_PATH)
    async def explain(request: Request, visitor: Visitor = visitor) -> Response:
        # It changes nothing, so it needs no CSRF token; but no other site may make a browser send it.
        access.check_not_foreign(request)
        settings = services.settings()
        form = _form(await read_form(request), settings)
        context = _context(form, settings)
        status = 200
        try:
            explained_request = ExplainedRequest(
                peer=form["peer"].strip(),
                method=form["method"],
                path=form["path"],
                headers=tuple(line for line in form["headers"].split("\n") if line.strip()),
                with_secret=bool(form["with_secret"]),
            )
            result = await services.explain(explained_request)
            context["result"] = explanation(result, form)
        except InvalidRequest as error:
            context["fault"], status = _sentence(str(error)), 400
        return await page(request, "explain.html", visitor, context, status)


def explanation(result: Mapping[str, Any], form: Mapping[str, str]) -> Explanation:
    """Return the result of an explanation, as `explain --json` has it, in words."""
    reason = reason_of(result["reason"])
    assert reason is not None
    steps = tuple(Step(each["step"], each["result"], each["why"]) for each in result["steps"])
    last = steps[-1].explanation if steps and steps[-1].explanation else reason.text
    lines = [f"{name}: {value}" for name, value in result["forwarded_headers"]]
    forwarded = "\n".join((f"{form['method']} {form['path']} HTTP/1.1", *lines)) if lines else ""
    return Explanation(
        verdict=result["verdict"],
        sentence=_sentence(last if result["verdict"] == "rejected" else reason.text),
        remedy=reason.remedy,
        status=result["status"],
        steps=steps,
        forwarded=forwarded,
        removed=tuple(result["removed_headers"]),
        notes=tuple(result["notes"]),
    )


def _form(given: Mapping[str, str], settings: Settings) -> dict[str, str]:
    form = {name: given.get(name, "").replace("\r\n", "\n") for name in _FIELDS}
    form["method"] = form["method"] or "GET"
    form["peer"] = form["peer"] or (_peers(settings) or ("",))[0]
    form["path"] = form["path"] or f"{settings.base_path.rstrip('/')}/app/"
    return form


def _peers(settings: Settings) -> tuple[str, ...]:
    """Return the whitelist's entries that are addresses."""
    return tuple(
        entry for entry in settings.reverse_proxy_whitelist if entry[:1].isdigit() or ":" in entry
    )


def _context(form: dict[str, str], settings: Settings) -> dict[str, Any]:
    return {
        "form": form,
        "fault": "",
        "methods": METHODS if form["method"] in METHODS else (*METHODS, form["method"]),
        "peers": _peers(settings),
        "has_secret": bool(settings.proxy_secret),
        "result": None,
        "examples": _examples(settings),
    }


def _examples(settings: Settings) -> tuple[Example, ...]:
    peer = (_peers(settings) or ("127.0.0.1",))[0]
    user, base = settings.username_header, settings.base_path.rstrip("/")
    signed_in = {
        "peer": peer,
        "path": f"{base}/app/",
        "headers": f"{user}: ada\n{settings.uid_header}: 1f3a\n{settings.groups_header}: family",
        "with_secret": "1" if settings.proxy_secret else "",
    }
    attack = {
        "peer": "203.0.113.9",
        "path": f"{base}/rest/getUsers?v=1&c=x",
        "headers": f"{user}: admin",
    }
    app = {"peer": peer, "path": f"{base}/rest/ping?u=ada&t=…&s=…&v=1.16.1&c=app"}
    alias = {**signed_in, "headers": f"{user.replace('-', '_')}: admin"}
    return (
        Example("A person who has signed in opens the web app", urlencode(signed_in)),
        Example("A client that bypasses the edge claims to be the admin", urlencode(attack)),
        Example("A Subsonic app calls an open path", urlencode(app)),
        Example("A client sends a header that only resembles an identity header", urlencode(alias)),
    )


def _sentence(text: str) -> str:
    text = text.strip()
    if not text:
        return ""
    first = text[0].upper() + text[1:]
    return first if first.endswith((".", "!", "?", "…")) else f"{first}."
