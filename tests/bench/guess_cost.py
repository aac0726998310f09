"""`python -m tests.bench.guess_cost`: the processor time of one guess that the shim answers itself.

No sockets: the bytes of a head go into the data plane, and the response into a list. What the system and the
event loop need for a request comes on top; it is the same for each request. Each guess has other credentials.
Reported are microseconds of the process per guess, the least of many rounds.

`--check` makes more than `LIMIT_US` exit code 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from sqlalchemy import insert
from uvicorn.server import ServerState

from shim.app.factories import build_limits
from shim.audit.events import Operator
from shim.audit.observer import TrailObserver
from shim.audit.trail import Trail
from shim.devices.gate import SubsonicDevices
from shim.devices.guessing import client_key
from shim.devices.keys import KeySource
from shim.devices.models import MAX_DEVICES
from shim.devices.service import DeviceService
from shim.proxy.client_connection import ClientConnection
from shim.proxy.counters import Counters
from shim.proxy.gate import Account
from shim.proxy.pool import UpstreamAddress
from shim.proxy.server import DataPlane
from shim.settings import load
from shim.store.database import Database
from shim.store.schema import BINDINGS
from shim.trust.identity import Identity
from shim.trust.peers import AddressList, parse_entry
from shim.trust.policy import Policy
from tests.unit.devices.test_service import build_binding

LIMIT_US = 100.0
_EDGE = "10.0.0.2"
_UID = "uid-alice"
_BATCH = 500


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0, or 1 with `--check` if a guess costs more than `LIMIT_US`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(arguments)
    costs = {}
    for name, guess in _GUESSES.items():
        with tempfile.TemporaryDirectory() as folder:
            costs[name] = _least(guess, Path(folder), options.rounds)
    print(json.dumps(costs, indent=2))
    return int(options.check and max(costs.values()) > LIMIT_US)


def _head(query: str, client: str) -> bytes:
    return (
        f"GET /rest/ping?{query}&v=1.16.1&c=x&f=json HTTP/1.1\r\n"
        f"Host: music.example.org\r\nX-Forwarded-For: {client}\r\nUser-Agent: app\r\n\r\n"
    ).encode()


def _token(number: int) -> bytes:
    return _head(f"u=alice&t={number:032x}&s={number}", "198.51.100.1")


def _password(number: int) -> bytes:
    return _head(f"u=alice&p=guess{number}", "198.51.100.1")


def _api_key(number: int) -> bytes:
    return _head(f"apiKey=guess{number}", "198.51.100.1")


_GUESSES: dict[str, Callable[[int], bytes]] = {
    "token": _token,
    "password": _password,
    "API key": _api_key,
}


class _Transport:
    """The side of the client: takes what is written."""

    def __init__(self) -> None:
        self.written = 0

    def get_extra_info(self, name: str) -> object:
        return (_EDGE, 1) if name == "peername" else None

    def write(self, data: bytes) -> None:  # noqa: ARG002
        self.written += 1

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class _Accounts:
    """Alice's account, which everything that is guessed names."""

    generation = 0
    revocations = 0
    users_listed = True

    def of_person(self, uid: str, *, listed: bool) -> Account:  # noqa: ARG002
        return Account(b"alice", "id-alice")

    def person_of(self, name: bytes) -> str | None:
        return _UID if name == b"alice" else None

    def identity_of(self, uid: str) -> Identity:
        return Identity("alice", None, None, (), uid)

    def is_seen_since(self, uid: str, since: float) -> bool:  # noqa: ARG002
        return True

    def last_seen(self, uid: str, now: float) -> float:  # noqa: ARG002
        return now


def _least(guess: Callable[[int], bytes], folder: Path, rounds: int) -> float:
    plane, devices = asyncio.run(_plane(folder))
    transport = _Transport()
    connection = ClientConnection(cast("Any", None), ServerState(), {"plane": plane})
    connection.connection_made(cast("Any", transport))
    for _ in range(100):  # so many that the delay outlasts the measurement
        devices.record_failure(b"alice", b"198.51.100.1")
    lowest, number = float("inf"), 0
    for _ in range(rounds):
        heads = [guess(number + each) for each in range(_BATCH)]
        number += _BATCH
        before, start = transport.written, time.process_time_ns()
        for head in heads:
            connection.data_received(head)
        cost = (time.process_time_ns() - start) / _BATCH / 1e3
        assert transport.written - before == _BATCH, "a guess was not answered by the shim"
        lowest = min(lowest, cost)
    return round(lowest, 1)


class _Devices(SubsonicDevices):
    def record_failure(self, account: bytes, client: bytes) -> None:
        self._guesses.failed(account, client_key(client), time.monotonic())


async def _plane(folder: Path) -> tuple[DataPlane, _Devices]:
    """Return a data plane whose person has as many devices as allowed."""
    database = Database(f"sqlite:///{folder}/shim.db")
    await database.open_async()
    await database.write_async(
        lambda connection: connection.execute(insert(BINDINGS), build_binding(1, _UID, "alice"))
    )
    trail, accounts = Trail(()), _Accounts()
    service = DeviceService(database, KeySource(None, folder / "key"), trail.record)
    for number in range(MAX_DEVICES):
        await service.add(_UID, f"Phone {number}", Operator("command:bench", "command"))
    database.close()
    devices = _Devices(
        service,
        cast("Any", accounts),
        trail.record,
        sign_in_days=90,
        suppressed=trail.count_suppressed,
    )
    plane = DataPlane(
        Policy(whitelist=AddressList([parse_entry(_EDGE)])),
        build_limits(load({})),
        Counters(),
        TrailObserver(trail, "http://navidrome"),
        UpstreamAddress(),
        gate=cast("Any", accounts),
        devices=devices,
    )
    return plane, devices


if __name__ == "__main__":
    raise SystemExit(main())
