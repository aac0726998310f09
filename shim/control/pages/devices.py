"""The console's pages of devices: everybody's, to look at and to revoke. Nobody adds one for somebody else
here."""

from __future__ import annotations

import time
from typing import Any, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Depends
from fastapi.responses import RedirectResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import Request

from shim.control.access import Access, Caller
from shim.control.api import operator_of
from shim.control.pages.person import device_line
from shim.control.pages.rendering import page
from shim.control.pages.visitor import Visitor, visitor_of
from shim.control.services import ControlServices
from shim.devices.administration import DeviceAdministration, ListedDevice
from shim.devices.models import UnknownDevice, UnknownOwner
from shim.store.errors import StoreError

_PATH: Final = "/admin/devices"
_GONE: Final = "There is no such device in use."


def device_pages(router: APIRouter, access: Access, services: ControlServices) -> None:
    """Add the routes."""
    visitor = Depends(visitor_of(access))
    reader, writer = Depends(access.authorize), Depends(access.authorize_write)

    @router.get(_PATH)
    async def show(
        request: Request, caller: Caller = reader, visitor: Visitor = visitor
    ) -> Response:
        query = request.query_params
        account, everything = query.get("account") or None, bool(query.get("all"))
        context, status = _context(services), 200
        context |= {
            "may_write": visitor.may_write and services.devices is not None,
            "account": account or "",
            "everything": everything,
            "other": urlencode(
                ({"account": account} if account else {}) | ({} if everything else {"all": "1"})
            ),
            "done": access.flash(request, caller, _PATH).get("done") == "revoked",
            "note": "",
        }
        if services.devices is not None:
            now = time.time()
            try:
                context["rows"] = [
                    device_line(each.device, now, each.account)
                    for each in services.devices.devices(account)
                    if everything or each.device.is_active(now)
                ]
            except UnknownOwner:
                # The name is from a link, so it is not repeated.
                context |= {
                    "fault": "There is no such account, or it is not linked to an identity."
                }
                status = 404
        return await page(request, "devices.html", visitor, context, status)

    @router.get(_PATH + "/{device_id}/revoke")
    async def confirm(request: Request, device_id: str, visitor: Visitor = visitor) -> Response:
        found = _found(services, device_id)
        context = {
            "device": device_line(found.device, time.time(), found.account),
            "action": "revoke",
            "fault": "",
            "back": "../../devices",
            "trail_of": "Devices",
            "may_write": visitor.may_write,
        }
        return await page(request, "device_action.html", visitor, context)

    @router.post(_PATH + "/{device_id}/revoke")
    async def revoke(
        request: Request, device_id: str, caller: Caller = writer, visitor: Visitor = visitor
    ) -> Response:
        try:
            done = await _devices(services).revoke(operator_of(caller, "console"), device_id)
        except UnknownDevice:
            raise HTTPException(404, _GONE) from None
        except StoreError as error:
            raise HTTPException(503, f"The device was not revoked: {error}") from None
        if done.note:
            context = _context(services) | {"account": "", "everything": False, "other": "all=1"}
            context |= {"may_write": True, "done": True, "note": done.note}
            return await page(request, "devices.html", visitor, context)
        query = access.flash_query(caller, _PATH, done="revoked")
        return RedirectResponse(f"../../devices?{query}", 303)


def _context(services: ControlServices) -> dict[str, Any]:
    devices = services.devices
    fault = "SHIM_PROVISIONING is off, and devices need the accounts of people."
    return {
        "rows": [],
        "fault": fault if devices is None else devices.fault or "",
        "sign_in_days": services.settings().device_sign_in_days,
    }


def _devices(services: ControlServices) -> DeviceAdministration:
    if services.devices is None:
        raise HTTPException(404)
    return services.devices


def _found(services: ControlServices, device_id: str) -> ListedDevice:
    try:
        return _devices(services).find(device_id)
    except UnknownDevice:
        raise HTTPException(404, _GONE) from None
