"""Bindings, intents and name holds: in memory as in the database, and across processes; on SQLite and
on PostgreSQL.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import fields, replace

import pytest

from shim.provisioning.binding_store import (
    LEASE_SECONDS,
    BindingStore,
    Busy,
    StaleBinding,
    may_be_alive,
    new_owner,
)
from shim.provisioning.models import (
    Binding,
    BindingState,
    Intent,
    IntentKind,
    LastWritten,
    NameHold,
    TokenRule,
)
from shim.store.database import Database
from shim.trust.identity import Identity

THIS_HOST = socket.gethostname()
OTHER_HOST = "elsewhere/1/x"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def opened(store_url: str) -> AsyncIterator[Callable[..., BindingStore]]:
    """Builds the bindings of one more process, on the same database."""
    databases = []

    def make(owner: str = "", clock: Callable[[], float] | None = None) -> BindingStore:
        database = Database(store_url)
        databases.append(database)
        database.open()
        return BindingStore(database, owner or new_owner(), clock or Clock())

    yield make
    for database in databases:
        database.close()


def binding(name: str = "Alice", uid: str | None = "u", account: str = "id") -> Binding:
    return Binding(
        uid=uid,
        navidrome_id=account,
        user_name=name,
        provider_username=name,
        created_by_shim=True,
        first_seen=1,
        last_seen=2,
        identity=Identity(name, "Ä", None, ("g", "h"), uid),
        last_written=LastWritten("Ä"),
    )


def intent(owner: str, key: str = "create alice", since: float = 1000.0) -> Intent:
    return Intent(
        key=key,
        kind=IntentKind.CREATE,
        navidrome_id=f"of {owner}",
        uid="u",
        owner=owner,
        started_at=since,
    )


async def test_a_stored_binding_is_found_by_every_key(
    opened: Callable[..., BindingStore],
) -> None:
    first = opened()
    await first.load()
    stored = await first.put(binding())
    second = opened()
    await second.load()
    for one in (first, second):
        assert one.by_uid("u") == one.by_name("alice") == one.by_account("id") == stored
    renamed = await first.put(replace(stored, user_name="Bob", state=BindingState.DENIED))
    assert first.by_name("alice") is None and first.by_name("bob") == renamed
    await first.remove(renamed, NameHold("bob", "id", "u", 2000))
    assert first.by_uid("u") is None and len(first) == 0
    assert first.name_hold("bob") is not None


EVERY_FIELD = Identity("Ada", "Ada Ä", "ada@example.org", ("g|h", "Ä"), "u", "header x-uid")


@pytest.mark.parametrize(
    "identity", [EVERY_FIELD, Identity("Ada", "", "", (), "u"), Identity("Ada", uid="u")]
)
async def test_a_stored_identity_equals_the_one_that_was_stored(
    opened: Callable[..., BindingStore], identity: Identity
) -> None:
    for field in fields(Identity):
        assert getattr(EVERY_FIELD, field.name) != field.default, "EVERY_FIELD sets every field"
    writer, reader = opened(), opened()
    await writer.load()
    await writer.put(replace(binding(), identity=identity))
    await reader.load()
    found = reader.by_uid("u")
    assert found is not None
    assert found.identity == identity


async def test_changes_of_another_process_are_seen_and_reported(
    opened: Callable[..., BindingStore],
) -> None:
    first, second = opened(), opened()
    await first.load()
    await first.put(binding())
    await first.put(binding("Bob", "v", "id2"))
    await second.load()
    assert await second.refresh() == frozenset()
    found = second.by_uid("u")
    assert found is not None
    await second.put(found.unlinked())
    assert await second.refresh() == frozenset()
    assert await first.refresh() == {"u"}
    assert first.by_uid("u") is None
    assert first.by_name("alice") == replace(found.unlinked(), id=found.id, version=1)


@pytest.mark.parametrize(
    "other",
    [
        binding("Other", "u", "other"),
        binding("ALICE", "other", "other"),
        binding("Other", "other", "id"),
    ],
)
async def test_two_processes_cannot_bind_the_same_uid_name_or_account(
    opened: Callable[..., BindingStore], other: Binding
) -> None:
    first, second = opened(), opened()
    await first.load()
    await second.load()
    await first.put(binding())
    with pytest.raises(Busy):
        await second.put(other)


@pytest.mark.parametrize(
    "others",
    [
        [binding(f"name{n}", "u", f"id{n}") for n in range(4)],
        [binding("Alice" if n % 2 else "ALICE", f"u{n}", f"id{n}") for n in range(4)],
        [binding(f"name{n}", f"u{n}", "id") for n in range(4)],
    ],
    ids=["person", "name", "account"],
)
async def test_of_processes_that_bind_at_once_one_succeeds_and_the_others_see_its_binding(
    opened: Callable[..., BindingStore], others: list[Binding]
) -> None:
    processes = [opened() for _ in others]
    for one in processes:
        await one.load()
    tried = [one.put(other) for one, other in zip(processes, others, strict=True)]
    results = await asyncio.gather(*tried, return_exceptions=True)
    bound = [result for result in results if isinstance(result, Binding)]
    assert len(bound) == 1
    assert [type(result) for result in results if result not in bound] == [Busy] * 3
    for one in processes:
        await one.refresh()
        assert one.all() == tuple(bound)


async def test_of_processes_that_take_over_an_abandoned_intent_one_succeeds(
    opened: Callable[..., BindingStore],
) -> None:
    clock = Clock()
    left = opened(OTHER_HOST)
    others = [opened(f"host{n}/1/x", clock) for n in range(4)]
    for key in map(str, range(8)):
        await left.open_intent(intent(OTHER_HOST, key))
    clock.now += LEASE_SECONDS + 1
    for key in map(str, range(8)):
        tried = [one.open_intent(intent(one.owner, key, clock.now)) for one in others]
        results = await asyncio.gather(*tried, return_exceptions=True)
        assert sorted(type(result).__name__ for result in results) == ["Busy"] * 3 + ["Intent"]


async def test_processes_that_record_the_same_values_do_not_conflict(
    opened: Callable[..., BindingStore],
) -> None:
    first, second = opened(), opened()
    await first.load()
    numbers = [(await first.put(binding(f"n{n}", f"u{n}", f"id{n}"))).id for n in range(8)]
    await second.load()
    name_holds = [NameHold("freed", "id", None, 2000), NameHold("free", "id", None, 2000)]
    for _ in range(20):
        await asyncio.gather(
            first.record_last_seen(dict.fromkeys(numbers, 3.0)),
            second.record_last_seen(dict.fromkeys(reversed(numbers), 4.0)),
            first.hold_names(name_holds),
            second.hold_names(reversed(name_holds)),
        )
    await second.load()
    assert {one.last_seen for one in second.all()} <= {3.0, 4.0}
    assert second.name_hold("freed") is not None


async def test_a_late_write_does_not_link_again_what_another_process_unlinked(
    opened: Callable[..., BindingStore],
) -> None:
    first, second = opened(), opened()
    await first.load()
    stored = await first.put(binding())
    await second.load()
    await second.put(stored.unlinked())
    with pytest.raises(Busy):
        await first.put(replace(stored, last_seen=9.0))
    await first.refresh()
    assert first.by_uid("u") is None


async def test_a_binding_that_was_changed_since_it_was_read_is_not_overwritten(
    opened: Callable[..., BindingStore],
) -> None:
    bindings = opened()
    await bindings.load()
    read = await bindings.put(binding())
    released = await bindings.put(read.unlinked())
    for late in (bindings.put(read), bindings.remove(read), bindings.rename({read: "Bob"})):
        with pytest.raises(StaleBinding):
            await late
    assert bindings.all() == (released,)


async def test_swapped_names_are_stored_in_one_transaction(
    opened: Callable[..., BindingStore],
) -> None:
    first, second = opened(), opened()
    await first.load()
    names = ("Alice", "Bob", "Carol")
    stored = [await first.put(binding(name, f"u{name}", f"id{name}")) for name in names]
    alice, bob, carol = stored
    await second.load()
    await first.rename(
        {alice: "BOB", bob: "alice"}, [carol], [NameHold("carol", "idCarol", "u", 2000)]
    )
    assert await second.refresh() == {"uAlice", "uBob", "uCarol"}
    for one in (first, second):
        assert {each.uid: each.user_name for each in one.all()} == {
            "uAlice": "BOB",
            "uBob": "alice",
        }
        found = one.by_name("bob")
        assert found is not None and found.uid == "uAlice" and one.by_account("idAlice") == found
        assert one.by_name("carol") is None and one.name_hold("carol") is not None


async def test_token_rules_are_seen_by_other_processes(opened: Callable[..., BindingStore]) -> None:
    first, second = opened(), opened()
    await first.load()
    stored = await first.put(binding())
    await second.load()
    assert second.rule_of("id") is None
    locked = await first.put(replace(stored, lock_pending=True), rule=first.locked_rule("id"))
    assert await second.refresh() == {"u"}
    assert second.is_locked("id") and first.is_locked("id")
    await first.put(replace(locked, lock_pending=False), rule=TokenRule("id", void_before=1000.0))
    await first.put_rule(TokenRule("nobody's", locked=True))
    await second.refresh()
    for one in (first, second):
        rule = one.rule_of("id")
        assert rule is not None and not rule.admits(1000.0) and rule.admits(1001.0)
        assert one.is_locked("nobody's")


async def test_a_hold_on_a_name_ends_for_every_process(opened: Callable[..., BindingStore]) -> None:
    first, second = opened(), opened()
    await first.load()
    await first.hold_names([NameHold("alice", "id", None, 2000)])
    await second.load()
    assert [each.normalized_name for each in second.holds()] == ["alice"]
    await first.remove_name_hold("alice")
    await second.refresh()
    assert first.holds() == second.holds() == ()


async def test_two_unlinked_bindings_can_coexist(
    opened: Callable[..., BindingStore],
) -> None:
    bindings = opened()
    await bindings.load()
    await bindings.put(binding("A", None, "1"))
    await bindings.put(binding("B", None, "2"))
    assert len(bindings) == 2


async def test_an_intent_excludes_other_processes(opened: Callable[..., BindingStore]) -> None:
    first, second = opened(OTHER_HOST), opened()
    opened_by_first = await first.open_intent(intent(OTHER_HOST))
    with pytest.raises(Busy):
        await second.open_intent(intent(second.owner))
    await first.close_intent(opened_by_first)
    await second.open_intent(intent(second.owner))


async def test_an_abandoned_intent_is_taken_over_under_its_own_id(
    opened: Callable[..., BindingStore],
) -> None:
    clock = Clock()
    first, second = opened(OTHER_HOST), opened("", clock)
    await first.open_intent(intent(OTHER_HOST))
    clock.now += LEASE_SECONDS + 1
    taken = await second.open_intent(intent(second.owner))
    assert taken.navidrome_id == f"of {OTHER_HOST}" and taken.owner == second.owner
    await first.close_intent(intent(OTHER_HOST))
    await first.load()
    assert first.intents() == (taken,)


async def test_a_binding_ends_its_intent_in_one_transaction(
    opened: Callable[..., BindingStore],
) -> None:
    bindings = opened()
    await bindings.load()
    begun = await bindings.open_intent(intent(bindings.owner))
    await bindings.put(binding(), ends=begun)
    assert bindings.intents() == ()
    again = opened()
    await again.load()
    assert again.intents() == ()


async def test_a_name_hold_ends_at_its_time(opened: Callable[..., BindingStore]) -> None:
    clock = Clock()
    bindings = opened("", clock)
    await bindings.hold_names([NameHold("alice", "id", None, 1010)])
    assert bindings.name_hold("alice") is not None
    clock.now = 1011
    assert bindings.name_hold("alice") is None
    await bindings.hold_names([])
    again = opened("", Clock())
    await again.load()
    assert again.name_hold("alice") is None


async def test_last_seen_times_are_not_reported_to_other_processes(
    opened: Callable[..., BindingStore],
) -> None:
    first, second = opened(), opened()
    await first.load()
    stored = await first.put(binding())
    await second.load()
    await first.record_last_seen({stored.id: 99.0})
    assert await second.refresh() == frozenset()
    found = first.by_uid("u")
    assert found is not None and found.last_seen == 99.0


@pytest.mark.parametrize(
    ("owner", "since", "alive"),
    [
        ("elsewhere/1/x", 1000.0, True),
        ("elsewhere/1/x", 1000.0 - LEASE_SECONDS - 1, False),
        (f"{THIS_HOST}/{os.getpid()}/before", 1000.0, False),
        (f"{THIS_HOST}/{os.getppid()}/x", 1000.0, True),
        (f"{THIS_HOST}/999999999/x", 1000.0, False),
        ("elsewhere/1/x", 5000.0, False),
    ],
    ids=["elsewhere", "too old", "this process before", "alive", "dead", "in the future"],
)
def test_processes_that_may_be_alive(owner: str, since: float, alive: bool) -> None:
    mine = f"{THIS_HOST}/{os.getpid()}/mine"
    assert may_be_alive(owner, mine, since, 1000.0) is alive
    assert may_be_alive(mine, mine, since, 1000.0)
