"""Devices are added, listed, renamed and revoked, in a real database; their secrets are encrypted."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Connection, Delete, Update, delete, insert, select, update

from shim.audit.events import Event, Operator
from shim.audit.events.devices import (
    DeviceAdded,
    DeviceKeyRotated,
    DeviceRenamed,
    DeviceRevoked,
    DevicesAvailable,
    DevicesUnavailable,
)
from shim.devices.gate import devices_check
from shim.devices.keys import KeySource, key_id
from shim.devices.models import MAX_DEVICES, DeviceError, new_secret
from shim.devices.service import DeviceService
from shim.health import State
from shim.store.database import Database
from shim.store.device_rows import end_devices
from shim.store.schema import BINDINGS, DEVICES, TOKEN_RULES

ACTOR = Operator("console:root", "console")
KEY = "11" * 32
OTHER = "22" * 32


class DeviceDatabase:
    """A database with people, and the services over it."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.key_file = folder / "device.key"
        self.events: list[Event] = []
        self.now = time.time()
        self._open: list[Database] = []
        database = self.database()
        database.open()
        database.write(
            lambda connection: connection.execute(
                insert(BINDINGS),
                [build_binding(1, "uid-alice", "alice"), build_binding(2, "uid-bob", "bob")],
            )
        )

    def database(self) -> Database:
        self._open.append(Database(self.url))
        return self._open[-1]

    async def service(self, key: str | None = None, *, load: bool = True) -> DeviceService:
        source = KeySource(key, self.key_file)
        service = DeviceService(self.database(), source, self.events.append, lambda: self.now)
        if load:
            await service.load()
        return service

    def kinds(self) -> list[type[Event]]:
        return [type(event) for event in self.events]

    def close(self) -> None:
        for database in self._open:
            database.close()


def build_binding(number: int, uid: str, name: str) -> dict[str, object]:
    return {
        "id": number,
        "uid": uid,
        "navidrome_id": f"id-{name}",
        "user_name": name,
        "normalized_name": name,
        "provider_username": name,
        "created_by_shim": True,
        "state": "active",
        "lock_pending": False,
        "first_seen": 0.0,
        "last_seen": 0.0,
        "identity": "[]",
        "last_written": "{}",
        "version": 0,
    }


@pytest.fixture(params=["sqlite", "postgresql"])
def device_db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DeviceDatabase]:
    url = f"sqlite:///{tmp_path}/shim.db"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql_url")
    device_db = DeviceDatabase(url, tmp_path)
    yield device_db
    device_db.close()


async def test_a_device_is_added_with_a_secret_that_is_stored_encrypted(
    device_db: DeviceDatabase,
) -> None:
    service = await device_db.service()
    new = await service.add("uid-alice", " Phone ", ACTOR, account="alice")
    assert new.device.name == "Phone" and new.secret not in repr(new)
    assert re.fullmatch(r"([a-hj-km-np-z2-9]{4}-){6}[a-hj-km-np-z2-9]{4}", new.secret)
    (loaded,) = service.active("uid-alice")
    assert loaded.secret == new.secret.encode() and service.by_secret(loaded.secret) is loaded
    assert service.active("uid-bob") == [] and service.by_secret(b"other") is None
    row = service.database.read(lambda connection: connection.execute(select(DEVICES)).one())
    assert new.secret.encode() not in bytes(row.secret) and len(row.nonce) == 12
    assert device_db.key_file.stat().st_mode & 0o777 == 0o600
    (event,) = device_db.events
    assert isinstance(event, DeviceAdded) and new.secret not in repr(event)
    assert (event.device, event.account, event.actor) == (new.device.id, "alice", "console:root")


async def test_secrets_differ_and_have_128_bits_at_least() -> None:
    assert len({new_secret() for _ in range(200)}) == 200
    assert 31**28 > 2**128


async def test_another_process_sees_a_change(device_db: DeviceDatabase) -> None:
    one, two = await device_db.service(), await device_db.service()
    new = await one.add("uid-alice", "Phone", ACTOR)
    await two.refresh()
    (loaded,) = two.active("uid-alice")
    assert loaded.secret == new.secret.encode()
    before = two.revocations
    await one.revoke(new.device.id, ACTOR)
    await two.refresh()
    assert not loaded.alive and two.active("uid-alice") == [] and two.revocations > before


