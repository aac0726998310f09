"""A device ends: the next request is refused, and a stream in progress is cut."""

from __future__ import annotations

import asyncio
import socket
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, closing
from pathlib import Path

import httpx
import pytest
from sqlalchemy import update

from shim.audit.events import Operator
from shim.devices.models import DeviceError, NewDevice
from shim.devices.service import DeviceService
from shim.provisioning.operations import OperationError, Operations, operations
from shim.settings import load
from shim.store.schema import BINDINGS
from tests.integration.devices.conftest import (
    TEST,
    VERSION,
    RunningShim,
    _harness,
    error_of,
    run_command,
    run_shim,
    token,
)
from tests.support.harness import Harness, until

_CUT_SECONDS = 5.0
_SETTINGS = {"RECONCILE_SECONDS": "1", "CONTROL_TOKEN": "token-of-this-test"}
OPERATOR = Operator("command:test", "command")


@pytest.fixture
async def shim(tmp_path: Path) -> AsyncIterator[RunningShim]:
    """A shim of its own for each test: what it does to alice stays."""
    async for harness in _harness("stand-in tcp", tmp_path):
        env_file = tmp_path / "settings.env"
        env_file.write_text("SHIM_ALLOWED_GROUPS=music\n")
        async with run_shim(harness, env_file, **_SETTINGS) as started:
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


async def _replace(shim: RunningShim, _: NewDevice) -> None:
    """Unlink the account, and let another person have its name."""
    await _operate(shim, lambda operations: operations.unlink("alice"))
    await shim.sign_in("alice", uid="another-person")


async def _rebind(shim: RunningShim, _: NewDevice) -> None:
    """Give the account to another uid, as after a change of the provider's subject mode."""
    assert (await run_command(shim, "users", "rebind", "alice", "--yes"))[0] == 0


async def _tighten(shim: RunningShim, _: NewDevice) -> None:
    """Let another group in only, by a reload of the settings."""
    (shim.harness.folder / "settings.env").write_text("SHIM_ALLOWED_GROUPS=other\n")
    response = await shim.call("POST", "/api/reload")
    assert response.status_code == 200, response.text


async def _revoke_by_command(shim: RunningShim, device: NewDevice) -> None:
    assert (await run_command(shim, "devices", "revoke", device.device.id, "--yes"))[0] == 0


async def _lock_by_command(shim: RunningShim, _: NewDevice) -> None:
    assert (await run_command(shim, "users", "lock", "alice", "--yes"))[0] == 0


async def _revoke_by_another_shim(shim: RunningShim, device: NewDevice) -> None:
    """Revoke the device over the API of a second shim that serves with the same database."""
    async with _second_shim(shim) as other:
        response = await other.call("POST", "/api/devices/revoke", {"id": device.device.id})
        assert response.status_code == 200, response.text


@asynccontextmanager
async def _second_shim(shim: RunningShim) -> AsyncIterator[RunningShim]:
    """Start another shim before the same server and with the same database."""
    harness = Harness(shim.harness.server, shim.harness.folder, shim.harness.database_url)
    try:
        async with run_shim(harness, **_SETTINGS) as other:
            yield other
    finally:
        await harness.disconnect()


@asynccontextmanager
async def _streaming(
    shim: RunningShim, parameters: Mapping[str, str]
) -> AsyncIterator[AsyncIterator[bytes]]:
    """Play the longest song, of which the first bytes were read. Its end does not fit into the buffers of the
    sockets, so the response stays in progress."""
    songs = shim.harness.stand_in.stand_in.state.catalogue.songs
    long = max(songs, key=lambda song: song.tone.size)
    query = {**VERSION, **parameters, "id": long.id, "format": "raw"}
    small = httpx.AsyncHTTPTransport(socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)])
    async with (
        httpx.AsyncClient(transport=small, base_url=shim.url, timeout=20) as client,
        client.stream("GET", "/rest/stream", params=query) as response,
    ):
        assert response.headers["content-type"].startswith("audio/"), await response.aread()
        pieces = response.aiter_raw(1024)
        assert await anext(pieces)
        yield pieces


