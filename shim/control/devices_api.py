"""The API of devices: list and revoke. Imported only with provisioning.

Nobody adds a device for somebody else here: the password would be in the hands of two people.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from shim.audit.sanitize import timestamp
from shim.control.access import Access, Caller
from shim.control.api import Body, operator_of
from shim.devices.administration import DeviceAdministration, ListedDevice


class RevokeBody(Body):
    """A device to revoke."""

    id: Annotated[str, Field(min_length=1, max_length=64, description="The device's id.")]


def device_routes(access: Access, devices: DeviceAdministration) -> APIRouter:
    """Return the routes, for the guarded router."""
    router = APIRouter(prefix="/api/devices")
    may_write = Depends(access.authorize_write)

    @router.get("", summary="The devices of everybody, with their last use; no passwords")
    async def show(
        account: Annotated[str | None, Query(max_length=255)] = None,
        everything: Annotated[
            bool, Query(alias="all", description="Also those that were revoked or have expired.")
        ] = False,
    ) -> Response:
        now = time.time()
        found = [
            device_as_json(each, now)
            for each in devices.devices(account)
            if everything or each.device.is_active(now)
        ]
        return JSONResponse({"devices": found, "problem": devices.fault})

    @router.post("/revoke", summary="Revoke a device, and end its streams")
    async def revoke(body: RevokeBody, caller: Caller = may_write) -> Response:
        done = await devices.revoke(operator_of(caller), body.id)
        content = {"id": done.value.id, "revoked": True}
        return JSONResponse(content if done.note is None else {**content, "note": done.note})

    return router


def device_as_json(listed: ListedDevice, now: float) -> dict[str, Any]:
    """Return the device with its times in ISO 8601. `now` is in seconds since the epoch."""
    values: dict[str, Any] = asdict(listed.device)
    for name in ("created", "expires", "revoked", "last_used"):
        values[name] = None if values[name] is None else timestamp(values[name])
    return {"account": listed.account, **values, "active": listed.device.is_active(now)}
