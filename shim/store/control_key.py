"""The key that signs the control plane's sessions and CSRF tokens."""

from __future__ import annotations

import secrets

from sqlalchemy import Connection, insert, select

from shim.store.schema import CONTROL_KEYS

_NAME = "session"
_BYTES = 32


def read_or_create_key(connection: Connection) -> bytes:
    """Return the key, which the first process creates. Run it in a write transaction: then no second process
    creates another one."""
    found = connection.execute(
        select(CONTROL_KEYS.c.value).where(CONTROL_KEYS.c.name == _NAME)
    ).scalar()
    if found is not None:
        return bytes.fromhex(found)
    key = secrets.token_bytes(_BYTES)
    connection.execute(insert(CONTROL_KEYS).values(name=_NAME, value=key.hex()))
    return key
