"""Add, list, rename and revoke the devices of people, and replace the key. The one interface to devices.

All devices are in memory, every change is in the store first. Changes of other processes arrive by `refresh`,
which queries one number. A device whose secret can't be decrypted is refused, and nothing is deleted: with
the right key it works again.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, update

from shim.audit.events import Event, Operator, Origin
from shim.audit.events.devices import (
    DeviceAdded,
    DeviceKeyRotated,
    DeviceRenamed,
    DeviceRevoked,
    DevicesAvailable,
    DevicesUnavailable,
)
from shim.devices.keys import EncryptedSecret, KeyFault, Keyring, KeySource
from shim.devices.models import (
    ACCOUNT_CAUSES,
    MAX_DAYS,
    MAX_DEVICES,
    Device,
    DeviceError,
    DeviceExists,
    NewDevice,
    UnknownDevice,
    new_device_id,
    new_secret,
    valid_name,
)
from shim.devices.verification import begin_md5
from shim.store.database import Database
from shim.store.device_rows import devices_version, end_devices, increment_devices
from shim.store.schema import BINDINGS, DEVICES, TOKEN_RULES

# How long the row of a revoked device is kept for the list.
_KEEP_REVOKED_SECONDS = 90 * 86400.0
# The ended devices of one person that are kept at most, so that nobody fills store and memory by adding and
# revoking.
_KEEP_ENDED = 20
_KEY_REMEDY = (
    "Put the key back that encrypted them (from the backup of the database's folder), or revoke these "
    "devices and add them again."
)


class LoadedDevice:
    """An active device in memory, with its secret.

    `alive` is False once it was revoked. `used` is the last use that is not stored yet: time in seconds since
    the epoch, client address and app.
    """

    __slots__ = ("alive", "device", "encrypted", "match", "md5", "secret", "used")

    def __init__(self, device: Device, encrypted: EncryptedSecret, secret: bytes) -> None:
        self.device = device
        self.encrypted = encrypted
        self.secret = secret
        self.md5 = begin_md5(secret)
        self.alive = True
        self.used: tuple[float, str, str] | None = None
        # What the data plane sends with a request of this device; its owner keeps it here.
        self.match: object | None = None

    def __repr__(self) -> str:
        return f"LoadedDevice({self.device!r})"


@dataclass(frozen=True, slots=True)
class _Contents:
    """The rows of the store, decrypted as far as the keys allow. `accounts`: the account's name of each uid
    that has a device and an account."""

    version: int
    devices: dict[str, Device]
    accounts: dict[str, str]
    loaded: dict[str, LoadedDevice]
    refused: int
    fault: str | None


class DeviceService:
    """The devices of all people. `record` receives events; `now` returns seconds since the epoch.

    `fault` states why some or all devices are refused, None if all of them work.
    """

    def __init__(
        self,
        database: Database,
        keys: KeySource,
        record: Callable[[Event], None],
        now: Callable[[], float] = time.time,
    ) -> None:
        self.database = database
        self._source = keys
        self._record = record
        self._now = now
        self._version = -1
        self._devices: dict[str, Device] = {}
        # The account's name of each uid with a device, also after the account was unlinked or deleted.
        self._accounts: dict[str, str] = {}
        self._loaded: dict[str, LoadedDevice] = {}
        self._by_uid: dict[str, list[LoadedDevice]] = {}
        self._by_secret: dict[bytes, LoadedDevice] = {}
        self._digest_key = secrets.token_bytes(32)
        self.refused = 0
        self.fault: str | None = None
        self.generation = 0
        """Rises with each change of the active devices."""
        self.revocations = 0
        """Rises whenever a device ends."""

    # look-ups without I/O

    def __len__(self) -> int:
        return len(self._loaded)

    @property
    def loaded(self) -> bool:
        """Return whether the devices were read from the store."""
        return self._version >= 0

    def active(self, uid: str) -> list[LoadedDevice]:
        """Return a person's devices whose secrets are known, the last used first."""
        return self._by_uid.get(uid, [])

    def people(self) -> Iterable[tuple[str, Sequence[LoadedDevice]]]:
        """Return each person's uid with what `active` returns."""
        return self._by_uid.items()

    def by_secret(self, secret: bytes) -> LoadedDevice | None:
        """Return the device with this secret. The look-up is by a keyed digest, so that its time shows
        nothing of other secrets."""
        return self._by_secret.get(self._digest(secret))

    def by_id(self, device_id: str) -> LoadedDevice | None:
        """Return an active device."""
        return self._loaded.get(device_id)

    def devices(self, uid: str | None = None) -> tuple[Device, ...]:
        """Return the devices of a person, or of all people, with those that were revoked lately; the newest
        first."""
        found = (self._with_use(each) for each in self._devices.values())
        return tuple(
            sorted(
                (each for each in found if uid is None or each.uid == uid),
                key=lambda each: each.created,
                reverse=True,
            )
        )

    def _with_use(self, device: Device) -> Device:
        loaded = self._loaded.get(device.id)
        if loaded is None or loaded.used is None:
            return device
        used, client, app = loaded.used
        return replace(device, last_used=used, last_client=client, last_app=app)

    def _digest(self, secret: bytes) -> bytes:
        return hashlib.blake2b(secret[:1024], key=self._digest_key, digest_size=16).digest()

    # changes

    async def add(
        self,
        uid: str,
        name: str,
        operator: Operator,
        *,
        expires: float | None = None,
        account: str | None = None,
        device_id: str | None = None,
    ) -> NewDevice:
        """Add a device for the person `uid`, and return it with its secret, which is stored encrypted only.

        `expires` is in seconds since the epoch. `account` is the account's name for the audit trail.
        `device_id` is the new device's id, None for a random one. Raises `DeviceExists` if there is one with
        this id, `DeviceError` if the name is not allowed, the person has no usable account or too many
        devices, or without the key of the devices in use; `StoreError`.
        """
        name, now = valid_name(name), self._now()
        if expires is not None and not now < expires <= now + MAX_DAYS * 86400.0 + 60.0:
            raise DeviceError(
                f"The device's expiry is in the past, or more than {MAX_DAYS} days from now."
            )
        secret = new_secret()
        device = Device(
            id=device_id or new_device_id(), uid=uid, name=name, created=now, expires=expires
        )

        def work(connection: Connection) -> int:
            _check_person(connection, uid)
            if connection.execute(select(DEVICES.c.id).where(DEVICES.c.id == device.id)).first():
                raise DeviceExists("This device has already been added.")
            _forget_old(connection, uid, now)
            active = connection.execute(
                select(func.count()).select_from(DEVICES).where(DEVICES.c.uid == uid, _in_use(now))
            ).scalar_one()
            if active >= MAX_DEVICES:
                raise DeviceError(f"There are {MAX_DEVICES} devices already: revoke one first.")
            # In the transaction: another process may be replacing the key.
            keys = _keys_for_a_new_secret(connection, self._source, now)
            encrypted = keys.encrypt(secret, device.id, uid)
            connection.execute(insert(DEVICES).values(**_row(device, encrypted)))
            return increment_devices(connection)

        await self.database.write_async(work)
        self._record(DeviceAdded(time=now, **_event_fields(device, operator, account)))
        await self.refresh()
        return NewDevice(device, secret)

    async def revoke(
        self,
        device_id: str,
        operator: Operator,
        *,
        uid: str | None = None,
        account: str | None = None,
    ) -> Device:
        """Revoke a device; its secret is deleted. With `uid`, only a device of this person.

        Raises `UnknownDevice` if there is no such device in use, and `StoreError`.
        """
        now, cause = self._now(), "owner" if uid is not None else operator.origin
        condition = DEVICES.c.id == device_id
        if uid is not None:
            condition &= DEVICES.c.uid == uid

        def work(connection: Connection) -> Device:
            row = connection.execute(select(DEVICES).where(condition)).first()
            if row is None or not end_devices(connection, condition, now, cause):
                raise UnknownDevice("There is no such device in use.")
            return _device(row)

        device = await self.database.write_async(work)
        # At once, and not after the store was read again.
        self._end(device_id)
        self._record(
            DeviceRevoked(time=now, reason=cause, **_event_fields(device, operator, account))
        )
        await self.refresh()
        return replace(device, revoked=now, revoked_by=cause)

    async def rename(
        self,
        device_id: str,
        name: str,
        operator: Operator,
        *,
        uid: str | None = None,
        account: str | None = None,
    ) -> Device:
        """Give a device another name. With `uid`, only a device of this person. Raises as `revoke` does."""
        name, now = valid_name(name), self._now()
        condition = (DEVICES.c.id == device_id) & DEVICES.c.revoked.is_(None)
        if uid is not None:
            condition &= DEVICES.c.uid == uid

        def work(connection: Connection) -> Device:
            row = connection.execute(select(DEVICES).where(condition)).first()
            if row is None:
                raise UnknownDevice("There is no such device in use.")
            connection.execute(update(DEVICES).where(condition).values(name=name))
            increment_devices(connection)
            return replace(_device(row), name=name)

        device = await self.database.write_async(work)
        self._record(DeviceRenamed(time=now, **_event_fields(device, operator, account)))
        await self.refresh()
        return device

    async def rotate_key(self, operator: Operator) -> int:
        """Encrypt all secrets with another key: a new one in the key file, or the first one of
        SHIM_DEVICE_KEY. Return how many there were.

        The old key is removed from the file once nothing is encrypted with it; a rotation that was
        interrupted continues. Raises `DeviceError` and `StoreError`; then every secret can still be
        decrypted.
        """
        now = self._now()

        # The file is read and written in transactions, in which only one process is at a time.
        def encrypt(connection: Connection) -> tuple[int, Keyring]:
            source = self._source
            keys, secrets = source.load(), {}
            for row in connection.execute(select(DEVICES).where(DEVICES.c.revoked.is_(None))).all():
                try:
                    secret = keys.decrypt(_encrypted(row), row.id, row.uid).decode()
                    secrets[row.id] = row.uid, secret
                except KeyFault:
                    # Nobody needs the secret of a device that has expired.
                    if _device(row).is_active(now):
                        raise
            # More than one key: a setting that names the new one, or a rotation that was interrupted.
            if not source.has_old_keys:
                keys = source.add_new_key()
            for device_id, (uid, secret) in secrets.items():
                encrypted = keys.encrypt(secret, device_id, uid)
                connection.execute(
                    update(DEVICES)
                    .where(DEVICES.c.id == device_id)
                    .values(**_encrypted_values(encrypted))
                )
            increment_devices(connection)
            return len(secrets), keys

        def drop_old_keys(connection: Connection) -> None:
            used = select(DEVICES.c.key_id).where(DEVICES.c.revoked.is_(None))
            self._source.drop_old_keys(frozenset(connection.execute(used).scalars()))

        try:
            count, keys = await self.database.write_async(encrypt)
            await self.database.write_async(drop_old_keys)
        except KeyFault as error:
            raise DeviceError(f"The key was not replaced: {error}.") from None
        self._record(
            DeviceKeyRotated(
                time=self._now(),
                device_count=count,
                key_id=keys.current,
                actor=operator.actor,
                origin=operator.origin,
            )
        )
        await self.refresh()
        return count

    # the store

    async def refresh(self) -> None:
        """Read the devices again if they were changed. Raises `StoreError`."""
        version = await self.database.read_async(devices_version)
        if version != self._version:
            await self.load()

    async def load(self) -> None:
        """Read all devices, and decrypt the secrets that are not known yet. Raises `StoreError`."""
        known = self._loaded
        contents = await self.database.read_async(
            lambda connection: _read(connection, self._source, known, self._now())
        )
        before = self._loaded
        self._version, self._devices = contents.version, contents.devices
        names, uids = self._accounts | contents.accounts, {d.uid for d in self._devices.values()}
        self._accounts = {uid: name for uid, name in names.items() if uid in uids}
        # A device that was revoked here while the store was read has ended.
        self._loaded = {name: each for name, each in contents.loaded.items() if each.alive}
        self._index()
        self.refused = contents.refused
        for device_id, loaded in before.items():
            if self._loaded.get(device_id) is not loaded:
                loaded.alive = False
                self._record_end(self._devices.get(device_id))
        if before.keys() - self._loaded.keys():
            self.revocations += 1
        self._report(contents.fault)

    async def store_uses(self) -> None:
        """Store when the devices were last used. Raises `StoreError`."""
        uses = {
            device_id: loaded.used
            for device_id, loaded in self._loaded.items()
            if loaded.used is not None
        }
        if not uses:
            return
        await self.database.write_async(lambda connection: _store_uses(connection, uses))
        for device_id, used in uses.items():
            loaded, device = self._loaded.get(device_id), self._devices.get(device_id)
            if device is not None:
                when, client, app = used
                self._devices[device_id] = replace(
                    device, last_used=when, last_client=client, last_app=app
                )
            if loaded is not None and loaded.used == used:
                loaded.used = None

    def _end(self, device_id: str) -> None:
        loaded = self._loaded.pop(device_id, None)
        if loaded is not None:
            loaded.alive = False
            self.revocations += 1
            self._index()

    def _record_end(self, device: Device | None) -> None:
        """Record that a change of the account ended a device; `revoke` records what a person did."""
        if device is not None and device.revoked_by in ACCOUNT_CAUSES:
            self._record(
                DeviceRevoked(
                    time=self._now(),
                    reason=device.revoked_by,
                    **_event_fields(device, None, self._accounts.get(device.uid)),
                )
            )

    def _index(self) -> None:
        self.generation += 1
        self._by_uid = {}
        for loaded in sorted(self._loaded.values(), key=_last_use, reverse=True):
            self._by_uid.setdefault(loaded.device.uid, []).append(loaded)
        self._by_secret = {self._digest(each.secret): each for each in self._loaded.values()}

    def _report(self, fault: str | None) -> None:
        if fault is not None and fault != self.fault:
            self._record(DevicesUnavailable(time=self._now(), detail=fault, remedy=_KEY_REMEDY))
        elif fault is None and self.fault is not None:
            self._record(DevicesAvailable(time=self._now(), device_count=len(self._loaded)))
        self.fault = fault

    @property
    def key_problem(self) -> str | None:
        """Return why the key can't be used, None if it can, or if none was needed yet."""
        return self._source.problem()

    @property
    def lacks_key(self) -> bool:
        """Return whether no device can be added, since PostgreSQL needs SHIM_DEVICE_KEY."""
        return self._source.is_missing

    @property
    def remedy(self) -> str:
        """Return what to do about `fault`."""
        return _KEY_REMEDY


