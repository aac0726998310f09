"""Build the devices from the settings. Imported only if provisioning is on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from shim.audit.events import Event
from shim.devices.gate import SubsonicDevices, devices_check
from shim.devices.keys import KeySource
from shim.devices.service import DeviceService
from shim.health import Check, State
from shim.provisioning.accounts import AccountLookup
from shim.provisioning.service import ProvisioningService
from shim.settings import Settings
from shim.store.database import Database
from shim.store.errors import StoreError

KEY_FILE = "device.key"


def key_source(settings: Settings, database: Database) -> KeySource:
    """Return where the key is: SHIM_DEVICE_KEY, or a file beside the SQLite database."""
    secret = settings.device_key
    file: Path | None = None if database.file is None else database.file.with_name(KEY_FILE)
    return KeySource(None if secret is None else secret.get_secret_value(), file)


def build_device_service(
    settings: Settings, record: Callable[[Event], None], database: Database
) -> DeviceService:
    """Build the service, without any I/O. `database` is opened and closed by the caller."""
    return DeviceService(database, key_source(settings, database), record)


async def check_devices(settings: Settings) -> Check:
    """Return the check of device passwords for the command `check`, which changes nothing."""
    try:
        database = Database(settings.database_url.get_secret_value())
    except StoreError as error:  # the check of the accounts has the remedy
        return Check("devices", State.WARNING, str(error))
    try:
        service = build_device_service(settings, lambda _: None, database)
        if database.file is not None and not database.file.exists():
            fault = service.key_problem
            if fault is not None:
                return Check("devices", State.WARNING, fault, service.remedy)
            return Check("devices", State.OK, "no device passwords yet")
        if not await asyncio.to_thread(database.is_current):
            return Check("devices", State.OK, "the database was not opened yet")
        await service.load()
        return devices_check(service)
    except StoreError as error:
        return devices_check(service, str(error))
    finally:
        await asyncio.to_thread(database.close)


def build_devices(
    settings: Settings,
    record: Callable[[Event], None],
    database: Database,
    accounts: ProvisioningService,
    suppressed: Callable[[str, tuple[str, ...], float], bool],
) -> SubsonicDevices:
    """Build the devices as the data plane uses them, over the service of the accounts. `suppressed`: see
    `SubsonicDevices`."""
    return SubsonicDevices(
        build_device_service(settings, record, database),
        AccountLookup(accounts),
        record,
        sign_in_days=settings.device_sign_in_days,
        suppressed=suppressed,
    )
