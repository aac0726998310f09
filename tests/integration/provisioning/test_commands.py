"""`users list|sync|unlink|lock` and `check`, as an operator runs them beside a running shim."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from shim.audit.events.provisioning import AccountLinked
from shim.trust.reasons import Reason
from tests.support.world import World, person

ROOT = Path(__file__).parents[3]


async def run(world: World, *arguments: str) -> tuple[int, str, str]:
    """Run a command with the world's settings: its exit, stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "shim",
        *arguments,
        env=world.environment(),
        cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def as_json(world: World, *arguments: str) -> Any:
    status, out, err = await run(world, *arguments, "--json")
    assert status == 0, err
    return json.loads(out)


async def test_the_list_has_the_owner_of_every_account(any_store_world: World) -> None:
    world = any_store_world
    await world.start(ALLOWED_GROUPS="music")
    await world.request(person("alice", "music"))
    await world.request(person("eve", "music"))
    await world.request(person("eve"))
    await world.create("guest", "")
    listed = {line["account"]: line for line in await as_json(world, "users", "list")}
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
    _, out, _ = await run(world, "users", "list")
    assert "empty password" in out and "alice" in out
    for filters, names in (
        (("--state", "active"), {"alice"}),
        (("--state", "active", "--state", "denied"), {"alice", "eve"}),
        (("--name", "E"), {"alice", "eve", "guest", "navidrome-shim"}),
        (("--name", "ali", "--state", "denied"), set()),
    ):
        found = await as_json(world, "users", "list", *filters)
        assert {line["account"] for line in found} == names
    assert (await run(world, "users", "list", "--state", "odd"))[0] == 2
    await world.request(person("alice", "music", display="Alice"))
    await world.change("alice", name="\x1b[2J\nA\u202e")
    _, out, err = await run(world, "users", "sync", "--all")
    assert "\\u001b" in out
    assert all(c.isprintable() or c == "\n" for c in out + err)


async def test_an_unlinked_account_is_claimed_by_the_next_user(any_store_world: World) -> None:
    world = any_store_world
    await world.start(LINK_EXISTING="none")
    await world.request(person("alice"))
    alice = await world.user("alice")
    await world.call("PUT", f"/api/user/{alice['id']}", {**alice, "password": "mine"})
    assert await world.reason(person("alice", uid="new")) is Reason.IDENTITY_CONFLICT
    done = await as_json(world, "users", "unlink", "ALICE", "--yes")
    assert done == {"account": "ALICE", "unlinked": True, "locked": True}
    assert world.accounts.gate.known(person("alice")) is None
    assert not await world.opens("alice", "mine")
    assert await world.request(person("alice", uid="new")) == "alice"
    assert (await world.user("alice"))["id"] == alice["id"]
    assert len(world.recorded(AccountLinked)) == 1
    assert await world.reason(person("alice")) is Reason.IDENTITY_CONFLICT
    status, _, err = await run(world, "users", "unlink", "nobody", "--yes")
    assert status == 1 and "nobody" in err


async def test_an_account_is_unlinked_while_navidrome_is_down_and_locked_later(
    stand_in_world: World,
) -> None:
    world = stand_in_world
    await world.start(RECONCILE_SECONDS="1")
    await world.request(person("alice"))
    alice = await world.user("alice")
    await world.call("PUT", f"/api/user/{alice['id']}", {**alice, "password": "mine"})
    await world.server.stop()
    done = await as_json(world, "users", "unlink", "alice", "--yes")
    assert done["locked"] is False
    await world.server.start()
    async with asyncio.timeout(10):
        while await world.opens("alice", "mine"):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_lock_replaces_an_accounts_password(tcp_world: World) -> None:
    world = tcp_world
    await world.start(PROTECTED_USERS="boss")
    await world.request(person("alice"))
    await world.create("guest", "")
    await world.create("boss", "secret")
    assert await world.opens("guest", "")
    locked = await as_json(world, "users", "lock", "guest", "--yes")
    assert locked == {"account": "guest", "locked": True}
    assert not await world.opens("guest", "")
    for name in ("boss", "navidrome-shim", "nobody"):
        status, _, err = await run(world, "users", "lock", name, "--yes")
        assert status == 1 and name in err
    assert await world.opens("boss", "secret")


