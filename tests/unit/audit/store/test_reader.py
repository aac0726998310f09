"""The reading side of the trail, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from shim.audit.store import reader as reader_module
from shim.audit.store import search
from shim.audit.store.filters import FilterError, Filters
from shim.audit.store.reader import TrailReader
from shim.audit.store.results import CursorError, Page, Position, QueryTooSlow, StoredEvent
from shim.audit.store.schema import HOUR
from shim.store.database import Database
from shim.store.errors import StoreError
from tests.support.trail_records import START, record, refused, seen, store, trail

MINUTE = 60_000_000


@pytest.fixture
def database(store_url: str) -> Iterator[Database]:
    with trail(store_url) as opened:
        yield opened


@pytest.fixture
def reader(database: Database, store_url: str) -> Iterator[TrailReader]:
    assert database is not None
    reader_ = TrailReader(store_url)
    yield reader_
    reader_.close()


def ids(page: Page | tuple[StoredEvent, ...]) -> list[str]:
    events = page.events if isinstance(page, Page) else page
    return [each.record["id"] for each in events if each.record["kind"] != "audit_chain_started"]


def test_pages_have_the_newest_first_and_merge_both_streams_by_time(
    database: Database, reader: TrailReader
) -> None:
    requests = [refused(START + n * 2 * MINUTE) for n in range(5)]
    changes = [record("account_changed", START + (n * 2 + 1) * MINUTE) for n in range(5)]
    store(database, "requests", *requests)
    store(database, "changes", *changes)
    expected = [each["id"] for pair in zip(requests, changes, strict=True) for each in pair][::-1]
    found, cursor = [], None
    for _ in range(10):
        page = reader.page(Filters(), cursor=cursor, limit=3)
        assert len(page.events) <= 3
        found += ids(page)
        cursor = page.next_cursor
        if cursor is None:
            break
    assert cursor is None
    assert found == expected
    assert ids(reader.page(Filters(), oldest_first=True)) == expected[::-1]


def test_a_page_is_not_changed_by_events_that_are_stored_meanwhile(
    database: Database, reader: TrailReader
) -> None:
    records = [refused(START + n) for n in range(6)]
    store(database, "requests", *records[:4])
    first = reader.page(Filters(), limit=2)
    store(database, "requests", *records[4:])
    second = reader.page(Filters(), cursor=first.next_cursor, limit=2)
    assert ids(first) + ids(second) == [each["id"] for each in records[3::-1]]


@pytest.mark.parametrize(
    "filters",
    [
        Filters(kinds=("identity_seen",)),
        Filters(severities=("info",)),
        Filters(verdicts=("authenticated",)),
        Filters(reasons=("spoofed",)),
        Filters(peer="172.20.0.9"),
        Filters(peer="172.20.0.8/31"),
        Filters(peer="@"),
        Filters(client="2001:db8::1"),
        Filters(client="2001:db8::/32"),
        Filters(user="ÄNNE"),
        Filters(user="claimed"),
        Filters(account="BERT"),
        Filters(path_classes=("public",)),
        Filters(request_id="the-request"),
        Filters(text="needle"),
        Filters(text="größer"),
        Filters(text="403"),
        Filters(since=START + 5 * HOUR, until=START + 6 * HOUR),
        Filters(kinds=("request_decision", "identity_seen"), user="änne", peer="10.0.0.0/8"),
    ],
    ids=repr,
)
def test_each_filter_finds_the_events_that_match(
    database: Database, reader: TrailReader, filters: Filters
) -> None:
    records = [
        refused(START),
        seen("Änne", START + MINUTE),
        refused(START + 2 * MINUTE, reason="spoofed"),
        refused(START + 3 * MINUTE, peer="172.20.0.9"),
        refused(START + 4 * MINUTE, peer="@", client="2001:db8::1"),
        refused(START + 5 * MINUTE, claimed_user="Claimed"),
        record("account_changed", START + 6 * MINUTE, account="Bert"),
        refused(START + 7 * MINUTE, path_class="public"),
        refused(START + 8 * MINUTE, request_id="the-request"),
        refused(START + 9 * MINUTE, user_agent="a NEEDLE here"),
        refused(START + 10 * MINUTE, user_agent="GRÖSSER", notes=["x", "noch GRÖßER"]),
        refused(START + 11 * MINUTE, status=403),
        refused(START + 5 * HOUR + MINUTE),
        refused(START + 7 * HOUR, user="Änne", peer="10.1.2.3"),
    ]
    store(database, "requests", *records)
    expected = [each["id"] for each in records if filters.matches("requests", each)]
    assert 1 <= len(expected) < len(records)
    assert ids(reader.page(filters)) == expected[::-1]
    assert ids(tuple(reader.iterate(filters))) == expected
    assert ids(reader.after(Position(0, 0), filters=filters)[0]) == expected


@pytest.mark.parametrize("way", ["sorted", "addresses", "all rows"])
@pytest.mark.parametrize("oldest_first", [False, True])
@pytest.mark.parametrize(
    "filters",
    [
        Filters(client="198.18.0.0/15"),
        Filters(client="198.18.3.0/24"),
        Filters(client="198.18.3.0/30"),
        Filters(client="0.0.0.0/0"),
        Filters(client="2001:db8::/32"),
        Filters(client="192.0.2.0/24"),
        Filters(client="198.18.3.0/24", kinds=("identity_seen",)),
        Filters(client="198.18.3.0/24", peer="172.20.0.0/30"),
        Filters(peer="172.20.0.0/16", user="anna"),
        Filters(client="198.18.3.0/24", since=START + 10, until=START + 50),
    ],
    ids=repr,
)
def test_a_network_finds_its_addresses_however_they_are_looked_up(
    database: Database,
    reader: TrailReader,
    monkeypatch: pytest.MonkeyPatch,
    filters: Filters,
    oldest_first: bool,
    way: str,
) -> None:
    monkeypatch.setattr(search, "_SORT_LIMITS", (10_000,) if way == "sorted" else (-1,))
    monkeypatch.setattr(search, "_MAX_ADDRESSES", 1000 if way == "addresses" else 2)
    monkeypatch.setattr(search, "_COUNT_LIMIT", 3)
    records = [
        (seen("anna", START + n) if n % 5 == 0 else refused(START + n))
        | {"peer": f"172.20.0.{n % 4}", "client": f"198.18.{n % 7}.{n % 13}"}
        for n in range(60)
    ]
    for number, each in enumerate(records[::9]):
        each["client"] = f"2001:db8::{number}"
    del records[3]["client"]
    store(database, "requests", *records)
    expected = [each["id"] for each in records if filters.matches("requests", each)]
    found, cursor = [], None
    for _ in range(len(records)):
        page = reader.page(filters, cursor=cursor, limit=7, oldest_first=oldest_first)
        found += ids(page)
        cursor = page.next_cursor
        if cursor is None:
            break
    assert found == (expected if oldest_first else expected[::-1])


def test_a_combination_that_never_occurred_is_known_from_the_counts(
    database: Database, reader: TrailReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(database, "requests", seen("anna"), refused(START + 1))

    def no_scan(*_: object) -> None:
        raise AssertionError("rows were read")

    monkeypatch.setattr(search.Scan, "_read_piece", no_scan)
    page = reader.page(Filters(kinds=("identity_seen",), verdicts=("rejected",)))
    assert (page.events, page.next_cursor) == ((), None)


@pytest.mark.parametrize("name", ["a\0b", "\udcff", "\u00e9", "x" * 5000], ids=ascii)
def test_a_filter_with_any_text_finds_what_is_stored(
    database: Database, reader: TrailReader, name: str
) -> None:
    found = {**refused(START), "user": name, "account": name, "peer": name, "request_id": name}
    store(database, "requests", found, refused(START + 1))
    for filters in (Filters(user=name), Filters(account=name), Filters(request_id=name)):
        assert ids(reader.page(filters)) == [found["id"]]
    if len(name) < 255:
        assert ids(reader.page(Filters(peer=name))) == [found["id"]]
    if name.isprintable() and len(name) < 200:
        assert ids(reader.page(Filters(text=name))) == [found["id"]]


def test_text_is_not_found_in_the_names_of_fields(database: Database, reader: TrailReader) -> None:
    store(database, "requests", refused())
    assert ids(reader.page(Filters(text="claimed_user"))) == []
    assert len(ids(reader.page(Filters(text="anna")))) == 1


def test_a_search_for_text_is_limited_with_a_note(
    database: Database, reader: TrailReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in (search, reader_module):
        monkeypatch.setattr(each, "MAX_SEARCHED", 10)
    monkeypatch.setattr(search, "_FIRST_PIECE", 5)
    # A loaded machine does not reach it.
    monkeypatch.setattr(reader_module, "_PAGE_SECONDS", 60)
    old = refused(START, user_agent="needle")
    store(database, "requests", old, *(refused(START + n) for n in range(1, 30)))
    page = reader.page(Filters(text="needle"))
    assert ids(page) == []
    assert (
        page.note == "The text was searched in the newest 10 events that match the other filters."
    )
    assert page.next_cursor is None


def test_a_page_that_reaches_its_time_limit_has_a_note_and_the_next_one_continues(
    database: Database, reader: TrailReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = refused(START, method="PATCH")
    others = [refused(START + n, method="GET") for n in range(1, 40)]
    store(database, "requests", wanted, *others)
    monkeypatch.setattr(search, "_FIRST_PIECE", 4)
    monkeypatch.setattr(search, "_MAX_PIECE", 4)
    filters = Filters(text="PATCH")
    found: list[str] = []
    cursor, notes = None, set()
    for _ in range(100):
        monkeypatch.setattr(reader_module, "_PAGE_SECONDS", 0.000_001 if cursor is None else 0.01)
        page = reader.page(filters, cursor=cursor)
        notes.add(page.note)
        found += ids(page)
        cursor = page.next_cursor
        if cursor is None:
            break
    assert found == [wanted["id"]]
    assert "The search is not complete: the next page searches further back." in notes


@pytest.mark.parametrize("oldest_first", [False, True])
def test_pages_that_reach_their_time_limit_merge_both_streams_by_time(
    database: Database,
    reader: TrailReader,
    monkeypatch: pytest.MonkeyPatch,
    oldest_first: bool,
) -> None:
    requests = [refused(START + n * 10, method="PATCH" if n % 9 == 0 else "GET") for n in range(40)]
    changes = [
        record("account_changed", START + n * 7 + 3, account="patch" if n in (30, 31) else "x")
        for n in range(60)
    ]
    store(database, "requests", *requests)
    store(database, "changes", *changes)
    monkeypatch.setattr(reader_module, "_PAGE_SECONDS", 0.000_001)
    monkeypatch.setattr(search, "_FIRST_PIECE", 4)
    monkeypatch.setattr(search, "_MAX_PIECE", 4)
    wanted = Filters(text="patch")
    both = sorted([*requests, *changes], key=lambda each: each["time"], reverse=not oldest_first)
    expected = [each["id"] for each in both if wanted.matches_text(each)]
    found: list[str] = []
    sizes, cursor = [], None
    for _ in range(100):
        page = reader.page(wanted, cursor=cursor, oldest_first=oldest_first)
        sizes.append(len(page.events))
        found += ids(page)
        cursor = page.next_cursor
        if cursor is None:
            break
    assert found == expected
    assert len(expected) == 7
    # One stream does not keep the events of the other one back until it is searched.
    assert 0 < max(sizes) < len(expected)
    assert sizes[0] == (1 if oldest_first else 0)


def test_a_page_that_ends_inside_a_piece_continues(
    database: Database, reader: TrailReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "_FIRST_PIECE", 2)
    monkeypatch.setattr(search, "_MAX_PIECE", 2)
    records = [refused(START + n) for n in range(5)]
    store(database, "requests", *records)
    first = reader.page(Filters(), limit=2)
    second = reader.page(Filters(), limit=2, cursor=first.next_cursor)
    third = reader.page(Filters(), limit=2, cursor=second.next_cursor)
    assert ids(first) + ids(second) + ids(third) == [e["id"] for e in records[::-1]]
    assert third.next_cursor is None


def test_an_event_is_found_by_its_id(database: Database, reader: TrailReader) -> None:
    wanted = record("account_changed", account="bert")
    store(database, "changes", record("account_created"), wanted)
    found = reader.get(wanted["id"])
    assert found is not None
    assert (found.stream, found.chain, found.record["account"]) == ("changes", 1, "bert")
    assert found.record["index"] == found.index == 3
    assert reader.get("nothing") is None


def test_new_events_follow_a_position_and_each_is_returned_once(
    database: Database, reader: TrailReader
) -> None:
    store(database, "requests", refused())
    position = reader.end()
    assert reader.after(position) == ((), position)
    new = [refused(START + 9), refused(START + 1)]
    store(database, "requests", *new)
    store(database, "changes", record("reload", START + 5))
    first, position = reader.after(position, 1)
    second, position = reader.after(position, 100)
    found = [*first, *second]
    assert len(found) == 4  # and the start of the chain of changes
    assert [e.record["id"] for e in found if e.stream == "requests"] == [e["id"] for e in new]
    assert reader.after(Position.parse(str(position)))[0] == ()


@pytest.mark.parametrize(
    "cursor", ["", "x", "d.1.2", "d.1.2.3.4", "a.1.2.3", "d.-1.2.3", "d.1.2.3\n"]
)
def test_a_cursor_that_is_not_of_this_reader_is_an_error(
    database: Database, reader: TrailReader, cursor: str
) -> None:
    assert database is not None
    with pytest.raises(CursorError, match="expected the cursor of the page before"):
        reader.page(Filters(), cursor=cursor)


@pytest.mark.parametrize("position", ["", "1", "1.x", "1.2.3", "-1.2"])
def test_a_position_that_is_not_of_this_reader_is_an_error(position: str) -> None:
    with pytest.raises(CursorError, match="expected a position"):
        Position.parse(position)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"peer": "10.0.0.0/99"}, "peer: expected an address or a network"),
        ({"client": ""}, "client: expected an address or a network"),
        ({"since": 5, "until": 5}, "since: expected a time before until"),
        ({"text": "x" * 201}, "text: expected 1 to 200 characters"),
        ({"text": ""}, "text: expected 1 to 200 characters"),
        ({"streams": ("all",)}, "stream: expected requests or changes"),
    ],
)
def test_a_filter_that_cannot_be_used_is_an_error(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(FilterError, match=sentence):
        Filters(**values)  # type: ignore[arg-type]


def test_the_summary_counts_each_event_of_a_coalesced_one(
    database: Database, reader: TrailReader
) -> None:
    store(database, "requests", refused(START, count=40), refused(START + HOUR), seen("anna"))
    store(database, "requests", refused(START + MINUTE, count=2))
    hours = reader.summary(START, START + 2 * HOUR)
    cells = {(c.start, c.kind, c.reason): c.count for c in hours.cells if c.verdict}
    assert cells == {
        (START, "request_decision", "identity_incomplete"): 42,
        (START, "identity_seen", None): 1,
        (START + HOUR, "request_decision", "identity_incomplete"): 1,
    }
    minutes = reader.summary(START, START + 10 * MINUTE, MINUTE)
    found = {c.start: c.count for c in minutes.cells if c.kind == "request_decision"}
    assert found == {START: 40, START + MINUTE: 2}
    day = reader.summary(START, START + 24 * HOUR, 24 * HOUR)
    assert sum(c.count for c in day.cells if c.verdict == "rejected") == 43


def test_the_report_has_rejections_origins_users_and_changes(
    database: Database, reader: TrailReader
) -> None:
    store(
        database,
        "requests",
        refused(START, count=7),
        refused(START + 1, client="198.51.100.7", reason="spoofed"),
        refused(START - 400 * HOUR, reason="cross_site"),
        # A denied account is the reason of a request that is counted already.
        record("account_denied", START, user="eve", reason="spoofed"),
        seen("Ünal"),
        seen("Ünal", START + HOUR),
    )
    created = record("account_created", START, account="anna")
    locked = record("account_locked", START, account="bert")
    store(database, "changes", created, locked, record("started", START))
    report = reader.report(START, START + 2 * HOUR)
    assert [(c.value, c.count) for c in report.refusals] == [
        ("identity_incomplete", 7),
        ("spoofed", 1),
    ]
    assert [(c.value, c.reason, c.count) for c in report.origins] == [
        ("203.0.113.9", "identity_incomplete", 7),
        ("198.51.100.7", "spoofed", 1),
    ]
    assert [(c.value, c.count, c.last_time) for c in report.people] == [("Ünal", 2, START + HOUR)]
    assert ids(report.new_accounts) == [created["id"]]
    assert ids(report.locks) == [locked["id"]]
    assert report.truncated == ()


def test_a_slow_query_ends_with_advice(
    database: Database, reader: TrailReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(database, "requests", *(refused(START + n) for n in range(2000)))
    monkeypatch.setattr(reader_module, "QUERY_SECONDS", 0.001)
    with pytest.raises(QueryTooSlow, match="choose a shorter period"), reader._connection() as c:
        c.execute(
            text(
                "SELECT count(*) FROM audit_requests a, audit_requests b, audit_requests c "
                "WHERE a.data < b.data AND b.data < c.data"
            )
        )


def test_a_reader_cannot_write(database: Database, reader: TrailReader) -> None:
    store(database, "requests", refused())
    with pytest.raises(StoreError, match=r"(?i)read-?only"), reader._connection() as connection:
        connection.execute(text("DELETE FROM audit_requests"))


def test_without_a_trail_the_error_says_so(store_url: str, tmp_path: Path) -> None:
    reader = TrailReader(store_url)
    try:
        with pytest.raises(StoreError, match="there is no trail yet"):
            reader.page(Filters())
    finally:
        reader.close()
    assert list(tmp_path.iterdir()) == []