async def test_a_revoked_device_loses_its_secret_and_stays_in_the_list(
    device_db: DeviceDatabase,
) -> None:
    service = await device_db.service()
    new = await service.add("uid-alice", "Phone", ACTOR)
    (loaded,) = service.active("uid-alice")
    revoked = await service.revoke(new.device.id, ACTOR, uid="uid-alice")
    assert not loaded.alive and revoked.revoked_by == "owner"
    (listed,) = service.devices("uid-alice")
    assert listed.revoked == device_db.now and service.devices("uid-bob") == ()
    row = service.database.read(lambda connection: connection.execute(select(DEVICES)).one())
    assert bytes(row.secret) == b""
    with pytest.raises(DeviceError):
        await service.revoke(new.device.id, ACTOR)
    assert device_db.kinds() == [DeviceAdded, DeviceRevoked]
    device_db.now += 91 * 86400
    await service.add("uid-alice", "New", ACTOR)
    assert [device.name for device in service.devices()] == ["New"]


async def test_a_device_that_is_revoked_during_a_refresh_has_ended(
    device_db: DeviceDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await device_db.service()
    new = await service.add("uid-alice", "Phone", ACTOR)
    await (await device_db.service()).add("uid-bob", "Phone", ACTOR)
    read = service.database.read_async

    async def revoke_meanwhile(work: Callable[[Connection], object]) -> object:
        found = await read(work)
        monkeypatch.setattr(service.database, "read_async", read)
        await service.revoke(new.device.id, ACTOR)
        return found

    monkeypatch.setattr(service.database, "read_async", revoke_meanwhile)
    await service.load()
    assert service.by_id(new.device.id) is None and service.active("uid-alice") == []
    assert service.by_secret(new.secret.encode()) is None


async def test_adding_and_revoking_again_and_again_fills_nothing(
    device_db: DeviceDatabase,
) -> None:
    service = await device_db.service(KEY)
    kept = await service.add("uid-bob", "Phone", ACTOR)
    await service.revoke(kept.device.id, ACTOR)
    for number in range(30):
        device_db.now += 1
        new = await service.add("uid-alice", str(number), ACTOR, expires=device_db.now + 0.5)
        if number % 2:
            await service.revoke(new.device.id, ACTOR)
    names = [device.name for device in service.devices("uid-alice")]
    assert names == [str(number) for number in range(29, 8, -1)]
    assert len(service.devices("uid-bob")) == 1


async def test_a_person_has_twenty_devices_at_most(device_db: DeviceDatabase) -> None:
    service = await device_db.service(KEY)
    first = await service.add("uid-alice", "0", ACTOR, expires=device_db.now + 60)
    for number in range(1, MAX_DEVICES):
        await service.add("uid-alice", str(number), ACTOR)
    with pytest.raises(DeviceError, match="20 devices"):
        await service.add("uid-alice", "21", ACTOR)
    await service.add("uid-bob", "Phone", ACTOR)
    device_db.now += 61  # one has expired
    assert not first.device.is_active(device_db.now)
    await service.add("uid-alice", "21", ACTOR)


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 101 * 366 * 86400.0, float("inf"), float("nan")])
async def test_an_expiry_that_no_date_can_show_is_refused(
    device_db: DeviceDatabase, seconds: float
) -> None:
    """One such device would break every list."""
    service = await device_db.service(KEY)
    with pytest.raises(DeviceError, match="expiry"):
        await service.add("uid-alice", "Phone", ACTOR, expires=device_db.now + seconds)
    assert service.devices() == ()


async def test_several_processes_add_no_more_than_twenty(device_db: DeviceDatabase) -> None:
    services = [await device_db.service(KEY) for _ in range(8)]
    for number in range(MAX_DEVICES - 2):
        await services[0].add("uid-alice", str(number), ACTOR)
    added = await asyncio.gather(
        *(each.add("uid-alice", "Phone", ACTOR) for each in services), return_exceptions=True
    )
    refused = [each for each in added if isinstance(each, DeviceError)]
    assert len(refused) == 6 and all("20 devices" in str(each) for each in refused)
    await services[0].load()
    assert len(services[0].devices("uid-alice")) == MAX_DEVICES


