"""Viewers that follow the stored trail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from shim.audit.store.filters import Filters
from shim.audit.store.reader import TrailReader
from shim.audit.store.results import Position
from shim.control import live
from shim.control.live import Batch, LiveTrail
from shim.store.database import Database
from tests.support import trail_records
from tests.support.trail_records import refused, seen, store


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/audit.db"


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    with trail_records.trail(url) as opened:
        yield opened


@pytest.fixture
def reader(url: str) -> Iterator[TrailReader]:
    reader_ = TrailReader(url)
    yield reader_
    reader_.close()


async def next_events(batches: AsyncIterator[Batch]) -> Batch:
    """Return the next batch that has events."""
    async with asyncio.timeout(10):
        async for batch in batches:
            if batch.events:
                return batch
    raise AssertionError("the view has ended")


async def test_a_viewer_gets_new_events_that_match_and_none_twice(
    database: Database, reader: TrailReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "POLL_SECONDS", 0.05)
    store(database, "requests", refused(), seen("ada"))
    view = LiveTrail(reader).follow(Filters(kinds=("identity_seen",)), None)
    assert (await anext(view)).events == ()
    store(database, "requests", refused(), seen("bob"), refused())
    first = await next_events(view)
    assert [event.record["user"] for event in first.events] == ["bob"]
    store(database, "requests", seen("carl"))
    second = await next_events(view)
    assert [event.record["user"] for event in second.events] == ["carl"]
    assert second.position == Position(7, 0)  # the first row is the start of the chain


async def test_a_viewer_continues_at_a_position_in_bounded_batches(
    database: Database, reader: TrailReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "BATCH", 3)
    store(database, "requests", *(seen(f"user{n}") for n in range(8)))
    view = LiveTrail(reader).follow(Filters(), Position(1, 0))
    found: list[int] = []
    while len(found) < 8:
        batch = await next_events(view)
        assert len(batch.events) <= 3
        found += [event.index for event in batch.events]
    assert found == [2, 3, 4, 5, 6, 7, 8, 9]


async def test_a_position_beyond_the_end_restarts_because_the_trail_was_replaced(
    database: Database, reader: TrailReader
) -> None:
    store(database, "requests", seen("ada"))
    view = LiveTrail(reader).follow(Filters(), Position(5000, 70))
    assert [event.index for event in (await next_events(view)).events] == [1, 2]


async def test_there_are_at_most_sixteen_viewers_and_a_disconnect_frees_a_slot(
    database: Database, reader: TrailReader
) -> None:
    store(database, "requests", seen("ada"))
    trail = LiveTrail(reader)
    views = [trail.follow(Filters(), None) for _ in range(live.MAX_VIEWERS)]
    for view in views:
        await anext(view)
    assert await anext(trail.follow(Filters(), None), None) is None
    await views[0].aclose()
    assert not trail.is_full
    views[0] = trail.follow(Filters(), None)
    assert await anext(views[0], None) is not None
    for view in views:
        await view.aclose()


async def test_a_view_ends_when_the_shim_stops(database: Database, reader: TrailReader) -> None:
    store(database, "requests", seen("ada"))
    trail = LiveTrail(reader)
    view = trail.follow(Filters(), None)
    await anext(view)
    ended = asyncio.ensure_future(anext(view, None))
    await asyncio.sleep(0.1)
    trail.close()
    async with asyncio.timeout(5):
        assert await ended is None


async def test_a_view_ends_when_the_client_loses_its_right(
    database: Database, reader: TrailReader
) -> None:
    store(database, "requests", seen("ada"))
    view = LiveTrail(reader).follow(Filters(), Position(0, 0), lambda: False)
    assert (await anext(view)).events == ()
    assert await anext(view, None) is None
