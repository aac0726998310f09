"""Input of attackers, and keys that are lost, with the whole shim."""

from __future__ import annotations

import asyncio
import html
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest
import pytest_asyncio

from tests.integration.devices.conftest import (
    TEST,
    RunningShim,
    _harness,
    envelope,
    error_of,
    run_command,
    run_shim,
    token,
)
from tests.support.harness import Harness
from tests.support.navidrome_servers import StandInServer, build_server

_RACES = 30
pytestmark = pytest.mark.asyncio(loop_scope="module")
_FIELD = re.compile(r'name="(csrf_token|form_key)" value="([^"]+)"')


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shim(any_harness: Harness) -> AsyncIterator[RunningShim]:
    async with run_shim(any_harness) as started:
        await started.sign_in("alice")
        yield started


async def test_a_token_with_an_unusual_salt(shim: RunningShim) -> None:
    secret = (await shim.add("uid-alice")).secret
    right = {"u": "alice"}
    assert error_of(await shim.rest("ping", **right, **token(secret, ""))) is None
    assert error_of(await shim.rest("ping", **right, **token(secret, "x" * 1024))) is None
    assert error_of(await shim.rest("ping", **right, **token(secret, "x" * 10_000))) == 40
    assert error_of(await shim.post("ping", {**right, **token(secret, "é&=;\n")})) is None
    upper = token(secret, "s")["t"].upper()
    assert error_of(await shim.rest("ping", **right, t=upper, s="s")) == 40
    assert error_of(await shim.rest("ping", **right, p=f"enc:{secret.encode().hex()}f")) == 40


async def test_names_that_differ_in_case(shim: RunningShim) -> None:
    """Navidrome makes two such accounts if they are created at once."""
    for number in range(_RACES):
        names = [f"RaCe{number}", f"rAcE{number}"]
        made = await asyncio.gather(
            *(shim.harness.create(name, "pw") for name in names), return_exceptions=True
        )
        if not any(isinstance(each, BaseException) for each in made):
            break
    else:
        pytest.skip(f"the server made one account of two in each of {_RACES} races")
    assert (await shim.sign_in(names[0])).status_code == 200
    secret = (await shim.add(f"uid-{names[0]}")).secret
    # The person has the account that Navidrome finds by the name.
    content = envelope(await shim.rest("tokenInfo", apiKey=secret))
    linked = content["tokenInfo"]["username"]
    for name in (*names, names[0].lower()):
        expected = None if name == linked else 40
        assert error_of(await shim.rest("ping", u=name, p=secret)) == expected, name


async def test_bodies_that_are_too_long(shim: RunningShim) -> None:
    secret = (await shim.add("uid-alice")).secret
    head = (
        f"POST /rest/ping?u=alice&p={secret}&v=1.16.1&c=x HTTP/1.1\r\nHost: x\r\n"
        "Content-Type: application/x-www-form-urlencoded\r\n"
    )
    for length in (2 << 20, 1 << 30):
        raw_response = await _raw(shim, f"{head}Content-Length: {length}\r\n\r\n".encode())
        assert b" 413 " in raw_response.partition(b"\r\n")[0] and b'code="0"' in raw_response
    chunk = b"10000\r\n" + b"a" * 0x10000 + b"\r\n"
    raw_response = await _raw(
        shim, f"{head}Transfer-Encoding: chunked\r\n\r\n".encode(), chunk * 40
    )
    assert b" 413 " in raw_response.partition(b"\r\n")[0]


async def test_a_form_that_is_too_long_does_not_reach_navidrome(shim: RunningShim) -> None:
    """Navidrome would read the credentials in it: a guess that nobody counts, or a void token."""
    secret = (await shim.add("uid-alice")).secret
    await shim.harness.create("dave", "right")
    padding, form = "a" * (2 << 20), {"Content-Type": "application/x-www-form-urlencoded"}
    body = f"v=1.16.1&c=x&f=json&pad={padding}&u=dave&p=right"
    async with httpx.AsyncClient(base_url=shim.harness.server.upstream, trust_env=False) as direct:
        assert error_of(await direct.post("/rest/ping", content=body, headers=form)) is None
        if not isinstance(shim.harness.server, StandInServer):
            many = f"u=dave&p=right&v=1.16.1&c=x&f=json{'&songId=1' * 10_001}"
            refused = await direct.post("/rest/ping", content=many, headers=form)
            assert "number of URL query parameters exceeded limit" in refused.text
    # An earlier Navidrome reads any number of parameters.
    many = f"v=1.16.1&c=x{'&songId=1' * 10_001}&u=dave&p=right"
    response = await shim.client.post("/rest/ping", content=many, headers=form)
    assert response.status_code == 413 and 'code="0"' in response.text
    for query in ("", f"?u=alice&p={secret}&v=1.16.1&c=x", "?u=dave&p=right&v=1.16.1&c=x"):
        response = await shim.client.post(f"/rest/ping{query}", content=body, headers=form)
        assert response.status_code == 413 and 'code="0"' in response.text, query
        assert "x-request-id" in response.headers  # it is the shim's own


async def test_a_large_form_with_the_password_in_it(shim: RunningShim) -> None:
    secret = (await shim.add("uid-alice")).secret
    songs = "&".join(f"songId=song{number:022}" for number in range(9_900))
    body = f"u=alice&p={secret}&v=1.16.1&c=x&f=json&name=Many&{songs}".encode()
    assert len(body) > 300_000
    response = await shim.client.post(
        "/rest/ping",
        content=body,
        headers={"Content-Type": "application/x-www-form-urlencoded", "Expect": "100-continue"},
    )
    assert error_of(response) is None


