"""The writer of the trail, on SQLite and on PostgreSQL: batches, losses, database failures, keys."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy import inspect, make_url, text

from shim.audit import admin_actions
from shim.audit.admin_actions import AdminActions, NotStored
from shim.audit.coalesce import Coalescer
from shim.audit.events import AdminAction, Event, Stopped, Stream, UpstreamUp
from shim.audit.events.storage import Checkpoint, TrailReplaced
from shim.audit.store import writer as module
from shim.audit.store.append import Head
from shim.audit.store.chain import Keys, build_keys
from shim.audit.store.filters import Filters
from shim.audit.store.reader import TrailReader
from shim.audit.store.results import StoredEvent
from shim.audit.store.retention import Limits
from shim.audit.store.schema import HOUR
from shim.audit.store.tables import build_database
from shim.audit.store.writer import BATCH, TrailStore
from shim.audit.trail import Trail
from shim.health import State
from shim.store.errors import StoreError
from shim.trust.reasons import Reason
from tests.support.audit_samples import request_decision
from tests.support.event_schema import faults
from tests.support.harness import until
from tests.support.postgresql import PASSWORD, PostgreSQL
from tests.support.trail_records import KEYS

Make = Callable[..., TrailStore]


@pytest_asyncio.fixture
async def make(store_url: str) -> AsyncIterator[Make]:
    """Opens writers of one trail, one for each process, that are closed at the end."""
    opened_stores: list[TrailStore] = []

    def new(keys: Keys = KEYS, url: str = store_url, **options: object) -> TrailStore:
        opened_stores.append(TrailStore(url, keys, **options))  # type: ignore[arg-type]
        return opened_stores[-1]

    yield new
    for each in opened_stores:
        await each.close()


def action(name: str = "users.lock") -> AdminAction:
    return AdminAction(
        time=time.time(), action=name, actor="command:root", origin="command", target="anna"
    )


def up() -> UpstreamUp:
    return UpstreamUp(time=time.time(), upstream="http://127.0.0.1:4533")


def stored(url: str, *streams: str) -> list[StoredEvent]:
    reader = TrailReader(url)
    try:
        chosen = Filters(streams=streams or ("requests", "changes"))  # type: ignore[arg-type]
        return [
            each for each in reader.iterate(chosen) if each.record["kind"] != "audit_chain_started"
        ]
    finally:
        reader.close()


def stored_ids(url: str) -> list[str]:
    return [each.record["id"] for each in stored(url)]


async def test_events_are_stored_in_their_streams_with_their_records(
    make: Make, store_url: str
) -> None:
    store = make()
    request, change = request_decision(claimed_user="Ünal"), up()
    await store.write([request, change])
    assert [(e.stream, e.record["id"]) for e in stored(store_url)] == [
        ("requests", request.id),
        ("changes", change.id),
    ]
    (found,) = stored(store_url, "requests")
    assert found.record["index"] == 2
    assert found.record["chain"] == 1
    assert found.record["stream"] == "requests"
    assert found.record["reason"] == str(request.reason)


async def test_indexes_leave_out_rows_without_the_value(make: Make) -> None:
    store = make()
    await store.open()
    name = "postgresql" if store._database._url.get_backend_name() == "postgresql" else "sqlite"
    found = store._database.read(
        lambda connection: {
            str(index["name"]): index.get("dialect_options", {})
            for index in inspect(connection).get_indexes(
                "audit_requests", schema="shim_audit" if name == "postgresql" else None
            )
        }
    )
    assert f"{name}_where" in found["audit_requests_user"]
    assert f"{name}_where" not in found["audit_requests_kind"]


async def test_events_for_the_log_only_are_not_stored(make: Make, store_url: str) -> None:
    store = make()
    await store.open()
    await store.write(
        [
            Checkpoint(
                time=1.0,
                database="d",
                checked_stream=Stream.REQUESTS,
                last_index=1,
                last_hash="00",
            )
        ]
    )
    assert stored(store_url) == []


async def test_an_event_that_is_passed_twice_is_stored_once(make: Make, store_url: str) -> None:
    store = make()
    first, second = up(), up()
    await store.write([first])
    await store.write([first, second])
    assert stored_ids(store_url) == [first.id, second.id]


async def test_an_event_is_not_stored_twice_after_a_commit_whose_result_was_lost(
    make: Make, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make()
    await store.open()
    database, event = store._database, up()
    write = database.write

    def lost(work: object) -> object:
        write(work)  # type: ignore[arg-type]
        raise StoreError("the connection was lost")

    monkeypatch.setattr(database, "write", lost)
    with pytest.raises(StoreError, match="lost"):
        await store.write([event])
    monkeypatch.setattr(database, "write", write)
    await store.write([event])
    assert stored_ids(store_url) == [event.id]


async def test_two_processes_append_to_one_chain(make: Make, store_url: str) -> None:
    one, other = make(), make()
    batches = [[up() for _ in range(3)] for _ in range(20)]
    await asyncio.gather(
        *(s.write(batch) for s, batch in zip([one, other] * 10, batches, strict=True))
    )
    found = stored(store_url)
    assert sorted(e.record["id"] for e in found) == sorted(e.id for b in batches for e in b)
    assert [e.index for e in found] == list(range(2, 62))
    assert {e.chain for e in found} == {1}


async def test_a_new_key_starts_a_chain_that_cites_the_one_before(
    make: Make, store_url: str
) -> None:
    old, new = "old-key-old-key-old-key", "new-key-new-key-new-key"
    await make(build_keys([])).write([up()])
    await make(build_keys([old])).write([up()])
    await make(build_keys([new, old])).write([up(), up()])
    reader = TrailReader(store_url)
    rows = list(reader.iterate(Filters()))
    reader.close()
    assert [row.chain for row in rows] == [1, 1, 2, 2, 3, 3, 3]
    assert [row.record["kind"] == "audit_chain_started" for row in rows] == [
        True, False, True, False, True, False, False,
    ]  # fmt: skip
    for start, before in ((rows[2], rows[1]), (rows[4], rows[3])):
        assert (start.record["last_index"], start.record["last_hash"]) == (
            before.index,
            before.hash,
        )
    assert rows[0].key_id == ""
    assert rows[2].key_id == rows[2].record["key_id"] == build_keys([old]).signing
    assert rows[4].key_id == build_keys([new]).signing


async def test_checkpoints_are_logged_at_the_start_after_many_rows_and_at_the_end(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_ROWS", 10)
    # Longer than any machine runs: the first checkpoint does not depend on the time since the boot.
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", 1e12)
    logged: list[Event] = []
    store = make(log=logged.append)
    for _ in range(4):
        await store.write([up() for _ in range(5)])
    await store.close()
    found = [e.last_index for e in logged if isinstance(e, Checkpoint)]
    assert found == [6, 16, 21]
    assert {e.checked_stream for e in logged if isinstance(e, Checkpoint)} == {"changes"}


async def test_the_trail_counts_losses_and_stores_their_number_after_recovery(
    make: Make, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make()
    await store.open()
    monkeypatch.setattr("shim.audit.trail.FIRST_RETRY_SECONDS", 0.05)
    trail = Trail((store,), capacity=10, on_error=lambda _: None)
    write, away = store._database.write, threading.Event()
    away.set()

    def broken(work: object) -> object:
        if away.is_set():
            raise StoreError("disk full")
        return write(work)  # type: ignore[arg-type]

    monkeypatch.setattr(store._database, "write", broken)
    trail.start()
    for _ in range(25):
        trail.record(up())
    await until(lambda: store.check().detail == "disk full: events are only in the log")
    away.clear()
    await until(lambda: store.check().state is State.OK)
    await trail.close()
    kinds = [e.record["kind"] for e in stored(store_url)]
    assert kinds.count("upstream_up") == 10
    (loss,) = [e.record for e in stored(store_url) if e.record["kind"] == "events_dropped"]
    assert (loss["sink"], loss["dropped"]) == ("audit_database", 15)


async def test_all_events_that_wait_are_stored_in_one_transaction(
    make: Make, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, numbers = make(), list[int]()
    append = store._append

    def counted(events: Sequence[Event]) -> list[Head]:
        numbers.append(len(events))
        return append(events)

    monkeypatch.setattr(store, "_append", counted)
    trail = Trail([store])
    events = [up() for _ in range(300)]
    for each in events:
        trail.record(each)
    trail.start()
    await trail.close(60.0)
    assert numbers == [300]
    assert stored_ids(store_url) == [each.id for each in events]


def test_a_batch_has_room_for_what_a_flood_yields_in_a_minute() -> None:
    coalescer, reasons = Coalescer(), list(Reason)
    decisions = [
        request_decision(peer=f"192.0.{n // 250}.{n % 250}", reason=reasons[n % len(reasons)])
        for n in range(5000)
    ]
    # Each address sends a burst.
    events = [e for each in decisions for _ in range(5) for e in coalescer.offer(each, 0.0)]
    assert 600 < len(events) < BATCH


async def test_an_administrative_action_is_on_disk_when_record_returns(
    make: Make, store_url: str
) -> None:
    store, logged = make(), list[Event]()
    actions = AdminActions(store, logged.append)
    await actions.require()
    done = action()
    assert await actions.record(done) is None
    assert stored_ids(store_url) == [done.id]
    assert logged == [done]


async def test_an_action_that_grants_a_right_is_refused_while_storing_is_impossible(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, logged = make(), list[Event]()
    await store.open()

    def broken(_work: object) -> object:
        raise StoreError("database or disk is full")

    monkeypatch.setattr(store._database, "write", broken)
    actions = AdminActions(store, logged.append)
    with pytest.raises(NotStored, match="refused, because the audit trail can't be written: "):
        await actions.require()
    lock = action()
    problem = await actions.record(lock)
    assert problem == ("not recorded in the audit trail, only in the log: database or disk is full")
    assert logged == [lock]


async def test_an_action_waits_no_longer_than_its_answer_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "audit.db"
    store = sqlite_store(file)
    await store.write([up()])
    monkeypatch.setattr(admin_actions, "STORE_SECONDS", 0.2)
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        actions = AdminActions(store, lambda _: None)
        with pytest.raises(NotStored, match="no response for"):
            await actions.require()
        assert "no response for" in str(await actions.record(action()))
    finally:
        other.close()
        await store.close()


async def test_without_a_database_actions_are_in_the_log_only() -> None:
    logged: list[Event] = []
    actions = AdminActions(None, logged.append)
    await actions.require()
    assert await actions.record(done := action()) is None
    assert logged == [done]


async def test_old_and_too_many_rows_are_removed_with_an_event_for_each_cut(
    make: Make, store_url: str
) -> None:
    store = make()
    now = time.time()
    old = [request_decision(time=now - 1000 + n) for n in range(600)]
    new = [request_decision(time=now + n) for n in range(10)]
    await store.write(old)
    await store.write(new)
    since = round((now - 1) * 1_000_000)
    removed = await store.apply_retention({"requests": Limits(since=since)})
    assert removed == 601  # and the start of the chain
    found = stored(store_url)
    assert [e.record["id"] for e in found[:10]] == [e.id for e in new]
    cuts = [e.record for e in found[10:]]
    assert [(c["first_index"], c["last_index"], c["reason"]) for c in cuts] == [
        (1, 250, "age"),
        (251, 500, "age"),
        (501, 601, "age"),
    ]
    assert {c["stream"] for c in cuts} == {"requests"}
    assert await store.apply_retention({"requests": Limits(since=since)}) == 0
    assert await store.apply_retention({"requests": Limits(max_size=4000)}) > 5
    assert len(stored(store_url)) < 6


async def test_old_counts_are_removed(make: Make, store_url: str) -> None:
    store = make()
    hour, base = 3600, 1_700_000_000.0 // 3600 * 3600
    await store.write([request_decision(time=base + n * hour) for n in range(4)])
    since = round(base * 1_000_000)
    await store.apply_retention({"requests": Limits(since + HOUR)})
    await store.remove_counts(since + HOUR, since + 2 * HOUR)
    reader = TrailReader(store_url)
    until = since + 10 * HOUR
    cells = reader.summary(since, until).cells
    counted = [c for c in cells if c.kind == "request_decision"]
    origins = reader.report(since, until).origins
    reader.close()
    assert [c.start for c in counted] == [since + n * HOUR for n in (1, 2, 3)]
    assert [c.count for c in origins] == [2]


async def test_counts_of_rows_that_are_kept_stay_because_filters_use_them(
    make: Make, store_url: str
) -> None:
    store = make()
    kept = request_decision(time=1_700_000_000.0)
    await store.write([kept])
    late = 1_800_000_000_000_000
    await store.remove_counts(late, late)
    reader = TrailReader(store_url)
    found = reader.page(Filters(kinds=("request_decision",))).events
    reader.close()
    assert [each.record["id"] for each in found] == [kept.id]


async def test_stored_records_follow_the_schema_of_events(make: Make, store_url: str) -> None:
    store = make()
    await store.write([*(request_decision() for _ in range(9)), up(), action()])
    await store.apply_retention({"requests": Limits(max_size=1), "changes": Limits(max_size=1)})
    await store.write([*(request_decision() for _ in range(9)), up()])
    await make(build_keys(["another-key-another-key"])).write([request_decision(), up()])
    reader = TrailReader(store_url)
    records = [each.record for each in reader.iterate(Filters())]
    reader.close()
    kinds = {(record["stream"], record["kind"]) for record in records}
    assert {("requests", "audit_rows_removed"), ("requests", "audit_chain_started")} <= kinds
    assert [fault for record in records for fault in faults(record)] == []


async def test_the_size_limit_of_requests_removes_no_changes(make: Make, store_url: str) -> None:
    store = make()
    await store.write([up() for _ in range(50)])
    await store.write([request_decision() for _ in range(50)])
    await store.apply_retention({"requests": Limits(max_size=1), "changes": Limits()})
    assert len(stored(store_url, "changes")) == 50
    left = [e.record["kind"] for e in stored(store_url, "requests")]
    assert left == ["request_decision", "audit_rows_removed"]


async def test_a_state_that_was_altered_is_reported(make: Make, store_url: str) -> None:
    store = make()
    await store.write([up(), up()])
    store._database.write(
        lambda c: c.execute(text("UPDATE audit_streams SET last_index = last_index - 1"))
    )
    with pytest.raises(
        StoreError, match="the next row exists already, so the database was altered"
    ):
        await store.write([up()])
    assert store.check().state is State.WARNING
    assert len(stored(store_url)) == 1


# PostgreSQL only


async def test_events_are_stored_again_after_an_outage_of_the_server(
    postgresql: PostgreSQL, postgresql_url: str
) -> None:
    store, (first, second) = TrailStore(postgresql_url, KEYS), (up(), up())
    await store.write([first])
    await asyncio.to_thread(postgresql.stop)
    try:
        with pytest.raises(StoreError):
            await store.write([second])
        assert store.check().state is State.WARNING
    finally:
        await asyncio.to_thread(postgresql.start)
    await store.write([second])
    assert store.check().state is State.OK
    assert stored_ids(postgresql_url) == [first.id, second.id]
    await store.close()


async def test_a_role_that_cannot_create_the_schema_is_reported(
    postgresql: PostgreSQL, postgresql_url: str
) -> None:
    name = make_url(postgresql_url).database
    postgresql.do("CREATE ROLE guest LOGIN PASSWORD 's3cret'")
    guest = postgresql.url(str(name), "guest")
    database = build_database(guest)
    with pytest.raises(StoreError, match="role lacks CREATE on the database; grant it, or create"):
        database.check()
    database.close()
    store = TrailStore(guest, KEYS)
    with pytest.raises(StoreError, match="permission denied"):
        await store.open()
    assert PASSWORD not in str(store.fault)
    await store.close()
    postgresql.do("CREATE SCHEMA shim_audit AUTHORIZATION guest", str(name))
    store = TrailStore(guest, KEYS)
    await store.write([up()])
    await store.close()
    postgresql.do("DROP SCHEMA shim_audit CASCADE", str(name))
    postgresql.do("DROP ROLE guest")


# SQLite only


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "audit.db"


def sqlite_store(file: Path, **options: object) -> TrailStore:
    return TrailStore(f"sqlite:///{file}", KEYS, **options)  # type: ignore[arg-type]


def overwrite(file: Path, start: int) -> bytes:
    """Damage a file from a byte on, and return its content."""
    content = file.read_bytes()[:start] if file.exists() else b""
    file.write_bytes(content + os.urandom(64 * 1024))
    return file.read_bytes()


def content_of(file: Path) -> bytes:
    return file.read_bytes()


def pragma(store: TrailStore, text: str) -> None:
    """Change the writer's only connection."""
    store._database.read(lambda connection: connection.exec_driver_sql(f"PRAGMA {text}"))


