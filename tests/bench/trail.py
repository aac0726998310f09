"""Fill a trail with many rows, and measure its pages, filters, reports and retention.

`python -m tests.bench.trail [--rows 10000000] [--url URL | --postgresql] [--folder FOLDER]`. Without a URL, a
new SQLite file is made in the folder and removed at the end. Ends with 1 if a limit of `LIMITS` is exceeded.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import itertools
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from sqlalchemy import Connection, Table, create_engine, insert, text

from shim.audit.store.append import MAX_HOURLY_VALUES
from shim.audit.store.chain import GENESIS, build_keys, row_hash
from shim.audit.store.filters import Filters
from shim.audit.store.reader import TrailReader
from shim.audit.store.results import QueryTooSlow
from shim.audit.store.retention import Limits
from shim.audit.store.schema import (
    HOUR,
    METADATA,
    STREAM_STATES,
    TABLES,
    Stream,
    canonical,
    column_values,
    iso_time,
    row_size,
)
from shim.audit.store.tables import SCHEMA, build_database
from shim.audit.store.writer import TrailStore
from shim.store.database import Database
from tests.support.postgresql import PostgreSQL, programs

KEYS = build_keys(["bench-bench-bench-bench-bench"])
DAY = 24 * HOUR
# Days of the requests, and of the changes and counts.
DAYS = 90
YEAR_DAYS = 400
START = 1_793_491_200_000_000
END = START + DAYS * DAY
# Milliseconds: a page, the report of 30 days, and a pause of the event loop.
LIMITS = {"page": 200.0, "report": 2000.0, "pause": 50.0}
_PIECE = 20_000
_REMOVED = 40_000
_COLUMNS = (
    "index", "chain", "key_id", "hash", "id", "time", "kind", "severity", "verdict", "reason", "peer",
    "client", "path_class", "user", "account", "request_id", "count", "data",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Template:
    """A record without its index, id, time and request: the JSON text between these, and its columns."""

    parts: tuple[str, ...]
    columns: dict[str, Any]


def build_template(record: dict[str, Any]) -> Template:
    """Return the template of a record."""
    marked = {**record, "id": "@", "index": "@", "request_id": "@", "time": "@", "chain": 1}
    parts = re.split('"@"', canonical(marked))
    assert len(parts) == 5
    return Template(tuple(parts), column_values({**record, "id": "", "time": iso_time(START)}))


def common_records(rng: random.Random) -> list[dict[str, Any]]:
    """Return some thousand records, as a shim that is probed and used has them."""
    reasons = ["untrusted_peer", "public_path", "cross_site", "identity_incomplete", "header_alias"]
    found: list[dict[str, Any]] = []
    for number in range(4000):
        client = f"198.{18 + number % 2}.{number // 250 % 250}.{number % 250}"
        user = f"user{rng.randrange(200)}"
        record: dict[str, Any] = {
            "schema": 1, "instance": "bench/1", "stream": "requests", "client": client,
            "peer": f"172.20.0.{2 + number % 3}", "path": f"/app/{number % 90}", "method": "GET",
            "user_agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
        }  # fmt: skip
        if number % 4 == 0:
            record |= {
                "kind": "identity_seen", "severity": "info", "verdict": "authenticated",
                "reason": "trusted_peer", "user": user, "account": user, "path_class": "protected",
            }  # fmt: skip
        else:
            stripped = number % 3 == 0
            record |= {
                "kind": "request_decision", "severity": "warning",
                "verdict": "stripped" if stripped else "rejected",
                "reason": rng.choice(reasons), "claimed_user": user, "status": 403,
                "path_class": "public" if number % 5 == 0 else "protected",
                "removed_headers": ["x-authentik-username", "x-authentik-uid"],
            }  # fmt: skip
        found.append(record)
    return found


def rare_record(common: dict[str, Any]) -> dict[str, Any]:
    """Return a record whose values hardly any other one has."""
    return {
        **common, "kind": "navidrome_token_found", "severity": "error", "reason": "token_mismatch",
        "verdict": "anonymous", "path_class": "internal", "client": "2001:db8::7", "user": "sister",
        "peer": "10.9.8.7", "account": "sister", "notes": ["the needle of the text search"],
    }  # fmt: skip


def early_record(common: dict[str, Any]) -> dict[str, Any]:
    """Return a record with values that are frequent only in the oldest tenth of the trail."""
    return {
        **common, "kind": "request_failed", "reason": "upstream_timeout", "verdict": "authenticated",
        "user": "former", "account": "former", "peer": "10.1.1.1", "client": "203.0.113.5",
    }  # fmt: skip


def probe_records(common: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the records of a flood in the oldest tenth, from thousands of addresses of one network."""
    return [{**common, "client": f"2001:db8:5::{number:x}"} for number in range(1, 5001)]