async def test_the_shim_answers_expect_itself(shim: RunningShim) -> None:
    secret = (await shim.add("uid-alice")).secret
    body = f"u=alice&p={secret}&v=1.16.1&c=x&f=json".encode()
    head = (
        "POST /rest/ping HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nConnection: close\r\n"
        f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", shim.port)
    writer.write(head.encode())
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    raw_response = await reader.read()
    writer.close()
    assert raw_response.startswith(b"HTTP/1.1 200") and b'"status":"ok"' in raw_response


async def test_another_account_with_my_token(shim: RunningShim) -> None:
    await shim.sign_in("mallory")
    mine = (await shim.add("uid-mallory")).secret
    for name in ("alice", "navidrome-shim", "mallory\x00", "mallory "):
        assert error_of(await shim.rest("ping", u=name, **token(mine, "s"))) == 40
        assert error_of(await shim.rest("ping", u=name, p=mine)) == 40


async def test_an_untrusted_peer_gets_nothing_from_a_device(shim: RunningShim) -> None:
    secret = (await shim.add("uid-alice")).secret
    request = f"GET /rest/ping?u=alice&p={secret}&v=1.16.1&c=x&f=json HTTP/1.1\r\nHost: x\r\n"
    raw_response = await asyncio.to_thread(
        _from_elsewhere, shim.port, f"{request}Connection: close\r\n\r\n".encode()
    )
    assert b'"code":40' in raw_response


@pytest.mark.parametrize("fault", ["gone", "unreadable", "wrong"])
async def test_a_lost_key_is_reported_and_nothing_is_deleted(tmp_path: Path, fault: str) -> None:
    async for harness in _harness("stand-in tcp", tmp_path):
        async with run_shim(harness) as shim:
            await shim.sign_in("alice")
            await shim.sign_in("bob")
            new = await shim.add("uid-alice")
        key = tmp_path / "device.key"
        good = key.read_bytes()
        key.unlink()
        if fault == "unreadable":
            key.mkdir()
        elif fault == "wrong":
            key.write_text("22" * 32)
        async with run_shim(harness) as shim:
            check = (await shim.ready())["devices"]
            assert check["state"] == "warning" and "key" in check["detail"]
            (event,) = shim.logged(kind="devices_unavailable")
            assert event["detail"] == check["detail"]
            if fault != "wrong":
                assert str(key) in event["detail"]
            assert error_of(await shim.rest("ping", u="alice", p=new.secret)) == 40
            assert error_of(await shim.rest("ping", apiKey=new.secret)) == 44
            assert (await shim.sign_in("alice")).status_code == 200
            # Nor is a device added with another key: it would be lost once the right one is back.
            for added in (await _add_at_page(shim, "bob"), await _add_by_command(shim, "bob")):
                assert "No device can be added: " in added and "Put the key back" in added
            assert [device.id for device in await shim.listed()] == [new.device.id]
        if fault == "unreadable":
            key.rmdir()
        else:
            assert key.exists() == (fault == "wrong")
        key.write_bytes(good)
        async with run_shim(harness) as shim:
            assert (await shim.ready())["devices"]["state"] == "ok"
            assert error_of(await shim.rest("ping", u="alice", p=new.secret)) is None


async def _add_at_page(shim: RunningShim, name: str) -> str:
    """Add a device at a person's own page; return the text of the page that follows."""
    person = {"X-authentik-username": name, "X-authentik-uid": f"uid-{name}"}
    shown = await shim.client.get("/_shim/", headers={**person, "Accept": "text/html"})
    form = {**dict(_FIELD.findall(shown.text)), "name": "Phone"}
    headers = {**person, "Sec-Fetch-Site": "same-origin"}
    response = await shim.client.post("/_shim/devices/add", data=form, headers=headers)
    assert response.status_code == 400, response.text
    return html.unescape(response.text)


async def _add_by_command(shim: RunningShim, name: str) -> str:
    code, out, err = await run_command(shim, "devices", "add", name, "Phone")
    assert code == 1 and out == ""
    return err


async def _raw(shim: RunningShim, head: bytes, body: bytes = b"") -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", shim.port)
    writer.write(head + body)
    raw_response = await reader.read()
    writer.close()
    return raw_response


def _from_elsewhere(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 10, ("127.0.0.9", 0)) as client:
        client.sendall(data)
        raw_response = b""
        while piece := client.recv(65536):
            raw_response += piece
        return raw_response


async def test_the_name_of_an_app_is_stored_as_harmless_text(postgresql_url: str) -> None:
    """PostgreSQL stores no NUL: one such name must not keep the others from being stored."""
    with TemporaryDirectory() as folder:
        server = build_server("stand-in tcp", Path(folder))
        await server.start()
        harness = Harness(server, Path(folder), postgresql_url)
        try:
            async with run_shim(harness, DEVICE_KEY="0" * 64) as started:
                await started.sign_in("alice")
                names = {"Phone": "\0\x1b[31m\u202e", "Tablet": "plain"}
                for name, app in names.items():
                    async with started.devices() as service:
                        new = await service.add("uid-alice", name, TEST)
                    right = {"u": "alice", "p": new.secret, "c": app}
                    async with asyncio.timeout(10):
                        while error_of(await started.rest("ping", **right)) is not None:  # noqa: ASYNC110
                            await asyncio.sleep(0.1)
            async with started.devices() as service:
                found = {device.name: device.last_app for device in service.devices()}
        finally:
            await harness.close()
    assert found == {"Phone": r"\u0000\u001b[31m\u202e", "Tablet": "plain"}