@pytest.mark.parametrize("damage", ["header", "page"])
async def test_a_corrupt_trail_is_set_aside_and_a_new_one_started(file: Path, damage: str) -> None:
    store = sqlite_store(file)
    await store.write([up() for _ in range(200)])
    await store.close()
    content = overwrite(file, 0 if damage == "header" else 4096)
    logged: list[Event] = []
    store = sqlite_store(file, log=logged.append, replaces=True)
    event = up()
    await store.write([event])
    (set_aside,) = file.parent.glob("audit.corrupt-*.db")
    assert content_of(set_aside) == content
    found = stored(f"sqlite:///{file}")
    assert [e.record["kind"] for e in found] == ["audit_database_replaced", "upstream_up"]
    assert str(set_aside) in found[0].record["detail"]
    (reported,) = [e for e in logged if isinstance(e, TrailReplaced)]
    assert reported.id == found[0].record["id"]
    check = store.check()
    assert (check.state, check.detail) == (State.WARNING, reported.detail)
    await store.close()


async def test_a_command_does_not_replace_a_corrupt_trail(file: Path) -> None:
    content = overwrite(file, 0)
    store = sqlite_store(file)
    with pytest.raises(StoreError, match="not a database"):
        await store.write([up()])
    await store.close()
    assert content_of(file) == content
    assert list(file.parent.glob("*corrupt*")) == []


