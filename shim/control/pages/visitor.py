"""The reader of a page: the client of the request, as a template needs it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import Request

from shim.control.access import Access


@dataclass(frozen=True, slots=True)
class Visitor:
    """The reader of a page. `name` is shown; `csrf_token` goes into forms, empty if none is needed.
    `may_write` and `may_reload` decide which actions are offered; `has_session`: signing out is possible."""

    name: str
    csrf_token: str = ""
    may_write: bool = False
    may_reload: bool = False
    has_session: bool = False


def visitor_of(access: Access) -> Callable[[Request], Awaitable[Visitor]]:
    """Return a dependency for the routes of pages. It raises what `Access.authorize` raises."""

    async def visitor(request: Request) -> Visitor:
        caller = await access.authorize(request)
        return Visitor(
            name=caller.user or _NAMES.get(caller.actor, caller.actor),
            csrf_token=access.csrf_token(caller),
            may_write=caller.may_write,
            may_reload=caller.may_reload,
            has_session=caller.session is not None,
        )

    return visitor


_NAMES = {"token": "Control token", "loopback": "This machine"}
