"""The first start on a server with users, a lost database, and an account of the shim's name that
another client created.
"""

from __future__ import annotations

from shim.audit.events.provisioning import AdminCreated, OwnAccountSecured
from shim.health import State
from shim.navidrome.api import AUTOGEN
from shim.provisioning.admin import OwnAccountRecords
from shim.trust.reasons import Reason
from tests.integration.provisioning.test_commands import run
from tests.support.world import World, person, until


def fault(world: World) -> tuple[str, str]:
    """The failing readiness check of accounts by `/readyz`."""
    check = world.accounts.checks()[1]
    assert check.state is State.FAILING
    return check.detail, check.remedy or ""


async def test_the_bootstrap_admin_creates_the_shims_account_and_remains_a_user(
    world: World,
) -> None:
    await world.create_first("admin", "secret-1")
    await world.call("POST", "/api/user", {"userName": "ada", "password": "pw"}, "admin")
    await world.start(BOOTSTRAP_ADMIN="Admin", LINK_EXISTING="all")
    assert world.accounts.service.fault is None
    users = await world.users_as("admin")
    assert users["navidrome-shim"]["isAdmin"] is True
    assert [(e.account, e.first) for e in world.recorded(AdminCreated)] == [
        ("navidrome-shim", False)
    ]
    assert await world.request(person("ada")) == "ada"
    assert await world.request(person("admin")) == "admin"
    assert not await world.opens("navidrome-shim", "")
    await world.restart(LINK_EXISTING="all")
    assert await world.request(person("ada")) == "ada"


async def test_the_password_of_the_bootstrap_admin_is_sufficient(world: World) -> None:
    await world.create_first("admin", "secret-1")
    await world.start(BOOTSTRAP_ADMIN="admin", BOOTSTRAP_ADMIN_PASSWORD="wrong")
    assert "SHIM_BOOTSTRAP_ADMIN" in fault(world)[0]
    assert list(await world.users_as("admin")) == ["admin"]
    await world.restart(BOOTSTRAP_ADMIN="admin", BOOTSTRAP_ADMIN_PASSWORD="secret-1")
    assert world.accounts.service.fault is None


async def test_a_bootstrap_admin_that_does_not_exist_or_is_no_admin_is_named(world: World) -> None:
    await world.create_first("admin", "secret-1")
    await world.call("POST", "/api/user", {"userName": "ada", "password": "pw"}, "admin")
    for name, expected in (("nobody", "no such user"), ("ada", "not an admin")):
        await world.restart(BOOTSTRAP_ADMIN=name)
        detail, remedy = fault(world)
        assert name in detail and expected in detail and "SHIM_BOOTSTRAP_ADMIN" in detail
        assert "Settings → Users" in remedy
    assert sorted(await world.users_as("admin")) == ["ada", "admin"]


async def test_without_a_bootstrap_admin_the_remedy_names_the_setting(world: World) -> None:
    await world.create_first("admin", "secret-1")
    await world.start()
    assert "SHIM_BOOTSTRAP_ADMIN" in fault(world)[1]


async def test_an_empty_server_needs_no_bootstrap_admin(world: World) -> None:
    await world.start(BOOTSTRAP_ADMIN="admin")
    assert world.accounts.service.fault is None, world.accounts.service.fault
    assert await world.request(person("ada")) == "ada"
    assert sorted(await world.users()) == ["ada"]


async def test_an_account_of_the_shims_name_from_an_untrusted_peer_is_secured_first(
    world: World,
) -> None:
    await world.create_first("admin", "secret-1")
    record = {"userName": "Navidrome-Shim", "password": "known"}
    await world.call("POST", "/api/user", record, "admin")
    await world.start(BOOTSTRAP_ADMIN="admin")
    assert "confirm-new" in fault(world)[1]
    assert await world.opens("navidrome-shim", "known")
    status, out, _ = await run(world, "database", "confirm-new")
    assert status == 0 and "new password" in out
    await until(lambda: world.accounts.service.fault is None)
    assert not await world.opens("navidrome-shim", "known")
    users = await world.users_as("admin")
    shim = users["Navidrome-Shim"]
    assert shim["isAdmin"] is True
    assert len(world.recorded(OwnAccountSecured)) == 1
    records = OwnAccountRecords(world.accounts.service.bindings.database)
    assert await records.knows(shim["id"])
    await world.restart(BOOTSTRAP_ADMIN="admin")
    assert len(world.recorded(OwnAccountSecured)) == 1


async def test_a_lost_database_rejects_identities_until_it_is_restored_or_confirmed(
    world: World,
) -> None:
    await world.start()
    assert await world.request(person("ada")) == "ada"
    await world.stop()
    files = list(world.folder.glob("shim.db*"))
    assert files
    for file in files:
        file.rename(world.folder / f"kept-{file.name}")
    await world.start(PROVISIONING_FAIL_MODE="open")
    assert await world.reason(person("ada", uid="a stranger")) is Reason.DATABASE_UNCONFIRMED
    detail, remedy = fault(world)
    assert "database" in detail and "confirm-new" in remedy
    await world.stop()
    for file in world.folder.glob("shim.db*"):
        file.unlink()
    for file in files:
        (world.folder / f"kept-{file.name}").rename(file)
    await world.start()
    assert await world.request(person("ada")) == "ada"
    status, out, _ = await run(world, "database", "confirm-new")
    assert status == 0 and "already in use" in out


async def test_the_shims_own_password_is_not_marked_as_generated(stand_in_world: World) -> None:
    world = stand_in_world
    await world.create_first("admin", "secret-1")
    await world.start(BOOTSTRAP_ADMIN="admin")
    accounts = world.stand_in.stand_in.state.accounts.by_id
    [own] = [each for each in accounts.values() if each.user_name == "navidrome-shim"]
    assert own.password and not own.password.startswith(AUTOGEN)
