"""Wrong credentials are counted and delayed; verified devices never are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

import httpx
import pytest
import pytest_asyncio

from shim.devices.guessing import MAX_AT_ONCE
from tests.integration.devices.conftest import RunningShim, error_of, run_shim, token
from tests.support.harness import Harness

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guessed(any_harness: Harness) -> AsyncIterator[RunningShim]:
    """A shim that takes the client's address from the edge, so that each test is a client of its own."""
    async with run_shim(any_harness) as started:
        await started.sign_in("alice")
        await any_harness.create("dave", "right")
        yield started


def _from(address: str) -> dict[str, str]:
    return {"X-Forwarded-For": address}


def _responder(response: httpx.Response) -> str:
    """Return who sent a response: only the shim's own have a request id."""
    return "shim" if "x-request-id" in response.headers else "navidrome"


async def _guess(
    shim: RunningShim,
    address: str,
    times: int,
    headers: Mapping[str, str] | None = None,
    **parameters: str,
) -> list[str]:
    """Send wrong credentials, and return who answered."""
    responders = []
    for number in range(times):
        credentials = {"u": "dave", **token(f"wrong {number}", "s"), **parameters}
        response = await shim.rest("ping", {**_from(address), **(headers or {})}, **credentials)
        responders.append(_responder(response))
    return responders


_TEN = ["navidrome"] * 10


async def test_after_ten_failures_the_shim_answers_itself(guessed: RunningShim) -> None:
    client = "192.0.2.1"
    assert await _guess(guessed, client, 11) == [*_TEN, "shim"]
    # Even the right password waits, and another client does not.
    right = {"u": "dave", **token("right", "s")}
    assert error_of(await guessed.rest("ping", _from(client), **right)) == 40
    assert error_of(await guessed.rest("ping", _from("192.0.2.2"), **right)) is None
    await asyncio.sleep(1.1)
    assert error_of(await guessed.rest("ping", _from(client), **right)) is None
    # From now on this client is not limited for this account.
    assert await _guess(guessed, client, 15) == ["navidrome"] * 15
    assert error_of(await guessed.rest("ping", _from(client), **right)) is None
    failed = guessed.logged(kind="device_login_failed", reason="wrong_credentials")
    assert failed and failed[0]["claimed_user"] == "dave" and failed[0]["app"] == "test"


async def test_a_device_is_never_delayed(guessed: RunningShim) -> None:
    client = "192.0.2.3"
    device = await guessed.add("uid-alice")
    assert await _guess(guessed, client, 11, u="alice") == [*_TEN, "shim"]
    for salt in ("a", "b", "c"):
        response = await guessed.rest(
            "ping", _from(client), u="alice", **token(device.secret, salt)
        )
        assert error_of(response) is None


async def test_every_format_and_coding_of_error_40_is_recognised(guessed: RunningShim) -> None:
    for number, (format_, coding) in enumerate(
        [("json", "gzip"), ("xml", "gzip"), ("xml", "identity"), ("jsonp", "deflate")]
    ):
        client = f"192.0.2.{10 + number}"
        headers = {"Accept-Encoding": coding}
        responders = await _guess(guessed, client, 11, headers, f=format_, callback="a")
        assert responders == [*_TEN, "shim"], (format_, coding)


async def test_a_form_and_head_count_too(guessed: RunningShim) -> None:
    responders = [
        _responder(
            await guessed.post(
                "ping", {"u": "dave", "p": f"wrong {attempt}"}, **_from("192.0.2.20")
            )
        )
        for attempt in range(11)
    ]
    assert responders == [*_TEN, "shim"]
    responders = [
        _responder(
            await guessed.client.head(
                f"/rest/ping?u=dave&p=wrong{attempt}&v=1.16.1&c=x", headers=_from("192.0.2.21")
            )
        )
        for attempt in range(11)
    ]
    assert responders == [*_TEN, "shim"]


