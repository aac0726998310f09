"""The user list in pages: from the stand-in, and from lists that change while they are read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import httpx
import pytest

from demo.navidrome import StandIn
from demo.navidrome.accounts import AccountFields
from shim.navidrome.api import Navidrome
from shim.navidrome.errors import ResponseTooLarge, Unavailable
from shim.navidrome.pages import PAGE_USERS, UserPages
from shim.navidrome.session import HeaderSession
from shim.navidrome.transport import MAX_RESPONSE, Transport
from shim.settings import Upstream

OWN = "navidrome-shim"
LARGE = "<" * (MAX_RESPONSE // 5)  # six bytes each in JSON


@pytest.fixture
async def server() -> AsyncIterator[StandIn]:
    async with StandIn() as stand_in:
        yield stand_in


@pytest.fixture
async def api(server: StandIn) -> AsyncIterator[Navidrome]:
    transport = Transport(Upstream("http", "127.0.0.1", server.port))
    one = Navidrome(transport, HeaderSession("Remote-User", OWN), "Remote-User")
    assert await one.create_admin(OWN, "secret")
    yield one
    await one.close()


def fill(server: StandIn, count: int, name: str = "") -> None:
    for number in range(count):
        server.accounts.put(AccountFields(user_name=f"user{number}", password="pw", name=name))


def listings(server: StandIn) -> int:
    return sum(each.target.startswith("/api/user?") for each in server.seen)


@pytest.mark.parametrize("count", [0, 1, 98, 99, 100, 250])
async def test_every_user_is_read_with_any_page_size(
    server: StandIn, api: Navidrome, count: int
) -> None:
    fill(server, count)
    users = await api.users()
    assert {user.id for user in users} == set(server.accounts.by_id)
    assert len(users) == count + 1 and api.unreadable == 0
    assert listings(server) <= 1 + count // 100 + 1


@pytest.mark.parametrize("which", [0, 57, 120])
async def test_a_record_that_is_too_large_hides_no_other_user(
    server: StandIn, api: Navidrome, which: int
) -> None:
    fill(server, 120)
    large = sorted(server.accounts.by_id)[which]
    if server.accounts.by_id[large].user_name == OWN:
        large = sorted(server.accounts.by_id)[which + (1 if which < 120 else -1)]
    server.accounts.by_id[large].name = LARGE
    users = await api.users()
    assert {user.id for user in users} == set(server.accounts.by_id) - {large}
    assert api.unreadable == 1
    with pytest.raises(ResponseTooLarge, match="shorten it in Navidrome"):
        await api.user(large)
    server.accounts.by_id[large].name = "short"
    assert len(await api.users()) == 121 and api.unreadable == 0


async def test_large_records_are_read_in_smaller_pages(server: StandIn, api: Navidrome) -> None:
    fill(server, 12, name="x" * (MAX_RESPONSE // 4))
    assert len(await api.users()) == 13 and api.unreadable == 0


async def test_a_response_that_is_too_large_does_not_open_the_circuit_breaker(
    server: StandIn, api: Navidrome
) -> None:
    account = server.accounts.put(AccountFields(id="large", user_name="ada", name=LARGE))
    for _ in range(10):
        with pytest.raises(ResponseTooLarge):
            await api.user(account.id)
    assert not api._transport.breaker.is_open
    assert [user.user_name for user in await api.users()] == [OWN]


# a list that changes while it is read


def row(number: int) -> dict[str, object]:
    return {
        "id": f"{number:08}",
        "userName": f"user{number}",
        "name": "",
        "email": "",
        "createdAt": "t",
        "updatedAt": "t",
    }


def read(rows: list[int], meanwhile: Callable[[list[int]], None]) -> UserPages:
    """Read a list that is changed after the first page."""
    pages, page_count = UserPages(), 0
    while (wanted := pages.next_range()) is not None:
        start, end = wanted
        rows.sort()
        pages.read([row(number) for number in rows[start:end]], len(rows))
        page_count += 1
        if page_count == 1:
            meanwhile(rows)
    return pages


def numbers(pages: UserPages) -> set[int]:
    return {int(user.id) for user in pages.users}


def test_users_created_meanwhile_hide_no_other_user() -> None:
    rows = list(range(0, 1000, 2))
    before = set(rows)
    pages = read(rows, lambda rows: rows.extend((1, 3, 5, 301)))
    assert pages.fault is None
    assert before | {301} <= numbers(pages)


@pytest.mark.parametrize("deleted", [0, 99, 50])
def test_a_user_deleted_before_the_next_page_is_noticed(deleted: int) -> None:
    pages = read(list(range(250)), lambda rows: rows.remove(deleted))
    assert pages.fault is not None


@pytest.mark.parametrize("deleted", [100, 101, 249])
def test_a_user_deleted_after_its_page_is_missing(deleted: int) -> None:
    pages = read(list(range(250)), lambda rows: rows.remove(deleted))
    assert pages.fault is None
    assert numbers(pages) == set(range(250)) - {deleted}


def test_a_deletion_and_a_creation_at_once_hide_no_other_user() -> None:
    def change(rows: list[int]) -> None:
        rows.remove(0)
        rows.append(1)

    pages = read(list(range(0, 600, 2)), change)
    assert pages.fault is None
    assert set(range(2, 600, 2)) <= numbers(pages)


def test_a_list_shorter_than_its_total_is_invalid() -> None:
    pages = UserPages()
    assert pages.next_range() == (0, PAGE_USERS)
    pages.read([row(1), row(2)], 3)
    while pages.next_range() is not None:
        pages.read([row(2)], 3)
    assert pages.fault == "got 2 of 3 users"


async def test_an_inconsistent_list_is_read_once_more(
    api: Navidrome, monkeypatch: pytest.MonkeyPatch
) -> None:
    totals = iter(["10004"] * 4)
    send = api._transport.send
    only = [row(1), row(2)]

    async def short(method: str, path: str, **rest: object) -> object:
        response = await send(method, "/api/user", **rest)  # type: ignore[arg-type]
        rows = only if "_start=0" in path else only[1:]
        return replace(response, data=rows, headers=httpx.Headers({"X-Total-Count": next(totals)}))

    monkeypatch.setattr(api._transport, "send", short)
    with pytest.raises(Unavailable, match="got 2 of 10004 users"):
        await api.users()
    totals = iter(["10004", "10004", "2"])
    assert len(await api.users()) == 2
