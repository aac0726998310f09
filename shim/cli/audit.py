"""`navidrome-shim audit`: read, verify, export and shorten the audit trail.

The commands read the trail's database themselves, so they work while the shim runs and while it does not.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from shim.audit.admin_actions import AdminActions, NotStored
from shim.cli.configuration import settings_or_exit
from shim.cli.errors import print_error
from shim.cli.operator import command_operator
from shim.cli.terminal import cell, console, print_json, print_table, safe
from shim.settings import Settings

# The code of the trail loads the database code, which few commands need: it is imported late.
if TYPE_CHECKING:
    from shim.audit.store.filters import Filters
    from shim.audit.store.reader import TrailReader
    from shim.audit.store.results import Count, Report, StoredEvent

audit = typer.Typer(help="Read, verify and export the audit trail.", no_args_is_help=True)

FOLLOW_SECONDS = 0.5
_FOLLOWED = 200
_TIME_HELP = "2h, yesterday, 2026-11-01 or 2026-11-01T08:30; local time."

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Since = Annotated[str, typer.Option(help=f"Only events since this time: {_TIME_HELP}")]
Until = Annotated[str, typer.Option(help="Only events before this time.")]
Streams = Annotated[list[str] | None, typer.Option("--stream", help="Stream: requests or changes.")]
Kinds = Annotated[list[str] | None, typer.Option("--kind", help="Kind of event. Can be repeated.")]
Severities = Annotated[
    list[str] | None,
    typer.Option("--severity", help="debug, info, warning or error. Can be repeated."),
]
Verdicts = Annotated[
    list[str] | None,
    typer.Option("--verdict", help="authenticated, stripped or rejected. Can be repeated."),
]
Reasons = Annotated[
    list[str] | None,
    typer.Option("--reason", help="Reason of the decision or failure. Can be repeated."),
]
PathClasses = Annotated[
    list[str] | None,
    typer.Option("--path-class", help="protected, public or internal. Can be repeated."),
]
Peer = Annotated[str, typer.Option(help="Address or network of the peer.")]
Client = Annotated[str, typer.Option(help="Address or network of the client.")]
User = Annotated[str, typer.Option(help="User name at the identity provider, trusted or claimed.")]
AccountName = Annotated[str, typer.Option("--account", help="Name of the Navidrome account.")]
RequestId = Annotated[str, typer.Option(help="X-Request-Id of a response.")]
Text = Annotated[
    str, typer.Option(help="Text in any value. Searches the newest 100,000 events that match.")
]


@audit.command("list")
def list_events(
    since: Since = "",
    until: Until = "",
    stream: Streams = None,
    kind: Kinds = None,
    severity: Severities = None,
    verdict: Verdicts = None,
    reason: Reasons = None,
    path_class: PathClasses = None,
    peer: Peer = "",
    client: Client = "",
    user: User = "",
    account: AccountName = "",
    request_id: RequestId = "",
    text: Text = "",
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Maximum number of events.")] = 50,
    oldest_first: Annotated[
        bool, typer.Option("--oldest-first", help="List the oldest events first.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print lines of JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """List events, newest first."""
    chosen = _given(
        since, until, stream, kind, severity, verdict, reason, path_class, peer, client, user,
        account, request_id, text,
    )  # fmt: skip
    with _opened() as (reader, _):
        filters = _filters(chosen)
        events, note, has_more = _read(reader, filters, limit, oldest_first)
    if as_json or as_csv:
        _write_lines(events, as_csv=as_csv, write=_write_stdout)
    else:
        _show(events)
    if note is not None:
        print_error(note)
    if has_more:
        print_error(f"There are more events: the list has {limit}. Use --limit for more.")


@audit.command()
def show(
    event_id: Annotated[
        str, typer.Argument(metavar="ID", help="Id of the event, or the request id of a response.")
    ],
    as_json: AsJson = False,
) -> None:
    """Show one event: every field, the reason in words, and what to do."""
    from shim.audit.export import record_of  # noqa: PLC0415
    from shim.audit.words import in_words  # noqa: PLC0415

    with _opened() as (reader, _):
        stored = reader.get(event_id.strip().lower())
        if stored is None:
            found = reader.page(_filters([("request_id", event_id)]), limit=1).events
            stored = found[0] if found else None
    if stored is None:
        print_error(f"The trail has no event with the id {event_id}. It may be too old.")
        raise typer.Exit(1)
    words = in_words(stored.record)
    integrity = {"chain": stored.chain, "hash": stored.hash, "key_id": stored.key_id or None}
    if as_json:
        texts = {"title": words.title, "why": words.explanation, "remedy": words.remedy}
        print_json({"event": record_of(stored), "words": texts, "integrity": integrity})
        return
    typer.echo(safe(words.title))
    for sentence in filter(None, (words.explanation, words.remedy and f"→ {words.remedy}")):
        typer.echo(safe(sentence))
    typer.echo()
    fields = {**record_of(stored), **{k: v for k, v in integrity.items() if v is not None}}
    fields["time"] = f"{fields['time']} ({_local(str(fields['time']))} here)"
    rows = [(f"[bold]{name}[/]", cell(_as_text(value))) for name, value in fields.items()]
    print_table(("", ""), rows)


@audit.command()
def follow(
    stream: Streams = None,
    kind: Kinds = None,
    severity: Severities = None,
    verdict: Verdicts = None,
    reason: Reasons = None,
    path_class: PathClasses = None,
    peer: Peer = "",
    client: Client = "",
    user: User = "",
    account: AccountName = "",
    text: Text = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print lines of JSON.")] = False,
) -> None:
    """Print new events as they are stored, until you press Ctrl-C."""
    from shim.audit.export import json_line  # noqa: PLC0415
    from shim.audit.store.results import Position  # noqa: PLC0415

    chosen = _given(
        "", "", stream, kind, severity, verdict, reason, path_class, peer, client, user,
        account, "", text,
    )  # fmt: skip
    with _opened() as (reader, _):
        filters = _filters(chosen)
        position = reader.end()
        try:
            while True:
                end = reader.end()
                if end.requests < position.requests or end.changes < position.changes:
                    position = Position(0, 0)  # the trail was replaced
                events, after = reader.after(position, _FOLLOWED, filters)
                for stored in events:
                    line = json_line(stored) if as_json else f"{_one_line(stored)}\n"
                    _write_stdout(line)
                sys.stdout.flush()
                if after == position:
                    time.sleep(FOLLOW_SECONDS)
                position = after
        except KeyboardInterrupt:
            return


@audit.command()
def report(
    since: Annotated[str, typer.Option(help=f"Beginning of the period: {_TIME_HELP}")] = "30d",
    until: Annotated[str, typer.Option(help="End of the period.")] = "now",
    as_json: AsJson = False,
) -> None:
    """Report a period on one page: refusals, who used the server, new accounts, changes of rights, locks."""
    from shim.audit.query import parse_time  # noqa: PLC0415

    with _opened() as (reader, _):
        now, zone = _now(), _zone()
        start, end = (parse_time(*each, now, zone) for each in (("since", since), ("until", until)))
        if start >= end:
            raise _bad_filter("--since: expected a time before --until")
        found = reader.report(start, end)
    if as_json:
        print_json(_report_as_json(found))
    else:
        _show_report(found)


@audit.command()
def verify(
    checkpoints: Annotated[
        Path | None,
        typer.Option(
            help="Compare with the checkpoints in this file, the shim's log as JSON lines; - for stdin.",
            allow_dash=True,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Verify that the trail was not altered. If it was, print the first altered row and exit with 1.

    The checkpoints in a log outside of the database also show if the newest rows were removed, or the whole
    trail was replaced.
    """
    from shim.audit.store.factory import trail_keys  # noqa: PLC0415

    with _opened() as (reader, settings):
        try:
            with _lines_of(checkpoints) as lines:
                found = reader.verify(trail_keys(settings), lines)
        except OSError as error:
            print_error(f"navidrome-shim: {checkpoints}: {error.strerror}")
            raise typer.Exit(1) from None
    if as_json:
        print_json({"ok": found.ok, "streams": [asdict(each) for each in found.streams],
                    "notes": list(found.notes)})  # fmt: skip
    else:
        for each in found.streams:
            compared = f", {each.checkpoints} checkpoints compared" if checkpoints else ""
            if each.problem is None:
                typer.echo(f"{each.stream}: {each.rows} rows verified{compared}")
            else:
                sentence = f"{each.stream}: {each.problem.fault}: {each.problem.detail}"
                print_error(f"{sentence} ({each.rows} rows before it are verified)")
        for note in found.notes:
            print_error(note)
    if not found.ok:
        raise typer.Exit(1)


