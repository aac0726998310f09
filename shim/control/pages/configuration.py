"""The page Configuration: the settings in force, where each comes from, and the reload."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

from fastapi import APIRouter, Depends
from fastapi.responses import Response
from starlette.requests import Request

from shim.audit.performing import Performed
from shim.control.access import Access, Caller
from shim.control.api import operator_of
from shim.control.pages.rendering import page
from shim.control.pages.visitor import Visitor, visitor_of
from shim.control.services import ControlServices
from shim.settings import warnings
from shim.settings.effective import effective_settings
from shim.settings.reload import ReloadResult
from shim.settings.summary import summary

_PATH: Final = "/admin/configuration"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a reload. `tone` is `ok`, `warning` or `error`."""

    tone: str
    title: str
    lines: tuple[str, ...] = ()


def configuration_pages(router: APIRouter, access: Access, services: ControlServices) -> None:
    """Add the routes."""
    visitor = Depends(visitor_of(access))
    reloader = Depends(access.authorize_reload)

    @router.get(_PATH)
    async def show(request: Request, visitor: Visitor = visitor) -> Response:
        context = configuration(services)
        return await page(request, "configuration.html", visitor, context)

    @router.post(_PATH)
    async def reload(
        request: Request, caller: Caller = reloader, visitor: Visitor = visitor
    ) -> Response:
        outcome = reload_outcome(await services.reload(operator_of(caller, "console")))
        context = configuration(services, outcome)
        status = 409 if outcome.tone == "error" else 200
        return await page(request, "configuration.html", visitor, context, status)


def configuration(services: ControlServices, outcome: Outcome | None = None) -> dict[str, Any]:
    """Return the values of the template."""
    settings = services.settings()
    sections = [
        (section, list(found))
        for section, found in groupby(effective_settings(settings), key=lambda each: each.section)
    ]
    return {
        "summary": summary(settings),
        "warnings": warnings(settings),
        "sections": sections,
        "pending": services.pending_restart(),
        "outcome": outcome,
    }


def reload_outcome(performed: Performed[ReloadResult]) -> Outcome:
    """Return the result of a reload in words."""
    result, note = performed.value, (performed.note,) if performed.note else ()
    if result.faults:
        title = "The settings were not reloaded; the old ones stay in force."
        return Outcome("error", title, (*result.faults, *note))
    if result.pending_restart:
        applied = f"Changed: {', '.join(result.changed)}." if result.changed else "Nothing changed."
        waiting = tuple(f"{name} takes effect after a restart." for name in result.pending_restart)
        return Outcome("warning", f"The settings were reloaded. {applied}", (*waiting, *note))
    tone = "warning" if note else "ok"
    if result.changed:
        return Outcome(tone, "The settings were reloaded.", (*result.changed, *note))
    return Outcome(
        tone,
        "The settings are unchanged. Host names were resolved and the key set was fetched again.",
        note,
    )
