"""Devices end by time, and the data plane learns of it; on a clock of the test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import insert

from shim.audit.events import Operator
from shim.devices.gate import SubsonicDevices
from shim.devices.keys import KeySource
from shim.devices.models import NewDevice
from shim.devices.service import DeviceService
from shim.proxy.device_gate import DeviceMatch
from shim.proxy.gate import Account
from shim.store.database import Database
from shim.store.schema import BINDINGS
from shim.trust.identity import Identity
from shim.trust.subsonic_parameters import CredentialText
from tests.unit.devices.test_service import build_binding

ACTOR = Operator("console:root", "console")
START = 1_700_000_000.0
DAY = 86400.0


@dataclass
class Accounts:
    """The accounts of alice and bob, and when they were last seen. `stored` is what another process knows."""

    seen: dict[str, float]
    stored: dict[str, float] = field(default_factory=dict)
    generation: int = 0

    def of_person(self, uid: str, *, listed: bool) -> Account:  # noqa: ARG002
        return Account(uid.encode(), uid)

    def person_of(self, name: bytes) -> str | None:
        return name.decode() if name.decode() in self.seen else None

    def identity_of(self, uid: str) -> Identity:
        return Identity(uid, None, None, (), uid)

    def is_seen_since(self, uid: str, since: float) -> bool:
        return self.seen[uid] > since

    def last_seen(self, uid: str, now: float) -> float:  # noqa: ARG002
        return self.seen[uid]

    async def read_last_seen(self) -> None:
        self.seen |= self.stored


@dataclass
class Clock:
    now: float = START

    def __call__(self) -> float:
        return self.now


@dataclass
class Gate:
    devices: SubsonicDevices
    accounts: Accounts
    clock: Clock
    last: int = 0

    async def add(self, uid: str, expires: float | None = None) -> DeviceMatch:
        """Add a device, and return what the data plane gets for its password."""
        new = await self.devices.service.add(uid, "Phone", ACTOR, expires=expires)
        return self.match(new, uid)

    def match(self, new: NewDevice, uid: str) -> DeviceMatch:
        query = f"&u={uid}&p={new.secret}".encode()
        match = self.devices.identify(CredentialText(query), b"192.0.2.1")
        assert isinstance(match, DeviceMatch)
        return match

    def rises(self) -> bool:
        """Return whether the data plane has to check what it sends, once more than at the last call."""
        self.clock.now += 0.5
        before, self.last = self.last, self.devices.revocations
        assert self.last in (before, before + 1)
        return self.last > before


@pytest.fixture
async def gate(tmp_path: Path) -> AsyncIterator[Gate]:
    database = Database(f"sqlite:///{tmp_path}/shim.db")
    database.open()
    people = [build_binding(1, "alice", "alice"), build_binding(2, "bob", "bob")]
    database.write(lambda connection: connection.execute(insert(BINDINGS), people))
    clock, accounts = Clock(), Accounts({"alice": START, "bob": START})
    service = DeviceService(database, KeySource(None, tmp_path / "key"), lambda _: None, clock)
    await service.load()
    devices = SubsonicDevices(
        service,
        accounts,  # type: ignore[arg-type]
        lambda _: None,
        sign_in_days=30,
        now=clock,
    )
    yield Gate(devices, accounts, clock)
    database.close()


async def test_an_expired_device_counts_as_one_revocation(gate: Gate) -> None:
    first, second = await gate.add("alice", START + 60), await gate.add("bob", START + 120)
    lasting = await gate.add("alice")
    assert not gate.rises()
    gate.clock.now = START + 59.6
    assert gate.devices.is_active(first) and gate.devices.is_current(first)
    assert gate.rises()
    assert not gate.devices.is_active(first) and not gate.devices.is_current(first)
    assert gate.devices.is_active(second) and gate.devices.is_active(lasting)
    assert not gate.rises() and not gate.rises()
    gate.clock.now = START + 119.8
    assert gate.rises() and not gate.rises()
    assert not gate.devices.is_active(second) and gate.devices.is_active(lasting)


async def test_a_device_that_is_added_later_may_expire_first(gate: Gate) -> None:
    await gate.add("alice", START + 600)
    assert not gate.rises()
    first = await gate.add("alice", START + 60)
    gate.clock.now = START + 59.8
    assert gate.rises() and not gate.devices.is_active(first)


async def test_the_devices_of_an_absent_owner_end_and_return(gate: Gate) -> None:
    match, other = await gate.add("alice"), await gate.add("bob")
    gate.accounts.seen["bob"] = START + 10 * DAY
    assert not gate.rises()
    gate.clock.now = START + 30 * DAY - 0.3
    assert gate.devices.is_active(match)
    assert gate.rises()
    assert not gate.devices.is_active(match) and not gate.devices.is_current(match)
    assert gate.devices.is_active(other) and not gate.rises()
    gate.accounts.seen["alice"] = gate.clock.now
    assert gate.devices.is_active(match)
    # And the absence after that one counts too, though bob's comes first.
    gate.clock.now = START + 40 * DAY
    assert gate.rises() and not gate.devices.is_active(other) and gate.devices.is_active(match)
    gate.clock.now = START + 61 * DAY
    assert gate.rises() and not gate.devices.is_active(match)


async def test_a_sign_in_through_another_process_is_read_before_somebody_counts_as_absent(
    gate: Gate,
) -> None:
    match = await gate.add("alice")
    assert not gate.rises()
    gate.accounts.stored["alice"] = START + 29 * DAY
    gate.clock.now = START + 30 * DAY - 1
    await gate.devices.refresh()
    gate.clock.now += 10
    assert not gate.rises() and gate.devices.is_active(match)
    gate.clock.now = START + 59 * DAY
    assert gate.rises() and not gate.devices.is_active(match)
