"""The API of accounts. Imported only with provisioning."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from shim.audit.performing import Performed
from shim.audit.sanitize import timestamp
from shim.control.access import Access, Caller
from shim.control.api import Body, operator_of
from shim.provisioning.administration import AccountAdministration
from shim.provisioning.operations import AccountRow

Account = Annotated[str, Field(min_length=1, max_length=255, description="Name of the account.")]
Preview = Annotated[bool, Field(description="Return what would be done, and do nothing.")]


class AccountBody(Body):
    """An action on one account."""

    account: Account
    preview: Preview = False


class SyncBody(Body):
    """A sync of one account, or of all."""

    account: Annotated[Account | None, Field(description="null: every linked account.")]
    preview: Preview = False


def account_routes(access: Access, accounts: AccountAdministration) -> APIRouter:
    """Return the routes, for the guarded router."""
    router = APIRouter(prefix="/api/accounts")
    may_read, may_write = Depends(access.authorize), Depends(access.authorize_write)

    @router.get("", summary="Navidrome's accounts, with identity, rights, libraries and state")
    async def show(caller: Caller = may_read) -> Response:
        found = await accounts.accounts(operator_of(caller))
        rows = [account_as_json(row) for row in found.rows]
        return JSONResponse({"accounts": rows, "problem": found.problem or None})

    @router.post("/sync", summary="Update accounts to the last state of their identities")
    async def sync(body: SyncBody, caller: Caller = may_write) -> Response:
        by = operator_of(caller)
        if body.preview:
            changes = await accounts.sync_plan(by, body.account)
            return JSONResponse({"changes": [asdict(each) for each in changes], "applied": False})
        done = await accounts.sync(by, body.account)
        return _done(done, changes=[asdict(each) for each in done.value], applied=True)

    @router.post("/lock", summary="Replace the password of an account, and make its tokens void")
    async def lock(body: AccountBody, caller: Caller = may_write) -> Response:
        by = operator_of(caller)
        if body.preview:
            return JSONResponse({"plan": accounts.lock_plan(by, body.account)})
        done = await accounts.lock(by, body.account)
        return _done(done, account=body.account, locked=True)

    @router.post("/unlock", summary="End the lock of an account that is not linked")
    async def unlock(body: AccountBody, caller: Caller = may_write) -> Response:
        by = operator_of(caller)
        if body.preview:
            return JSONResponse({"plan": accounts.unlock_plan(by, body.account)})
        done = await accounts.unlock(by, body.account)
        return _done(done, account=body.account, locked=False)

    @router.post("/unlink", summary="Unlink an account from its user, and lock it")
    async def unlink(body: AccountBody, caller: Caller = may_write) -> Response:
        by = operator_of(caller)
        if body.preview:
            return JSONResponse({"plan": accounts.unlink_plan(by, body.account)})
        done = await accounts.unlink(by, body.account)
        return _done(done, account=body.account, unlinked=True, locked=done.value)

    return router


def account_as_json(row: AccountRow) -> dict[str, Any]:
    """Return the account with its times in ISO 8601."""
    times = {
        name: None if (seconds := getattr(row, name)) is None else timestamp(seconds)
        for name in ("first_seen", "last_seen")
    }
    return {**asdict(row), **times}


def _done(done: Performed[Any], **content: object) -> Response:
    """Return a response with a note if the action could not be stored."""
    return JSONResponse(content if done.note is None else {**content, "note": done.note})
