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
from tests.support.harness import Harness, person, until


def fault(harness: Harness) -> tuple[str, str]:
    """The failing readiness check of accounts by `/readyz`."""
    check = harness.accounts.checks()[1]
    assert check.state is State.FAILING
    return check.detail, check.remedy or ""


async def test_the_bootstrap_admin_creates_the_shims_account_and_remains_a_user(
    harness: Harness,
) -> None:
    await harness.create_first("admin", "secret-1")
    await harness.call("POST", "/api/user", {"userName": "ada", "password": "pw"}, "admin")
    await harness.start(BOOTSTRAP_ADMIN="Admin", LINK_EXISTING="all")
    assert harness.accounts.service.fault is None
    users = await harness.users_as("admin")
    assert users["navidrome-shim"]["isAdmin"] is True
    assert [(e.account, e.first) for e in harness.recorded(AdminCreated)] == [
        ("navidrome-shim", False)
    ]
    assert await harness.request(person("ada")) == "ada"
    assert await harness.request(person("admin")) == "admin"
    assert not await harness.accepts_password("navidrome-shim", "")
    await harness.restart(LINK_EXISTING="all")
    assert await harness.request(person("ada")) == "ada"


async def test_the_password_of_the_bootstrap_admin_is_sufficient(harness: Harness) -> None:
    await harness.create_first("admin", "secret-1")
    await harness.start(BOOTSTRAP_ADMIN="admin", BOOTSTRAP_ADMIN_PASSWORD="wrong")
    assert "SHIM_BOOTSTRAP_ADMIN" in fault(harness)[0]
    assert list(await harness.users_as("admin")) == ["admin"]
    await harness.restart(BOOTSTRAP_ADMIN="admin", BOOTSTRAP_ADMIN_PASSWORD="secret-1")
    assert harness.accounts.service.fault is None


async def test_a_bootstrap_admin_that_does_not_exist_or_is_no_admin_is_named(
    harness: Harness,
) -> None:
    await harness.create_first("admin", "secret-1")
    await harness.call("POST", "/api/user", {"userName": "ada", "password": "pw"}, "admin")
    for name, expected in (("nobody", "no such user"), ("ada", "not an admin")):
        await harness.restart(BOOTSTRAP_ADMIN=name)
        detail, remedy = fault(harness)
        assert name in detail and expected in detail and "SHIM_BOOTSTRAP_ADMIN" in detail
        assert "Settings → Users" in remedy
    assert sorted(await harness.users_as("admin")) == ["ada", "admin"]


async def test_without_a_bootstrap_admin_the_remedy_names_the_setting(harness: Harness) -> None:
    await harness.create_first("admin", "secret-1")
    await harness.start()
    assert "SHIM_BOOTSTRAP_ADMIN" in fault(harness)[1]


async def test_an_empty_server_needs_no_bootstrap_admin(harness: Harness) -> None:
    await harness.start(BOOTSTRAP_ADMIN="admin")
    assert harness.accounts.service.fault is None, harness.accounts.service.fault
    assert await harness.request(person("ada")) == "ada"
    assert sorted(await harness.users()) == ["ada"]


async def test_an_account_of_the_shims_name_from_an_untrusted_peer_is_secured_first(
    harness: Harness,
) -> None:
    await harness.create_first("admin", "secret-1")
    record = {"userName": "Navidrome-Shim", "password": "known"}
    await harness.call("POST", "/api/user", record, "admin")
    await harness.start(BOOTSTRAP_ADMIN="admin")
    assert "confirm-new" in fault(harness)[1]
    assert await harness.accepts_password("navidrome-shim", "known")
    status, out, _ = await run(harness, "database", "confirm-new")
    assert status == 0 and "new password" in out
    await until(lambda: harness.accounts.service.fault is None)
    assert not await harness.accepts_password("navidrome-shim", "known")
    users = await harness.users_as("admin")
    shim = users["Navidrome-Shim"]
    assert shim["isAdmin"] is True
    assert len(harness.recorded(OwnAccountSecured)) == 1
    records = OwnAccountRecords(harness.accounts.service.bindings.database)
    assert await records.knows(shim["id"])
    await harness.restart(BOOTSTRAP_ADMIN="admin")
    assert len(harness.recorded(OwnAccountSecured)) == 1


async def test_a_lost_database_rejects_identities_until_it_is_restored_or_confirmed(
    harness: Harness,
) -> None:
    await harness.start()
    assert await harness.request(person("ada")) == "ada"
    await harness.stop()
    files = list(harness.folder.glob("shim.db*"))
    assert files
    for file in files:
        file.rename(harness.folder / f"kept-{file.name}")
    await harness.start(PROVISIONING_FAIL_MODE="open")
    assert await harness.reason(person("ada", uid="a stranger")) is Reason.DATABASE_UNCONFIRMED
    detail, remedy = fault(harness)
    assert "database" in detail and "confirm-new" in remedy
    await harness.stop()
    for file in harness.folder.glob("shim.db*"):
        file.unlink()
    for file in files:
        (harness.folder / f"kept-{file.name}").rename(file)
    await harness.start()
    assert await harness.request(person("ada")) == "ada"
    status, out, _ = await run(harness, "database", "confirm-new")
    assert status == 0 and "already in use" in out


async def test_the_shims_own_password_is_not_marked_as_generated(stand_in_harness: Harness) -> None:
    harness = stand_in_harness
    await harness.create_first("admin", "secret-1")
    await harness.start(BOOTSTRAP_ADMIN="admin")
    accounts = harness.stand_in.stand_in.state.accounts.by_id
    [own] = [each for each in accounts.values() if each.user_name == "navidrome-shim"]
    assert own.password and not own.password.startswith(AUTOGEN)