def _read(
    connection: Connection, source: KeySource, known: Mapping[str, LoadedDevice], now: float
) -> _Contents:
    """Read everything in one snapshot. Secrets that were decrypted before are not decrypted again. The secret
    of a device that has expired may be lost."""
    version = devices_version(connection)
    owners = select(BINDINGS.c.uid, BINDINGS.c.user_name).where(
        BINDINGS.c.uid.in_(select(DEVICES.c.uid))
    )
    accounts = {row.uid: row.user_name for row in connection.execute(owners)}
    devices, loaded = {}, {}
    unknown: list[tuple[Device, EncryptedSecret]] = []
    for row in connection.execute(select(DEVICES)).all():
        device, encrypted = _device(row), _encrypted(row)
        devices[device.id] = device
        if device.revoked is not None:
            continue
        before = known.get(device.id)
        if before is not None and before.encrypted == encrypted:
            before.device = device
            loaded[device.id] = before
        else:
            unknown.append((device, encrypted))
    secrets, faults = _decrypt(unknown, source) if unknown else ({}, {})
    for device, encrypted in unknown:
        if device.id in secrets:
            loaded[device.id] = LoadedDevice(device, encrypted, secrets[device.id])
    refused = [faults[name] for name in faults if devices[name].is_active(now)]
    fault = None
    if refused:
        fault = f"{_passwords(len(refused))} refused: {refused[-1]}"
    elif not loaded:
        fault = source.problem()
    return _Contents(version, devices, accounts, loaded, len(refused), fault)


