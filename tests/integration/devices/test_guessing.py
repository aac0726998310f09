"""Wrong credentials are counted and delayed; verified devices never are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.integration.devices.conftest import Music, error_of, shim_before, token
from tests.support.world import World

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guessed(any_world: World) -> AsyncIterator[Music]:
    """A shim that takes the client's address from the edge, so that each test is a client of its own."""
    async with shim_before(any_world) as started:
        await started.sign_in("alice")
        await any_world.create("dave", "right")
        yield started


def _from(address: str) -> dict[str, str]:
    return {"X-Forwarded-For": address}


async def _guess(music: Music, address: str, times: int, **parameters: str) -> list[int | None]:
    codes = []
    for number in range(times):
        credentials = {"u": "dave", **token(f"wrong {number}", "s"), **parameters}
        codes.append(error_of(await music.rest("ping", _from(address), **credentials)))
    return codes


def _delayed(music: Music, client: str) -> int:
    return sum(
        line.get("count", 1)
        for line in music.logged(kind="access", client=client, reason="too_many_failures")
    )


async def test_after_ten_failures_the_shim_answers_itself(guessed: Music) -> None:
    client = "192.0.2.1"
    assert await _guess(guessed, client, 10) == [40] * 10
    assert _delayed(guessed, client) == 0
    assert await _guess(guessed, client, 5) == [40] * 5
    assert _delayed(guessed, client) == 5
    # Even the right password waits, and another client does not.
    right = {"u": "dave", **token("right", "s")}
    assert error_of(await guessed.rest("ping", _from(client), **right)) == 40
    assert error_of(await guessed.rest("ping", _from("192.0.2.2"), **right)) is None
    await asyncio.sleep(1.1)
    assert error_of(await guessed.rest("ping", _from(client), **right)) is None
    # From now on this client is not limited for this account.
    assert await _guess(guessed, client, 15) == [40] * 15
    assert error_of(await guessed.rest("ping", _from(client), **right)) is None
    failed = guessed.logged(kind="device_login_failed", reason="wrong_credentials")
    assert failed and failed[0]["claimed_user"] == "dave" and failed[0]["app"] == "test"


async def test_a_device_is_never_delayed(guessed: Music) -> None:
    client = "192.0.2.3"
    device = await guessed.add("uid-alice")
    for number in range(20):
        await guessed.rest("ping", _from(client), u="alice", p=f"wrong {number}")
    assert _delayed(guessed, client) == 10
    for salt in ("a", "b", "c"):
        response = await guessed.rest(
            "ping", _from(client), u="alice", **token(device.secret, salt)
        )
        assert error_of(response) is None


async def test_every_format_and_coding_of_error_40_is_recognised(guessed: Music) -> None:
    for number, (format_, coding) in enumerate(
        [("json", "gzip"), ("xml", "gzip"), ("xml", "identity"), ("jsonp", "deflate")]
    ):
        client = f"192.0.2.{10 + number}"
        for attempt in range(12):
            headers = {**_from(client), "Accept-Encoding": coding}
            await guessed.rest(
                "ping", headers, u="dave", p=f"wrong {attempt}", f=format_, callback="a"
            )
        assert _delayed(guessed, client) == 2, (format_, coding)


async def test_a_form_and_head_count_too(guessed: Music) -> None:
    for attempt in range(12):
        await guessed.post("ping", {"u": "dave", "p": f"wrong {attempt}"}, **_from("192.0.2.20"))
    assert _delayed(guessed, "192.0.2.20") == 2
    for attempt in range(12):
        query = f"u=dave&p=wrong{attempt}&v=1.16.1&c=x"
        await guessed.client.head(f"/rest/ping?{query}", headers=_from("192.0.2.21"))
    assert _delayed(guessed, "192.0.2.21") == 2


async def test_a_call_that_needs_no_credentials_makes_no_client_exempt(guessed: Music) -> None:
    client = "192.0.2.30"
    for call in ("getOpenSubsonicExtensions", "getOpenSubsonicExtensions.view", "nothing"):
        await guessed.rest(call, _from(client), u="dave", p="wrong")
    await guessed.client.get("/rest/ping?u=dave&p=wrong", headers=_from(client))  # error 10
    await _guess(guessed, client, 12)
    assert _delayed(guessed, client) == 2


async def test_unknown_api_keys_are_delayed_for_the_client(guessed: Music) -> None:
    client = "192.0.2.40"
    codes = [
        error_of(await guessed.rest("ping", _from(client), apiKey=f"unknown {number}"))
        for number in range(35)
    ]
    assert codes == [44] * 30 + [40] * 5


async def test_other_accounts_of_one_client_share_a_limit(guessed: Music) -> None:
    network = "2001:db8:1:2::"
    for number in range(32):
        client = f"{network}{number + 1:x}"
        await guessed.rest("ping", _from(client), u=f"user{number}", p="wrong")
    delayed = sum(_delayed(guessed, f"{network}{number + 1:x}") for number in range(32))
    assert delayed == 2
