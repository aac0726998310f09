"""What the pages of the trail show, from a stored trail."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl

import pytest

from shim.audit.store.filters import FilterError
from shim.audit.store.reader import TrailReader
from shim.control.pages.event import event_page
from shim.control.pages.overview import DAY, HOUR, RANGES, overview, read_activity
from shim.control.pages.trail import Query, read_page, trail
from shim.health import Check, State
from shim.store.database import Database
from tests.support.trail_records import START, record, refused, seen, store
from tests.support.trail_records import trail as open_trail

NOW = START + 30 * DAY + HOUR // 2
FINE = Check("navidrome", State.OK, "responds")
BROKEN = Check("user_header", State.FAILING, "not obeyed", "Set ND_EXTAUTH_USERHEADER.")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with open_trail(f"sqlite:///{tmp_path}/audit.db") as opened:
        yield opened


@pytest.fixture
def reader(database: Database, tmp_path: Path) -> Iterator[TrailReader]:
    assert database is not None
    reader_ = TrailReader(f"sqlite:///{tmp_path}/audit.db")
    yield reader_
    reader_.close()


def shown(reader: TrailReader, *checks: Check, number: int = 0) -> dict[str, Any]:
    chosen = RANGES[number]
    return overview(chosen, read_activity(chosen, NOW)(reader), checks)


def titles(context: dict[str, Any]) -> list[tuple[str, str]]:
    findings = context["findings"]
    assert isinstance(findings, list)
    return [(each.tone, each.title) for each in findings]


def test_a_quiet_day_has_no_findings(database: Database, reader: TrailReader) -> None:
    store(database, "requests", seen("ada", NOW - HOUR))
    context = shown(reader, FINE)
    assert titles(context) == []
    (person,) = context["people"]
    assert (person.name, person.count) == ("ada", 1)


def test_errors_come_before_warnings_and_warnings_before_the_rest(
    database: Database, reader: TrailReader
) -> None:
    store(database, "requests", refused(NOW - HOUR, reason="untrusted_peer", verdict="stripped"))
    store(
        database,
        "changes",
        record("account_created", NOW - HOUR, account="bert", user="bert"),
        record("upstream_down", NOW - HOUR, severity="error", detail="connection refused"),
    )
    found = titles(shown(reader, FINE, BROKEN))
    assert [tone for tone, _ in found] == ["error", "error", "warning", "info"]
    assert ("error", "user header: not obeyed") in found
    assert ("error", "Navidrome stopped responding") in found
    assert found[2][1] == "1 request claimed an identity without proof, from 203.0.113.9"
    assert found[3][1] == "1 new account: bert"


def test_a_user_without_an_account_is_a_finding_that_links_to_them(
    database: Database, reader: TrailReader
) -> None:
    denied = record(
        "account_denied",
        NOW - HOUR,
        reason="group_not_allowed",
        detail="none of the groups is allowed",
        user="dirk & co",
    )
    store(database, "requests", denied)
    context = shown(reader, FINE)
    (finding,) = context["findings"]
    assert finding.title == "dirk & co got no account"
    assert parse_qs(finding.query)["user"] == ["dirk & co"]


def test_a_sudden_increase_of_rejections_is_a_finding(
    database: Database, reader: TrailReader
) -> None:
    usual = [refused(NOW - hours * HOUR) for hours in range(1, 24)]
    store(database, "requests", *usual, refused(NOW, count=90))
    assert ("warning", "90 requests were rejected recently, usually about 1") in titles(
        shown(reader, FINE)
    )


def test_a_change_of_an_admin_right_is_a_warning(database: Database, reader: TrailReader) -> None:
    changed = record("account_changed", NOW - HOUR, account="bob", changes=["isAdmin: no → yes"])
    store(database, "changes", changed)
    assert titles(shown(reader, FINE)) == [("warning", "1 admin right was changed: bob")]


@pytest.mark.parametrize("number", range(len(RANGES)))
def test_every_range_counts_the_same_events_in_bars_and_table(
    database: Database, reader: TrailReader, number: int
) -> None:
    store(database, "requests", refused(NOW - HOUR, count=7), refused(NOW - 400 * DAY))
    context = shown(reader, FINE, number=number)
    strips = {strip.name: strip for strip in context["strips"]}
    assert strips["rejected"].count == 7
    assert sum(strips["rejected"].counts) == 7
    assert len(strips["rejected"].counts) == len(context["starts"])
    assert len(strips["rejected"].counts) <= 54


def test_a_bar_links_to_exactly_its_events(database: Database, reader: TrailReader) -> None:
    store(database, "requests", refused(NOW - HOUR, count=7), refused(NOW - 5 * HOUR))
    context = shown(reader, FINE)
    (strip,) = [each for each in context["strips"] if each.name == "rejected"]
    links = [part.split('"')[0] for part in str(strip.chart).split('href="trail?')[1:]]
    assert len(links) == 2
    newest = Query.parse(parse_qsl(html.unescape(links[-1])))
    page = reader.page(newest.filters(NOW))
    assert [event.record["count"] for event in page.events] == [7]


def test_one_address_is_one_row_with_all_its_reasons(
    database: Database, reader: TrailReader
) -> None:
    store(
        database,
        "requests",
        refused(NOW - HOUR, reason="untrusted_peer", count=3),
        refused(NOW - HOUR, reason="header_alias"),
    )
    (row,) = shown(reader, FINE)["origins"]
    assert (row.name, row.count) == ("203.0.113.9", 4)
    assert row.words == "untrusted_peer, header_alias"


# the trail


def test_a_view_is_determined_by_its_url() -> None:
    query_string = (
        "verdict=stripped&verdict=rejected&user=eve&since=yesterday&zone=Europe/Vienna&text="
    )
    query = Query.parse(parse_qsl(query_string, keep_blank_values=True))
    assert query.values["verdict"] == "stripped,rejected"
    again = Query.parse(parse_qsl(query.link().removeprefix("?")))
    assert again == query
    filters = query.filters(NOW)
    assert filters.verdicts == ("stripped", "rejected")
    assert filters.user == "eve"


def test_yesterday_begins_at_the_readers_midnight() -> None:
    # 2026-12-01T00:30Z is 01:30 in Vienna; yesterday began there at 2026-11-29T23:00Z.
    query = Query.parse([("since", "yesterday"), ("zone", "Europe/Vienna")])
    assert query.filters(NOW).since == START + 29 * DAY - HOUR


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("since", "the day before"),
        ("since", "2026-13-45"),
        ("until", "99999999w"),
        ("verdict", "maybe"),
        ("kind", "' OR 1=1"),
        ("client", "300.1.2.3/99"),
        ("stream", "all"),
        ("zone", "../../etc/passwd"),
        ("text", "x" * 201),
        ("colour", "red"),
    ],
)
def test_an_invalid_filter_shows_a_message(name: str, value: str) -> None:
    query = Query.parse([("since", "2h"), (name, value)])
    with pytest.raises(FilterError, match=r"\w+ \w+"):
        query.filters(NOW)


def test_a_chip_removes_only_its_filter() -> None:
    query = Query.parse([("user", "eve"), ("since", "2h"), ("zone", "UTC")])
    context = trail(query, None, "")
    chips = {chip.name: chip.link_without for chip in context["chips"]}
    assert chips == {"user": "?since=2h&zone=UTC", "since": "?user=eve"}


def test_pages_are_followed_to_the_last_event(database: Database, reader: TrailReader) -> None:
    records = [refused(NOW - n * 1000) for n in range(120)]
    store(database, "requests", *records)
    query, found = Query({"verdict": "rejected"}), []
    for _ in range(4):
        context = trail(query, read_page(query.filters(NOW), query.cursor)(reader))
        found += [event.id for event in context["events"]]
        if not context["next_page"]:
            break
        query = Query.parse(parse_qsl(context["next_page"].removeprefix("?")))
        assert query.cursor
    assert sorted(found) == sorted(each["id"] for each in records)
    assert context["first_page"] == "?verdict=rejected"


def test_only_the_newest_page_without_an_end_is_live(reader: TrailReader) -> None:
    page = reader.page(Query({}).filters(NOW))
    assert trail(Query({}), page)["live"]
    assert not trail(Query({"until": "now"}), page)["live"]
    assert not trail(Query({}, "d.1.1.0"), page)["live"]


# one event


def test_an_event_explains_its_decision(database: Database, reader: TrailReader) -> None:
    event = refused(NOW, reason="secret_missing", removed_headers=["X-authentik-username"])
    store(database, "requests", event)
    stored = reader.get(event["id"])
    assert stored is not None
    context = event_page(stored, "X-authentik-username")
    assert context["words"].explanation.startswith("SHIM_PROXY_SECRET is set")
    assert "SHIM_PROXY_SECRET" in context["rule"].settings
    assert "SHIM_PROXY_SECRET_HEADER" in context["rule"].settings
    tried = parse_qs(context["try_query"])
    assert tried["peer"] == ["172.20.0.2"]
    assert tried["path"] == ["/app/"]
    assert tried["headers"] == ["X-authentik-username: anna\nX-Forwarded-For: 203.0.113.9"]


def test_a_claimed_name_cannot_add_a_header_line(database: Database, reader: TrailReader) -> None:
    event = refused(NOW, claimed_user="eve\nX-Evil: 1")
    store(database, "requests", event)
    stored = reader.get(event["id"])
    assert stored is not None
    tried = parse_qs(event_page(stored, "X-authentik-username")["try_query"])
    assert "X-Evil" not in tried["headers"][0]


def test_a_change_has_no_request_to_try(database: Database, reader: TrailReader) -> None:
    event = record("account_created", NOW, account="bert", user="bert")
    store(database, "changes", event)
    stored = reader.get(event["id"])
    assert stored is not None
    context = event_page(stored, "X-authentik-username")
    assert not context["try_query"]
    assert {link.label for link in context["links"]} == {"Same person", "Same account"}
