"""A person's own pages: the identity, and the devices.

| path | page |
|---|---|
| `/` | identity, account, devices, and how to set up an app |
| `POST /devices/add` | the new password, which no other page shows |
| `/devices/ID/rename`, `/devices/ID/revoke` | GET shows the form, POST does it |

Everybody whose identity is trusted has these pages. People see and change only their own devices: a route
gets the uid from the private channel, and never from the request.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import segno
from fastapi import APIRouter, Depends
from fastapi.responses import RedirectResponse, Response
from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.requests import Request

from shim.audit.admin_actions import NotStored
from shim.control.access import CHANNEL_HEADER, Access, Caller
from shim.control.api import operator_of
from shim.control.form_keys import FORM_KEY_FIELD
from shim.control.forms import read_form
from shim.control.pages.rendering import page
from shim.control.pages.visitor import visitor_for
from shim.control.services import ControlServices
from shim.devices.administration import DeviceAdministration
from shim.devices.models import (
    MAX_DEVICES,
    MAX_NAME,
    Device,
    DeviceError,
    DeviceExists,
    UnknownDevice,
)
from shim.devices.people import NO_ACCOUNT, OwnAccount
from shim.proxy.sign_in import public_address
from shim.store.errors import StoreError

# The validity of a new device in days, as the form offers it; empty: without a limit.
VALIDITIES: Final = (
    ("", "until it is revoked"),
    ("7", "7 days"),
    ("30", "30 days"),
    ("90", "90 days"),
    ("365", "1 year"),
)
_PATH: Final = "/"
_DAY: Final = 86400.0
_DONE: Final = {"renamed": "The device has a new name.", "revoked": "The device is revoked."}
_SENT_BEFORE: Final = (
    "This form was sent before, and its device was added then. Its password was shown only once. If you do "
    "not have it, revoke the device and add it again."
)

_NO_DEVICE = "You have no such device in use."


@dataclass(frozen=True, slots=True)
class Line:
    """One device in a list. Times are in µs. `by` is the app and the address of its last use."""

    id: str
    account: str
    name: str
    added: int
    last_used: int | None
    by: str
    expires: int | None
    state: str


def device_line(device: Device, now: float, account: str = "") -> Line:
    """Return a device as the lists show it. `now` is in seconds since the epoch."""
    state = ""
    if device.revoked is not None:
        state = f"revoked ({device.revoked_by})"
    elif not device.is_active(now):
        state = "expired"
    return Line(
        id=device.id,
        account=account,
        name=device.name,
        added=_microseconds(device.created),
        last_used=None if device.last_used is None else _microseconds(device.last_used),
        by=" from ".join(filter(None, (device.last_app, device.last_client))),
        expires=None if device.expires is None else _microseconds(device.expires),
        state=state,
    )


def person_pages(router: APIRouter, access: Access, services: ControlServices) -> None:
    """Add the routes."""
    person, writer = Depends(access.authorize_person), Depends(access.authorize_person_write)
    own = _OwnPage(access, services)

    @router.get("/without-slash")
    async def without_slash(_: Caller = person) -> Response:
        base = services.settings().base_path.rstrip("/")
        return RedirectResponse(f"{base}/_shim/", 303)

    @router.get("/")
    async def show(request: Request) -> Response:
        if CHANNEL_HEADER not in request.headers:
            await access.authorize(request)
            return RedirectResponse("/admin/", 303)
        caller = await access.authorize_person(request)
        done = _DONE.get(access.flash(request, caller, _PATH).get("done", ""), "")
        return await own.show(request, caller, {"done": done})

    @router.get("/devices/")
    @router.get("/devices/add")
    async def redirect_back(_: Caller = person) -> Response:
        return RedirectResponse("../", 303)

    @router.post("/devices/add")
    async def add(request: Request, caller: Caller = writer) -> Response:
        return await own.add(request, caller)

    @router.get("/devices/{device_id}/{action}")
    async def confirm(
        request: Request, device_id: str, action: str, caller: Caller = person
    ) -> Response:
        return await own.confirm(request, caller, device_id, action)

    @router.post("/devices/{device_id}/{action}")
    async def change(
        request: Request, device_id: str, action: str, caller: Caller = writer
    ) -> Response:
        return await own.change(request, caller, device_id, action)


class _OwnPage:
    """What the routes do."""

    def __init__(self, access: Access, services: ControlServices) -> None:
        self._access = access
        self._services = services

    async def show(
        self, request: Request, caller: Caller, values: dict[str, Any], status: int = 200
    ) -> Response:
        """Return the page. `values` has `done`, `note`, `fault` or the values of the form."""
        services, settings = self._services, self._services.settings()
        own, now = self._account(caller), time.time()
        devices = services.devices
        lines = [] if devices is None else self._lines(devices, caller, now)
        context: dict[str, Any] = {
            "identity": caller.identity,
            "own": own,
            "devices": lines,
            "max_devices": MAX_DEVICES,
            "may_add": devices is not None and not own.problem and len(lines) < MAX_DEVICES,
            "has_devices": devices is not None,
            "device_fault": "" if devices is None or devices.fault is None else devices.fault,
            "form_key": self._access.form_key(caller),
            "validities": VALIDITIES,
            "max_name": MAX_NAME,
            "server": self._server(request),
            "sign_in_days": settings.device_sign_in_days,
            "sign_out": services.sign_out_url(),
            "done": "",
            "note": "",
            "fault": "",
            "name": "",
            "days": "",
        }
        return await page(
            request, "person.html", visitor_for(self._access, caller), context | values, status
        )

    async def add(self, request: Request, caller: Caller) -> Response:
        """Add a device, and return the page with its password."""
        devices, uid = self._devices(caller)
        form = await read_form(request)
        device_id = self._access.form_id(caller, form.get(FORM_KEY_FIELD, ""))
        name, days = form.get("name", ""), form.get("days", "")
        form_values = {"name": name, "days": days}
        if days not in dict(VALIDITIES):
            raise HTTPException(400, "days: this validity is not offered")
        own = self._account(caller)
        if own.problem:
            return await self.show(request, caller, {"fault": own.problem}, 409)
        expires = time.time() + int(days) * _DAY if days else None
        try:
            done = await devices.add(
                operator_of(caller, "console"), uid, name, expires=expires, device_id=device_id
            )
        except DeviceExists:
            return await self.show(request, caller, {"fault": _SENT_BEFORE}, 409)
        except DeviceError as error:
            return await self.show(request, caller, form_values | {"fault": str(error)}, 400)
        except (NotStored, StoreError) as error:
            fault = f"The device was not added: {error}"
            return await self.show(request, caller, form_values | {"fault": fault}, 503)
        new = done.value
        context = {
            "device": device_line(new.device, time.time()),
            "secret": new.secret,
            "code": qr_code(new.secret),
            "own": own,
            "server": self._server(request),
            "note": done.note or "",
        }
        return await page(request, "device_added.html", visitor_for(self._access, caller), context)

    async def confirm(
        self, request: Request, caller: Caller, device_id: str, action: str, fault: str = ""
    ) -> Response:
        """Return the form of an action on a device."""
        devices, uid = self._own_devices(caller)
        if action not in ("rename", "revoke"):
            raise HTTPException(404)
        line = device_line(_found(devices, device_id, uid), time.time())
        context = {
            "device": line,
            "action": action,
            "fault": fault,
            "max_name": MAX_NAME,
            "back": "../../",
            "trail_of": "Your devices",
        }
        visitor = visitor_for(self._access, caller)
        return await page(request, "device_action.html", visitor, context, 400 if fault else 200)

    async def change(
        self, request: Request, caller: Caller, device_id: str, action: str
    ) -> Response:
        """Rename or revoke a device."""
        devices, uid = self._own_devices(caller)
        if action not in ("rename", "revoke"):
            raise HTTPException(404)
        operator = operator_of(caller, "console")
        try:
            if action == "rename":
                name = (await read_form(request)).get("name", "")
                done = await devices.rename(operator, device_id, name, uid=uid)
            else:
                done = await devices.revoke(operator, device_id, uid=uid)
        except UnknownDevice:
            raise HTTPException(404, _NO_DEVICE) from None
        except DeviceError as error:
            return await self.confirm(request, caller, device_id, action, str(error))
        except StoreError as error:
            raise HTTPException(503, f"The device was not changed: {error}") from None
        if done.note:
            note = {"done": _DONE[f"{action}d"], "note": done.note}
            return await self.show(request, caller, note)
        query = self._access.flash_query(caller, _PATH, done=f"{action}d")
        return RedirectResponse(f"../../?{query}", 303)

    def _lines(self, devices: DeviceAdministration, caller: Caller, now: float) -> list[Line]:
        if caller.uid is None or not self._account(caller).name:
            return []
        return lines(devices.devices_of(caller.uid, now), now)

    def _own_devices(self, caller: Caller) -> tuple[DeviceAdministration, str]:
        """Return the devices, and the uid of this person. An equal uid of another source is another person,
        whose account has another one. Raises 404."""
        if not self._account(caller).name:
            raise HTTPException(404, _NO_DEVICE)
        return self._devices(caller)

    def _devices(self, caller: Caller) -> tuple[DeviceAdministration, str]:
        if self._services.devices is None or caller.uid is None:
            raise HTTPException(404)
        return self._services.devices, caller.uid

    def _account(self, caller: Caller) -> OwnAccount:
        assert caller.identity is not None
        people = self._services.people
        return NO_ACCOUNT if people is None else people.own_account(caller.identity)

    def _server(self, request: Request) -> str:
        """Return the address of the music server for an app, empty if it is unknown."""
        settings = self._services.settings()
        if settings.public_url:
            return settings.public_url.rstrip("/")
        base = settings.base_path.rstrip("/").encode()
        fields = b"".join(b"%b: %b\r\n" % field for field in request.scope["headers"])
        return public_address(fields, base)


def lines(devices: Iterable[Device], now: float) -> list[Line]:
    """Return the devices as a list shows them."""
    return [device_line(device, now) for device in devices]


def qr_code(text: str) -> Markup:
    """Return the text as a QR code: an SVG element that is dark on light in both themes, so that every camera
    reads it."""
    code = segno.make(text, error="m", micro=False)
    return Markup(code.svg_inline(scale=5, dark="#000", light="#fff"))  # noqa: S704 - made here


def _found(devices: DeviceAdministration, device_id: str, uid: str) -> Device:
    try:
        return devices.find(device_id, uid=uid).device
    except UnknownDevice:
        raise HTTPException(404, _NO_DEVICE) from None


def _microseconds(seconds: float) -> int:
    return round(seconds * 1_000_000)
