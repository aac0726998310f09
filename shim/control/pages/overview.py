"""The page Overview: unusual things first, then requests, refusals, people, changes and health."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlencode

from markupsafe import Markup

from shim.audit.store.filters import Filters
from shim.audit.store.reader import TrailReader
from shim.audit.store.results import Cell, Count, Page, Report, StoredEvent, Summary
from shim.audit.words import in_words, reason_of
from shim.control.pages.charts import Bar, bar_chart
from shim.control.pages.events import EventLine, event_lines, microseconds
from shim.health import Check, State
from shim.trust.reasons import Reason

HOUR: Final = 3_600_000_000
DAY: Final = 24 * HOUR
_LIST: Final = 8
_MIN_INCREASE: Final = 20
_INCREASE_FACTOR: Final = 5


@dataclass(frozen=True, slots=True)
class Range:
    """A period that the reader can choose: `span` and `bucket` in µs."""

    name: str
    label: str
    words: str
    span: int
    bucket: int


RANGES: Final = (
    Range("24h", "24 hours", "the last 24 hours", DAY, HOUR),
    Range("7d", "7 days", "the last 7 days", 7 * DAY, 6 * HOUR),
    Range("30d", "30 days", "the last 30 days", 30 * DAY, DAY),
    Range("1y", "1 year", "the last year", 365 * DAY, 7 * DAY),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that needs attention. `tone` is `error`, `warning` or `info`; `query` leads to the events in
    the trail, `anchor` to a part of the page; both can be empty. `time` is when it happened last, in µs."""

    tone: str
    title: str
    detail: str = ""
    query: str = ""
    anchor: str = ""
    time: int | None = None


@dataclass(frozen=True, slots=True)
class ChartRow:
    """One row of bars. `meaning` says what is counted; `query` leads to these events."""

    name: str
    meaning: str
    count: int
    query: str
    chart: Markup
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a list of counts. `words` is more about `name`, `time` in µs."""

    name: str
    words: str
    count: int
    time: int | None
    query: str


@dataclass(frozen=True, slots=True)
class Activity:
    """What the trail says about a period."""

    summary: Summary
    report: Report
    errors: tuple[StoredEvent, ...]
    denied: tuple[StoredEvent, ...]
    wrong_tokens: tuple[StoredEvent, ...] = ()


def chosen_range(name: str) -> Range | None:
    """Return the range with this name, None for another name."""
    return next((each for each in RANGES if each.name == name), None)


def read_activity(chosen: Range, now: int) -> Callable[[TrailReader], Activity]:
    """Return the work for the trail's reader. `now` is in µs."""

    def read(reader: TrailReader) -> Activity:
        summary = reader.summary(now - chosen.span, now, chosen.bucket)
        since, until = summary.since, summary.until

        def newest(**filters: Any) -> tuple[StoredEvent, ...]:
            page: Page = reader.page(Filters(since=since, until=until, **filters), limit=_LIST)
            return page.events

        return Activity(
            summary,
            reader.report(since, until),
            newest(streams=("changes",), severities=("error",)),
            newest(streams=("requests",), kinds=("account_denied",)),
            newest(streams=("requests",), kinds=("control_token_rejected",)),
        )

    return read


def overview(chosen: Range, activity: Activity, checks: Sequence[Check]) -> dict[str, Any]:
    """Return the values of the template."""
    summary, report = activity.summary, activity.report
    findings = [
        *health_findings(checks),
        *_event_findings(activity, chosen),
        *_increases(summary),
        *_denied(activity),
        *_probes(report),
        *_wrong_tokens(activity),
        *_changes(report),
    ]
    findings.sort(key=lambda each: _TONES.index(each.tone))
    return {
        "chosen": chosen,
        "ranges": RANGES,
        "findings": findings,
        "strips": _chart_rows(summary),
        "starts": tuple(range(summary.since, summary.until, summary.bucket)),
        "bucket_style": "day" if summary.bucket >= DAY else "minute",
        "refusals": _refusals(report),
        "origins": _origins(report)[:_LIST],
        "people": _people(report),
        "changes": changes_of(report),
        "changes_query": _query(report, stream="changes"),
        "requests_query": _query(report, verdict=("stripped", "rejected")),
    }


_TONES: Final = ("error", "warning", "info")


def health_findings(checks: Iterable[Check]) -> list[Finding]:
    """Return a finding for each check that is not in order."""
    return [
        Finding(
            "error" if check.state is State.FAILING else "warning",
            f"{check.name.replace('_', ' ')}: {check.detail}",
            check.remedy or "",
            anchor="health",
        )
        for check in checks
        if check.state is not State.OK
    ]


