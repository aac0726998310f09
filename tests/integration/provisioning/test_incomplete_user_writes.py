"""Requests to Navidrome's user API in progress while an account is locked or renamed.

Navidrome reads the sender and its rights from the head, and writes when the body is complete.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.provisioning.conftest import _harnesses, _require_binary
from tests.integration.provisioning.test_serving_shim import ServingShim, serve_shim
from tests.support.harness import Harness, person


@pytest.fixture
async def real_harness(tmp_path: Path) -> AsyncIterator[Harness]:
    """An empty real Navidrome: the stand-in reads the sender once it has the body."""
    async for one in _harnesses(_require_binary("real tcp"), tmp_path):
        yield one


async def begin(
    shim: ServingShim, method: str, path: str, name: str, groups: str, body: object
) -> tuple[socket.socket, bytes]:
    """Send a request but for its last byte. Return the connection and that byte."""
    data = json.dumps(body).encode()
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: music.example.com\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        f"X-authentik-username: {name}\r\nX-authentik-uid: uid-{name}\r\n"
        f"X-authentik-groups: {groups}\r\n\r\n"
    )
    client = socket.create_connection(("127.0.0.1", shim.port), 10.0)
    await asyncio.to_thread(client.sendall, head.encode() + data[:-1])
    # A request on another connection that is answered: the first one was read before.
    assert (await shim.visit("other", "/api/song")).status_code == 200
    return client, data[-1:]


def end(client: socket.socket, last: bytes) -> bytes:
    """Send the last byte, and read until the connection ends."""
    response = b""
    with client:
        client.settimeout(10.0)
        try:
            client.sendall(last)
            while more := client.recv(65536):
                response += more
        except OSError:  # it was reset
            pass
    return response


async def test_an_incomplete_password_change_does_not_outlive_the_lock(
    real_harness: Harness,
) -> None:
    async with serve_shim(real_harness, ALLOWED_GROUPS="music") as shim:
        # Requests in progress are ended soon after the lock: one of several comes before that.
        for name in ("ada", "bob", "cleo", "dan", "eve", "fay"):
            assert (await shim.visit(name)).status_code == 200
            user = await real_harness.user(name)
            body = {**user, "password": "chosen"}
            request = await begin(shim, "PUT", f"/api/user/{user['id']}", name, "music", body)
            assert (await shim.visit(name, groups="")).status_code == 403
            await asyncio.to_thread(end, *request)
            assert not await real_harness.accepts_password(name, "chosen")


@pytest.mark.parametrize("groups", ["music", ""])
async def test_an_incomplete_request_does_not_outlive_the_admin_right(
    real_harness: Harness, groups: str
) -> None:
    async with serve_shim(
        real_harness, ALLOWED_GROUPS="music,admins", ADMIN_GROUPS="admins"
    ) as shim:
        assert (await shim.visit("boss", groups="admins")).status_code == 200
        body = {"userName": "second", "name": "x", "password": "chosen", "isAdmin": True}
        request = await begin(shim, "POST", "/api/user", "boss", "admins", body)
        assert (await shim.visit("boss", groups=groups)).status_code == (200 if groups else 403)
        await asyncio.to_thread(end, *request)
        assert "second" not in await real_harness.users()


async def test_no_name_is_known_while_a_request_that_may_change_it_is_in_progress(
    tcp_harness: Harness,
) -> None:
    await tcp_harness.start()
    alice = person("alice")
    await tcp_harness.request(alice)
    gate = tcp_harness.accounts.gate
    account = gate.known(alice)
    assert account is not None and account.id is not None
    assert gate.user_write_started((account.id,))
    gate.users_may_have_changed()  # the head was sent
    await tcp_harness.request(alice)
    await tcp_harness.change("alice", userName="renamed")  # the response has not arrived yet
    assert gate.known(alice) is None
    assert await tcp_harness.request(alice) == "renamed"
    gate.user_write_ended((account.id,), response_began=True)
    gate.users_may_have_changed()
    assert await tcp_harness.request(alice) == "renamed"
    known = gate.known(alice)
    assert known is not None and known.user_name == b"renamed"
