"""The pages of accounts: the list, and for each change a page that shows its effects first.

A change needs two requests: GET shows what happens, POST does it. So it works without scripts, and nobody
changes an account with one click by mistake.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Depends
from fastapi.responses import RedirectResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import Request

from shim.audit.admin_actions import NotStored
from shim.audit.events import Operator
from shim.audit.performing import Performed
from shim.control.access import Access, Caller
from shim.control.api import operator_of
from shim.control.forms import read_form
from shim.control.pages.rendering import page
from shim.control.pages.visitor import Visitor, visitor_of
from shim.control.services import ControlServices
from shim.navidrome.errors import NavidromeError
from shim.provisioning.administration import AccountAdministration
from shim.provisioning.operations import AccountRow, OperationError, UnknownAccount
from shim.store.errors import StoreError
from shim.trust.names import normalize_name

_PATH: Final = "/admin/accounts"
_FAULTS: Final = (OperationError, NavidromeError, StoreError, NotStored)


@dataclass(frozen=True, slots=True)
class Line:
    """One account in the list. `icon` is the shape of `state`, `last_seen` is in µs, `actions` are those that
    are possible."""

    account: str
    uid: str | None
    user: str | None
    icon: str
    state: str
    meaning: str
    empty_password: bool
    admin: bool | None
    libraries: str
    last_seen: int | None
    actions: tuple[str, ...]
    query: str
    name_query: str


@dataclass(frozen=True, slots=True)
class Action:
    """A change of an account. `heading` has a place for its name."""

    heading: str
    button: str
    done: str


ACTIONS: Final[Mapping[str, Action]] = {
    "sync": Action(
        "Update {}", "Write these changes to Navidrome", "{} has the identity's values."
    ),
    "lock": Action("Lock {}", "Lock the account", "{} is locked."),
    "unlock": Action("Unlock {}", "Unlock the account", "{} is unlocked."),
    "unlink": Action("Unlink {}", "Unlink the account", "{} is unlinked."),
}

_OWN: Final = (
    "This is your own account. You are signed out of the music server, and your next visit there signs you "
    "in again, if the policy allows it. The console stays open: the right to it comes from your groups, not "
    "from the account."
)

# The state of an account: its shape and what it means.
_STATES: Final[Mapping[str, tuple[str, str]]] = {
    "active": ("ok", "linked to this identity"),
    "denied": ("refused", "linked, but the policy denies this identity"),
    "unlinked": ("anonymous", "was linked; the next person with this name may be linked to it"),
    "unbound": ("anonymous", "exists in Navidrome, not linked to an identity"),
    "reserved": ("info", "the shim's own account, or protected"),
    "gone": ("warning", "deleted in Navidrome"),
}


def account_pages(router: APIRouter, access: Access, services: ControlServices) -> None:
    """Add the routes."""
    visitor = Depends(visitor_of(access))
    reader, writer = Depends(access.authorize), Depends(access.authorize_write)

    @router.get(_PATH)
    async def show(
        request: Request, caller: Caller = reader, visitor: Visitor = visitor
    ) -> Response:
        context: dict[str, Any] = {"rows": (), "linked": 0, "fault": "", "done": ""}
        context["has_devices"] = services.devices is not None
        context["sign_in_days"] = services.settings().device_sign_in_days
        context["may_write"] = visitor.may_write and services.accounts is not None
        context["done"] = _done(access.flash(request, caller, _PATH))
        status = 200
        if services.accounts is None:
            context["fault"] = "SHIM_PROVISIONING is off: the shim manages no accounts."
        else:
            try:
                found = await services.accounts.accounts(operator_of(caller, "console"))
                rows = [account_line(row) for row in found.rows]
                context |= {"rows": rows, "fault": found.problem}
                context["linked"] = sum(row.uid is not None for row in rows)
            except _FAULTS as error:
                context["fault"], status = str(error), 503
        return await page(request, "accounts.html", visitor, context, status)

    @router.get(_PATH + "/{action}")
    async def preview(
        request: Request, action: str, caller: Caller = reader, visitor: Visitor = visitor
    ) -> Response:
        accounts = _accounts(services, action)
        name = request.query_params.get("account") or None
        context, status = _action_context(action, name), 200
        context["own"] = _own_account_warning(services, caller, action, name)
        try:
            context |= await _plan(accounts, action, operator_of(caller, "console"), name)
        except UnknownAccount:
            # The name is from a link, so it is not repeated.
            context, status = _action_context(action, None), 404
            context["fault"] = "There is no such account."
        except _FAULTS as error:
            context["fault"], status = str(error), _status_of(error)
        if context["fault"]:
            context["heading"] = ACTIONS[action].heading.format("an account")
        return await page(request, "account_action.html", visitor, context, status)

    @router.post(_PATH + "/{action}")
    async def carry_out(
        request: Request, action: str, caller: Caller = writer, visitor: Visitor = visitor
    ) -> Response:
        accounts = _accounts(services, action)
        name = (await read_form(request)).get("account") or None
        operator, own = (
            operator_of(caller, "console"),
            _own_account_warning(services, caller, action, name),
        )
        try:
            performed = await _perform(accounts, action, operator, name)
        except _FAULTS as error:
            context = _action_context(action, name) | {"fault": str(error)}
            return await page(request, "account_action.html", visitor, context, _status_of(error))
        if performed.note:
            context = _action_context(action, name)
            context["plan"], context["note"] = (), performed.note
            return await page(request, "account_action.html", visitor, context)
        result = {"done": action} | ({"account": name} if name else {})
        query = access.flash_query(caller, _PATH, **result, **({"own": "1"} if own else {}))
        return RedirectResponse(f"../accounts?{query}", 303)


def account_line(row: AccountRow) -> Line:
    """Return an account as the list shows it."""
    icon, meaning = _STATES.get(row.state, ("info", ""))
    state = row.state
    if row.locked and row.state not in ("reserved", "gone"):
        icon, state = "refused", "locked" if row.uid is None else f"{row.state}, locked"
        if row.state == "active":
            meaning = "linked; the next sign-in that the policy allows ends the lock"
    name = {"account": row.account}
    return Line(
        account=row.account,
        uid=row.uid,
        user=row.user,
        icon=icon,
        state=state,
        meaning=meaning,
        empty_password=row.empty_password,
        admin=row.admin,
        libraries=", ".join(row.libraries or ()),
        last_seen=None if row.last_seen is None else round(row.last_seen * 1_000_000),
        actions=_possible(row),
        query=urlencode({"user": row.user} if row.user else name),
        name_query=urlencode(name),
    )


def _possible(row: AccountRow) -> tuple[str, ...]:
    if row.state == "reserved":
        return ()
    found = ["sync"] if row.state == "active" else []
    if row.state != "gone" and not row.locked:
        found.append("lock")
    # The lock of an account that was linked ends with the sign-in of somebody who may have it.
    if row.state == "unbound" and row.locked:
        found.append("unlock")
    if row.uid is not None:
        found.append("unlink")
    return tuple(found)


def _own_account_warning(
    services: ControlServices, caller: Caller, action: str, name: str | None
) -> str:
    """Return what an action on this account means for the console, if it is the caller's own, else
    nothing."""
    ends_own_access = action in ("lock", "unlink")
    if services.people is None or caller.identity is None or not name or not ends_own_access:
        return ""
    own = services.people.own_account(caller.identity).name
    return _OWN if own and normalize_name(own) == normalize_name(name) else ""


def _done(result: Mapping[str, str]) -> str:
    """Return the result of an action in words, empty without one."""
    action = ACTIONS.get(result.get("done", ""))
    if action is None:
        return ""
    done = action.done.format(result.get("account") or "Every linked account")
    return f"{done} {_OWN}" if result.get("own") else done


def _status_of(error: Exception) -> int:
    """Return the status of a failed action, as in the API: 409 if the action itself is not possible, 503 if
    the database, the trail or Navidrome is not available."""
    return 409 if isinstance(error, OperationError) else 503


def _accounts(services: ControlServices, action: str) -> AccountAdministration:
    if action not in ACTIONS or services.accounts is None:
        raise HTTPException(404)
    return services.accounts


def _action_context(action: str, name: str | None) -> dict[str, Any]:
    chosen = ACTIONS[action]
    return {
        "action": action,
        "account": name or "",
        "heading": chosen.heading.format(name or "every linked account"),
        "button": chosen.button,
        "plan": (),
        "changes": (),
        "fault": "",
        "note": "",
        "own": "",
    }


async def _plan(
    accounts: AccountAdministration, action: str, operator: Operator, name: str | None
) -> dict[str, Any]:
    """Return what the action would do, as values of the template."""
    if action == "sync":
        return {"changes": await accounts.sync_plan(operator, name)}
    account = _required(name)
    plan: Callable[[Operator, str], list[str]] = getattr(accounts, f"{action}_plan")
    return {"plan": plan(operator, account)}


async def _perform(
    accounts: AccountAdministration, action: str, operator: Operator, name: str | None
) -> Performed[Any]:
    if action == "sync":
        return await accounts.sync(operator, name)
    perform: Callable[[Operator, str], Awaitable[Performed[Any]]] = getattr(accounts, action)
    return await perform(operator, _required(name))


def _required(name: str | None) -> str:
    if name is None:
        raise HTTPException(400, "account: expected the name of an account")
    return name