def _event_findings(activity: Activity, chosen: Range) -> list[Finding]:
    """Return one finding for each kind of error in the period, with the newest as an example."""
    kinds: dict[str, list[StoredEvent]] = defaultdict(list)
    for event in activity.errors:
        kinds[event.record["kind"]].append(event)
    found = []
    for kind, events in kinds.items():
        words = in_words(events[0].record)
        suffix = f" ({len(events)} times in {chosen.words})" if len(events) > 1 else ""
        found.append(
            Finding(
                "error",
                words.title + suffix,
                " ".join(filter(None, (words.explanation, words.remedy))),
                _query(activity.report, kind=(kind,)),
                time=microseconds(events[0].record["time"]),
            )
        )
    return found


def _increases(summary: Summary) -> list[Finding]:
    """Return a finding if far more requests than before were refused in the newest bucket."""
    found = []
    for verdict, word in (("rejected", "rejected"), ("stripped", "stripped of an identity")):
        counts = _counts(summary, _with_verdict(verdict))
        *before, newest = counts
        average = sum(before) / max(1, len(before))
        if newest >= _MIN_INCREASE and newest > _INCREASE_FACTOR * max(1.0, average):
            start = summary.until - summary.bucket
            query = _trail_query(start, summary.until, verdict=(verdict,))
            title = f"{newest:,} requests were {word} recently, usually about {average:.0f}"
            found.append(Finding("warning", title, "", query))
    return found


def _denied(activity: Activity) -> list[Finding]:
    """Return a finding for each person who was refused an account."""
    people: dict[tuple[str, str], StoredEvent] = {}
    for event in activity.denied:
        people.setdefault((event.record.get("user", ""), event.record.get("reason", "")), event)
    return [
        Finding(
            "warning",
            in_words(event.record).title,
            in_words(event.record).explanation,
            _query(activity.report, user=user),
            time=microseconds(event.record["time"]),
        )
        for (user, _), event in people.items()
    ]


# Reasons that mean that a client claimed an identity itself, and did not get it from the edge.
_CLAIMS: Final = frozenset(
    {
        Reason.UNTRUSTED_PEER,
        Reason.UNTRUSTED_PEER_REJECTED,
        Reason.PUBLIC_PATH,
        Reason.SPOOFED_USER_HEADER,
        Reason.HEADER_ALIAS,
        Reason.IDENTITY_DUPLICATE,
        Reason.SECRET_MISSING,
        Reason.SECRET_MISMATCH,
        Reason.JWT_MISSING,
        Reason.JWT_INVALID,
        Reason.JWT_CLAIM_MISMATCH,
        Reason.JWT_UNKNOWN_KEY,
    }
)


def _probes(report: Report) -> list[Finding]:
    """Return a finding with the addresses that claimed identities."""
    claims = [each for each in report.origins if each.reason in _CLAIMS]
    if not claims:
        return []
    addresses = list(dict.fromkeys(each.value for each in claims))
    total = sum(each.count for each in claims)
    listed = ", ".join(addresses[:3]) + (
        f" and {len(addresses) - 3} more" if len(addresses) > 3 else ""
    )
    times = "1 request" if total == 1 else f"{total:,} requests"
    return [
        Finding(
            "warning",
            f"{times} claimed an identity without proof, from {listed}",
            "None of these requests was accepted as this identity.",
            anchor="origins",
        )
    ]


def _wrong_tokens(activity: Activity) -> list[Finding]:
    """Return a finding if wrong control tokens were sent."""
    if not activity.wrong_tokens:
        return []
    newest = activity.wrong_tokens[0]
    addresses = dict.fromkeys(str(each.record.get("client")) for each in activity.wrong_tokens)
    return [
        Finding(
            "warning",
            f"Wrong control tokens were sent, from {', '.join(list(addresses)[:3])}",
            in_words(newest.record).remedy,
            _query(activity.report, kind=("control_token_rejected",)),
            time=microseconds(newest.record["time"]),
        )
    ]


def _changes(report: Report) -> list[Finding]:
    """Return findings for new accounts, locks and changed rights."""
    rights = [e for e in report.changes if any("isAdmin" in c for c in e.record.get("changes", ()))]
    found = []
    for tone, events, singular, plural in (
        ("info", report.new_accounts, "1 new account", "{} new accounts"),
        ("info", report.locks, "1 account was locked or readmitted", "{} locks and readmissions"),
        ("warning", rights, "1 admin right was changed", "{} admin rights were changed"),
    ):
        if not events:
            continue
        names = dict.fromkeys(str(event.record.get("account", "")) for event in events)
        kinds = tuple(sorted({event.record["kind"] for event in events}))
        title = singular if len(events) == 1 else plural.format(len(events))
        listed = ", ".join(list(names)[:5]) + (" and more" if len(names) > 5 else "")
        found.append(Finding(tone, f"{title}: {listed}", "", _query(report, kind=kinds)))
    return found