@pytest.mark.parametrize(
    "name",
    [
        *("", "  ", "x" * 65, "a\nb", "a\x00", "a\x1b[31m", "safe\u202egnp", "zero\u200bwidth"),
        # These look empty.
        *("\u200d\u200c", "\u3164", "\u2800 \u2800", "\ufe0f", "\u3000", "\u200d \u115f"),
    ],
)
async def test_a_name_that_is_not_shown_as_itself_is_refused(
    device_db: DeviceDatabase, name: str
) -> None:
    service = await device_db.service(KEY)
    with pytest.raises(DeviceError):
        await service.add("uid-alice", name, ACTOR)
    assert service.devices() == ()


async def test_names_in_any_script_are_kept(device_db: DeviceDatabase) -> None:
    service = await device_db.service(KEY)
    for name in ("x" * 64, "Küche <b>&amp;", "电话", "📱", "👩\u200d🔧 phone", "گوشی\u200cها", "?"):
        device_db.now += 1
        new = await service.add("uid-alice", name, ACTOR)
        await service.rename(new.device.id, f"{name[:60]}!", ACTOR, uid="uid-alice")
        assert service.devices()[0].name == f"{name[:60]}!"
    assert DeviceRenamed in device_db.kinds()


@pytest.mark.parametrize("why", ["nobody", "denied", "locked"])
async def test_without_a_usable_account_no_device_is_added(
    device_db: DeviceDatabase, why: str
) -> None:
    service = await device_db.service(KEY)
    uid = "uid-of-nobody" if why == "nobody" else "uid-alice"
    if why == "denied":
        service.database.write(lambda c: c.execute(update(BINDINGS).values(state="denied")))
    if why == "locked":
        rule = {"navidrome_id": "id-alice", "locked": True, "void_before": 0.0}
        service.database.write(lambda c: c.execute(insert(TOKEN_RULES).values(**rule)))
    with pytest.raises(DeviceError):
        await service.add(uid, "Phone", ACTOR)


OF_ALICE = BINDINGS.c.uid == "uid-alice"


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("locked", update(BINDINGS).where(OF_ALICE).values(lock_pending=True)),
        ("denied", update(BINDINGS).where(OF_ALICE).values(state="denied")),
        ("unlinked", update(BINDINGS).where(OF_ALICE).values(uid=None, state="unlinked")),
        ("removed", delete(BINDINGS).where(OF_ALICE)),
    ],
)
async def test_the_end_of_a_device_by_a_change_of_the_account_is_recorded_with_its_owner(
    device_db: DeviceDatabase, reason: str, change: Update | Delete
) -> None:
    service = await device_db.service(KEY)
    await service.add("uid-alice", "Phone", ACTOR)
    await service.add("uid-bob", "Tablet", ACTOR)

    def work(connection: Connection) -> None:
        connection.execute(change)
        end_devices(connection, DEVICES.c.uid == "uid-alice", 7.0, reason)

    service.database.write(work)
    await service.refresh()
    (event,) = [each for each in device_db.events if isinstance(each, DeviceRevoked)]
    assert (event.device_name, event.account, event.uid) == ("Phone", "alice", "uid-alice")
    assert (event.reason, event.actor) == (reason, None)


def _change(change: dict[str, str], connection: Connection) -> None:
    connection.execute(update(DEVICES).values(**change))


async def test_the_last_use_is_stored(device_db: DeviceDatabase) -> None:
    service = await device_db.service(KEY)
    await service.add("uid-alice", "Phone", ACTOR)
    (loaded,) = service.active("uid-alice")
    loaded.used = (device_db.now + 5, "192.0.2.7", "Symfonium")
    assert service.devices()[0].last_app == "Symfonium"
    await service.store_uses()
    other = await device_db.service(KEY)
    (listed,) = other.devices()
    assert (listed.last_used, listed.last_client) == (device_db.now + 5, "192.0.2.7")


# the key


async def test_a_row_under_another_id_or_person_is_worthless(
    device_db: DeviceDatabase,
) -> None:
    service = await device_db.service(KEY)
    await service.add("uid-alice", "Phone", ACTOR)
    for change in ({"uid": "uid-bob"}, {"id": "0" * 16}):
        service.database.write(partial(_change, change))
        other = await device_db.service(KEY)
        assert len(other) == 0 and other.refused == 1
        assert other.fault is not None and "changed" in other.fault
        service.database.write(lambda c: c.execute(update(DEVICES).values(uid="uid-alice")))


