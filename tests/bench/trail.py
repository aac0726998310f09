"""Fill a trail with many rows, and measure its pages, filters, reports and retention.

`python -m tests.bench.trail [--rows 10000000] [--url URL | --postgresql] [--folder FOLDER]`. Without a URL, a
new SQLite file is made in the folder and removed at the end. Ends with 1 if a limit of `LIMITS` is exceeded.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert, text

from shim.audit.store.append import MAX_HOURLY_VALUES
from shim.audit.store.chain import GENESIS, build_keys, row_hash
from shim.audit.store.filters import Filters
from shim.audit.store.reader import QueryTooSlow, TrailReader
from shim.audit.store.retention import Limits
from shim.audit.store.schema import (
    HOUR,
    REQUESTS,
    STREAM_STATES,
    canonical,
    column_values,
    iso_time,
    row_size,
)
from shim.audit.store.tables import build_database
from shim.audit.store.writer import TrailStore
from shim.store.database import Database
from tests.support.postgresql import PostgreSQL, programs

KEYS = build_keys(["bench-bench-bench-bench-bench"])
DAYS = 90
START = 1_793_491_200_000_000
END = START + DAYS * 24 * HOUR
# Milliseconds: a page, the report of 30 days, and a pause of the event loop.
LIMITS = {"page": 200.0, "report": 2000.0, "pause": 50.0}
_PIECE = 20_000
_COLUMNS = (
    "index", "chain", "key_id", "hash", "id", "time", "kind", "severity", "verdict", "reason", "peer",
    "client", "path_class", "user", "account", "request_id", "count", "data",
)  # fmt: skip


def templates(rng: random.Random) -> list[dict[str, Any]]:
    """Return some thousand kinds of records, as a shim that is probed and used has them."""
    reasons = ["untrusted_peer", "public_path", "cross_site", "identity_incomplete", "header_alias"]
    found: list[dict[str, Any]] = []
    for number in range(4000):
        client = f"198.{18 + number % 2}.{number // 250 % 250}.{number % 250}"
        user = f"user{rng.randrange(200)}"
        record: dict[str, Any] = {
            "schema": 1, "instance": "bench/1", "stream": "requests", "chain": 1, "client": client,
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


def rare(template: dict[str, Any]) -> dict[str, Any]:
    """Return a record whose values hardly any other one has."""
    return {
        **template, "kind": "navidrome_token_found", "severity": "error", "reason": "token_mismatch",
        "verdict": "anonymous", "path_class": "internal", "client": "2001:db8::7", "user": "sister",
        "peer": "10.9.8.7", "account": "sister", "notes": ["the needle of the text search"],
    }  # fmt: skip


def rows(count: int) -> Iterator[tuple[Any, ...]]:
    """Return rows with a true chain. The records of one template differ in index, id, time and request."""
    rng = random.Random(7)
    parts: list[tuple[str, dict[str, Any]]] = []
    for template in templates(rng):
        for each in (template, rare(template)) if len(parts) == 0 else (template,):
            marked = {**each, "index": "@I", "id": "@D", "time": "@T", "request_id": "@R"}
            columns = column_values({**each, "id": "", "time": iso_time(START)})
            parts.append((canonical(marked).replace('"@I"', "@I"), columns))
    common = [part for number, part in enumerate(parts) if number != 1]
    secret, previous = KEYS.secrets[0], GENESIS
    step = (END - START) // count
    for index in range(1, count + 1):
        is_rare = index % (count // 20) == count // 40
        data, columns = parts[1] if is_rare else common[rng.randrange(len(common))]
        moment = START + index * step
        identity, request = f"{uuid.UUID(int=moment << 64 | index)}", f"r{index:x}"
        data = (
            data.replace("@I", str(index), 1)
            .replace("@D", identity, 1)
            .replace("@R", request, 1)
            .replace("@T", iso_time(moment), 1)
        )
        previous = row_hash(secret, previous, data)
        values = {**columns, "index": index, "chain": 1, "key_id": KEYS.signing, "hash": previous}
        values |= {"id": identity, "time": moment, "request_id": request, "data": data}
        yield tuple(values[name] for name in _COLUMNS)


def fill(database: Database, count: int) -> None:
    """Store the rows without indexes, then create these, and count."""
    indexes = sorted(REQUESTS.indexes, key=lambda index: str(index.name))
    for index in indexes:
        database.write(index.drop)
    source, last, total = rows(count), GENESIS, 0
    while piece := list(itertools.islice(source, _PIECE)):
        database.write(lambda c, p=piece: _insert(c, p))  # type: ignore[misc]
        last = piece[-1][3]
        total += sum(row_size(row[-1]) for row in piece)
    state = {
        "stream": "requests", "first_index": 1, "first_previous_hash": GENESIS, "last_index": count,
        "last_hash": last, "chain": 1, "key_id": KEYS.signing, "bytes": total,
    }  # fmt: skip
    database.write(lambda c: c.execute(insert(STREAM_STATES).values(state)))
    for index in indexes:
        database.write(index.create)
    database.write(_count)


def _insert(connection: Connection, piece: list[tuple[Any, ...]]) -> None:
    names = ", ".join(f'"{name}"' for name in _COLUMNS)
    if connection.dialect.name == "postgresql":
        driver: Any = connection.connection.driver_connection
        with driver.cursor().copy(f"COPY audit_requests ({names}) FROM STDIN") as copy:
            for row in piece:
                copy.write_row(row)
        return
    marks = ", ".join("?" * len(_COLUMNS))
    cursor: Any = connection.connection.cursor()
    cursor.executemany(f"INSERT INTO audit_requests ({names}) VALUES ({marks})", piece)


def _count(connection: Connection) -> None:
    connection.execute(
        text(
            f"INSERT INTO audit_hours SELECT time / {HOUR}, 'requests', kind, coalesce(verdict, ''), "
            'coalesce(reason, \'\'), sum(count), min("index"), max("index") FROM audit_requests '
            "GROUP BY 1, 3, 4, 5"
        )
    )
    # As the writer counts them: a bounded number of values in each hour.
    values = [
        {"hour": hour, "field": field, "value": f"198.18.0.{n}" if field == "client" else f"u{n}",
         "reason": "untrusted_peer", "count": 5, "last_time": hour * HOUR}
        for hour in range(START // HOUR, END // HOUR)
        for field in ("client", "user")
        for n in range(MAX_HOURLY_VALUES)
    ]  # fmt: skip
    statement = "INSERT INTO audit_hourly_values VALUES (:hour, :field, :value, :reason, :count, :last_time)"
    connection.execute(text(statement), values)


FILTERS: dict[str, Filters] = {
    "everything": Filters(),
    "a day": Filters(since=START + 40 * 24 * HOUR, until=START + 41 * 24 * HOUR),
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
    "a user": Filters(user="user7"),
    "a rare user": Filters(user="SISTER"),
    "an unknown user": Filters(user="nobody"),
    "a path class": Filters(path_classes=("internal",)),
    "a request": Filters(request_id="r1f"),
    "a user and a reason": Filters(user="user7", reasons=("cross_site",)),
    "two that exclude each other": Filters(kinds=("identity_seen",), verdicts=("rejected",)),
    "a rare user on one day": Filters(user="sister", since=START, until=START + 24 * HOUR),
    "frequent text": Filters(text="firefox"),
    "rare text": Filters(text="needle of the"),
    "text that never occurs": Filters(text="no such text"),
    "text of a user": Filters(text="needle", user="sister"),
}


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


def measure_reads(url: str, failed: list[str]) -> None:
    reader = TrailReader(url)
    for name, filters in FILTERS.items():
        for oldest in (False, True):
            order = "oldest" if oldest else "newest"
            page: Any = timed(
                f"{name}, {order} first", LIMITS["page"],
                lambda f=filters, o=oldest: reader.page(f, oldest_first=o), failed,  # type: ignore[misc]
            )  # fmt: skip
            if getattr(page, "next_cursor", None):
                timed(
                    f"{name}, {order} first, page 2", LIMITS["page"],
                    lambda f=filters, o=oldest, p=page: reader.page(  # type: ignore[misc]
                        f, cursor=p.next_cursor, oldest_first=o
                    ), failed,
                )  # fmt: skip
    month = END - 30 * 24 * HOUR
    timed("report of 30 days", LIMITS["report"], lambda: reader.report(month, END), failed)
    timed("summary of all days", 2000, lambda: reader.summary(START, END, 24 * HOUR), failed)
    hours = END - 3 * HOUR
    timed("summary by minute", 2000, lambda: reader.summary(hours, END, 60_000_000), failed)
    reader.close()


async def measure_retention(url: str, failed: list[str]) -> None:
    """Remove three days, and measure the longest pause of an event loop meanwhile."""
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
    limits = Limits(since=START + 3 * 24 * HOUR)
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
            fill(database, options.rows)
            seconds = time.perf_counter() - begin
            size = (
                "" if database.file is None else f", {database.file.stat().st_size / 2**20:.0f} MiB"
            )
            print(f"{options.rows} rows stored in {seconds:.0f} s{size}", flush=True)
        database.close()
        measure_reads(url, failed)
        asyncio.run(measure_retention(url, failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