def change_records() -> list[dict[str, Any]]:
    """Return records of the other stream. Most kinds are rare there."""
    base = {"schema": 1, "instance": "bench/1", "stream": "changes", "severity": "info"}
    kinds = ["configuration_loaded"] * 40 + ["started", "stopped"] * 10
    kinds += ["key_set_fetched"] * 400 + ["account_changed"] * 4 + ["admin_action"] * 2
    kinds += ["account_created", "account_locked"]
    return [{**base, "kind": kind, "account": f"user{n % 200}"} for n, kind in enumerate(kinds)]


def rows(stream: Stream, count: int) -> Iterator[tuple[Any, ...]]:
    """Return rows with a valid chain, equally far apart until `END`."""
    rng = random.Random(7)
    if stream == "changes":
        common = [build_template(record) for record in change_records()]
        rare = early = common[0]
        probes = common
    else:
        records = common_records(rng)
        common = [build_template(record) for record in records]
        rare = build_template(rare_record(records[0]))
        early = build_template(early_record(records[1]))
        probes = [build_template(record) for record in probe_records(records[1])]
    start = START if stream == "requests" else END - YEAR_DAYS * DAY
    step = (END - start) // count
    secret, signing, previous = KEYS.secrets[0], KEYS.signing, GENESIS
    tenth, every = count // 10, max(count // 20, 2)
    for index in range(1, count + 1):
        if index % every == every // 2:
            template = rare
        elif index < tenth and index % 10 == 0:
            template = early
        elif tenth // 2 < index < tenth and index % 5 == 1:
            template = probes[rng.randrange(len(probes))]
        else:
            template = common[int(rng.random() * len(common))]
        moment = start + index * step
        number, request = f"{moment << 64 | index:032x}", f"r{index:x}"
        event_id = f"{number[:8]}-{number[8:12]}-{number[12:16]}-{number[16:20]}-{number[20:]}"
        before, after_id, after_index, after_request, end = template.parts
        data = (
            f'{before}"{event_id}"{after_id}{index}{after_index}"{request}"{after_request}'
            f'"{_iso_time(moment)}"{end}'
        )
        previous = row_hash(secret, previous, data)
        values = template.columns
        yield (
            index, 1, signing, previous, event_id, moment, values["kind"], values["severity"],
            values["verdict"], values["reason"], values["peer"], values["client"],
            values["path_class"], values["user"], values["account"], request, 1, data,
        )  # fmt: skip


def _iso_time(moment: int) -> str:
    """`iso_time`, in a third of its time."""
    day, rest = divmod(moment, DAY)
    seconds, fraction = divmod(rest, 1_000_000)
    minutes, second = divmod(seconds, 60)
    hour, minute = divmod(minutes, 60)
    return f"{_date(day)}T{hour:02}:{minute:02}:{second:02}.{fraction:06}Z"


@functools.cache
def _date(day: int) -> str:
    return iso_time(day * DAY).partition("T")[0]