def _chart_rows(summary: Summary) -> list[ChartRow]:
    rows: tuple[tuple[str, str, dict[str, Any], Callable[[Cell], bool]], ...] = (
        (
            "authenticated",
            "visits",
            {"verdict": ("authenticated",)},
            _with_verdict("authenticated"),
        ),
        (
            "stripped",
            "identity removed",
            {"verdict": ("stripped",)},
            _with_verdict("stripped"),
        ),
        (
            "rejected",
            "refused",
            {"verdict": ("rejected",)},
            _with_verdict("rejected"),
        ),
        (
            "failed",
            "no complete response",
            {"kind": ("request_failed",)},
            lambda cell: cell.kind == "request_failed" and cell.reason != "client_left",
        ),
    )
    return [_chart_row(summary, *row) for row in rows]


def _with_verdict(verdict: str) -> Callable[[Cell], bool]:
    return lambda cell: cell.verdict == verdict


def _chart_row(
    summary: Summary,
    name: str,
    meaning: str,
    filters: dict[str, Any],
    matches: Callable[[Cell], bool],
) -> ChartRow:
    counts = _counts(summary, matches)
    bars = []
    for number, count in enumerate(counts):
        start = summary.since + number * summary.bucket
        label = f"{_moment(start)} UTC: {count:,}"
        query = _trail_query(start, start + summary.bucket, **filters) if count else ""
        bars.append(Bar(count, label, f"trail?{query}" if query else ""))
    query = _trail_query(summary.since, summary.until, **filters)
    return ChartRow(name, meaning, sum(counts), query, bar_chart(bars, name), tuple(counts))


def _counts(summary: Summary, matches: Callable[[Cell], bool]) -> list[int]:
    counts = [0] * ((summary.until - summary.since) // summary.bucket)
    for cell in summary.cells:
        index = (cell.start - summary.since) // summary.bucket
        if matches(cell) and 0 <= index < len(counts):
            counts[index] += cell.count
    return counts


def _refusals(report: Report) -> list[Row]:
    return [
        Row(
            each.value,
            _reason_text(each.value),
            each.count,
            None,
            _query(report, reason=(each.value,)),
        )
        for each in report.refusals
    ]


def _reason_text(name: str) -> str:
    reason = reason_of(name)
    return "" if reason is None else reason.text


def _origins(report: Report) -> list[Row]:
    """Return the addresses with refused requests, the most frequent first."""
    clients: dict[str, list[Count]] = defaultdict(list)
    for each in report.origins:
        clients[each.value].append(each)
    rows = [
        Row(
            client,
            ", ".join(dict.fromkeys(each.reason for each in counts if each.reason)),
            sum(each.count for each in counts),
            max((each.last_time or 0 for each in counts), default=0) or None,
            _query(report, client=client, verdict=("stripped", "rejected")),
        )
        for client, counts in clients.items()
    ]
    return sorted(rows, key=lambda row: -row.count)


def _people(report: Report) -> list[Row]:
    people: dict[str, list[Count]] = defaultdict(list)
    for each in report.people:
        people[each.value].append(each)
    rows = [
        Row(
            user,
            "",
            sum(each.count for each in counts),
            max((each.last_time or 0 for each in counts), default=0) or None,
            _query(report, user=user),
        )
        for user, counts in people.items()
    ]
    return sorted(rows, key=lambda row: -(row.time or 0))


def changes_of(report: Report) -> list[EventLine]:
    """Return the newest changes in Navidrome and of administrators."""
    events = (*report.new_accounts, *report.changes, *report.locks, *report.admin_actions)
    newest = sorted(events, key=lambda event: str(event.record["time"]), reverse=True)
    return event_lines(newest[:_LIST])


def _query(report: Report, **filters: Any) -> str:
    return _trail_query(report.since, report.until, **filters)


def _trail_query(since: int, until: int, **filters: Any) -> str:
    """Return the query of the trail's page for these events."""
    period: Mapping[str, str] = {"since": iso(since), "until": iso(until)}
    return urlencode({**period, **filters}, doseq=True)


def iso(microseconds: int) -> str:
    """Return a time in the form that the filters accept, in UTC."""
    return f"{datetime.fromtimestamp(microseconds / 1_000_000, UTC):%Y-%m-%dT%H:%MZ}"


def _moment(microseconds: int) -> str:
    return f"{datetime.fromtimestamp(microseconds / 1_000_000, UTC):%Y-%m-%d %H:%M}"
