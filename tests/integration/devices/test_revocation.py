"""A device ends: the next request is refused, and a stream in progress is cut."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest
from sqlalchemy import update

from shim.audit.events import Operator
from shim.devices.models import DeviceError, NewDevice
from shim.provisioning.operations import OperationError, Operations, operations
from shim.settings import load
from shim.store.schema import BINDINGS
from tests.integration.devices.conftest import (
    TEST,
    VERSION,
    RunningShim,
    _harness,
    error_of,
    run_shim,
    token,
)
from tests.support.harness import until

_CUT_SECONDS = 5.0
OPERATOR = Operator("command:test", "command")


@pytest.fixture
async def shim(tmp_path: Path) -> AsyncIterator[RunningShim]:
    """A shim of its own for each test: what it does to alice stays."""
    async for harness in _harness("stand-in tcp", tmp_path):
        async with run_shim(harness, ALLOWED_GROUPS="music", RECONCILE_SECONDS="1") as started:
            await started.sign_in("alice")
            yield started


async def _operate(shim: RunningShim, work: Callable[[Operations], Awaitable[object]]) -> None:
    """Run an operator's command, in another process than the one that serves. Both may work on the account
    at once: then the command is to be repeated."""
    for left in (2, 1, 0):
        async with operations(load(shim.harness.environment()), lambda _: None, OPERATOR) as opened:
            try:
                await work(opened)
            except OperationError:
                if not left:
                    raise
            else:
                return


async def _revoke(shim: RunningShim, device: NewDevice) -> None:
    async with shim.devices() as service:
        await service.revoke(device.device.id, TEST)


async def _lock(shim: RunningShim, _: NewDevice) -> None:
    await _operate(shim, lambda operations: operations.lock("alice"))


async def _unlink(shim: RunningShim, _: NewDevice) -> None:
    await _operate(shim, lambda operations: operations.unlink("alice"))


async def _refuse(shim: RunningShim, _: NewDevice) -> None:
    assert (await shim.sign_in("alice", groups="other")).status_code == 403


async def _delete(shim: RunningShim, _: NewDevice) -> None:
    """Delete the account in Navidrome by hand, which the shim sees when it compares the accounts."""
    await shim.harness.delete("alice")
    async with asyncio.timeout(20):
        while (await shim.listed())[0].revoked is None:  # noqa: ASYNC110
            await asyncio.sleep(0.2)


async def _read_slowly(pieces: AsyncIterator[bytes]) -> None:
    """Read, so slowly that the response is still in progress."""
    async for _ in pieces:
        await asyncio.sleep(0.01)


ENDS = [_revoke, _lock, _unlink, _refuse]


@pytest.mark.parametrize("end", ENDS)
async def test_a_stream_is_cut_and_the_next_request_refused(
    shim: RunningShim, end: Callable[[RunningShim, NewDevice], Awaitable[None]]
) -> None:
    device = await shim.add("uid-alice")
    parameters = {"u": "alice", **token(device.secret, "salt")}
    long = max(
        shim.harness.stand_in.stand_in.state.catalogue.songs,
        key=lambda song: song.tone.size,
    )
    async with shim.client.stream(
        "GET", "/rest/stream", params={**VERSION, **parameters, "id": long.id, "format": "raw"}
    ) as response:
        assert response.status_code == 200
        pieces = response.aiter_raw(1024)
        assert await anext(pieces)
        await end(shim, device)
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            await asyncio.wait_for(_read_slowly(pieces), _CUT_SECONDS)
    assert error_of(await shim.rest("ping", **parameters)) == 40
    assert error_of(await shim.rest("ping", apiKey=device.secret)) in (40, 44)


@pytest.mark.parametrize("end", [_lock, _unlink, _refuse, _delete])
async def test_no_later_sign_in_revives_a_device(
    shim: RunningShim, end: Callable[[RunningShim, NewDevice], Awaitable[None]]
) -> None:
    device = await shim.add("uid-alice")
    await end(shim, device)
    assert (await shim.sign_in("alice")).status_code == 200
    async with asyncio.timeout(10):
        while error_of(await shim.rest("ping", apiKey=device.secret)) != 44:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert error_of(await shim.rest("ping", u="alice", p=device.secret)) == 40
    (listed,) = await shim.listed()
    assert listed.revoked is not None
    assert listed.revoked_by in {"locked", "unlinked", "denied", "removed"}
    # And a new device works.
    again = await shim.add("uid-alice", "New phone")
    assert error_of(await shim.rest("ping", u="alice", p=again.secret)) is None


async def test_who_gets_the_name_later_does_not_get_the_device(shim: RunningShim) -> None:
    device = await shim.add("uid-alice")
    await _operate(shim, lambda operations: operations.unlink("alice"))
    await shim.sign_in("alice", uid="another-person")
    assert error_of(await shim.rest("ping", u="alice", p=device.secret)) == 40


async def test_a_rename_in_navidrome_is_followed(shim: RunningShim) -> None:
    device = await shim.add("uid-alice")
    await shim.harness.change("alice", userName="alicia")
    async with asyncio.timeout(10):
        while error_of(await shim.rest("ping", u="alicia", p=device.secret)):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert error_of(await shim.rest("ping", u="alice", p=device.secret)) == 40


async def test_an_expired_device_is_refused(shim: RunningShim) -> None:
    device = await shim.add("uid-alice", expires=time.time() + 6)
    assert error_of(await shim.rest("ping", u="alice", p=device.secret)) is None
    await asyncio.sleep(6)
    assert error_of(await shim.rest("ping", u="alice", p=device.secret)) == 40


async def test_a_device_of_somebody_elses_is_neither_revoked_nor_renamed(shim: RunningShim) -> None:
    device = await shim.add("uid-alice")
    async with shim.devices() as service:
        with pytest.raises(DeviceError):
            await service.revoke(device.device.id, TEST, uid="uid-bob")
        with pytest.raises(DeviceError):
            await service.rename(device.device.id, "Mine", TEST, uid="uid-bob")
        with pytest.raises(DeviceError):
            await service.add("uid-bob", "Phone", TEST)
    assert error_of(await shim.rest("ping", u="alice", p=device.secret)) is None


async def test_the_owner_must_sign_in_from_time_to_time(tmp_path: Path) -> None:
    async for harness in _harness("stand-in tcp", tmp_path):
        async with run_shim(harness, DEVICE_SIGN_IN_DAYS="30") as shim:
            await shim.sign_in("alice")
            device = await shim.add("uid-alice")
        async with shim.devices() as service:
            service.database.write(
                lambda connection: connection.execute(
                    update(BINDINGS).values(last_seen=BINDINGS.c.last_seen - 31 * 86400)
                )
            )
        async with run_shim(harness, DEVICE_SIGN_IN_DAYS="30") as shim:
            headers = {"X-Forwarded-Host": "music.example.org", "X-Forwarded-Proto": "https"}
            response = await shim.rest("ping", headers, u="alice", p=device.secret)
            assert error_of(response) == 40
            assert "https://music.example.org/" in response.text
            # A wrong password learns nothing of it.
            wrong = await shim.rest("ping", headers, u="alice", p="wrong")
            assert error_of(wrong) == 40 and "music.example.org" not in wrong.text
            await shim.sign_in("alice")
            async with asyncio.timeout(10):
                while error_of(await shim.rest("ping", u="alice", p=device.secret)):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)


async def test_a_device_request_is_no_sign_in(shim: RunningShim) -> None:
    device = await shim.add("uid-alice")
    await until(lambda: bool(shim.logged(kind="access")))
    async with operations(load(shim.harness.environment()), lambda _: None, OPERATOR) as opened:
        (before,) = [row for row in await opened.rows() if row.account == "alice"]
    await shim.rest("ping", u="alice", p=device.secret)
    async with operations(load(shim.harness.environment()), lambda _: None, OPERATOR) as opened:
        (after,) = [row for row in await opened.rows() if row.account == "alice"]
    assert before.last_seen == after.last_seen