def fill(database: Database, url: str, count: int) -> None:
    """Store `count` requests, and changes, without indexes; then create these, and count."""
    for stream, number in (("requests", count), ("changes", max(count // 50, 500))):
        _fill_stream(database, cast("Stream", stream), number)
    database.write(_count)
    if database.file is None:
        # As the server does it by itself some time after many rows were stored.
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for table in METADATA.tables:
                connection.execute(text(f"VACUUM ANALYZE {SCHEMA}.{table}"))
        engine.dispose()


def _fill_stream(database: Database, stream: Stream, count: int) -> None:
    table = TABLES[stream]
    indexes = sorted(table.indexes, key=lambda index: str(index.name))
    for index in indexes:
        database.write(index.drop)
    source, last, total = rows(stream, count), GENESIS, 0
    while piece := list(itertools.islice(source, _PIECE)):
        database.write(lambda c, p=piece: _insert(c, table, p))  # type: ignore[misc]
        last = piece[-1][3]
        total += sum(row_size(row[-1]) for row in piece)
    state = {
        "stream": stream, "first_index": 1, "first_previous_hash": GENESIS, "last_index": count,
        "last_hash": last, "chain": 1, "key_id": KEYS.signing, "bytes": total,
    }  # fmt: skip
    database.write(lambda c: c.execute(insert(STREAM_STATES).values(state)))
    for index in indexes:
        database.write(index.create)


def _insert(connection: Connection, table: Table, piece: list[tuple[Any, ...]]) -> None:
    names = ", ".join(f'"{name}"' for name in _COLUMNS)
    if connection.dialect.name == "postgresql":
        driver: Any = connection.connection.driver_connection
        with driver.cursor().copy(f"COPY {table.name} ({names}) FROM STDIN") as copy:
            for row in piece:
                copy.write_row(row)
        return
    marks = ", ".join("?" * len(_COLUMNS))
    cursor: Any = connection.connection.cursor()
    cursor.executemany(f"INSERT INTO {table.name} ({names}) VALUES ({marks})", piece)


def _count(connection: Connection) -> None:
    for stream, table in TABLES.items():
        connection.execute(
            text(
                f"INSERT INTO audit_hours SELECT time / {HOUR}, '{stream}', kind, coalesce(verdict, ''), "
                f'coalesce(reason, \'\'), sum(count), min("index"), max("index") FROM {table.name} '
                "GROUP BY 1, 3, 4, 5"
            )
        )
    # The counts outlive the rows: each earlier hour has those of the last one.
    last, hours = END // HOUR - 1, (YEAR_DAYS - DAYS) * 24
    first = START // HOUR - hours
    connection.execute(
        text(
            "INSERT INTO audit_hours WITH RECURSIVE earlier (hour) AS "
            f"(SELECT {first} UNION ALL SELECT hour + 1 FROM earlier WHERE hour < {first + hours - 1}) "
            "SELECT earlier.hour, stream, kind, verdict, reason, count, 1, 1 "
            f"FROM audit_hours, earlier WHERE audit_hours.hour = {last} AND stream = 'requests'"
        )
    )
    # As the writer counts them: a bounded number of values in each hour.
    for field, prefix in (("client", "198.18.0."), ("user", "u")):
        connection.execute(
            text(
                "INSERT INTO audit_hourly_values WITH RECURSIVE "
                f"hours (hour) AS (SELECT {START // HOUR} UNION ALL SELECT hour + 1 FROM hours "
                f"WHERE hour < {END // HOUR - 1}), "
                "numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers "
                f"WHERE n < {MAX_HOURLY_VALUES - 1}) "
                f"SELECT hour, '{field}', '{prefix}' || n, 'untrusted_peer', 5, hour * {HOUR} "
                "FROM hours, numbers"
            )
        )


FILTERS: dict[str, Filters] = {
    "everything": Filters(),
    "a day": Filters(since=START + 40 * DAY, until=START + 41 * DAY),
    "a frequent kind": Filters(kinds=("request_decision",)),
    "a rare kind": Filters(kinds=("navidrome_token_found",)),
    "a kind that never occurs": Filters(kinds=("account_denied",)),
    "a rare severity": Filters(severities=("error",)),
    "two severities": Filters(severities=("error", "info")),
    "a verdict": Filters(verdicts=("rejected",)),
    "a reason": Filters(reasons=("cross_site",)),
    "a peer": Filters(peer="172.20.0.3"),
    "a network of peers": Filters(peer="172.20.0.0/16"),
    "a client": Filters(client="198.18.3.7"),
    "a network of clients": Filters(client="198.18.0.0/15"),
    "a small network of clients": Filters(client="2001:db8::/64"),
    "a network without clients": Filters(client="192.0.2.0/24"),
    "a network of some clients": Filters(client="198.18.3.0/24"),
    "a network of a few clients": Filters(client="198.18.3.0/28"),
    "a network of everything": Filters(client="0.0.0.0/0"),
    "the network of an early flood": Filters(client="2001:db8:5::/64"),
    "the network of an early flood on a late day": Filters(
        client="2001:db8:5::/64", since=START + 80 * DAY, until=START + 81 * DAY
    ),
    "the network of an early flood and a user": Filters(client="2001:db8:5::/64", user="user7"),
    "a network and a kind": Filters(client="198.18.3.0/24", kinds=("identity_seen",)),
    "an early user": Filters(user="former"),
    "an early user and a frequent kind": Filters(user="former", kinds=("request_decision",)),
    "an early peer and a late day": Filters(peer="10.1.1.1", since=START + 80 * DAY),
    "an early kind": Filters(kinds=("request_failed",)),
    "an early day": Filters(since=START + DAY, until=START + 2 * DAY),
    "a network of peers and a rare user": Filters(peer="172.16.0.0/12", user="sister"),
    "a frequent peer and a frequent user": Filters(peer="172.20.0.3", user="user7"),
    "five filters": Filters(
        peer="172.20.0.0/24",
        client="198.18.0.0/16",
        verdicts=("stripped", "rejected"),
        path_classes=("public",),
        severities=("warning",),
    ),
    "a user": Filters(user="user7"),
    "a rare user": Filters(user="SISTER"),
    "an unknown user": Filters(user="nobody"),
    "a path class": Filters(path_classes=("internal",)),
    "a request": Filters(request_id="r1f"),
    "a user and a reason": Filters(user="user7", reasons=("cross_site",)),
    "two that exclude each other": Filters(kinds=("identity_seen",), verdicts=("rejected",)),
    "a rare user on one day": Filters(user="sister", since=START, until=START + DAY),
    "frequent text": Filters(text="firefox"),
    "rare text": Filters(text="needle of the"),
    "text that never occurs": Filters(text="no such text"),
    "text in a network": Filters(text="needle", client="198.18.0.0/15"),
    "text of a user": Filters(text="needle", user="sister"),
}


def measure_verification(url: str) -> None:
    """Verify both chains. There is no limit for it: it reads and hashes every row."""
    reader = TrailReader(url)
    begin = time.perf_counter()
    found = reader.verify(KEYS)
    seconds = time.perf_counter() - begin
    reader.close()
    rows_ = sum(result.rows for result in found.streams)
    print(f"{rows_} rows verified in {seconds:.0f} s ({rows_ / seconds:.0f}/s)", flush=True)
    assert found.ok, found


def timed(name: str, limit: float, work: Callable[[], object], failed: list[str]) -> object:
    begin = time.perf_counter()
    try:
        done: object = work()
    except QueryTooSlow as error:
        done = error
    seconds = (time.perf_counter() - begin) * 1000
    is_late = seconds > limit or isinstance(done, QueryTooSlow)
    print(f"{seconds:9.1f} ms  {name}{'  LATE' if is_late else ''}", flush=True)
    if is_late:
        failed.append(name)
    return done


def measure_reads(url: str, rows: int, failed: list[str]) -> None:
    reader = TrailReader(url)
    for name, filters in FILTERS.items():
        for oldest in (False, True):
            order = "oldest" if oldest else "newest"
            page: Any = timed(
                f"{name}, {order} first", LIMITS["page"],
                lambda f=filters, o=oldest: reader.page(f, oldest_first=o), failed,  # type: ignore[misc]
            )  # fmt: skip
            middle = f"{'a' if oldest else 'd'}.{rows // 2}.{rows // 100}.0"
            timed(
                f"{name}, {order} first, from the middle", LIMITS["page"],
                lambda f=filters, o=oldest, m=middle: reader.page(  # type: ignore[misc]
                    f, cursor=m, oldest_first=o
                ), failed,
            )  # fmt: skip
            if getattr(page, "next_cursor", None):
                timed(
                    f"{name}, {order} first, page 2", LIMITS["page"],
                    lambda f=filters, o=oldest, p=page: reader.page(  # type: ignore[misc]
                        f, cursor=p.next_cursor, oldest_first=o
                    ), failed,
                )  # fmt: skip
    month = END - 30 * DAY
    timed("report of 30 days", LIMITS["report"], lambda: reader.report(month, END), failed)
    year = END - 365 * DAY
    timed("summary of a year", 2000, lambda: reader.summary(year, END, DAY), failed)
    hours = END - 3 * HOUR
    timed("summary by minute", 2000, lambda: reader.summary(hours, END, 60_000_000), failed)
    reader.close()


async def measure_retention(url: str, rows: int, failed: list[str]) -> None:
    """Remove the oldest rows, and measure the longest pause of an event loop meanwhile."""
    store = TrailStore(url, KEYS)
    await store.open()
    pauses: list[float] = []

    async def tick() -> None:
        while True:
            begin = time.perf_counter()
            await asyncio.sleep(0.001)
            pauses.append((time.perf_counter() - begin) * 1000 - 1)

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(1)
    idle, pauses[:] = max(pauses), []
    begin = time.perf_counter()
    # As many rows as the shim removes in less than a minute.
    limits = Limits(since=START + min(3 * DAY, DAYS * DAY * _REMOVED // rows))
    removed = 0
    async with asyncio.timeout(120):
        removed = await store.apply_retention({"requests": limits})
    seconds = time.perf_counter() - begin
    ticking.cancel()
    await store.close()
    pause = max(pauses)
    print(f"{removed} rows removed in {seconds:.1f} s ({removed / seconds:.0f}/s)")
    late = "  LATE" if pause > LIMITS["pause"] else ""
    print(f"longest pause of the event loop: {pause:.1f} ms, idle before {idle:.1f} ms{late}")
    if late:
        failed.append("pause")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--url")
    parser.add_argument("--postgresql", action="store_true")
    parser.add_argument("--folder", default=None)
    parser.add_argument("--verify", action="store_true", help="verify the chains too")
    options = parser.parse_args()
    failed: list[str] = []
    with ExitStack() as stack:
        if options.postgresql:
            found = programs()
            assert found is not None, "PostgreSQL's server is not installed"
            server = PostgreSQL(found)
            stack.callback(server.remove)
            server.create()
            url = stack.enter_context(server.database())
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory(dir=options.folder))
            url = options.url or f"sqlite:///{Path(folder) / 'audit.db'}"
        database = build_database(url)
        database.open()
        if not options.url:
            begin = time.perf_counter()
            fill(database, url, options.rows)
            seconds = time.perf_counter() - begin
            size = (
                "" if database.file is None else f", {database.file.stat().st_size / 2**20:.0f} MiB"
            )
            print(f"{options.rows} rows stored in {seconds:.0f} s{size}", flush=True)
        database.close()
        measure_reads(url, options.rows, failed)
        if options.verify:
            measure_verification(url)
        asyncio.run(measure_retention(url, options.rows, failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
