"""Statements on the table of devices that two parts need: what ends a device, and the counter of changes.

A lock, an unlink, a refusal and a removed account end the devices of the person in the transaction that
stores it, so that no later sign-in revives a device.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, insert, select, update

from shim.store.schema import CHANGE_COUNTERS, DEVICES

COUNTER = "devices"


def end_devices(
    connection: Connection, condition: ColumnElement[bool], now: float, cause: str
) -> int:
    """Revoke the devices that the condition selects, and drop their secrets. Return how many there were.

    `now` is in seconds since the epoch; `cause` is one word for the list.
    """
    ended = (
        update(DEVICES)
        .where(condition, DEVICES.c.revoked.is_(None))
        .values(revoked=now, revoked_by=cause, secret=b"", nonce=b"")
    )
    count = connection.execute(ended).rowcount
    if count:
        increment_devices(connection)
    return count


def increment_devices(connection: Connection) -> int:
    """Count a change of the devices, so that every shim reads them again. Return the new count."""
    counter = CHANGE_COUNTERS.c.name == COUNTER
    row = update(CHANGE_COUNTERS).where(counter).values(value=CHANGE_COUNTERS.c.value + 1)
    if connection.execute(row).rowcount == 0:
        connection.execute(insert(CHANGE_COUNTERS).values(name=COUNTER, value=1))
    return devices_version(connection)


def devices_version(connection: Connection) -> int:
    """Return how many changes of the devices there were."""
    counter = select(CHANGE_COUNTERS.c.value).where(CHANGE_COUNTERS.c.name == COUNTER)
    return int(connection.execute(counter).scalar() or 0)