def _decrypt(
    encrypted_devices: Sequence[tuple[Device, EncryptedSecret]], source: KeySource
) -> tuple[dict[str, bytes], dict[str, KeyFault]]:
    """Return the secrets by the device's id, and why others can't be decrypted."""
    secrets, faults = {}, {}
    try:
        keys = source.load()
    except KeyFault as error:
        return {}, {device.id: error for device, _ in encrypted_devices}
    for device, encrypted in encrypted_devices:
        try:
            secrets[device.id] = keys.decrypt(encrypted, device.id, device.uid)
        except KeyFault as error:
            faults[device.id] = error
    return secrets, faults


def _keys_for_a_new_secret(connection: Connection, source: KeySource, now: float) -> Keyring:
    """Return the keys for a new device; create the file if no device in use needs another key.

    Raises `DeviceError` if there is no key, or if it is not the one of the devices in use: once theirs is put
    back, the new device would be lost.
    """
    needed = connection.execute(select(DEVICES.c.key_id).where(_in_use(now))).scalars().all()
    try:
        if source.can_create and not needed:
            return source.create()
        keys = source.load()
    except KeyFault as error:
        fault = str(error)
    else:
        lost = sum(name not in keys for name in needed)
        if not lost:
            return keys
        fault = f"{_passwords(lost)} encrypted with another key than {keys.current}, the key in use"
    remedy = f" {_KEY_REMEDY}" if needed else ""
    raise DeviceError(f"No device can be added: {fault}.{remedy}")


