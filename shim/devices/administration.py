"""The device operations as actions that are recorded before they are answered.

The pages, the API and the `devices` commands use this; `service.py` does the work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from shim.audit.admin_actions import AdminActions
from shim.audit.events import Operator
from shim.audit.performing import Performed, perform
from shim.devices.models import (
    Device,
    DeviceExists,
    NewDevice,
    UnknownDevice,
    UnknownOwner,
    valid_name,
)
from shim.devices.service import DeviceService
from shim.trust.names import normalize_name


@dataclass(frozen=True, slots=True)
class ListedDevice:
    """A device, and the name of its person's account, empty if the person has none any more."""

    account: str
    device: Device


class DeviceAdministration:
    """The actions on devices. `names` returns the account's name of each uid. Raises `DeviceError` and
    `StoreError`; `add` raises `NotStored`, too."""

    def __init__(
        self,
        service: DeviceService,
        names: Callable[[], Mapping[str, str]],
        actions: AdminActions,
    ) -> None:
        self._service = service
        self._names = names
        self._actions = actions

    # lists

    def devices(self, account: str | None = None) -> list[ListedDevice]:
        """Return the devices of an account's person, or of all people, with those that were revoked lately.
        The newest is the first."""
        names = self._names()
        uid = None if account is None else self._uid(account)
        return [
            ListedDevice(names.get(device.uid, ""), device) for device in self._service.devices(uid)
        ]

    def devices_of(self, uid: str, now: float) -> list[Device]:
        """Return the devices of a person that are in use at this time, in seconds since the epoch."""
        return [device for device in self._service.devices(uid) if device.is_active(now)]

    def find(self, device_id: str, *, uid: str | None = None) -> ListedDevice:
        """Return a device that was not revoked; with `uid`, only one of this person. Raises
        `UnknownDevice`."""
        for device in self._service.devices(uid):
            if device.id == device_id and device.revoked is None:
                return ListedDevice(self._names().get(device.uid, ""), device)
        raise UnknownDevice(f"There is no device {device_id} in use.")

    @property
    def fault(self) -> str | None:
        """Return why some or all device passwords are refused, None if all of them work."""
        return self._service.fault if self._service.loaded else "the devices have not been read yet"

    # actions

    async def add(
        self,
        operator: Operator,
        uid: str,
        name: str,
        *,
        expires: float | None = None,
        device_id: str | None = None,
    ) -> Performed[NewDevice]:
        """Add a device for a person. `device_id` and `expires` are as in `DeviceService.add`."""
        # Found before the action begins, so that the trail has no failed action for it.
        name = valid_name(name)
        if device_id is not None and any(
            device.id == device_id for device in self._service.devices(uid)
        ):
            raise DeviceExists("This device has already been added.")
        account = self._names().get(uid)
        return await perform(
            self._actions,
            operator,
            "device.add",
            lambda: self._service.add(
                uid, name, operator, expires=expires, account=account, device_id=device_id
            ),
            target=account,
            grants_access=True,
            changes=lambda new: _change(new.device),
        )

    async def add_for(
        self, operator: Operator, account: str, name: str, expires: float | None
    ) -> Performed[NewDevice]:
        """Add a device for the person of an account."""
        return await self.add(operator, self._uid(account), name, expires=expires)

    async def rename(
        self, operator: Operator, device_id: str, name: str, *, uid: str
    ) -> Performed[Device]:
        """Give a device of this person another name."""
        name, found = valid_name(name), self.find(device_id, uid=uid)
        return await perform(
            self._actions,
            operator,
            "device.rename",
            lambda: self._service.rename(
                device_id, name, operator, uid=uid, account=found.account or None
            ),
            target=found.account or None,
            changes=_change,
        )

    async def revoke(
        self, operator: Operator, device_id: str, *, uid: str | None = None
    ) -> Performed[Device]:
        """Revoke a device; with `uid`, only one of this person."""
        found = self.find(device_id, uid=uid)
        return await perform(
            self._actions,
            operator,
            "device.revoke",
            lambda: self._service.revoke(
                device_id, operator, uid=uid, account=found.account or None
            ),
            target=found.account or None,
            changes=_change,
        )

    async def rotate_key(self, operator: Operator) -> Performed[int]:
        """Encrypt all secrets with another key, as `DeviceService.rotate_key` does. The value is their
        number."""
        return await perform(
            self._actions,
            operator,
            "device.rotate_key",
            lambda: self._service.rotate_key(operator),
            changes=lambda count: (f"{count} device passwords",),
        )

    def _uid(self, account: str) -> str:
        uids = {normalize_name(name): uid for uid, name in self._names().items()}
        uid = uids.get(normalize_name(account))
        if uid is None:
            raise UnknownOwner(
                f"No account named {account} is linked to a user: the user must sign in to the music server "
                "first."
            )
        return uid


def _change(device: Device) -> tuple[str, ...]:
    return (f"device {device.id}: {device.name}",)
