"""What `verify` finds after changes to the database, on SQLite and on PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Connection, delete, insert, select, text, update

from shim.audit.store.append import append, read_head
from shim.audit.store.chain import NO_KEY, Keys, build_keys, row_hash
from shim.audit.store.reader import TrailReader
from shim.audit.store.retention import Limits, remove_oldest
from shim.audit.store.schema import META, REQUESTS, STREAM_STATES, canonical, column_values
from shim.audit.store.verify import StreamResult, Verification
from shim.store.database import Database
from tests.support.trail_records import KEYS, START, record, refused, store, trail

OTHER_KEYS = build_keys(["somebody-elses-key-0123456789"])
LAST = 12


@pytest.fixture
def database(store_url: str) -> Iterator[Database]:
    """A trail with rows 1 to 12 of requests, and some changes."""
    with trail(store_url) as opened:
        store(opened, "requests", *(refused(START + n) for n in range(LAST - 1)))
        store(opened, "changes", record("started"), record("account_created"))
        yield opened


def verified(url: str, keys: Keys = KEYS, log: list[str] | None = None) -> Verification:
    reader = TrailReader(url)
    try:
        return reader.verify(keys, log)
    finally:
        reader.close()


def of_requests(url: str, keys: Keys = KEYS, log: list[str] | None = None) -> StreamResult:
    found = verified(url, keys, log)
    assert found.streams[1].problem is None
    return found.streams[0]


def checkpoint(database: Database) -> str:
    """The line of the log about the last row of requests."""
    database_id = database.read(
        lambda c: c.execute(select(META.c.value).where(META.c.name == "id")).scalar()
    )
    head = database.read(lambda c: read_head(c, "requests"))
    assert head is not None
    line = {
        "kind": "audit_checkpoint",
        "time": "2026-11-27T00:00:00.000000Z",
        "database": database_id,
        "checked_stream": "requests",
        "last_index": head.index,
        "last_hash": head.hash.hex(),
    }
    return f"shim-1  | {json.dumps(line)}\n"


def test_an_untouched_trail_has_no_problem(database: Database, store_url: str) -> None:
    found = verified(
        store_url, log=["other text {\n", '{"kind":"audit_checkpoint"}', checkpoint(database)]
    )
    assert found.ok
    assert [(s.stream, s.rows, s.last_index, s.checkpoints) for s in found.streams] == [
        ("requests", LAST, LAST, 1),
        ("changes", 3, 3, 0),
    ]
    assert found.notes == ()


def renumber(connection: Connection, start: int, by: int) -> None:
    """Move the rows from `start` on, as an attacker who hides a gap."""
    rows = connection.execute(select(REQUESTS.c.index).where(REQUESTS.c.index >= start)).all()
    for (index,) in sorted(rows, reverse=by > 0):
        connection.execute(
            update(REQUESTS).where(REQUESTS.c.index == index).values(index=index + by)
        )


def set_last(connection: Connection, by: int) -> None:
    here = STREAM_STATES.c.stream == "requests"
    last = STREAM_STATES.c.last_index
    connection.execute(update(STREAM_STATES).where(here).values(last_index=last + by))


def alter_data(connection: Connection) -> None:
    data = connection.execute(select(REQUESTS.c.data).where(REQUESTS.c.index == 5)).scalar_one()
    new = data.replace("203.0.113.9", "203.0.113.8")
    assert new != data
    connection.execute(update(REQUESTS).where(REQUESTS.c.index == 5).values(data=new))


def alter_column(name: str, value: object) -> Callable[[Connection], None]:
    def work(connection: Connection) -> None:
        connection.execute(update(REQUESTS).where(REQUESTS.c.index == 5).values({name: value}))

    return work


def alter_and_hash_with_another_key(connection: Connection) -> None:
    row = connection.execute(select(REQUESTS).where(REQUESTS.c.index == 5)).one()
    before = connection.execute(select(REQUESTS.c.hash).where(REQUESTS.c.index == 4)).scalar_one()
    data = canonical({**json.loads(row.data), "client": "203.0.113.8"})
    connection.execute(
        update(REQUESTS)
        .where(REQUESTS.c.index == 5)
        .values(
            data=data,
            key_id=NO_KEY,
            hash=row_hash(b"", bytes(before), data),
            **column_values(json.loads(data)),
        )
    )


def remove(connection: Connection) -> None:
    connection.execute(delete(REQUESTS).where(REQUESTS.c.index == 5))


def remove_and_renumber(connection: Connection) -> None:
    remove(connection)
    renumber(connection, 6, -1)
    set_last(connection, -1)


def swap(connection: Connection) -> None:
    for old, new in ((5, 1000), (9, 5), (1000, 9)):
        connection.execute(update(REQUESTS).where(REQUESTS.c.index == old).values(index=new))


def forged_row(connection: Connection, index: int) -> None:
    forged = refused(START, client="192.0.2.1") | {"index": index, "chain": 1}
    before = connection.execute(
        select(REQUESTS.c.hash).where(REQUESTS.c.index == index - 1)
    ).scalar_one()
    data = canonical(forged)
    connection.execute(
        insert(REQUESTS).values(
            index=index,
            chain=1,
            key_id=KEYS.signing,
            hash=row_hash(OTHER_KEYS.secrets[0], bytes(before), data),
            data=data,
            **column_values(forged),
        )
    )


def insert_and_renumber(connection: Connection) -> None:
    renumber(connection, 5, 1)
    set_last(connection, 1)
    forged_row(connection, 5)


def insert_after_the_end(connection: Connection) -> None:
    forged_row(connection, LAST + 1)


def insert_before_the_start(connection: Connection) -> None:
    connection.execute(update(REQUESTS).where(REQUESTS.c.index == 1).values(index=-7))


def truncate(connection: Connection) -> None:
    connection.execute(delete(REQUESTS).where(REQUESTS.c.index > 9))


def remove_the_oldest(connection: Connection) -> None:
    connection.execute(delete(REQUESTS).where(REQUESTS.c.index < 4))


def remove_the_oldest_with_an_event(connection: Connection) -> None:
    hashed = connection.execute(select(REQUESTS.c.hash).where(REQUESTS.c.index == 3)).scalar_one()
    remove_the_oldest(connection)
    here = STREAM_STATES.c.stream == "requests"
    values = {"first_index": 4, "first_previous_hash": hashed}
    connection.execute(update(STREAM_STATES).where(here).values(values))


@pytest.mark.parametrize(
    ("change", "fault", "index"),
    [
        (alter_data, "altered", 5),
        (alter_column("client", b"\0" * 16), "altered", 5),
        (alter_column("kind", "access"), "altered", 5),
        (alter_column("time", 1), "altered", 5),
        (alter_column("hash", b"x" * 32), "altered", 5),
        (alter_column("chain", 7), "altered", 5),
        (alter_column("key_id", NO_KEY), "altered", 5),
        (alter_column("data", "{"), "altered", 5),
        (alter_column("key_id", "deadbeef"), "unknown_key", 5),
        (alter_and_hash_with_another_key, "altered", 5),
        (remove, "missing", 5),
        (remove_and_renumber, "missing", 5),
        (swap, "reordered", 5),
        (insert_and_renumber, "inserted", 5),
        (insert_after_the_end, "inserted", LAST + 1),
        (insert_before_the_start, "inserted", -7),
        (truncate, "missing", 10),
        (remove_the_oldest, "missing", 1),
        (remove_the_oldest_with_an_event, "missing", 1),
    ],
)
def test_the_first_changed_row_is_named(
    database: Database,
    store_url: str,
    change: Callable[[Connection], None],
    fault: str,
    index: int,
) -> None:
    database.write(change)
    problem = of_requests(store_url).problem
    assert problem is not None
    assert (problem.fault, problem.index) == (fault, index), problem.detail
    assert str(index) in problem.detail or fault == "missing"


def set_last_to(connection: Connection, index: int) -> None:
    hashed = connection.execute(
        select(REQUESTS.c.hash).where(REQUESTS.c.index == index)
    ).scalar_one()
    here = STREAM_STATES.c.stream == "requests"
    connection.execute(update(STREAM_STATES).where(here).values(last_index=index, last_hash=hashed))


def test_only_a_checkpoint_shows_that_the_end_and_the_state_were_removed(
    database: Database, store_url: str
) -> None:
    log = [checkpoint(database)]

    def work(connection: Connection) -> None:
        truncate(connection)
        set_last_to(connection, 9)

    database.write(work)
    assert of_requests(store_url).problem is None
    problem = of_requests(store_url, log=log).problem
    assert problem is not None
    assert (problem.fault, problem.index) == ("missing", 10)
    assert problem.detail == "row 10 is missing: the log of 2026-11-27T00:00:00.000000Z has row 12"


def test_only_a_checkpoint_shows_that_a_chain_without_a_key_was_recomputed(
    store_url: str,
) -> None:
    none = build_keys([])
    with trail(store_url) as database:
        store(database, "requests", *(refused(START + n) for n in range(5)), keys=none)
        log = [checkpoint(database)]

        def rewrite(connection: Connection) -> None:
            connection.execute(delete(REQUESTS))
            connection.execute(delete(STREAM_STATES))
            connection.execute(text("DELETE FROM audit_hours"))
            connection.execute(text("DELETE FROM audit_hourly_values"))
            forged = [refused(START + n, client="192.0.2.1") for n in range(5)]
            append(connection, "requests", forged, none)

        database.write(rewrite)
        without = verified(store_url, none)
        assert without.ok
        assert "accidental changes only" in without.notes[0]
        problem = verified(store_url, none, log).streams[0].problem
    assert problem is not None
    assert (problem.fault, problem.index) == ("altered", 6)
    assert "has another hash than the log of 2026-11-27" in problem.detail


def test_a_log_of_another_database_is_not_accepted(database: Database, store_url: str) -> None:
    assert database is not None
    line = (
        '{"kind":"audit_checkpoint","time":"t","database":"d","checked_stream":"requests",'
        '"last_index":1,"last_hash":"00"}'
    )
    found = verified(store_url, log=[line])
    assert not found.ok
    assert "no checkpoint of this database" in found.notes[0]


def test_rows_that_retention_removed_are_explained_by_the_chain(
    database: Database, store_url: str
) -> None:
    log = [checkpoint(database)]
    limits = Limits(since=START + 6)
    removed = database.write(lambda c: remove_oldest(c, "requests", limits, KEYS))
    assert removed == 7
    found = of_requests(store_url, log=log)
    assert found.problem is None
    assert (found.first_index, found.rows, found.checkpoints) == (8, 6, 1)
    database.write(lambda c: remove_oldest(c, "requests", Limits(max_size=0), KEYS))
    found = of_requests(store_url)
    assert (found.problem, found.rows) == (None, 2)


def test_all_keys_of_a_rotation_are_verified(database: Database, store_url: str) -> None:
    new = build_keys(["another-key-another-key", KEYS.secrets[0].decode()])
    store(database, "requests", refused(), keys=new)
    found = of_requests(store_url, new)
    assert (found.problem, found.rows, found.without_key) == (None, LAST + 2, 0)
    problem = verified(store_url, build_keys(["another-key-another-key"])).streams[0].problem
    assert problem is not None
    assert (problem.fault, problem.index) == ("unknown_key", 1)
    assert "is not in SHIM_AUDIT_KEY" in problem.detail