async def test_a_trail_that_was_deleted_meanwhile_is_created_again(file: Path) -> None:
    store = sqlite_store(file, replaces=True)
    await store.write([up()])
    for part in file.parent.glob("audit.db*"):
        part.unlink()
    event = up()
    await store.write([event])
    found = stored(f"sqlite:///{file}")
    assert [e.record["kind"] for e in found] == ["audit_database_replaced", "upstream_up"]
    assert "deleted or replaced" in found[0].record["detail"]
    await store.close()


async def test_a_database_of_another_program_is_not_used(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE media_file (id TEXT)")
    connection.close()
    store = sqlite_store(file, replaces=True)
    with pytest.raises(StoreError, match=r"tables of another program \(media_file\)"):
        await store.write([up()])
    assert store.check().state is State.WARNING
    await store.close()
    with sqlite3.connect(file) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master").fetchall()
    connection.close()
    assert tables == [("media_file",)]


async def test_a_newer_version_is_not_written(make: Make, store_url: str) -> None:
    store = make()
    await store.write([up()])
    store._database.write(
        lambda c: c.execute(text("UPDATE audit_meta SET value = '2' WHERE name = 'version'"))
    )
    later = make(replaces=True)
    with pytest.raises(StoreError, match="have version 2, this shim knows 1"):
        await later.write([up()])
    reader = TrailReader(store_url)
    with pytest.raises(StoreError, match="have version 2, this shim knows 1"):
        reader.end()
    reader.close()


async def test_a_full_disk_is_reported_until_it_has_space_again(file: Path) -> None:
    store = sqlite_store(file, replaces=True)
    await store.write([up()])
    pragma(store, "max_page_count=1")
    lost = [request_decision(request_id="r" * 250) for _ in range(200)]
    with pytest.raises(StoreError, match="full"):
        await store.write(lost)
    check = store.check()
    assert check.state is State.WARNING
    assert "full: events are only in the log" in check.detail
    pragma(store, f"max_page_count={2**30}")
    await store.write(lost)
    assert store.check().state is State.OK
    assert len(stored(f"sqlite:///{file}", "requests")) == 200
    await store.close()


async def test_a_locked_trail_is_reported_without_stopping_the_event_loop(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shim.store.engine.BUSY_SECONDS", 0.5)
    store = sqlite_store(file)
    await store.write([up()])
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    turns = 0
    attempt = asyncio.ensure_future(store.write([up()]))
    while not attempt.done():
        await asyncio.sleep(0.01)
        turns += 1
    with pytest.raises(StoreError, match="locked"):
        await attempt
    assert turns > 10
    other.execute("ROLLBACK")
    other.close()
    await store.write([up()])
    assert store.check().state is State.OK
    await store.close()


async def test_a_trail_that_became_read_only_is_reported_until_it_is_writable(file: Path) -> None:
    store = sqlite_store(file, replaces=True)
    await store.write([up()])
    # Like a file system that is remounted read-only: root may write to any file.
    pragma(store, "query_only=ON")
    with pytest.raises(StoreError, match="readonly"):
        await store.write([up()])
    assert store.check().state is State.WARNING
    pragma(store, "query_only=OFF")
    await store.write([up()])
    assert store.check().state is State.OK
    await store.close()


async def test_a_trail_in_a_folder_that_is_missing_is_reported(tmp_path: Path) -> None:
    store = sqlite_store(tmp_path / "none" / "audit.db", replaces=True)
    with pytest.raises(StoreError, match=r"there is no folder .* set SHIM_AUDIT_DATABASE_URL"):
        await store.open()
    assert store.check().state is State.WARNING
    await store.close()


async def test_the_check_fails_if_no_identity_is_accepted_without_the_trail(file: Path) -> None:
    store = sqlite_store(file.parent / "none" / "audit.db")
    with pytest.raises(StoreError):
        await store.write([Stopped(time=1.0, trigger="SIGTERM", uptime_seconds=1.0)])
    assert store.check().state is State.WARNING
    check = store.check(blocked=True)
    assert check.state is State.FAILING
    assert "no identity is accepted" in check.detail
    await store.close()