def _in_use(now: float) -> ColumnElement[bool]:
    return DEVICES.c.revoked.is_(None) & (DEVICES.c.expires.is_(None) | (DEVICES.c.expires > now))


def _passwords(count: int) -> str:
    return "1 device password is" if count == 1 else f"{count} device passwords are"


def _check_person(connection: Connection, uid: str) -> None:
    """Raise `DeviceError` unless the person has an account that is neither locked nor denied."""
    row = connection.execute(
        select(BINDINGS.c.navidrome_id, BINDINGS.c.state).where(BINDINGS.c.uid == uid)
    ).first()
    if row is None:
        raise DeviceError("The person has no linked account: sign in to the music server first.")
    locked = connection.execute(
        select(TOKEN_RULES.c.locked).where(TOKEN_RULES.c.navidrome_id == row.navidrome_id)
    ).scalar()
    if row.state != "active" or locked:
        raise DeviceError("The person's account is locked.")


def _forget_old(connection: Connection, uid: str, now: float) -> None:
    """Delete the devices that ended long ago, and all but the last ended ones of this person."""
    old = (DEVICES.c.revoked < now - _KEEP_REVOKED_SECONDS) | (
        DEVICES.c.expires < now - _KEEP_REVOKED_SECONDS
    )
    connection.execute(delete(DEVICES).where(old))
    ended = (
        select(DEVICES.c.id)
        .where(DEVICES.c.uid == uid, DEVICES.c.revoked.is_not(None) | (DEVICES.c.expires <= now))
        .order_by(func.coalesce(DEVICES.c.revoked, DEVICES.c.expires).desc())
    )
    excess = connection.execute(ended).scalars().all()[_KEEP_ENDED:]
    if excess:
        connection.execute(delete(DEVICES).where(DEVICES.c.id.in_(excess)))


