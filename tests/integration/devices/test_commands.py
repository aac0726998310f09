"""The commands for devices, as processes beside the shim that serves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.integration.devices.conftest import (
    RunningShim,
    _harness,
    error_of,
    run_command,
    run_shim,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shim(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningShim]:
    async for harness in _harness("stand-in tcp", tmp_path_factory.mktemp("harness")):
        async with run_shim(harness, SUBSONIC_PASSWORDS="devices") as started:
            await started.sign_in("alice")
            yield started


def _events(err: str) -> list[dict[str, Any]]:
    """The events that a command wrote to stderr."""
    return [json.loads(line) for line in err.splitlines() if line.startswith("{")]


async def _stored(shim: RunningShim) -> list[dict[str, Any]]:
    """The administrative actions in the stored trail."""
    code, out, err = await run_command(shim, "audit", "list", "--kind", "admin_action", "--json")
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


async def test_a_device_is_added_listed_and_revoked(shim: RunningShim) -> None:
    code, out, err = await run_command(shim, "devices", "add", "Alice", "Phone", "--json")
    assert code == 0, err
    added = json.loads(out)
    assert '"kind": "device_added"' in err or '"kind":"device_added"' in err
    assert added["password"] not in err and added["account"] == "Alice"
    (action,) = [each for each in _events(err) if each["kind"] == "admin_action"]
    assert (action["action"], action["target"], action["result"]) == ("device.add", "alice", "done")
    assert action["actor"].startswith("command:") and action["origin"] == "command"
    async with asyncio.timeout(10):
        while error_of(await shim.rest("ping", u="alice", p=added["password"])):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    code, out, _ = await run_command(shim, "devices", "list", "--json")
    (listed,) = json.loads(out)
    assert code == 0 and listed["id"] == added["id"] and listed["account"] == "alice"
    assert "password" not in listed and added["password"] not in out
    code, out, _ = await run_command(shim, "devices", "list", "alice")
    assert code == 0 and "Phone" in out
    code, _, err = await run_command(shim, "devices", "revoke", added["id"])
    assert code == 1 and "--yes" in err
    code, out, _ = await run_command(shim, "devices", "revoke", added["id"], "--yes", "--json")
    assert code == 0 and json.loads(out) == {"id": added["id"], "revoked": True}
    assert "device.revoke" in [each.get("action") for each in await _stored(shim)]
    async with asyncio.timeout(10):
        while not error_of(await shim.rest("ping", u="alice", p=added["password"])):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert json.loads((await run_command(shim, "devices", "list", "--json"))[1]) == []
    (revoked,) = json.loads((await run_command(shim, "devices", "list", "--all", "--json"))[1])
    assert revoked["revoked_by"] == "command" and revoked["active"] is False


async def test_wrong_arguments_get_one_line(shim: RunningShim) -> None:
    for arguments, text in [
        (("add", "nobody", "Phone"), "No account named nobody is linked to a user"),
        (("add", "alice", "a\nb"), "U+000A"),
        (("add", "alice", "Phone", "--days", "36501"), "36500"),
        (("add", "alice", "Phone", "--days", "9" * 400), "36500"),
        (("revoke", "unknown", "--yes"), "no device unknown"),
    ]:
        code, out, err = await run_command(shim, "devices", *arguments)
        assert (
            code == (2 if "--days" in arguments else 1)
            and out == ""
            and text in err
            and "Traceback" not in err
        )


async def test_the_key_is_replaced_while_the_shim_serves(shim: RunningShim) -> None:
    device = await shim.add("uid-alice")
    key = Path(shim.harness.folder) / "device.key"
    before = key.read_text()
    code, out, err = await run_command(shim, "devices", "rotate-key", "--json")
    assert code == 0 and json.loads(out) == {"devices": 1}, err
    assert key.read_text() != before
    await asyncio.sleep(1.5)
    assert error_of(await shim.rest("ping", u="alice", p=device.secret)) is None
    assert (await shim.ready())["devices"]["state"] == "ok"


async def test_check_names_the_devices(shim: RunningShim) -> None:
    _, out, _ = await run_command(shim, "check", "--json")
    assert json.loads(out)["checks"]["devices"]["state"] == "ok"


async def test_with_only_device_passwords_no_other_can_be_set(shim: RunningShim) -> None:
    """The account's password has no prefix that lets its owner replace it without knowing it."""
    account = shim.harness.stand_in.stand_in.state.accounts.find("alice")
    assert account is not None
    password = account.password
    assert not password.startswith("__NAVIDROME_AUTOGEN__") and len(password) > 40
    await shim.harness.create("dave", "known")
    await shim.sign_in("dave")  # the first link replaces the password
    assert not await shim.harness.accepts_password("dave", "known")