async def test_parameters_that_lengthen_an_error_hide_no_failure(guessed: RunningShim) -> None:
    """Navidrome reads a salt and a callback of any length."""
    responders = []
    for attempt in range(11):
        guess = token(f"wrong {attempt}", "s" * 2000)
        response = await guessed.rest("ping", _from("192.0.2.22"), u="dave", **guess)
        responders.append(_responder(response))
    assert responders == [*_TEN, "shim"]
    callback = "a" * 5000
    for number, coding in enumerate(("gzip", "identity")):
        headers = {"Accept-Encoding": coding}
        client = f"192.0.2.{23 + number}"
        responders = await _guess(guessed, client, 11, headers, f="jsonp", callback=callback)
        assert responders == [*_TEN, "shim"], coding
    responders = [
        _responder(
            await guessed.client.head(
                f"/rest/ping?u=dave&p=wrong{attempt}&v=1&c=x&f=jsonp&callback={'a' * 1500}",
                headers=_from("192.0.2.25"),
            )
        )
        for attempt in range(11)
    ]
    assert responders == [*_TEN, "shim"]


async def test_a_callback_that_navidrome_rejects_hides_no_failure(guessed: RunningShim) -> None:
    """Its error replaces that of wrong credentials. With the right ones, Navidrome sets a cookie too."""
    assert await _guess(guessed, "192.0.2.26", 11, f="jsonp", callback="<") == [*_TEN, "shim"]


async def test_an_offer_to_upgrade_hides_no_guess_and_no_device(guessed: RunningShim) -> None:
    """Navidrome ignores it, and sends an ordinary response."""
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
    }
    assert await _guess(guessed, "192.0.2.27", 11, upgrade) == [*_TEN, "shim"]
    device = await guessed.add("uid-alice")
    assert error_of(await guessed.rest("ping", upgrade, u="alice", p=device.secret)) is None


async def test_a_call_that_needs_no_credentials_makes_no_client_exempt(
    guessed: RunningShim,
) -> None:
    client = "192.0.2.30"
    for call in ("getOpenSubsonicExtensions", "getOpenSubsonicExtensions.view", "nothing"):
        await guessed.rest(call, _from(client), u="dave", p="wrong")
    await guessed.client.get("/rest/ping?u=dave&p=wrong", headers=_from(client))  # error 10
    assert await _guess(guessed, client, 11) == [*_TEN, "shim"]


async def test_unknown_api_keys_are_delayed_for_the_client(guessed: RunningShim) -> None:
    client = "192.0.2.40"
    codes = [
        error_of(await guessed.rest("ping", _from(client), apiKey=f"unknown {number}"))
        for number in range(31)
    ]
    assert codes == [44] * 30 + [40]
    refused = guessed.logged(kind="device_login_failed", reason="api_key_unknown")
    assert refused
    assert not [line for line in refused if "claimed_user" in line], "an API key names no user"


async def test_other_accounts_of_one_client_share_a_limit(guessed: RunningShim) -> None:
    network = "2001:db8:1:2::"
    responders = [
        _responder(
            await guessed.rest("ping", _from(f"{network}{number:x}"), u=f"user{number}", p="wrong")
        )
        for number in range(1, 32)
    ]
    assert responders == ["navidrome"] * 30 + ["shim"]


async def test_guesses_at_once_are_limited_too(guessed: RunningShim) -> None:
    first = await asyncio.gather(
        *(
            guessed.rest("ping", _from("192.0.2.50"), u="dave", p=f"wrong {number}")
            for number in range(100)
        )
    )
    responders = [_responder(response) for response in first]
    assert 1 <= responders.count("navidrome") <= MAX_AT_ONCE + 10
    right = await asyncio.gather(
        *(
            guessed.rest("ping", _from("192.0.2.51"), u="dave", p="right")
            for _ in range(MAX_AT_ONCE)
        )
    )
    assert {error_of(response) for response in right} == {None}
