"""Rights follow groups, denied users are locked out, and unmanaged rights are unchanged."""

from __future__ import annotations

from dataclasses import replace

from shim.audit.events.provisioning import AccountChanged, AccountDemotionSkipped, AccountLocked
from shim.provisioning.models import AuditContext
from shim.trust.reasons import Reason
from tests.support.harness import Harness, person


async def test_a_user_without_an_allowed_group_gets_no_account(harness: Harness) -> None:
    await harness.start(ALLOWED_GROUPS="music,guests")
    assert await harness.reason(person("eve", "staff")) is Reason.GROUP_NOT_ALLOWED
    assert await harness.reason(person("eve")) is Reason.GROUP_NOT_ALLOWED
    assert not await harness.users()
    assert await harness.request(person("eve", "x", "guests")) == "eve"


async def test_a_denied_user_loses_password_and_rights(harness: Harness) -> None:
    await harness.start(ALLOWED_GROUPS="music", ADMIN_GROUPS="admins")
    await harness.create("keeper", isAdmin=True)
    await harness.request(person("eve", "music", "admins"))
    eve = await harness.user("eve")
    await harness.call("PUT", f"/api/user/{eve['id']}", {**eve, "password": "mine"})
    assert await harness.reason(person("eve", "other")) is Reason.GROUP_NOT_ALLOWED
    assert not await harness.accepts_password("eve", "mine")
    assert (await harness.user("eve"))["isAdmin"] is False
    assert len(harness.recorded(AccountLocked)) == 1
    assert await harness.reason(person("eve", "other")) is Reason.GROUP_NOT_ALLOWED
    assert len(harness.recorded(AccountLocked)) == 1
    assert await harness.request(person("eve", "music")) == "eve"


async def test_a_claimed_identity_of_an_untrusted_peer_locks_no_account(harness: Harness) -> None:
    await harness.start(ALLOWED_GROUPS="music")
    await harness.request(person("eve", "music"))
    eve = await harness.user("eve")
    await harness.call("PUT", f"/api/user/{eve['id']}", {**eve, "password": "mine"})
    assert await harness.reason(person("eve", "music", uid="x")) is Reason.IDENTITY_CONFLICT
    assert await harness.reason(person("eve", uid="x")) is Reason.GROUP_NOT_ALLOWED
    assert await harness.accepts_password("eve", "mine")


async def test_the_admin_right_follows_the_groups_at_the_next_request(harness: Harness) -> None:
    await harness.start(ADMIN_GROUPS="admins")
    await harness.create("keeper", isAdmin=True)
    await harness.request(person("alice", "admins"))
    assert (await harness.user("alice"))["isAdmin"] is True
    await harness.request(person("alice"))
    assert (await harness.user("alice"))["isAdmin"] is False
    await harness.request(person("alice", "admins"))
    assert (await harness.user("alice"))["isAdmin"] is True
    changes = [change for event in harness.recorded(AccountChanged) for change in event.changes]
    assert changes == ["isAdmin: True → False", "isAdmin: False → True"]


async def test_the_last_admin_beside_the_shims_own_is_demoted_too(harness: Harness) -> None:
    await harness.start(ADMIN_GROUPS="admins")
    await harness.request(person("alice", "admins"))
    assert await harness.request(person("alice")) == "alice"
    assert (await harness.user("alice"))["isAdmin"] is False


async def test_without_admin_groups_the_admin_right_is_not_managed(harness: Harness) -> None:
    await harness.start()
    await harness.request(person("alice"))
    await harness.change("alice", isAdmin=True)
    await harness.request(person("alice", "x", display="Alice"))
    await harness.accounts.service.reconcile()
    assert (await harness.user("alice"))["isAdmin"] is True


async def test_fields_changed_by_hand_are_unchanged_and_no_field_is_lost(harness: Harness) -> None:
    await harness.start()
    await harness.request(person("alice", display="Alice", email="a@example.com"))
    await harness.page("alice")
    by_hand = {"name": "Own Name", "scrobbleFilter": '{"all":[{"is":{"loved":true}}]}'}
    await harness.change("alice", **by_hand)
    before = await harness.user("alice")
    await harness.request(person("alice", display="Alice", email="b@example.com"))
    after = await harness.user("alice")
    assert (after["name"], after["email"]) == ("Own Name", "b@example.com")
    for user in (before, after):
        user.pop("updatedAt")
        user.pop("email")
        user.pop("lastAccessAt")
    assert after == before


