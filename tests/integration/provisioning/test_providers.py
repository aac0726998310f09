"""Accounts of every provider's users: created, found again, kept apart, moved to another provider."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from shim.audit.events.provisioning import AccountRebound
from shim.trust.identity import Identity
from shim.trust.reasons import Reason
from tests.integration.provisioning.test_commands import run
from tests.support.harness import Harness
from tests.support.provider_headers import SENDS, Sent

BY_NAME = {sent.provider: sent for sent in SENDS}
AUTHENTIK = BY_NAME["authentik"]


def settings(name: str) -> dict[str, str]:
    return {"PROVIDER": name, **BY_NAME[name].settings}


async def rebind(harness: Harness, *arguments: str) -> tuple[int, dict[str, Any]]:
    status, out, err = await run(harness, "users", "rebind", *arguments, "--json")
    assert out, err
    return status, json.loads(out)


async def explained(
    harness: Harness, user: str, *fields: str, step_name: str = "account"
) -> dict[str, str]:
    """The text of one step of `explain` for an Authelia user, and the reason."""
    headers = [part for line in (f"Remote-User: {user}", *fields) for part in ("-H", line)]
    explain_arguments = ("explain", "--peer", "127.0.0.1", "--path", "/api/user", *headers)
    _, out, err = await run(harness, *explain_arguments, "--json")
    assert out, err
    explanation = json.loads(out)
    step = next(step for step in explanation["steps"] if step["step"] == step_name)
    return {"step": step["result"], "why": step["why"], "reason": explanation["reason"]}


@pytest.mark.parametrize("sent", SENDS, ids=lambda sent: sent.provider)
async def test_a_user_of_the_provider_gets_one_account(tcp_harness: Harness, sent: Sent) -> None:
    harness = tcp_harness
    await harness.start(**settings(sent.provider))
    name = sent.identity.username
    assert await harness.request(sent.identity) == name
    assert await harness.request(sent.identity) == name
    created = await harness.user(name)
    assert created["name"] == (sent.identity.name or name)
    assert created["email"] == (sent.identity.email or "")
    binding = harness.accounts.service.bindings.by_uid(sent.identity.uid or "")
    assert binding is not None
    assert binding.uid_source == sent.identity.uid_source
    await harness.restart()
    assert await harness.request(sent.identity) == name


async def test_a_uid_of_another_source_never_matches(tcp_harness: Harness) -> None:
    harness = tcp_harness
    await harness.start()
    ada = replace(AUTHENTIK.identity, uid="7")
    assert await harness.request(ada) == "ada"
    # The same uid from another provider, with any name, in any group.
    other = replace(ada, username="eve", uid_source="header x-auth-request-user", groups=())
    assert await harness.reason(other) is Reason.UID_SOURCE_CHANGED
    await harness.restart(ALLOWED_GROUPS="admins")
    assert await harness.reason(other) is Reason.UID_SOURCE_CHANGED
    # Neither is the first user's account locked by it, nor by a user with the name.
    assert await harness.request(ada) == "ada"
    same_name = replace(ada, uid="8", uid_source="header x-auth-request-user")
    assert await harness.reason(same_name) is Reason.IDENTITY_CONFLICT


async def test_a_held_name_is_free_for_the_same_source_only(tcp_harness: Harness) -> None:
    harness = tcp_harness
    await harness.start()
    ada = replace(AUTHENTIK.identity, uid="7")
    await harness.request(ada)
    await harness.delete("ada")
    other = replace(ada, uid_source="header x-auth-request-user")
    assert await harness.reason(other) is Reason.UID_SOURCE_CHANGED
    await harness.accounts.service.reconciler.run()
    assert await harness.reason(other) is Reason.NAME_HELD
    assert await harness.request(ada) == "ada"


async def test_a_uid_of_an_earlier_version_is_a_headers(stand_in_harness: Harness) -> None:
    harness = stand_in_harness
    await harness.start()
    before = Identity("ada", None, None, (), "7")
    assert await harness.request(before) == "ada"
    claimed = replace(before, uid_source="claim sub of https://idp.example.org")
    assert await harness.reason(claimed) is Reason.UID_SOURCE_CHANGED
    now = replace(before, uid_source="header x-authentik-uid")
    assert await harness.request(now) == "ada"
    # From now on it has a source.
    moved = replace(before, uid_source="header x-auth-request-user")
    assert await harness.reason(moved) is Reason.UID_SOURCE_CHANGED


async def test_every_user_is_moved_to_a_provider_without_an_id(tcp_harness: Harness) -> None:
    harness = tcp_harness
    await harness.start()
    await harness.request(AUTHENTIK.identity)
    await harness.request(replace(AUTHENTIK.identity, username="Bob", uid="b0b"))
    ada = BY_NAME["authelia"].identity
    await harness.restart(**settings("authelia"))
    assert await harness.reason(ada) is Reason.IDENTITY_CONFLICT
    status, plan = await rebind(harness, "--all", "--dry-run")
    assert status == 0
    assert plan["applied"] is False
    _, out, _ = await run(harness, "users", "rebind", "--all", "--dry-run")
    assert "ada (user name of authelia)" in " ".join(out.split())
    assert "Nothing was changed" in out
    assert "Device passwords end where the uid changes" in " ".join(out.split())
    assert (await explained(harness, "ada"))["reason"] == "identity_conflict"
    assert [(each["account"], each["uid"]) for each in plan["accounts"]] == [
        ("ada", "ada"),
        ("Bob", "Bob"),
    ]
    assert await harness.reason(ada) is Reason.IDENTITY_CONFLICT
    assert (await rebind(harness, "--all"))[1]["applied"] is False
    assert (await rebind(harness, "--all", "--yes"))[1]["applied"] is True
    assert (await explained(harness, "ada"))["step"] == "bound"
    await harness.restart()
    assert await harness.request(ada) == "ada"
    # A name in another case is another user, and gets no existing account.
    bob = replace(ada, username="bob", uid="bob")
    assert await harness.reason(bob) is Reason.IDENTITY_CONFLICT
    assert await harness.request(replace(ada, username="Bob", uid="Bob")) == "Bob"
    # The old uid has no account.
    assert await harness.reason(AUTHENTIK.identity) is Reason.IDENTITY_CONFLICT
    assert await rebind(harness, "--all", "--dry-run") == (0, {"accounts": [], "applied": False})


async def test_every_user_is_moved_to_a_provider_with_another_id(tcp_harness: Harness) -> None:
    harness = tcp_harness
    await harness.start()
    await harness.request(AUTHENTIK.identity)
    pomerium = BY_NAME["pomerium"].identity
    await harness.restart(**settings("pomerium"))
    assert await harness.request(pomerium) == "ada@example.org"
    await harness.delete("ada@example.org")
    await harness.accounts.service.reconciler.run()
    _, plan = await rebind(harness, "ada", "--yes")
    assert plan["accounts"][0]["waits"] is True
    assert plan["accounts"][0]["user_name"] == "ada@example.org"
    await harness.restart()
    listed = json.loads((await run(harness, "users", "list", "--json"))[1])
    assert [line["state"] for line in listed if line["account"] == "ada"] == ["waiting"]
    # Neither its old name, nor a uid that looks like the one that waits, is the user's.
    waiting = replace(pomerium, username="x", uid="rebind ada@example.org")
    assert await harness.reason(waiting) is Reason.UID_SOURCE_CHANGED
    by_name = replace(pomerium, username="ada", email="ada@evil.example", uid="e")
    assert await harness.reason(by_name) is Reason.IDENTITY_CONFLICT
    # Its user keeps the account, under its old name, and no other user gets it after that.
    again = replace(pomerium, uid="idp-8")
    assert await harness.request(again) == "ada"
    (event,) = harness.recorded(AccountRebound)
    assert (event.account, event.uid, event.uid_source) == ("ada", "idp-8", again.uid_source)
    assert await harness.request(again) == "ada"
    assert await harness.reason(replace(pomerium, uid="idp-9")) is Reason.NAME_HELD
    binding = harness.accounts.service.bindings.by_uid("idp-8")
    assert binding is not None
    assert binding.uid_source == pomerium.uid_source


async def test_new_uids_of_the_same_source_are_adopted_on_request(tcp_harness: Harness) -> None:
    harness = tcp_harness
    await harness.start()
    await harness.request(AUTHENTIK.identity)
    assert (await rebind(harness, "--all", "--yes"))[1]["accounts"] == []
    _, plan = await rebind(harness, "--all", "--same-source", "--yes")
    assert [each["waits"] for each in plan["accounts"]] == [True]
    await harness.restart()
    changed = replace(AUTHENTIK.identity, uid="subject-mode-changed")
    assert await harness.request(changed) == "ada"
    assert await harness.reason(AUTHENTIK.identity) is Reason.IDENTITY_CONFLICT


async def test_an_account_that_cannot_be_moved_is_named(stand_in_harness: Harness) -> None:
    harness = stand_in_harness
    await harness.start()
    await harness.request(AUTHENTIK.identity)
    await harness.request(replace(AUTHENTIK.identity, username="bob", uid="b", email=None))
    await harness.request(
        replace(AUTHENTIK.identity, username="eve", uid="e", email="ada@example.com")
    )
    local_part = {"USERNAME_FROM_EMAIL": "local-part", "UID_SOURCE": "email"}
    await harness.restart(PROVIDER="authelia", **local_part, EMAIL_DOMAINS="example.org")
    status, plan = await rebind(harness, "--all", "--yes")
    assert status == 1
    problems = {each["account"]: each["problem"] for each in plan["accounts"]}
    assert problems["ada"] == ""
    assert "no e-mail is known" in problems["bob"]
    assert "SHIM_EMAIL_DOMAINS" in problems["eve"]
    await harness.restart()
    ada = Identity("ada", None, "ada@example.org", None, "ada@example.org", "e-mail of authelia")
    assert await harness.request(ada) == "ada"
    await harness.restart(PROVIDER="authelia", **local_part)
    _, plan = await rebind(harness, "--all", "--dry-run")
    assert {each["account"]: each["uid"] for each in plan["accounts"] if not each["problem"]} == {
        "eve": "ada@example.com"
    }


async def test_a_uid_that_looks_like_a_waiting_one_gets_no_account(
    stand_in_harness: Harness,
) -> None:
    harness = stand_in_harness
    await harness.start()
    eve = replace(AUTHENTIK.identity, username="eve", uid="rebind bob")
    assert await harness.request(eve) == "eve"
    assert await harness.request(replace(AUTHENTIK.identity, username="bob", uid="b")) == "bob"


async def test_two_accounts_never_get_the_same_uid(stand_in_harness: Harness) -> None:
    harness = stand_in_harness
    await harness.start()
    ada = AUTHENTIK.identity
    for name in ("ada", "bob"):
        await harness.request(replace(ada, username=name, uid=name))
    await harness.request(replace(ada, username="eve", uid="e", email="eve@example.org"))
    await harness.restart(PROVIDER="authelia", UID_SOURCE="email")
    status, plan = await rebind(harness, "--all", "--yes")
    assert status == 1
    problems = {each["account"]: each["problem"] for each in plan["accounts"]}
    assert problems == {
        "ada": "another account would have the uid ada@example.org too",
        "bob": "another account would have the uid ada@example.org too",
        "eve": "",
    }
    await harness.restart()
    bound = {each.user_name: each.uid for each in harness.accounts.service.bindings.all()}
    assert bound == {"ada": "ada", "bob": "bob", "eve": "eve@example.org"}


async def test_explain_names_the_path_of_a_group(stand_in_harness: Harness) -> None:
    harness = stand_in_harness
    await harness.start(PROVIDER="authelia", ALLOWED_GROUPS="music")
    policy = await explained(harness, "ada", "Remote-Groups: /home/music", step_name="policy")
    assert policy["reason"] == "group_not_allowed"
    assert "with its whole path, as the provider sends it: /home/music" in policy["why"]