@pytest.mark.parametrize("fault", ["missing", "unreadable", "empty", "binary", "short", "other"])
async def test_a_key_that_is_lost_refuses_devices_and_deletes_nothing(
    device_db: DeviceDatabase, fault: str
) -> None:
    service = await device_db.service()
    new = await service.add("uid-alice", "Phone", ACTOR)
    good = device_db.key_file.read_bytes()
    contents = {"empty": b"", "binary": b"\xff\x00", "short": b"abcd\n", "other": OTHER.encode()}
    if fault == "missing":
        device_db.key_file.unlink()
    elif fault == "unreadable":
        device_db.key_file.unlink()
        device_db.key_file.mkdir()
    else:
        device_db.key_file.write_bytes(contents[fault])
    device_db.events.clear()
    lost = await device_db.service()
    assert lost.fault is not None and lost.refused == 1 and len(lost) == 0
    assert lost.active("uid-alice") == [] and lost.by_secret(new.secret.encode()) is None
    assert device_db.kinds() == [DevicesUnavailable]
    with pytest.raises(DeviceError, match="key"):
        await lost.add("uid-bob", "New", ACTOR)
    assert len((await device_db.service()).devices()) == 1
    if fault != "other":
        assert str(device_db.key_file) in lost.fault
    if fault == "unreadable":
        device_db.key_file.rmdir()
    device_db.key_file.write_bytes(good)
    await lost.load()
    assert lost.by_secret(new.secret.encode()) is not None
    assert device_db.kinds()[-1] is DevicesAvailable


async def test_a_key_that_is_replaced_while_the_shim_runs_encrypts_no_new_device(
    device_db: DeviceDatabase,
) -> None:
    running = await device_db.service()
    new = await running.add("uid-alice", "Phone", ACTOR)
    good = device_db.key_file.read_bytes()
    device_db.key_file.write_text(OTHER)
    for service in (running, await device_db.service(), await device_db.service(load=False)):
        with pytest.raises(DeviceError) as refused:
            await service.add("uid-bob", "Tablet", ACTOR)
        assert str(refused.value).startswith("No device can be added: 1 device password")
        assert key_id(bytes.fromhex(OTHER)) in str(refused.value) and OTHER not in str(
            refused.value
        )
    device_db.key_file.write_bytes(good)
    await running.add("uid-bob", "Tablet", ACTOR)
    restarted = await device_db.service()
    assert len(restarted) == 2 and restarted.by_secret(new.secret.encode()) is not None


@pytest.mark.parametrize("end", ["revoked", "expired"])
async def test_a_new_key_is_accepted_once_no_device_in_use_needs_the_lost_one(
    device_db: DeviceDatabase, end: str
) -> None:
    service = await device_db.service()
    new = await service.add("uid-alice", "Phone", ACTOR, expires=device_db.now + 60)
    lost = await device_db.service(OTHER)
    assert lost.refused == 1
    with pytest.raises(DeviceError):
        await lost.add("uid-bob", "Tablet", ACTOR)
    if end == "revoked":
        await lost.revoke(new.device.id, ACTOR)
    device_db.now += 61
    again = await lost.add("uid-bob", "Tablet", ACTOR)
    restarted = await device_db.service(OTHER)
    assert restarted.by_secret(again.secret.encode()) is not None
    assert restarted.fault is None and restarted.refused == 0
    both = await device_db.service(f"{KEY},{OTHER}")
    assert await both.rotate_key(ACTOR) == 1
    assert (await device_db.service(KEY)).by_secret(again.secret.encode()) is not None
    assert len(both.devices()) == 2


