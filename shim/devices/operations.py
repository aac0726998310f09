"""Carry out an operator's commands on devices, in a process beside the running shim.

The running shim sees a change within `REFRESH_SECONDS`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from sqlalchemy import select

from shim.audit.events import Event
from shim.devices.factory import build_device_service
from shim.devices.models import Device, DeviceError, NewDevice
from shim.devices.service import DeviceService, command_actor
from shim.settings import Settings
from shim.store.database import Database
from shim.store.schema import BINDINGS
from shim.trust.names import normalize_name


class DeviceOperations:
    """The operations of the commands, on an opened store. `people` has the account's name of each uid."""

    def __init__(self, service: DeviceService, people: dict[str, str]) -> None:
        self._service = service
        self._people = people

    def rows(self, account: str | None) -> list[tuple[str, Device]]:
        """Return the devices of an account's user, or of everybody, each with the account's name."""
        uid = None if account is None else self._uid(account)
        return [(self._account(each), each) for each in self._service.devices(uid)]

    async def add(self, account: str, name: str, expires: float | None) -> NewDevice:
        """Add a device for the user of an account. Raises `DeviceError`."""
        uid = self._uid(account)
        return await self._service.add(
            uid, name, command_actor(), expires=expires, account=self._people[uid]
        )

    def find(self, device_id: str) -> tuple[str, Device]:
        """Return a device, and its account's name. Raises `DeviceError`."""
        for device in self._service.devices():
            if device.id == device_id:
                return self._account(device), device
        raise DeviceError(f"There is no device {device_id}.")

    async def revoke(self, device_id: str) -> Device:
        """Revoke a device. Raises `DeviceError`."""
        account, _ = self.find(device_id)
        return await self._service.revoke(device_id, command_actor(), account=account)

    async def rotate_key(self) -> int:
        """Encrypt all secrets with another key. Raises `DeviceError`."""
        return await self._service.rotate_key(command_actor())

    def _account(self, device: Device) -> str:
        return self._people.get(device.uid, "")

    def _uid(self, account: str) -> str:
        names = {normalize_name(name): uid for uid, name in self._people.items()}
        uid = names.get(normalize_name(account))
        if uid is None:
            raise DeviceError(
                f"{account} is not linked to a user: the user must sign in to the music server first."
            )
        return uid


@asynccontextmanager
async def device_operations(
    settings: Settings, record: Callable[[Event], None]
) -> AsyncIterator[DeviceOperations]:
    """Open the store for the commands. Raises `DeviceError` and `StoreError`."""
    if not settings.provisioning:
        raise DeviceError("SHIM_PROVISIONING is off, and devices need the accounts of people.")
    database = Database(settings.database_url.get_secret_value())
    try:
        await database.open_async()
        service = build_device_service(settings, record, database)
        await service.load()
        people = await database.read_async(
            lambda connection: {
                row.uid: row.user_name
                for row in connection.execute(select(BINDINGS.c.uid, BINDINGS.c.user_name))
                if row.uid is not None
            }
        )
        yield DeviceOperations(service, people)
    finally:
        await asyncio.to_thread(database.close)
