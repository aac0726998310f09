"""`users list|sync|unlink|lock` and `check`, as an operator runs them beside a running shim."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from shim.audit.events.provisioning import AccountLinked
from shim.trust.reasons import Reason
from tests.support.commands import run_command
from tests.support.harness import Harness, person


async def run(harness: Harness, *arguments: str) -> tuple[int, str, str]:
    return await run_command(harness.environment(), *arguments)


async def as_json(harness: Harness, *arguments: str) -> Any:
    status, out, err = await run(harness, *arguments, "--json")
    assert status == 0, err
    return json.loads(out)


async def test_the_list_has_the_owner_of_every_account(any_store_harness: Harness) -> None:
    harness = any_store_harness
    await harness.start(ALLOWED_GROUPS="music")
    await harness.request(person("alice", "music"))
    await harness.request(person("eve", "music"))
    await harness.request(person("eve"))
    await harness.create("guest", "")
    listed = {line["account"]: line for line in await as_json(harness, "users", "list")}
    states = {name: line["state"] for name, line in listed.items()}
    assert states == {
        "alice": "active",
        "eve": "denied",
        "guest": "unbound",
        "navidrome-shim": "reserved",
    }
    assert listed["alice"]["uid"] == "uid-of-alice"
    assert listed["alice"]["first_seen"].endswith("Z")
    assert listed["alice"]["last_seen"].endswith("Z")
    assert listed["guest"]["first_seen"] is None
    assert [name for name, line in listed.items() if line["empty_password"]] == ["guest"]
    _, out, _ = await run(harness, "users", "list")
    assert "empty password" in out and "alice" in out
    for filters, names in (
        (("--state", "active"), {"alice"}),
        (("--state", "active", "--state", "denied"), {"alice", "eve"}),
        (("--name", "E"), {"alice", "eve", "guest", "navidrome-shim"}),
        (("--name", "ali", "--state", "denied"), set()),
    ):
        found = await as_json(harness, "users", "list", *filters)
        assert {line["account"] for line in found} == names
    assert (await run(harness, "users", "list", "--state", "odd"))[0] == 2
    await harness.request(person("alice", "music", display="Alice"))
    await harness.change("alice", name="\x1b[2J\nA\u202e")
    _, out, err = await run(harness, "users", "sync", "--all")
    assert "\\u001b" in out
    assert all(c.isprintable() or c == "\n" for c in out + err)


async def test_an_unlinked_account_is_claimed_by_the_next_user(any_store_harness: Harness) -> None:
    harness = any_store_harness
    await harness.start(LINK_EXISTING="none")
    await harness.request(person("alice"))
    alice = await harness.user("alice")
    await harness.call("PUT", f"/api/user/{alice['id']}", {**alice, "password": "mine"})
    assert await harness.reason(person("alice", uid="new")) is Reason.IDENTITY_CONFLICT
    done = await as_json(harness, "users", "unlink", "ALICE", "--yes")
    assert done == {"account": "ALICE", "unlinked": True, "locked": True}
    assert harness.accounts.gate.known(person("alice")) is None
    assert not await harness.accepts_password("alice", "mine")
    assert await harness.request(person("alice", uid="new")) == "alice"
    assert (await harness.user("alice"))["id"] == alice["id"]
    assert len(harness.recorded(AccountLinked)) == 1
    assert await harness.reason(person("alice")) is Reason.IDENTITY_CONFLICT
    status, _, err = await run(harness, "users", "unlink", "nobody", "--yes")
    assert status == 1 and "nobody" in err


async def test_an_account_is_unlinked_while_navidrome_is_down_and_locked_later(
    stand_in_harness: Harness,
) -> None:
    harness = stand_in_harness
    await harness.start(RECONCILE_SECONDS="1")
    await harness.request(person("alice"))
    alice = await harness.user("alice")
    await harness.call("PUT", f"/api/user/{alice['id']}", {**alice, "password": "mine"})
    await harness.server.stop()
    done = await as_json(harness, "users", "unlink", "alice", "--yes")
    assert done["locked"] is False
    await harness.server.start()
    async with asyncio.timeout(10):
        while await harness.accepts_password("alice", "mine"):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_lock_replaces_an_accounts_password(tcp_harness: Harness) -> None:
    harness = tcp_harness
    await harness.start(PROTECTED_USERS="boss")
    await harness.request(person("alice"))
    await harness.create("guest", "")
    await harness.create("boss", "secret")
    assert await harness.accepts_password("guest", "")
    locked = await as_json(harness, "users", "lock", "guest", "--yes")
    assert locked == {"account": "guest", "locked": True}
    assert not await harness.accepts_password("guest", "")
    for name in ("boss", "navidrome-shim", "nobody"):
        status, _, err = await run(harness, "users", "lock", name, "--yes")
        assert status == 1 and name in err
    assert await harness.accepts_password("boss", "secret")


async def test_unlink_and_lock_show_their_effect_and_ask_for_confirmation(
    tcp_harness: Harness,
) -> None:
    harness = tcp_harness
    await harness.start()
    await harness.request(person("alice"))
    alice = await harness.user("alice")
    await harness.call("PUT", f"/api/user/{alice['id']}", {**alice, "password": "mine"})
    for command in ("unlink", "lock"):
        for option in ((), ("--json",)):
            status, _, err = await run(harness, "users", command, "alice", *option)
            assert status == 1
            assert "uid-of-alice" in err and "password" in err and "--yes" in err
    assert harness.accounts.gate.known(person("alice")) is not None
    assert await harness.accepts_password("alice", "mine")


async def test_a_deleted_account_is_unlinked_and_its_name_is_held_for_its_user(
    any_store_harness: Harness,
) -> None:
    harness = any_store_harness
    await harness.start(RECONCILE_SECONDS="3600")
    await harness.request(person("alice"))
    await harness.delete("alice")
    status, _, err = await run(harness, "users", "unlink", "alice")
    assert status == 1 and "deleted" in err and "holds end" in err
    done = await as_json(harness, "users", "unlink", "alice", "--yes")
    assert done["unlinked"] is True
    [hold] = await as_json(harness, "users", "holds", "list")
    assert (hold["name"], hold["uid"]) == ("alice", "uid-of-alice")
    assert await harness.reason(person("Alice", uid="other")) is Reason.NAME_HELD
    assert await harness.request(person("alice")) == "alice"
    assert await harness.reason(person("alice", uid="other")) is Reason.IDENTITY_CONFLICT


async def test_a_hold_is_listed_and_ended(any_store_harness: Harness) -> None:
    harness = any_store_harness
    await harness.start()
    await harness.request(person("alice"))
    await harness.delete("alice")
    await harness.accounts.service.reconcile()
    assert await harness.reason(person("alice", uid="other")) is Reason.NAME_HELD
    _, out, _ = await run(harness, "users", "holds", "list")
    assert "alice" in out and "uid-of-alice" in out
    assert await as_json(harness, "users", "holds", "end", "ALICE") == {
        "name": "ALICE",
        "held": False,
    }
    assert await harness.request(person("alice", uid="other")) == "alice"
    assert await as_json(harness, "users", "holds", "list") == []
    status, _, err = await run(harness, "users", "holds", "end", "alice")
    assert status == 1 and "not held" in err


async def test_the_lock_of_an_unlinked_account_can_be_ended(
    tcp_harness: Harness,
) -> None:
    harness = tcp_harness
    await harness.create_first()
    await harness.confirm_new()
    guest = await harness.create("guest")
    await harness.start()
    await harness.request(person("alice"))
    assert (await as_json(harness, "users", "lock", "guest", "--yes"))["locked"] is True
    rule = harness.accounts.service.bindings.rule_of(guest)
    assert rule is not None and rule.locked
    assert (await as_json(harness, "users", "unlock", "guest"))["locked"] is False
    await harness.accounts.service.refresh()
    gate = harness.accounts.gate
    assert not gate.navidrome_token_valid("guest", guest, rule.void_before)
    assert gate.navidrome_token_valid("guest", guest, rule.void_before + 1)
    for name in ("alice", "guest"):
        status, _, err = await run(harness, "users", "unlock", name)
        assert status == 1 and "not locked" in err


async def test_sync_shows_its_changes_first(tcp_harness: Harness) -> None:
    harness = tcp_harness
    await harness.start(ADMIN_GROUPS="admins", RECONCILE_SECONDS="3600")
    await harness.create("keeper", isAdmin=True)
    await harness.request(person("alice", display="Alice", email="a@example.com"))
    await harness.accounts.service.reconcile()
    await harness.change("alice", name="Own", isAdmin=True)
    planned = await as_json(harness, "users", "sync", "alice")
    assert planned["applied"] is False
    rows = {(row["field"], row["old"], row["new"]) for row in planned["changes"]}
    assert rows == {("name", "Own", "Alice"), ("isAdmin", "True", "False")}
    assert (await harness.user("alice"))["name"] == "Own"
    status, out, _ = await run(harness, "users", "sync", "--all")
    assert status == 0 and "Own" in out and "Nothing was changed" in out
    done = await as_json(harness, "users", "sync", "--all", "--yes")
    assert done["applied"] is True
    alice = await harness.user("alice")
    assert (alice["name"], alice["isAdmin"]) == ("Alice", False)
    assert await as_json(harness, "users", "sync", "alice") == {"changes": [], "applied": False}
    assert (await run(harness, "users", "sync"))[0] == 2


async def test_check_names_problems_and_changes_nothing(tcp_harness: Harness) -> None:
    harness = tcp_harness
    checks = (await check(harness))["checks"]
    assert checks["accounts"]["state"] == "warning"
    assert "no users yet" in checks["accounts"]["detail"]
    assert not (harness.folder / "shim.db").exists()
    await harness.create_first()
    await harness.create("hole", "")
    checks = (await check(harness))["checks"]
    assert "confirm-new" in checks["accounts"]["remedy"]
    assert not (harness.folder / "shim.db").exists()
    await harness.confirm_new()
    checks = (await check(harness, LIBRARY_GROUPS='{"x": ["No Such"]}'))["checks"]
    assert "hole" in checks["accounts"]["detail"]
    await harness.delete("hole")
    checks = (await check(harness, LIBRARY_GROUPS='{"x": ["No Such"]}'))["checks"]
    assert "No Such" in checks["accounts"]["detail"]
    checks = (await check(harness, LIBRARY_GROUPS="{}"))["checks"]
    assert checks["accounts"]["state"] == "ok"
    output = await check(harness, DATABASE_URL="sqlite:////nowhere/at/all.db")
    assert output["checks"]["store"]["state"] == "failing" and output["ready"] is False


async def test_without_provisioning_an_empty_server_is_a_warning(tcp_harness: Harness) -> None:
    harness = tcp_harness
    checks = (await check(harness, PROVISIONING="false"))["checks"]
    assert checks["accounts"]["state"] == "warning"
    assert "first visitor" in checks["accounts"]["detail"]
    await harness.create_first()
    checks = (await check(harness))["checks"]
    assert checks["accounts"]["state"] == "ok"


async def test_check_reports_the_result_for_an_identity_of_each_account_name(
    stand_in_harness: Harness,
) -> None:
    harness = stand_in_harness
    await harness.create_first("admin", "secret-1")
    for name, admin in (("ada", False), ("boss", True)):
        record = {"userName": name, "password": "pw", "isAdmin": admin}
        await harness.call("POST", "/api/user", record, "admin")
    output = await check(
        harness, BOOTSTRAP_ADMIN="admin", ADMIN_GROUPS="admins", PROTECTED_USERS="boss"
    )
    accounts = {each["account"]: each for each in output["accounts"]}
    assert sorted(accounts) == ["ada", "admin", "boss"]
    assert "linked" in accounts["ada"]["outcome"]
    assert "becomes admin" in accounts["ada"]["with_admin_group"]
    assert "SHIM_LINK_EXISTING is users" in accounts["admin"]["outcome"]
    assert "reserved" in accounts["boss"]["outcome"]
    assert any("SHIM_ALLOWED_GROUPS is not set" in each for each in output["summary"])
    _, out, _ = await run(harness, "check")
    assert "becomes admin" in out and "May sign in: all users" in out


async def check(harness: Harness, **settings: str) -> Any:
    """The output of `check`, whatever its exit status."""
    harness.use(**settings)
    _, out, err = await run(harness, "check", "--json")
    assert out, err
    return json.loads(out)


def edge(name: str, *groups: str, uid: str = "") -> tuple[str, ...]:
    """`explain`'s arguments for a request of this user through the edge."""
    headers = {
        "username": name,
        "groups": "|".join(groups),
        "uid": uid or f"uid-of-{name.lower()}",
    }
    lines = (("-H", f"X-authentik-{key}: {value}") for key, value in headers.items())
    return ("explain", "--peer", "127.0.0.1", "--path", "/app/", *sum(lines, ()))