async def test_a_device_that_is_added_during_a_rotation_gets_the_new_key(
    device_db: DeviceDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old key is removed at the end of the rotation, so nothing may be encrypted with it by then."""
    service, other = await device_db.service(), await device_db.service()
    first = await service.add("uid-alice", "Phone", ACTOR)
    await service.revoke(first.device.id, ACTOR)
    write = other.database.write_async

    async def rotate_before(work: Callable[[Connection], object]) -> object:
        monkeypatch.undo()
        await service.rotate_key(ACTOR)
        return await write(work)

    monkeypatch.setattr(other.database, "write_async", rotate_before)
    new = await other.add("uid-alice", "Tablet", ACTOR)
    restarted = await device_db.service()
    assert restarted.fault is None and restarted.by_secret(new.secret.encode()) is not None


async def test_two_rotations_at_once_lose_no_key(
    device_db: DeviceDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = [await device_db.service() for _ in range(4)]
    new = await services[0].add("uid-alice", "Phone", ACTOR)
    load = KeySource._keys

    def load_slowly(source: KeySource) -> tuple[bytes, ...]:
        keys = load(source)
        time.sleep(0.05)
        return keys

    monkeypatch.setattr(KeySource, "_keys", load_slowly)
    await asyncio.gather(*(each.rotate_key(ACTOR) for each in services))
    restarted = await device_db.service()
    assert restarted.fault is None and restarted.by_secret(new.secret.encode()) is not None
    assert len(device_db.key_file.read_text().splitlines()) == 2


async def test_postgresql_needs_a_key_in_the_settings(device_db: DeviceDatabase) -> None:
    service = DeviceService(device_db.database(), KeySource(None, None), device_db.events.append)
    await service.load()
    assert service.fault is None  # nobody has a device
    with pytest.raises(DeviceError, match="SHIM_DEVICE_KEY"):
        await service.add("uid-alice", "Phone", ACTOR)


async def test_the_key_file_is_rotated(device_db: DeviceDatabase) -> None:
    service = await device_db.service()
    new = await service.add("uid-alice", "Phone", ACTOR)
    running = await device_db.service()
    before = device_db.key_file.read_text()
    assert await service.rotate_key(ACTOR) == 1
    after = device_db.key_file.read_text()
    assert before.splitlines()[1] not in after and len(after.splitlines()) == 2
    assert device_db.key_file.stat().st_mode & 0o777 == 0o600
    await running.refresh()
    for each in (service, running, await device_db.service()):
        assert each.fault is None and each.by_secret(new.secret.encode()) is not None
    assert isinstance(device_db.events[-1], DeviceKeyRotated)


async def test_an_interrupted_rotation_continues(device_db: DeviceDatabase) -> None:
    service = await device_db.service()
    new = await service.add("uid-alice", "Phone", ACTOR)
    KeySource(None, device_db.key_file).add_new_key()  # and then the process ends
    assert (await device_db.service()).by_secret(new.secret.encode()) is not None
    await (await device_db.service()).rotate_key(ACTOR)
    assert len(device_db.key_file.read_text().splitlines()) == 2
    assert (await device_db.service()).by_secret(new.secret.encode()) is not None


async def test_a_key_in_the_settings_is_rotated(device_db: DeviceDatabase) -> None:
    new = await (await device_db.service(KEY)).add("uid-alice", "Phone", ACTOR)
    with pytest.raises(DeviceError, match="NEW,OLD"):
        await (await device_db.service(KEY)).rotate_key(ACTOR)
    both = await device_db.service(f"{OTHER},{KEY}")
    await both.rotate_key(ACTOR)
    assert (await device_db.service(OTHER)).by_secret(new.secret.encode()) is not None
    assert (await device_db.service(KEY)).fault is not None


async def test_a_rotation_without_the_old_key_changes_nothing(
    device_db: DeviceDatabase,
) -> None:
    new = await (await device_db.service(KEY)).add("uid-alice", "Phone", ACTOR)
    with pytest.raises(DeviceError):
        await (await device_db.service(f"{OTHER},{'33' * 32}")).rotate_key(ACTOR)
    assert (await device_db.service(KEY)).by_secret(new.secret.encode()) is not None
    device_db.key_file.write_text(OTHER)
    with pytest.raises(DeviceError, match=key_id(bytes.fromhex(OTHER))):
        await (await device_db.service()).rotate_key(ACTOR)
    assert device_db.key_file.read_text() == OTHER


async def test_two_processes_create_one_key(device_db: DeviceDatabase) -> None:
    one, two = await device_db.service(), await device_db.service()
    first = await one.add("uid-alice", "Phone", ACTOR)
    second = await two.add("uid-bob", "Phone", ACTOR)
    await one.refresh()
    for new in (first, second):
        assert one.by_secret(new.secret.encode()) is not None


async def test_the_check_says_that_postgresql_needs_a_key(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/shim.db")
    database.open()
    checks = {}
    for name, source in {"without": KeySource(None, None), "with": KeySource(KEY, None)}.items():
        service = DeviceService(database, source, lambda _: None)
        await service.load()
        checks[name] = devices_check(service)
    database.close()
    assert checks["without"].state is checks["with"].state is State.OK
    assert "SHIM_DEVICE_KEY must be set" in checks["without"].detail
    assert checks["with"].detail == "0 device passwords in use"