@contextmanager
def _lines_of(path: Path | None) -> Iterator[Iterable[str] | None]:
    """Return the lines of a log, None without one. Raises OSError."""
    if path is None:
        yield None
    elif str(path) == "-":
        yield sys.stdin
    else:
        with path.open(encoding="utf-8", errors="replace") as file:
            yield file


@audit.command()
def export(
    since: Since = "",
    until: Until = "",
    stream: Streams = None,
    kind: Kinds = None,
    severity: Severities = None,
    verdict: Verdicts = None,
    reason: Reasons = None,
    path_class: PathClasses = None,
    peer: Peer = "",
    client: Client = "",
    user: User = "",
    account: AccountName = "",
    request_id: RequestId = "",
    text: Text = "",
    as_csv: Annotated[bool, typer.Option("--csv", help="Write CSV instead of NDJSON.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write to this file, which must not exist."),
    ] = None,
) -> None:
    """Write every event that matches, oldest first, as NDJSON or CSV."""
    chosen = _given(
        since, until, stream, kind, severity, verdict, reason, path_class, peer, client, user,
        account, request_id, text,
    )  # fmt: skip
    with _opened() as (reader, _):
        filters = _filters(chosen)
        if output is None:
            _write_lines(reader.iterate(filters), as_csv=as_csv, write=_write_stdout)
            return
        try:
            descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            print_error(f"navidrome-shim: {output}: {error.strerror}")
            raise typer.Exit(1) from None
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            count = _write_lines(reader.iterate(filters), as_csv=as_csv, write=file.write)
    typer.echo(f"{count} events written to {safe(str(output))}")