def _store_uses(connection: Connection, uses: Mapping[str, tuple[float, str, str]]) -> None:
    for device_id, (used, client, app) in uses.items():
        # Another shim may have stored a later use.
        later = (DEVICES.c.last_used.is_(None)) | (DEVICES.c.last_used < used)
        connection.execute(
            update(DEVICES)
            .where(DEVICES.c.id == device_id, later)
            .values(last_used=used, last_client=client, last_app=app)
        )


def _last_use(loaded: LoadedDevice) -> float:
    if loaded.used is not None:
        return loaded.used[0]
    return loaded.device.last_used or loaded.device.created


class _EventFields(TypedDict):
    device: str
    device_name: str
    uid: str
    account: str | None
    actor: str | None
    origin: Origin | None


def _event_fields(device: Device, operator: Operator | None, account: str | None) -> _EventFields:
    return {
        "device": device.id,
        "device_name": device.name,
        "uid": device.uid,
        "account": account,
        "actor": None if operator is None else operator.actor,
        "origin": None if operator is None else operator.origin,
    }


def _row(device: Device, encrypted: EncryptedSecret) -> dict[str, object]:
    return {
        "id": device.id,
        "uid": device.uid,
        "name": device.name,
        "created": device.created,
        "expires": device.expires,
        "revoked": device.revoked,
        "revoked_by": device.revoked_by,
        "last_used": device.last_used,
        "last_client": device.last_client,
        "last_app": device.last_app,
        **_encrypted_values(encrypted),
    }


def _encrypted_values(encrypted: EncryptedSecret) -> dict[str, object]:
    return {"key_id": encrypted.key_id, "nonce": encrypted.nonce, "secret": encrypted.data}


def _device(row: Any) -> Device:
    names = (
        "id",
        "uid",
        "name",
        "created",
        "expires",
        "revoked",
        "revoked_by",
        "last_used",
        "last_client",
        "last_app",
    )
    return Device(**{name: getattr(row, name) for name in names})


def _encrypted(row: Any) -> EncryptedSecret:
    return EncryptedSecret(row.key_id, bytes(row.nonce), bytes(row.secret))