async def _until_cut(pieces: AsyncIterator[bytes], seconds: float = _CUT_SECONDS) -> None:
    """Read until the shim ends the stream, for at most this time."""
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
        await asyncio.wait_for(_read_slowly(pieces), seconds)


async def _read_slowly(pieces: AsyncIterator[bytes]) -> None:
    """Read, so slowly that the response is still in progress."""
    async for _ in pieces:
        await asyncio.sleep(0.01)


ENDS = [
    _revoke,
    _revoke_by_command,
    _revoke_by_another_shim,
    _lock,
    _lock_by_command,
    _unlink,
    _replace,
    _rebind,
    _refuse,
    _delete,
    _tighten,
]


@pytest.mark.parametrize("end", ENDS)
async def test_a_stream_is_cut_and_the_next_request_refused(
    shim: RunningShim, end: Callable[[RunningShim, NewDevice], Awaitable[None]]
) -> None:
    device = await shim.add("uid-alice")
    parameters = {"u": "alice", **token(device.secret, "salt")}
    async with _streaming(shim, parameters) as pieces:
        await end(shim, device)
        await _until_cut(pieces)
    assert error_of(await shim.rest("ping", **parameters)) == 40
    assert error_of(await shim.rest("ping", apiKey=device.secret)) == 44


async def test_a_request_that_waits_when_its_device_is_revoked_is_not_sent(tmp_path: Path) -> None:
    """The only connection to Navidrome is busy with a stream of another device."""
    async for harness in _harness("stand-in tcp", tmp_path):
        async with run_shim(harness, MAX_UPSTREAM_CONNECTIONS="1", **_SETTINGS) as shim:
            await shim.sign_in("alice")
            playing, revoked = await shim.add("uid-alice"), await shim.add("uid-alice", "Tablet")
            async with _streaming(shim, {"u": "alice", "p": playing.secret}):
                query = {"u": "alice", "p": revoked.secret, "id": "waits"}
                waiting = asyncio.create_task(shim.rest("ping", **query))
                form = {"u": "alice", "p": revoked.secret, "id": "waits too"}
                waiting_form = asyncio.create_task(shim.post("ping", form))
                await asyncio.sleep(1)
                assert not waiting.done() and not waiting_form.done()
                body = {"id": revoked.device.id}
                response = await shim.call("POST", "/api/devices/revoke", body)
                assert response.status_code == 200, response.text
            for each in (await waiting, await waiting_form):
                assert each.status_code == 403
                assert each.json()["subsonic-response"]["error"]["code"] == 50
            assert "waits" not in str(harness.stand_in.stand_in.seen)


async def test_a_stream_is_cut_when_its_device_expires(shim: RunningShim) -> None:
    """Each attempt has more time, since a machine under load may begin to play too late."""
    for seconds in (4.0, 8.0, 16.0, 32.0):
        expires = time.time() + seconds
        async with shim.devices() as service:
            device = await service.add("uid-alice", "Phone", TEST, expires=expires)
        other = await shim.add("uid-alice", "Other phone")
        parameters = {"u": "alice", **token(device.secret, "salt")}
        if error_of(await shim.rest("ping", **parameters)) is None and time.time() < expires - 1:
            break
    else:
        pytest.fail("no device could be used before it expired")
    async with (
        _streaming(shim, parameters) as pieces,
        _streaming(shim, {"u": "alice", "p": other.secret}) as others,
    ):
        await _until_cut(pieces, expires - time.time() + _CUT_SECONDS)
        assert time.time() >= expires
        assert await anext(others)  # of another device of the same person
    assert error_of(await shim.rest("ping", **parameters)) == 40
    assert error_of(await shim.rest("ping", apiKey=device.secret)) == 44