async def test_unlink_and_lock_show_their_effect_and_ask_for_confirmation(tcp_world: World) -> None:
    world = tcp_world
    await world.start()
    await world.request(person("alice"))
    alice = await world.user("alice")
    await world.call("PUT", f"/api/user/{alice['id']}", {**alice, "password": "mine"})
    for command in ("unlink", "lock"):
        for option in ((), ("--json",)):
            status, _, err = await run(world, "users", command, "alice", *option)
            assert status == 1
            assert "uid-of-alice" in err and "password" in err and "--yes" in err
    assert world.accounts.gate.known(person("alice")) is not None
    assert await world.opens("alice", "mine")


async def test_a_deleted_account_is_unlinked_and_its_name_is_held_for_its_user(
    any_store_world: World,
) -> None:
    world = any_store_world
    await world.start(RECONCILE_SECONDS="3600")
    await world.request(person("alice"))
    await world.delete("alice")
    status, _, err = await run(world, "users", "unlink", "alice")
    assert status == 1 and "deleted" in err and "holds end" in err
    done = await as_json(world, "users", "unlink", "alice", "--yes")
    assert done["unlinked"] is True
    [hold] = await as_json(world, "users", "holds", "list")
    assert (hold["name"], hold["uid"]) == ("alice", "uid-of-alice")
    assert await world.reason(person("Alice", uid="other")) is Reason.NAME_HELD
    assert await world.request(person("alice")) == "alice"
    assert await world.reason(person("alice", uid="other")) is Reason.IDENTITY_CONFLICT


async def test_a_hold_is_listed_and_ended(any_store_world: World) -> None:
    world = any_store_world
    await world.start()
    await world.request(person("alice"))
    await world.delete("alice")
    await world.accounts.service.reconcile()
    assert await world.reason(person("alice", uid="other")) is Reason.NAME_HELD
    _, out, _ = await run(world, "users", "holds", "list")
    assert "alice" in out and "uid-of-alice" in out
    assert await as_json(world, "users", "holds", "end", "ALICE") == {
        "name": "ALICE",
        "held": False,
    }
    assert await world.request(person("alice", uid="other")) == "alice"
    assert await as_json(world, "users", "holds", "list") == []
    status, _, err = await run(world, "users", "holds", "end", "alice")
    assert status == 1 and "not held" in err


async def test_the_lock_of_an_unlinked_account_can_be_ended(
    tcp_world: World,
) -> None:
    world = tcp_world
    await world.create_first()
    await world.confirm_new()
    guest = await world.create("guest")
    await world.start()
    await world.request(person("alice"))
    assert (await as_json(world, "users", "lock", "guest", "--yes"))["locked"] is True
    rule = world.accounts.service.bindings.rule_of(guest)
    assert rule is not None and rule.locked
    assert (await as_json(world, "users", "unlock", "guest"))["locked"] is False
    await world.accounts.service.refresh()
    gate = world.accounts.gate
    assert not gate.navidrome_token_valid("guest", guest, rule.void_before)
    assert gate.navidrome_token_valid("guest", guest, rule.void_before + 1)
    for name in ("alice", "guest"):
        status, _, err = await run(world, "users", "unlock", name)
        assert status == 1 and "not locked" in err


async def test_sync_shows_its_changes_first(tcp_world: World) -> None:
    world = tcp_world
    await world.start(ADMIN_GROUPS="admins", RECONCILE_SECONDS="3600")
    await world.create("keeper", isAdmin=True)
    await world.request(person("alice", display="Alice", email="a@example.com"))
    await world.accounts.service.reconcile()
    await world.change("alice", name="Own", isAdmin=True)
    planned = await as_json(world, "users", "sync", "alice")
    assert planned["applied"] is False
    rows = {(row["field"], row["old"], row["new"]) for row in planned["changes"]}
    assert rows == {("name", "Own", "Alice"), ("isAdmin", "True", "False")}
    assert (await world.user("alice"))["name"] == "Own"
    status, out, _ = await run(world, "users", "sync", "--all")
    assert status == 0 and "Own" in out and "Nothing was changed" in out
    done = await as_json(world, "users", "sync", "--all", "--yes")
    assert done["applied"] is True
    alice = await world.user("alice")
    assert (alice["name"], alice["isAdmin"]) == ("Alice", False)
    assert await as_json(world, "users", "sync", "alice") == {"changes": [], "applied": False}
    assert (await run(world, "users", "sync"))[0] == 2


