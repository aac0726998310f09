"""Verify the chains of a trail: name the first row that was altered, is missing, was inserted or reordered.

Pure: the input is rows, keys and the lines of a log. If the trail has a key, nobody without the key can
change a row unnoticed. The chain does not show that the newest rows were removed, or that the whole trail was
replaced by an older copy: only the checkpoints in the log do. Without a key, a chain shows accidental changes
only.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from shim.audit.events.storage import ChainStarted, RowsRemoved
from shim.audit.events.storage import Checkpoint as CheckpointEvent
from shim.audit.store.chain import GENESIS, NO_KEY, Keys, row_hash
from shim.audit.store.schema import Record, Stream, column_values

Fault: TypeAlias = Literal["altered", "missing", "inserted", "reordered", "unknown_key"]

WITHOUT_KEY: Final = (
    "Without SHIM_AUDIT_KEY, hashes show accidental changes only: who can write to the database can also "
    "compute them."
)


@dataclass(frozen=True, slots=True)
class ChainRow:
    """A row as the database has it. `columns` are those that repeat fields of the record."""

    index: int
    chain: int
    key_id: str
    hash: bytes
    data: str
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChainBounds:
    """Where a stream begins and ends, as the database says."""

    first_index: int
    first_previous_hash: bytes
    last_index: int
    last_hash: bytes


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The last row of a stream at some time, as a log has it."""

    database: str
    stream: str
    index: int
    hash: str
    time: str


@dataclass(frozen=True, slots=True)
class Problem:
    """The first row that is not as it was stored, and a sentence about it."""

    fault: Fault
    index: int
    detail: str


@dataclass(frozen=True, slots=True)
class StreamResult:
    """The result for one stream. `rows` were verified, from `first_index` on; `without_key` of them have no
    key. `checkpoints` were compared."""

    stream: Stream
    rows: int
    first_index: int
    last_index: int
    checkpoints: int
    without_key: int
    problem: Problem | None


@dataclass(frozen=True, slots=True)
class Verification:
    """The result for a trail. `notes` are sentences for the user. `no_checkpoints`: a log was given, and has
    none of this database."""

    streams: tuple[StreamResult, ...]
    notes: tuple[str, ...] = ()
    no_checkpoints: bool = False

    @property
    def ok(self) -> bool:
        """Whether no problem was found, and the log could be compared."""
        return not self.no_checkpoints and all(stream.problem is None for stream in self.streams)


def read_checkpoints(lines: Iterable[str]) -> Iterator[Checkpoint]:
    """Yield the checkpoints among the lines of a JSON log. A line may have other text before the JSON."""
    decoder = json.JSONDecoder()
    for line in lines:
        if CheckpointEvent.kind not in line or "{" not in line:
            continue
        try:
            found, _ = decoder.raw_decode(line[line.index("{") :])
            if found["kind"] == CheckpointEvent.kind:
                yield Checkpoint(
                    str(found["database"]),
                    str(found["checked_stream"]),
                    int(found["last_index"]),
                    str(found["last_hash"]),
                    str(found["time"]),
                )
        except (ValueError, KeyError, TypeError):
            continue


def verify_stream(
    stream: Stream,
    rows: Iterable[ChainRow],
    bounds: ChainBounds | None,
    keys: Keys,
    checkpoints: Iterable[Checkpoint] = (),
) -> StreamResult:
    """Verify one stream. `rows` are all rows in the order of their index, `bounds` is None if the database
    has none. `checkpoints` are those of this stream and database."""
    return _Verifier(stream, rows, bounds, keys, checkpoints).run()


class _Found(Exception):
    def __init__(self, fault: Fault, index: int, detail: str) -> None:
        self.problem = Problem(fault, index, detail)