async def test_explain_shows_the_complete_decision_with_policy_and_binding(
    stand_in_harness: Harness,
) -> None:
    harness = stand_in_harness
    await harness.start(ALLOWED_GROUPS="music", PROTECTED_USERS="boss")
    await harness.request(person("Ada", "music"))
    for arguments, verdict, reason, why in (
        (edge("ada", "music"), "authenticated", "trusted_peer", "bound to the account Ada"),
        (edge("eve", "other"), "rejected", "group_not_allowed", "SHIM_ALLOWED_GROUPS (music)"),
        (edge("boss", "music"), "rejected", "reserved_account", "SHIM_PROTECTED_USERS"),
        (edge("ada", "music", uid="x"), "rejected", "identity_conflict", "uid-of-ada"),
        (edge("ada2", "music", uid="uid-of-ada"), "rejected", "rename_not_followed", "is jwt"),
        (edge("new", "music"), "authenticated", "trusted_peer", "no account with this name"),
    ):
        output = await as_json(harness, *arguments)
        assert (output["verdict"], output["reason"]) == (verdict, reason)
        assert why in output["steps"][-1]["why"]
        names = [step["step"] for step in output["steps"]]
        assert names == ["peer", "path", "identity", "policy", "account"][: len(names)]
    output = await as_json(harness, *edge("ada", "music"))
    assert ["Remote-User", "Ada"] in output["forwarded_headers"]
    _, out, _ = await run(harness, *edge("ada", "music"))
    assert "None" not in out and "True" not in out and "('" not in out and "['" not in out
    assert list(await harness.users()) == ["Ada"]
