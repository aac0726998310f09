"""Carry out an operator's commands on devices, in a process beside the running shim.

The running shim sees a change within `REFRESH_SECONDS`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from sqlalchemy import select

from shim.audit.admin_actions import AdminActions
from shim.audit.events import Event
from shim.devices.administration import DeviceAdministration
from shim.devices.factory import build_device_service
from shim.devices.models import DeviceError
from shim.settings import Settings
from shim.store.database import Database
from shim.store.schema import BINDINGS


@asynccontextmanager
async def device_operations(
    settings: Settings, record: Callable[[Event], None], actions: AdminActions
) -> AsyncIterator[DeviceAdministration]:
    """Open the store for the commands. Raises `DeviceError` and `StoreError`."""
    if not settings.provisioning:
        raise DeviceError("SHIM_PROVISIONING is off, and devices need the accounts of people.")
    database = Database(settings.database_url.get_secret_value())
    try:
        await database.open_async()
        service = build_device_service(settings, record, database)
        await service.load()
        names = await database.read_async(
            lambda connection: {
                row.uid: row.user_name
                for row in connection.execute(select(BINDINGS.c.uid, BINDINGS.c.user_name))
                if row.uid is not None
            }
        )
        yield DeviceAdministration(service, lambda: names, actions)
    finally:
        await asyncio.to_thread(database.close)