class _Verifier:
    def __init__(
        self,
        stream: Stream,
        rows: Iterable[ChainRow],
        bounds: ChainBounds | None,
        keys: Keys,
        checkpoints: Iterable[Checkpoint],
    ) -> None:
        self._stream: Stream = stream
        self._rows = iter(rows)
        self._bounds = bounds or ChainBounds(1, GENESIS, 0, GENESIS)
        self._keys = keys
        self._secrets: dict[str, bytes | None] = {}
        self._checkpoints: dict[int, Checkpoint] = {}
        for each in checkpoints:
            known = self._checkpoints.setdefault(each.index, each)
            if known.hash != each.hash:
                self._checkpoints[each.index] = Checkpoint(
                    each.database, each.stream, each.index, "", each.time
                )
        self._previous = self._bounds.first_previous_hash
        self._next_index = self._bounds.first_index
        self._chain = 0
        self._key_id = NO_KEY
        self._removed: Record | None = None
        self._verified = self._without_key = self._compared = 0

    def run(self) -> StreamResult:
        problem = None
        try:
            self._verify_rows()
            self._verify_ends()
        except _Found as found:
            problem = found.problem
        return StreamResult(
            self._stream,
            self._verified,
            self._bounds.first_index,
            self._next_index - 1,
            self._compared,
            self._without_key,
            problem,
        )

    def _verify_rows(self) -> None:
        row = next(self._rows, None)
        if row is not None and row.index < self._next_index:
            raise _Found(
                "inserted", row.index, f"row {row.index} is before the first row that was kept"
            )
        while row is not None:
            following = next(self._rows, None)
            self._verify_row(row, following)
            self._verified += 1
            row = following

    def _verify_row(self, row: ChainRow, following: ChainRow | None) -> None:
        if row.index > self._next_index:
            self._missing(self._next_index, row.index - 1)
        record = _parse(row.data)
        stored = record.get("index") if record is not None else None
        if stored == row.index and row.index > self._bounds.last_index:
            raise _Found(
                "inserted", row.index, f"row {row.index} is after the last row that was stored"
            )
        expected = self._hash(row, self._previous)
        if record is None or stored != row.index or not hmac.compare_digest(expected, row.hash):
            self._explain(row, stored, following)
        assert record is not None
        self._verify_fields(row, record)
        self._verify_checkpoint(row)
        if row.key_id == NO_KEY:
            self._without_key += 1
        if record["kind"] == RowsRemoved.kind:
            self._removed = record
        self._previous = row.hash
        self._next_index = row.index + 1

    def _explain(self, row: ChainRow, stored: object, following: ChainRow | None) -> None:
        """Raise what happened to a row whose hash does not continue the chain."""
        index = row.index
        if following is not None and self._continues(following):
            raise _Found("inserted", index, f"row {index} was inserted: the row after it continues")
        rest = [row, *([] if following is None else [following]), *self._rows]
        elsewhere = next((r.index for r in rest if _stored_index(r) == index != r.index), None)
        if elsewhere is not None:
            detail = f"the row that was stored as {index} is now {elsewhere}"
            raise _Found("reordered", index, detail)
        # Rows before it were removed, and it was given the number of the first of them.
        if isinstance(stored, int) and index < stored <= self._bounds.last_index:
            self._missing(index, stored - 1)
        raise _Found(
            "altered", index, f"row {index} was altered: its content does not match its hash"
        )

    def _continues(self, row: ChainRow) -> bool:
        return hmac.compare_digest(self._hash(row, self._previous), row.hash)

    def _verify_fields(self, row: ChainRow, record: Record) -> None:
        if record["kind"] == ChainStarted.kind:
            linked = (
                record.get("last_index"),
                record.get("last_hash"),
                record.get("key_id", NO_KEY),
            )
            if linked != (row.index - 1, self._previous.hex(), row.key_id):
                raise _Found(
                    "altered",
                    row.index,
                    f"the chain that begins with row {row.index} refers to another row",
                )
        elif self._verified and (row.chain, row.key_id) != (self._chain, self._key_id):
            raise _Found(
                "altered",
                row.index,
                f"row {row.index} has another chain or key than the one before",
            )
        self._chain, self._key_id = row.chain, row.key_id
        if record.get("chain") != row.chain:
            raise _Found("altered", row.index, f"the column chain of row {row.index} was altered")
        for name, value in column_values(record).items():
            if name in row.columns and row.columns[name] != value:
                detail = f"the column {name} of row {row.index} was altered"
                raise _Found("altered", row.index, detail)

    def _verify_checkpoint(self, row: ChainRow) -> None:
        checkpoint = self._checkpoints.pop(row.index, None)
        if checkpoint is None:
            return
        if checkpoint.hash != row.hash.hex():
            raise _Found(
                "altered",
                row.index,
                f"row {row.index} has another hash than the log of {checkpoint.time}: it, or a row before "
                "it, was altered",
            )
        self._compared += 1

    def _verify_ends(self) -> None:
        last = self._next_index - 1
        if last < self._bounds.last_index:
            self._missing(self._next_index, self._bounds.last_index)
        later = sorted(index for index in self._checkpoints if index > last)
        if later:
            seen = self._checkpoints[later[0]]
            raise _Found(
                "missing",
                last + 1,
                f"row {last + 1} is missing: the log of {seen.time} has row {seen.index}",
            )
        if self._previous != self._bounds.last_hash:
            raise _Found(
                "altered", last, f"row {last} has another hash than the last one that was stored"
            )
        self._verify_start()

    def _verify_start(self) -> None:
        """The rows before the first one are gone: an event of the chain must say so."""
        first, previous = self._bounds.first_index, self._bounds.first_previous_hash
        if first == 1:
            if previous != GENESIS:
                raise _Found("altered", 1, "the first row does not begin a chain")
            return
        removed = self._removed or {}
        if (removed.get("last_index"), removed.get("last_hash")) != (first - 1, previous.hex()):
            raise _Found(
                "missing",
                int(removed.get("last_index") or 0) + 1,
                f"the rows up to {first - 1} are missing, and no event of the chain says that they were "
                "removed",
            )

    def _missing(self, first: int, last: int) -> None:
        rows = f"row {first} is" if first == last else f"the rows {first} to {last} are"
        raise _Found("missing", first, f"{rows} missing")

    def _hash(self, row: ChainRow, previous: bytes) -> bytes:
        if row.key_id not in self._secrets:
            self._secrets[row.key_id] = self._keys.find(row.key_id)
        secret = self._secrets[row.key_id]
        if secret is None:
            raise _Found(
                "unknown_key",
                row.index,
                f"row {row.index} has the key {row.key_id!r}, which is not in SHIM_AUDIT_KEY: add the key",
            )
        return row_hash(secret, previous, row.data)


def _parse(data: str) -> Record | None:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and "kind" in found else None


def _stored_index(row: ChainRow) -> object:
    record = _parse(row.data)
    return None if record is None else record.get("index")
