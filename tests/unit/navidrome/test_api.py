"""The client of Navidrome's API: requests, valid responses, and error messages."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import pytest

from demo.navidrome import Fault, FaultKind, StandIn, StandInOptions
from shim.navidrome.api import AUTOGEN, HeaderTrust, Navidrome, generated_password
from shim.navidrome.errors import (
    ApiError,
    NameTaken,
    NavidromeError,
    NotAuthenticated,
    PermissionDenied,
    Unavailable,
)
from shim.navidrome.models import NewUser, User, read_user
from shim.navidrome.session import HeaderSession, LoginSession
from shim.navidrome.transport import Transport
from shim.settings import Upstream

OWN = "navidrome-shim"


@pytest.fixture
async def server() -> AsyncIterator[StandIn]:
    async with StandIn(StandInOptions(base_path="/music", login_limit=5)) as stand_in:
        yield stand_in


def transport_to(server: StandIn) -> Transport:
    return Transport(Upstream("http", "127.0.0.1", server.port), "/music", timeout=1)


@pytest.fixture
async def api(server: StandIn) -> AsyncIterator[Navidrome]:
    one = Navidrome(transport_to(server), HeaderSession("Remote-User", OWN), "Remote-User")
    assert await one.create_admin(OWN, "secret")
    yield one
    await one.close()


async def create_user(api: Navidrome, name: str, *, admin: bool = False) -> User:
    created_id = await api.create(NewUser(f"id-of-{name}", name, name, "", admin), "pw")
    user = await api.user(created_id)
    assert user is not None
    return user


async def test_the_first_admin_is_created_once(api: Navidrome) -> None:
    assert not await api.create_admin("second", "secret")


async def test_users_are_created_read_updated_and_deleted(api: Navidrome) -> None:
    user = await create_user(api, "alice")
    assert user.id == "id-of-alice" and not user.is_admin
    after = await api.write(user, {"email": "a@example.com"})
    assert (after.email, after.name, after.created_at) == (
        "a@example.com",
        user.name,
        user.created_at,
    )
    await api.delete(user.id)
    await api.delete(user.id)
    assert await api.user(user.id) is None


async def test_a_name_conflict_is_distinguished(api: Navidrome) -> None:
    await create_user(api, "alice")
    bob = await create_user(api, "bob")
    with pytest.raises(NameTaken):
        await api.create(NewUser("other", "ALICE", "", "", is_admin=False), "pw")
    with pytest.raises(NameTaken):
        await api.write(bob, {"userName": "Alice"})


async def test_a_user_without_a_name_is_never_written(api: Navidrome) -> None:
    alice = await create_user(api, "alice")
    with pytest.raises(ValueError, match="without a name"):
        await api.write(alice, {"userName": ""})


async def test_an_empty_password_is_detected(api: Navidrome) -> None:
    await create_user(api, "alice")
    await api.create(NewUser("hole", "hole", "", "", is_admin=False), "")
    assert await api.opens_without_password("hole")
    assert not await api.opens_without_password("alice")
    assert not await api.opens_without_password("nobody")


async def test_libraries_are_listed_and_set(api: Navidrome) -> None:
    [library] = await api.libraries()
    assert (library.id, library.name, library.default) == (1, "Music Library", True)
    alice = await create_user(api, "alice")
    await api.set_libraries(alice.id, {1})
    with pytest.raises(ApiError, match="one or more library IDs are invalid"):
        await api.set_libraries(alice.id, {9})


async def test_the_header_trust_is_reported(server: StandIn, api: Navidrome) -> None:
    assert await api.header_trust(OWN) is HeaderTrust.KNOWN
    assert await api.header_trust("nobody") is HeaderTrust.UNKNOWN_USER
    other = Navidrome(transport_to(server), HeaderSession("X-Other", OWN), "X-Other")
    assert await other.header_trust(OWN) is HeaderTrust.UNTRUSTED
    with pytest.raises(NotAuthenticated, match="Not authenticated"):
        await other.users()
    await other.close()


async def test_the_check_for_an_empty_server_creates_no_user(
    server: StandIn,
) -> None:
    api = Navidrome(transport_to(server), HeaderSession("Remote-User", OWN), "Remote-User")
    assert await api.is_empty() is True
    assert not server.accounts.by_id
    await api.create_admin(OWN, "secret")
    assert await api.is_empty() is False
    await api.close()


async def test_an_account_that_is_not_admin_is_distinguished(
    server: StandIn, api: Navidrome
) -> None:
    await create_user(api, "alice")
    alice = Navidrome(transport_to(server), HeaderSession("Remote-User", "alice"), "Remote-User")
    with pytest.raises(PermissionDenied):
        await alice.users()
    await alice.close()


# sessions


def logged_in(server: StandIn, password: str = "secret") -> Navidrome:
    transport = transport_to(server)
    return Navidrome(transport, LoginSession(transport, OWN, lambda: password), "Remote-User")


def logins(server: StandIn) -> int:
    return sum(seen.target.endswith("/auth/login") for seen in server.seen)


@pytest.mark.usefixtures("api")
async def test_one_login_is_made_and_its_token_reused(server: StandIn) -> None:
    other = logged_in(server)
    for _ in range(3):
        assert len(await other.users()) == 1
    assert logins(server) == 1
    assert not any(
        name.lower() == "remote-user"
        for seen in server.seen
        if seen.target.startswith("/music/api/")
        for name, _ in seen.headers
    )
    await other.close()


@pytest.mark.usefixtures("api")
async def test_a_rejected_token_is_replaced_once(server: StandIn) -> None:
    other = logged_in(server)
    await other.users()
    session = other._session
    assert isinstance(session, LoginSession)
    session._token = "eyJhbGciOiJIUzI1NiJ9.e30.x"
    assert await other.users()
    assert logins(server) == 2
    await other.close()


@pytest.mark.usefixtures("api")
async def test_a_wrong_password_is_reported_and_not_retried_at_once(server: StandIn) -> None:
    other = logged_in(server, "not-the-one")
    with pytest.raises(NotAuthenticated, match="Invalid username or password") as raised:
        await other.users()
    assert "not-the-one" not in str(raised.value)
    for _ in range(3):
        with pytest.raises(Unavailable, match="Invalid username or password"):
            await other.users()
    assert logins(server) == 1
    await other.close()


@pytest.mark.usefixtures("api")
async def test_the_login_rate_limit_is_respected(server: StandIn) -> None:
    for _ in range(5):
        one = logged_in(server)
        await one.users()
        await one.close()
    late = logged_in(server)
    with pytest.raises(Unavailable, match="AuthRequestLimit") as raised:
        await late.users()
    assert raised.value.retry_after > 1
    await late.close()


# failures


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (FaultKind.SERVER_ERROR, "returned 500"),
        (FaultKind.HTML, "instead of JSON"),
        (FaultKind.TRUNCATED_JSON, "instead of JSON"),
        (FaultKind.CUT, "RemoteProtocolError"),
        (FaultKind.NOTHING, "GET /api/user"),
        (FaultKind.REDIRECT, "returned 302"),
        (FaultKind.HANG, "no response within 1 s"),
    ],
)
async def test_an_invalid_response_is_reported(
    server: StandIn, api: Navidrome, kind: FaultKind, message: str
) -> None:
    server.fault = Fault(kind)
    with pytest.raises(Unavailable, match=message):
        await api.users()


async def test_a_read_is_retried_and_a_write_is_not(server: StandIn, api: Navidrome) -> None:
    server.fault = Fault(FaultKind.NOTHING, times=2)
    assert await api.users()
    server.fault = Fault(FaultKind.NOTHING, times=1)
    server.seen.clear()
    with pytest.raises(Unavailable) as raised:
        await api.create(NewUser("x", "x", "", "", is_admin=False), "pw")
    assert raised.value.sent
    assert len(server.seen) == 1


async def test_the_circuit_breaker_opens_for_a_server_that_is_down(server: StandIn) -> None:
    api = Navidrome(transport_to(server), HeaderSession("Remote-User", OWN), "Remote-User")
    await server.stop()
    for _ in range(5):
        with pytest.raises(Unavailable, match=r"not reached|waits a moment") as raised:
            await api.users()
        assert not raised.value.sent
    assert api._transport.breaker.is_open
    await api.close()


@pytest.mark.parametrize(
    "message",
    [None, [], {}, {"id": 1}, {"id": "x", "userName": None}, {"id": "x", "libraries": "no"}],
)
def test_an_invalid_user_record_is_rejected(message: object) -> None:
    with pytest.raises(NavidromeError):
        read_user(message)


def test_unknown_fields_of_a_user_are_preserved() -> None:
    message = {
        "id": "1",
        "userName": "a",
        "name": "",
        "email": "",
        "createdAt": "t",
        "updatedAt": "t",
        "new": {"x": 1},
        "libraries": [{"id": 2, "name": "L"}],
    }
    user = read_user(message)
    assert user.record["new"] == {"x": 1} and "libraries" not in user.record
    assert user.libraries == {2}


def test_a_generated_password_is_random_and_marked() -> None:
    first, second = generated_password(), generated_password()
    assert first != second
    assert first.startswith(AUTOGEN) and len(first) - len(AUTOGEN) >= 43


async def test_no_password_or_token_appears_in_a_repr(
    server: StandIn, api: Navidrome, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    other = logged_in(server, "secret-of-the-shim")
    with pytest.raises(NavidromeError) as raised:
        await other.users()
    alice = await create_user(api, "alice")
    await api.write(alice, {}, "a-fresh-password")
    for shown in (caplog.text, repr(raised.value), repr(alice), repr(other)):
        assert "secret-of-the-shim" not in shown and "a-fresh-password" not in shown
    await other.close()