async def test_libraries_follow_the_groups(stand_in_harness: Harness) -> None:
    harness = stand_in_harness
    await harness.start(
        LIBRARY_GROUPS='{"family": ["Family", 1], "kids": ["Kids"], "odd": ["None"]}'
    )
    await harness.request(person("alice", "family"))
    await harness.request(person("bob", "kids", "x"))
    await harness.request(person("carol", "x"))
    assert await _libraries(harness, "alice") == [1, 2]
    assert await _libraries(harness, "bob") == [3]
    assert await _libraries(harness, "carol") == [1]
    await harness.request(person("alice", "kids"))
    assert await _libraries(harness, "alice") == [3]
    await harness.request(person("alice"))
    assert await _libraries(harness, "alice") == [1]
    assert "libraries: Kids → Music Library" in harness.recorded(AccountChanged)[-1].changes
    await harness.request(person("alice", "odd"))
    assert await _libraries(harness, "alice") == [1]


async def test_a_user_who_leaves_the_last_library_group_loses_its_libraries(
    stand_in_harness: Harness,
) -> None:
    harness = stand_in_harness
    await harness.start(LIBRARY_GROUPS='{"family": ["Family"]}')
    accounts = harness.stand_in.stand_in.state.accounts
    accounts.libraries = tuple(
        replace(each, default_new_users=False) for each in accounts.libraries
    )
    for name in ("alice", "bob"):
        await harness.request(person(name, "family"))
        assert await _libraries(harness, name) == [2]
        user = await harness.user(name)
        await harness.call("PUT", f"/api/user/{user['id']}", {**user, "password": "mine"})
    assert await harness.reason(person("alice")) is Reason.GROUP_NOT_ALLOWED
    assert not await harness.accepts_password("alice", "mine")
    assert await harness.reason(person("alice")) is Reason.GROUP_NOT_ALLOWED
    await harness.restart(LIBRARY_GROUPS='{"kids": ["Kids"]}')
    await harness.accounts.service.reconcile()
    assert not await harness.accepts_password("bob", "mine")
    assert len(harness.recorded(AccountLocked)) == 2
    assert await harness.request(person("alice", "kids")) == "alice"
    assert await _libraries(harness, "alice") == [3]
    assert await harness.request(person("carol")) == "carol", "the new account has no library"
    assert await _libraries(harness, "carol") == []


async def _libraries(harness: Harness, name: str) -> list[int]:
    return [library["id"] for library in (await harness.user(name)).get("libraries", [])]


async def test_an_unlinked_account_that_stays_an_admin_is_reported(harness: Harness) -> None:
    parts = await harness.start(ADMIN_GROUPS="admins")
    await harness.request(person("alice", "admins"))
    binding = parts.service.bindings.by_uid("uid-of-alice")
    assert binding is not None
    identity = replace(binding.identity, groups=())
    binding = await parts.service.bindings.put(replace(binding, identity=identity))

    await parts.service.lifecycle.unlink(binding, AuditContext("admin_action", identity))

    (skipped,) = harness.recorded(AccountDemotionSkipped)
    assert (skipped.account, skipped.uid) == ("alice", "uid-of-alice")
    assert "unlinked" in skipped.detail
    assert (await harness.user("alice"))["isAdmin"] is True


async def test_a_reserved_account_that_stays_an_admin_is_reported_once(harness: Harness) -> None:
    await harness.start(ADMIN_GROUPS="admins")
    await harness.request(person("alice"))
    await harness.request(person("bob", "x"))
    await harness.change("alice", isAdmin=True)
    await harness.change("bob", isAdmin=True)

    parts = await harness.restart(ADMIN_GROUPS="admins", PROTECTED_USERS="alice")
    for _ in range(2):
        await parts.service.reconciler.run()

    (skipped,) = harness.recorded(AccountDemotionSkipped)
    assert (skipped.account, skipped.trigger) == ("alice", "reconcile")
    assert "reserved" in skipped.detail
    assert (await harness.user("alice"))["isAdmin"] is True
    assert (await harness.user("bob"))["isAdmin"] is False, (
        "the run continues with the other accounts"
    )