async def test_check_names_problems_and_changes_nothing(tcp_world: World) -> None:
    world = tcp_world
    checks = (await check(world))["checks"]
    assert checks["accounts"]["state"] == "warning"
    assert "no users yet" in checks["accounts"]["detail"]
    assert not (world.folder / "shim.db").exists()
    await world.create_first()
    await world.create("hole", "")
    checks = (await check(world))["checks"]
    assert "confirm-new" in checks["accounts"]["remedy"]
    assert not (world.folder / "shim.db").exists()
    await world.confirm_new()
    checks = (await check(world, LIBRARY_GROUPS='{"x": ["No Such"]}'))["checks"]
    assert "hole" in checks["accounts"]["detail"]
    await world.delete("hole")
    checks = (await check(world, LIBRARY_GROUPS='{"x": ["No Such"]}'))["checks"]
    assert "No Such" in checks["accounts"]["detail"]
    checks = (await check(world, LIBRARY_GROUPS="{}"))["checks"]
    assert checks["accounts"]["state"] == "ok"
    output = await check(world, DATABASE_URL="sqlite:////nowhere/at/all.db")
    assert output["checks"]["store"]["state"] == "failing" and output["ready"] is False


async def test_without_provisioning_an_empty_server_is_a_warning(tcp_world: World) -> None:
    world = tcp_world
    checks = (await check(world, PROVISIONING="false"))["checks"]
    assert checks["accounts"]["state"] == "warning"
    assert "first visitor" in checks["accounts"]["detail"]
    await world.create_first()
    checks = (await check(world))["checks"]
    assert checks["accounts"]["state"] == "ok"


async def test_check_reports_the_result_for_an_identity_of_each_account_name(
    stand_in_world: World,
) -> None:
    world = stand_in_world
    await world.create_first("admin", "secret-1")
    for name, admin in (("ada", False), ("boss", True)):
        record = {"userName": name, "password": "pw", "isAdmin": admin}
        await world.call("POST", "/api/user", record, "admin")
    output = await check(
        world, BOOTSTRAP_ADMIN="admin", ADMIN_GROUPS="admins", PROTECTED_USERS="boss"
    )
    accounts = {each["account"]: each for each in output["accounts"]}
    assert sorted(accounts) == ["ada", "admin", "boss"]
    assert "linked" in accounts["ada"]["outcome"]
    assert "becomes admin" in accounts["ada"]["with_admin_group"]
    assert "SHIM_LINK_EXISTING is users" in accounts["admin"]["outcome"]
    assert "reserved" in accounts["boss"]["outcome"]
    assert any("SHIM_ALLOWED_GROUPS is not set" in each for each in output["summary"])
    _, out, _ = await run(world, "check")
    assert "becomes admin" in out and "May sign in: all users" in out


async def check(world: World, **settings: str) -> Any:
    """The output of `check`, whatever its exit status."""
    world.use(**settings)
    _, out, err = await run(world, "check", "--json")
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
    stand_in_world: World,
) -> None:
    world = stand_in_world
    await world.start(ALLOWED_GROUPS="music", PROTECTED_USERS="boss")
    await world.request(person("Ada", "music"))
    for arguments, verdict, reason, why in (
        (edge("ada", "music"), "authenticated", "trusted_peer", "bound to the account Ada"),
        (edge("eve", "other"), "rejected", "group_not_allowed", "SHIM_ALLOWED_GROUPS (music)"),
        (edge("boss", "music"), "rejected", "reserved_account", "SHIM_PROTECTED_USERS"),
        (edge("ada", "music", uid="x"), "rejected", "identity_conflict", "uid-of-ada"),
        (edge("ada2", "music", uid="uid-of-ada"), "rejected", "rename_not_followed", "is jwt"),
        (edge("new", "music"), "authenticated", "trusted_peer", "no account with this name"),
    ):
        output = await as_json(world, *arguments)
        assert (output["verdict"], output["reason"]) == (verdict, reason)
        assert why in output["steps"][-1]["why"]
        names = [step["step"] for step in output["steps"]]
        assert names == ["peer", "path", "identity", "policy", "account"][: len(names)]
    output = await as_json(world, *edge("ada", "music"))
    assert ["Remote-User", "Ada"] in output["forwarded_headers"]
    _, out, _ = await run(world, *edge("ada", "music"))
    assert "None" not in out and "True" not in out and "('" not in out and "['" not in out
    assert list(await world.users()) == ["Ada"]
