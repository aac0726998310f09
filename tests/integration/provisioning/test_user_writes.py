"""Requests in progress that change Navidrome's users while their account is locked or loses rights."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from shim.audit.events.provisioning import AccountLocked
from shim.provisioning import user_writes
from shim.trust.reasons import Reason
from tests.integration.provisioning.test_serving_shim import ServingShim, serve_shim
from tests.support.harness import Harness, person, until

GROUPS = {"ALLOWED_GROUPS": "music", "ADMIN_GROUPS": "admins"}


class Held:
    """A request to Navidrome's user API whose last byte is not sent yet."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def end(self) -> int:
        """Send the last byte, and return the status of the response, 0 where there is none."""
        self._writer.write(b"}")
        async with asyncio.timeout(20):
            line = await self._reader.readline()
        return int(line.split()[1]) if line else 0


@asynccontextmanager
async def held(shim: ServingShim, line: str, body: object, *fields: str) -> AsyncIterator[Held]:
    text = json.dumps(body).encode()
    head = [f"{line} HTTP/1.1", "Host: h", "Content-Type: application/json", *fields]
    head.append(f"Content-Length: {len(text)}")
    reader, writer = await asyncio.open_connection("127.0.0.1", shim.port)
    writer.write("\r\n".join((*head, "", "")).encode() + text[:-1])
    await writer.drain()
    try:
        yield Held(reader, writer)
    finally:
        writer.close()


def identity(name: str, groups: str) -> tuple[str, ...]:
    fields = {"username": name, "uid": f"uid-{name}", "groups": groups}
    return tuple(f"X-authentik-{key}: {value}" for key, value in fields.items())


@pytest.mark.parametrize("by", ["identity", "token"])
async def test_an_incomplete_password_change_does_not_outlive_the_lock(
    tcp_harness: Harness, by: str
) -> None:
    harness = tcp_harness
    async with serve_shim(harness, **GROUPS) as shim:
        assert (await shim.visit("alice")).status_code == 200
        alice = await harness.user("alice")
        url = f"PUT /api/user/{alice['id']}"
        fields = identity("alice", "music")
        body = {**alice, "password": "evil"}
        if by == "token":
            own = {**alice, "password": "mine"}
            await harness.call("PUT", f"/api/user/{alice['id']}", own, "alice")
            token = await harness.login("alice", "mine")
            fields = (f"X-ND-Authorization: Bearer {token.text}",)
            body["currentPassword"] = "mine"
        async with held(shim, url, body, *fields) as request:
            assert (await shim.visit("alice", groups="others")).status_code == 403
            assert await request.end() == 403
        assert not await harness.accepts_password("alice", "evil")
        assert not await harness.accepts_password("alice", "mine")


@pytest.mark.parametrize("groups", ["music", "others"])
async def test_an_incomplete_request_of_an_admin_does_not_outlive_the_admin_right(
    tcp_harness: Harness, groups: str
) -> None:
    harness = tcp_harness
    admin = identity("ann", "music|admins")
    async with serve_shim(harness, **GROUPS) as shim:
        assert (await shim.visit("ann", groups="music|admins")).status_code == 200
        ann = await harness.user("ann")
        assert ann["isAdmin"]
        other = {"userName": "evil", "name": "evil", "password": "evil", "isAdmin": True}
        async with (
            held(shim, "POST /api/user", other, *admin) as creation,
            held(shim, f"PUT /api/user/{ann['id']}", {**ann, "isAdmin": True}, *admin) as own,
        ):
            status = (await shim.visit("ann", groups=groups)).status_code
            assert status == (200 if groups == "music" else 403)
            # Who lost the admin right may try again with the rights that are left; who is denied may not.
            rejected = 503 if groups == "music" else 403
            assert await creation.end() == rejected
            assert await own.end() == rejected
        users = await harness.users()
        assert list(users) == ["ann"]
        assert not users["ann"]["isAdmin"]


async def test_a_lock_waits_for_the_request_that_was_sent_before(tcp_harness: Harness) -> None:
    harness = tcp_harness
    await harness.start(**GROUPS)
    await harness.request(person("alice", "music"))
    gate, account = harness.accounts.gate, ((await harness.user("alice"))["id"],)
    assert gate.user_write_started(account)
    denied = asyncio.create_task(harness.reason(person("alice")))
    await until(lambda: not gate.may_continue(account[0], "uid-of-alice", 0))
    assert gate.known(person("alice", "music")) is None
    assert not gate.user_write_started(account)
    await harness.change("alice", password="evil")
    gate.user_write_ended(account, response_began=True)
    assert await denied is Reason.GROUP_NOT_ALLOWED
    assert not await harness.accepts_password("alice", "evil")
    assert len(harness.recorded(AccountLocked)) == 1


async def test_no_request_is_sent_while_its_account_loses_its_rights(tcp_harness: Harness) -> None:
    harness = tcp_harness
    await harness.start(**GROUPS)
    await harness.request(person("ann", "music", "admins"))
    gate, account = harness.accounts.gate, ((await harness.user("ann"))["id"],)
    assert gate.user_write_started(account)
    demoted = asyncio.create_task(harness.request(person("ann", "music")))
    writes = harness.accounts.service.user_writes

    def rejects() -> bool:
        if not writes.begin(account):
            return True
        writes.end(account, response_began=True)
        return False

    await until(rejects)
    await harness.change("ann", isAdmin=True, name="Ann")
    gate.user_write_ended(account, response_began=True)
    assert await demoted == "ann"
    assert not (await harness.user("ann"))["isAdmin"]
    assert gate.user_write_started(account)


async def test_a_request_that_the_lock_did_not_wait_for_makes_it_repeat(
    tcp_harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = tcp_harness
    monkeypatch.setattr(user_writes, "WAIT_SECONDS", 0.0)
    await harness.start(**GROUPS)
    await harness.request(person("alice", "music"))
    gate, account = harness.accounts.gate, ((await harness.user("alice"))["id"],)
    assert gate.user_write_started(account)
    assert await harness.reason(person("alice")) is Reason.GROUP_NOT_ALLOWED
    await harness.change("alice", password="evil")
    locks = len(harness.recorded(AccountLocked))
    gate.user_write_ended(account, response_began=True)
    await until(lambda: len(harness.recorded(AccountLocked)) > locks)
    assert not await harness.accepts_password("alice", "evil")