async def test_a_stream_is_cut_when_its_owner_must_sign_in(tmp_path: Path) -> None:
    """Each attempt has more time, since a shim starts slowly on a machine under load."""
    settings = {"DEVICE_SIGN_IN_DAYS": "30"}
    async for harness in _harness("stand-in tcp", tmp_path):
        async with run_shim(harness, **settings) as shim:
            await shim.sign_in("alice")
            device = await shim.add("uid-alice")
        parameters = {"u": "alice", **token(device.secret, "salt")}
        for seconds in (8.0, 16.0, 32.0, 64.0):
            due = time.time() + seconds
            async with shim.devices() as service:
                _set_last_seen(service, due - 30 * 86400)
            async with run_shim(harness, **settings) as shim:
                if error_of(await shim.rest("ping", **parameters)) or time.time() > due - 1:
                    continue
                async with _streaming(shim, parameters) as pieces:
                    await _until_cut(pieces, due - time.time() + _CUT_SECONDS)
                assert time.time() >= due
                assert error_of(await shim.rest("ping", **parameters)) == 40
                return
        pytest.fail("no shim started before the owner had to sign in")


async def test_a_sign_in_through_another_shim_counts(tmp_path: Path) -> None:
    settings = {"DEVICE_SIGN_IN_DAYS": "30"}
    async for harness in _harness("stand-in tcp", tmp_path):
        async with run_shim(harness, **settings) as shim:
            await shim.sign_in("alice")
            device = await shim.add("uid-alice")
        async with shim.devices() as service:
            _set_last_seen(service, time.time() - 31 * 86400)
        async with run_shim(harness, **settings) as shim:
            assert error_of(await shim.rest("ping", u="alice", p=device.secret)) == 40
            async with shim.devices() as service:
                _set_last_seen(service, time.time())  # as another shim stores it
            async with asyncio.timeout(20):
                while error_of(await shim.rest("ping", u="alice", p=device.secret)):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)


def _set_last_seen(service: DeviceService, when: float) -> None:
    service.database.write(
        lambda connection: connection.execute(update(BINDINGS).values(last_seen=when))
    )


@pytest.mark.parametrize(
    ("end", "cause"),
    [(_lock, "locked"), (_unlink, "unlinked"), (_refuse, "denied"), (_delete, "removed")],
)
async def test_no_later_sign_in_revives_a_device(
    shim: RunningShim,
    end: Callable[[RunningShim, NewDevice], Awaitable[None]],
    cause: str,
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
    assert listed.revoked_by == cause
    (event,) = shim.logged(kind="device_revoked")
    assert (event["reason"], event["account"]) == (cause, "alice")
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
    # The credentials are known by then.
    assert error_of(await shim.rest("ping", u="alice", p=device.secret)) is None
    await shim.harness.change("alice", userName="alicia")
    async with asyncio.timeout(10):
        while error_of(await shim.rest("ping", u="alicia", p=device.secret)):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert error_of(await shim.rest("ping", u="alice", p=device.secret)) == 40


async def test_devices_work_while_another_process_has_locked_the_database(
    shim: RunningShim,
) -> None:
    device = await shim.add("uid-alice")
    with closing(sqlite3.connect(shim.harness.folder / "shim.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for number in range(20):
            parameters = {"u": "alice", **token(device.secret, f"salt {number}")}
            assert error_of(await shim.rest("ping", **parameters)) is None
            await asyncio.sleep(0.1)  # several times as long as the devices are read again
        other.execute("ROLLBACK")
    await _revoke(shim, device)
    async with asyncio.timeout(_CUT_SECONDS):
        while error_of(await shim.rest("ping", u="alice", p=device.secret)) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


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
            headers = {"X-Forwarded-Host": "shim.example.org", "X-Forwarded-Proto": "https"}
            response = await shim.rest("ping", headers, u="alice", p=device.secret)
            assert error_of(response) == 40
            assert "https://shim.example.org/" in response.text
            # A wrong password learns nothing of it.
            wrong = await shim.rest("ping", headers, u="alice", p="wrong")
            assert error_of(wrong) == 40 and "shim.example.org" not in wrong.text
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
