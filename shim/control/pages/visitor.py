"""The reader of a page: the client of the request, as a template needs it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import Request

from shim.control.access import Access, Caller


@dataclass(frozen=True, slots=True)
class Visitor:
    """The reader of a page. `name` is shown; `csrf_token` goes into forms, empty if none is needed.
    `is_admin`: may use the console. `may_write` and `may_reload` decide which actions are offered.
    `has_own_page`: is a person with pages of its own. `has_session`: signing out is possible."""

    name: str
    csrf_token: str = ""
    is_admin: bool = False
    may_write: bool = False
    may_reload: bool = False
    has_own_page: bool = False
    has_session: bool = False


def visitor_for(access: Access, caller: Caller) -> Visitor:
    """Return the reader of a page for this client."""
    return Visitor(
        name=caller.user or _NAMES.get(caller.actor, caller.actor),
        csrf_token=access.csrf_token(caller),
        is_admin=caller.is_admin,
        may_write=caller.may_write,
        may_reload=caller.may_reload,
        has_own_page=caller.identity is not None,
        has_session=caller.session is not None,
    )


def visitor_of(access: Access) -> Callable[[Request], Awaitable[Visitor]]:
    """Return a dependency for the routes of the console. It raises what `Access.authorize` raises."""

    async def visitor(request: Request) -> Visitor:
        return visitor_for(access, await access.authorize(request))

    return visitor


_NAMES = {"token": "Control token", "loopback": "This machine"}
