"""A user's first request: one account is created from the identity, with a random password."""

from __future__ import annotations

import asyncio
import logging

import pytest

from shim.audit.events.provisioning import AccountCreated, AdminCreated
from shim.provisioning.gate import ProvisioningGate
from shim.trust.reasons import Reason
from tests.support.harness import LONG_TIMEOUTS, Harness, person


async def test_an_empty_server_gets_the_shims_admin_and_no_user_becomes_it(
    harness: Harness,
) -> None:
    await harness.start()
    assert await harness.request(person("alice")) == "alice"
    assert (await harness.user("alice"))["isAdmin"] is False
    own = next(
        u for u in await harness.call("GET", "/api/user") if u["userName"] == "navidrome-shim"
    )
    assert own["isAdmin"] is True
    assert [event.first for event in harness.recorded(AdminCreated)] == [True]


async def test_a_first_request_creates_the_account(harness: Harness) -> None:
    await harness.start()
    alice = person("alice", "music", display="Alice Ä.", email="alice@example.com")
    assert await harness.request(alice) == "alice"
    created = await harness.user("alice")
    assert (created["name"], created["email"], created["isAdmin"]) == (
        "Alice Ä.",
        "alice@example.com",
        False,
    )
    [event] = harness.recorded(AccountCreated)
    assert (event.account, event.uid, event.groups) == ("alice", "uid-of-alice", ("music",))
    assert (event.peer, event.request_id, event.trigger) == ("192.0.2.9", "r-1", "request")


async def test_a_known_account_needs_no_io(stand_in_harness: Harness) -> None:
    harness = stand_in_harness
    await harness.start()
    await harness.request(person("alice"))
    harness.stand_in.stand_in.seen.clear()
    for _ in range(5):
        known = harness.accounts.gate.known(person("alice"))
        assert known is not None and known.user_name == b"alice"
    assert harness.accounts.gate.known(person("alice", "more")) is None
    assert not harness.stand_in.stand_in.seen


async def test_the_owner_of_a_created_account_sets_a_password_without_the_old_one(
    harness: Harness,
) -> None:
    await harness.start()
    await harness.request(person("alice"))
    alice = await harness.user("alice")
    assert not await harness.accepts_password("alice", "")
    await harness.call("PUT", f"/api/user/{alice['id']}", {**alice, "password": "mine"}, "alice")
    assert await harness.accepts_password("alice", "mine")
    await harness.request(person("alice", display="Alice B."))
    assert (await harness.user("alice"))["name"] == "Alice B."
    assert await harness.accepts_password("alice", "mine")


async def test_two_hundred_first_requests_of_one_user_create_one_account_with_one_post(
    stand_in_harness: Harness,
) -> None:
    harness = stand_in_harness
    await harness.start()
    responses = await asyncio.gather(*(harness.request(person("alice")) for _ in range(200)))
    assert set(responses) == {"alice"}
    assert harness.stand_in.requests("POST", "/api/user") == 1
    assert list(await harness.users()) == ["alice"]


async def test_two_hundred_concurrent_first_requests_create_one_account(harness: Harness) -> None:
    await harness.start()
    responses = await asyncio.gather(*(harness.request(person("alice")) for _ in range(200)))
    assert set(responses) == {"alice"}
    assert list(await harness.users()) == ["alice"]


async def test_names_that_differ_only_in_case_never_become_two_accounts(harness: Harness) -> None:
    await harness.start()
    names = ("RaCe2", "rAcE2", "RACE2", "race2")
    people = [person(name, uid=f"uid-{number}") for number, name in enumerate(names)]
    responses = await asyncio.gather(*(harness.reason(one) for one in people))
    assert len(await harness.users()) == 1
    assert responses.count(Reason.IDENTITY_CONFLICT) == 3


@pytest.mark.usefixtures("unlimited_busy_timeout")
async def test_many_concurrent_new_users_get_one_account_each(harness: Harness) -> None:
    await harness.start(**LONG_TIMEOUTS)
    names = [f"user{number}" for number in range(500)]
    responses = await asyncio.gather(*(harness.request(person(name)) for name in names))
    assert responses == names
    assert sorted(await harness.users()) == sorted(names)


async def test_a_disconnected_client_does_not_cancel_provisioning_for_others(
    stand_in_harness: Harness,
) -> None:
    harness = stand_in_harness
    gate: ProvisioningGate = (await harness.start()).gate
    from tests.support.harness import REQUEST_INFO

    first, second = (
        gate.ensure(person("alice"), REQUEST_INFO),
        gate.ensure(person("alice"), REQUEST_INFO),
    )
    await asyncio.sleep(0)
    first.cancel()
    assert await second == gate.known(person("alice"))


async def test_a_restarted_shim_knows_its_bindings(harness: Harness) -> None:
    await harness.start()
    await harness.request(person("alice"))
    await harness.restart()
    assert await harness.request(person("alice")) == "alice"
    assert await harness.reason(person("Alice", uid="other")) is Reason.IDENTITY_CONFLICT
    assert list(await harness.users()) == ["alice"]


@pytest.mark.parametrize(
    "name",
    [
        "with blanks inside",
        'o\'brien "quotes"',
        "\U0001f3b5 emoji",
        "x" * 255,
        "right\u202eto-left",
        "percent%41&=?#/\\",
        "Ünï",
        "a_%",
    ],
)
async def test_unusual_names_get_one_account_each(harness: Harness, name: str) -> None:
    await harness.start()
    assert await harness.request(person(name)) == name
    await harness.request(person(name, display="Changed"))
    assert (await harness.user(name))["name"] == "Changed"
    assert not await harness.accepts_password(name, "")


async def test_an_invalid_email_is_omitted_and_reported(harness: Harness) -> None:
    await harness.start()
    await harness.request(person("alice", email="no e-mail"))
    assert (await harness.user("alice"))["email"] == ""
    assert harness.recorded(AccountCreated)[0].notes


async def test_no_password_is_stored_or_logged(
    harness: Harness, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shim.navidrome import api
    from shim.provisioning import account_writer

    created: list[str] = []
    generate = api.generated_password

    def stored() -> str:
        created.append(generate())
        return created[-1]

    monkeypatch.setattr(account_writer, "generated_password", stored)
    caplog.set_level(logging.DEBUG)
    await harness.start()
    await harness.request(person("alice"))
    assert len(created) == 1
    assert created[0].startswith("__NAVIDROME_AUTOGEN__") and len(created[0]) >= 21 + 43
    assert await harness.accepts_password("alice", created[0])
    database = (harness.folder / "shim.db").read_bytes() + (
        harness.folder / "shim.db-wal"
    ).read_bytes()
    for text in (repr(harness.events), caplog.text, database.decode("latin-1")):
        assert created[0][21:] not in text