@audit.command()
def prune(
    before: Annotated[
        str,
        typer.Option(
            help=f"Remove events before this time: {_TIME_HELP} By default, the limits of the settings apply."
        ),
    ] = "",
    stream: Streams = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove old events now. The trail records which ones were removed."""
    from shim.audit.query import parse_time  # noqa: PLC0415
    from shim.audit.store.factory import retention_limits  # noqa: PLC0415
    from shim.audit.store.retention import Limits  # noqa: PLC0415

    with _opened() as (_, settings):
        limits = retention_limits(settings)
        filters = _filters([("stream", each) for each in stream or ()])
        if before:
            since = parse_time("before", before, _now(), _zone())
            limits = {name: Limits(since) for name in limits}
        limits = {name: each for name, each in limits.items() if name in filters.streams}
        description = (
            f"events before {_format_time(since)}"
            if before
            else "events beyond the settings' limits"
        )
        if not yes:
            print_error(f"Removes {description} in: {', '.join(limits)}. This cannot be undone.")
            if as_json or not sys.stdin.isatty() or not typer.confirm("Continue?"):
                print_error("Nothing was removed. Use --yes to continue without a question.")
                raise typer.Exit(1)
        removed = asyncio.run(_prune(settings, limits, description))
    if as_json:
        print_json({"removed": removed})
    else:
        typer.echo(f"{removed} events removed.")


async def _prune(settings: Settings, limits: Any, description: str) -> int:
    from shim.audit.performing import perform  # noqa: PLC0415
    from shim.audit.store.factory import build_store  # noqa: PLC0415

    store = build_store(settings)
    assert store is not None
    try:
        await store.open()
        done = await perform(
            AdminActions(store, lambda _: None),
            command_operator(),
            "audit.prune",
            lambda: store.apply_retention(limits, "command"),
            target=", ".join(limits),
            # It needs the trail itself.
            grants_access=True,
            changes=lambda count: (f"{count} {description} removed",),
        )
    finally:
        await store.close()
    if done.note is not None:
        print_error(done.note)
    return done.value


# reading


@contextmanager
def _opened() -> Iterator[tuple[TrailReader, Settings]]:
    """Return the reader of the trail and the settings. Errors of the trail, and filters that cannot be used,
    end the command with 1 or 2."""
    from shim.audit.store.factory import build_reader  # noqa: PLC0415
    from shim.audit.store.filters import FilterError  # noqa: PLC0415
    from shim.audit.store.results import QueryTooSlow  # noqa: PLC0415
    from shim.store.errors import StoreError  # noqa: PLC0415

    settings = settings_or_exit()
    try:
        reader = build_reader(settings)
        if reader is None:
            print_error(
                "navidrome-shim: no trail is stored, because SHIM_AUDIT_DATABASE_URL is none; the events are "
                "in the log"
            )
            raise typer.Exit(1)
        try:
            yield reader, settings
        finally:
            reader.close()
    except FilterError as error:
        raise _bad_filter(str(error)) from None
    except (StoreError, QueryTooSlow, NotStored) as error:
        print_error(f"navidrome-shim: {error}")
        raise typer.Exit(1) from None


def _bad_filter(sentence: str) -> typer.BadParameter:
    return typer.BadParameter(safe(sentence))


def _given(*values: Any) -> list[tuple[str, str]]:
    """Return the filters of a command's options as pairs of name and text."""
    names = (
        "since", "until", "stream", "kind", "severity", "verdict", "reason", "path_class", "peer",
        "client", "user", "account", "request_id", "text",
    )  # fmt: skip
    pairs = []
    for name, value in zip(names, values, strict=True):
        pairs += [(name, each) for each in ([value] if isinstance(value, str) else value or ())]
    return pairs


def _filters(given: list[tuple[str, str]]) -> Filters:
    from shim.audit.query import parse_filters  # noqa: PLC0415

    return parse_filters(given, _now(), _zone())


def _read(
    reader: TrailReader, filters: Filters, limit: int, oldest_first: bool
) -> tuple[list[StoredEvent], str | None, bool]:
    """Return at most `limit` events, a sentence about the search, and whether there are more."""
    found: list[StoredEvent] = []
    cursor = note = None
    while len(found) < limit:
        page = reader.page(
            filters, cursor=cursor, limit=limit - len(found), oldest_first=oldest_first
        )
        found += page.events
        cursor = page.next_cursor
        if cursor is None:
            note = page.note
            break
    return found, note, cursor is not None


def _now() -> int:
    return time.time_ns() // 1000


def _zone() -> tzinfo:
    return datetime.now().astimezone().tzinfo or UTC


# printing


def _write_lines(
    events: Iterable[StoredEvent], *, as_csv: bool, write: Callable[[str], object]
) -> int:
    """Write the events, and return their number."""
    from shim.audit.export import csv_header, csv_line, json_line  # noqa: PLC0415

    if as_csv:
        write(csv_header())
    count = 0
    for stored in events:
        write(csv_line(stored) if as_csv else json_line(stored))
        count += 1
    return count


def _write_stdout(text: str) -> None:
    """Write a line, and end the command quietly if nobody reads it any more."""
    try:
        sys.stdout.write(text)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None


def _show(events: list[StoredEvent]) -> None:
    from shim.audit.words import in_words  # noqa: PLC0415

    if not events:
        typer.echo("No events.")
        return
    target = console()
    rows = []
    for stored in events:
        record = stored.record
        words = in_words(record)
        count = record.get("count", 1)
        description = words.title + (f" (×{count})" if count > 1 else "")
        rows.append(
            (
                _local(str(record.get("time", ""))),
                cell(words.label),
                cell(str(record.get("reason", "") or record["kind"])),
                cell(str(record.get("client") or record.get("peer") or "")),
                cell(description),
                str(record.get("id", "")),
            )
        )
    print_table(("time", "", "reason", "from", "what", "id"), rows, target)


def _one_line(stored: StoredEvent) -> str:
    from shim.audit.words import in_words  # noqa: PLC0415

    record = stored.record
    words = in_words(record)
    parts = (
        _local(str(record.get("time", ""))),
        words.label,
        str(record.get("reason", "") or record["kind"]),
        str(record.get("client") or record.get("peer") or "-"),
        words.title,
    )
    return safe("  ".join(parts))


def _local(text: str) -> str:
    """Return a time of a record in the local zone, to the second."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return safe(text)
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _format_time(microseconds: int) -> str:
    moment = datetime.fromtimestamp(microseconds / 1_000_000).astimezone()
    return moment.strftime("%Y-%m-%d %H:%M:%S %z")


def _as_text(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case list() | tuple():
            return "; ".join(map(str, value)) or "none"
    return str(value)


# the report

_LISTS: tuple[tuple[Literal["new_accounts", "changes", "locks", "admin_actions"], str], ...] = (
    ("new_accounts", "New and linked accounts"),
    ("changes", "Changes of accounts and rights"),
    ("locks", "Locked and readmitted accounts"),
    ("admin_actions", "Actions of administrators"),
)
_ROWS_OF_REPORT = 15


def _report_as_json(found: Report) -> dict[str, Any]:
    from shim.audit.export import record_of  # noqa: PLC0415
    from shim.audit.sanitize import timestamp  # noqa: PLC0415

    def counts(values: Iterable[Count]) -> list[dict[str, Any]]:
        return [
            {
                "value": each.value,
                "count": each.count,
                **({} if each.reason is None else {"reason": each.reason}),
                **({} if each.last_time is None else {"last": timestamp(each.last_time / 1e6)}),
            }
            for each in values
        ]

    return {
        "since": timestamp(found.since / 1e6),
        "until": timestamp(found.until / 1e6),
        **{
            name: counts(getattr(found, name))
            for name in ("verdicts", "refusals", "origins", "people")
        },
        **{name: [record_of(each) for each in getattr(found, name)] for name, _ in _LISTS},
        "truncated": list(found.truncated),
    }


def _show_report(found: Report) -> None:
    typer.echo(f"From {_format_time(found.since)} to {_format_time(found.until)}")
    _show_counts("Verdicts of recorded requests", ("verdict", "count"), found.verdicts)
    _show_counts("Refusals by reason", ("reason", "count"), found.refusals, explains=True)
    _show_counts("Refusals by origin", ("client", "reason", "count", "last"), found.origins)
    _show_counts("Who used the server", ("user", "times seen", "last"), found.people)
    for name, title in _LISTS:
        events: tuple[StoredEvent, ...] = getattr(found, name)
        if events:
            _heading(title, len(events), name in found.truncated)
            for stored in events[:_ROWS_OF_REPORT]:
                typer.echo(_report_line(stored))
            _print_remaining(len(events))


def _report_line(stored: StoredEvent) -> str:
    from shim.audit.words import in_words  # noqa: PLC0415

    words = in_words(stored.record)
    explanation = f": {words.explanation}" if words.explanation else ""
    return safe(f"{_local(str(stored.record.get('time', '')))}  {words.title}{explanation}")


def _show_counts(
    title: str, titles: tuple[str, ...], counts: tuple[Count, ...], *, explains: bool = False
) -> None:
    from shim.trust.reasons import Reason  # noqa: PLC0415

    if not counts:
        return
    _heading(title, len(counts))
    known = {str(reason): reason.text for reason in Reason}
    rows = []
    for each in counts[:_ROWS_OF_REPORT]:
        last = "" if each.last_time is None else _format_time(each.last_time)[:19]
        by_title = {"reason": cell(each.reason or ""), "last": last, "count": str(each.count)}
        by_title |= {titles[0]: cell(each.value), "times seen": str(each.count)}
        row = [by_title[name] for name in titles]
        rows.append([*row, cell(known.get(each.value, ""))] if explains else row)
    print_table((*titles, "meaning") if explains else titles, rows)
    _print_remaining(len(counts))


def _heading(title: str, count: int, truncated: bool = False) -> None:
    typer.echo(f"\n{title} ({count}{' or more' if truncated else ''})")


def _print_remaining(count: int) -> None:
    if count > _ROWS_OF_REPORT:
        typer.echo(f"… and {count - _ROWS_OF_REPORT} more: use --json for all")
