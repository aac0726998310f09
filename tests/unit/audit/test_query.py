"""Filters and times in a URL or on a command line."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from shim.audit.query import CHOICES, parse_filters, parse_time, parse_zone
from shim.audit.store.filters import FilterError, Filters


def microseconds(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1_000_000)


NOW = microseconds("2026-11-27T02:30:15.250000+00:00")
VIENNA = ZoneInfo("Europe/Vienna")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", "2026-11-27T02:30:15.250000+00:00"),
        ("90s", "2026-11-27T02:28:45.250000+00:00"),
        ("5m", "2026-11-27T02:25:15.250000+00:00"),
        (" 2H ", "2026-11-27T00:30:15.250000+00:00"),
        ("1 d", "2026-11-26T02:30:15.250000+00:00"),
        ("2w", "2026-11-13T02:30:15.250000+00:00"),
        ("today", "2026-11-27T00:00:00+00:00"),
        ("Yesterday", "2026-11-26T00:00:00+00:00"),
        ("2026-11-01", "2026-11-01T00:00:00+00:00"),
        ("2026-11-01T08:30", "2026-11-01T08:30:00+00:00"),
        ("2026-11-01 08:30:01.5", "2026-11-01T08:30:01.500000+00:00"),
        ("2026-11-01T08:30Z", "2026-11-01T08:30:00+00:00"),
        ("2026-11-01T08:30+02:00", "2026-11-01T06:30:00+00:00"),
    ],
)
def test_times(text: str, expected: str) -> None:
    assert parse_time("since", text, NOW) == microseconds(expected)


def test_days_and_times_without_a_zone_are_in_the_given_one() -> None:
    # In Vienna it is already half past three, of the same day.
    assert parse_time("since", "yesterday", NOW, VIENNA) == microseconds("2026-11-26T00:00+01:00")
    assert parse_time("since", "2026-07-01T12:00", NOW, VIENNA) == microseconds(
        "2026-07-01T12:00+02:00"
    )
    late = microseconds("2026-11-27T23:30+00:00")
    assert parse_time("since", "today", late, VIENNA) == microseconds("2026-11-28T00:00+01:00")


@pytest.mark.parametrize(
    "text", ["", "2", "h", "-2h", "9999999w", "999999w", "2026-13-01", "tomorrow", "2h ago", "٢h"]
)
def test_an_invalid_time_is_named(text: str) -> None:
    with pytest.raises(FilterError, match=r"^until: .* is not a time: use for example 2h"):
        parse_time("until", text, NOW)


def test_a_filter_with_choices_accepts_several_values() -> None:
    parameters = [("kind", "started, Stopped"), ("kind", "admin_action"), ("verdict", "rejected")]
    assert parse_filters(parameters, NOW) == Filters(
        kinds=("started", "stopped", "admin_action"), verdicts=("rejected",)
    )


def test_empty_filters_do_not_restrict() -> None:
    parameters = [("kind", ""), ("peer", " "), ("since", ""), ("text", "")]
    assert parse_filters(parameters, NOW) == Filters()


def test_every_filter_reaches_the_trail() -> None:
    parameters = [
        ("since", "2h"),
        ("until", "1h"),
        ("stream", "requests"),
        ("severity", "warning"),
        ("reason", "untrusted_peer"),
        ("reason", "connect_failed"),
        ("path_class", "public"),
        ("peer", "192.0.2.0/24"),
        ("client", "2001:db8::1"),
        ("user", "ada"),
        ("account", "Ada"),
        ("request_id", "r-1"),
        ("text", "curl"),
    ]
    assert parse_filters(parameters, NOW) == Filters(
        since=NOW - 7_200_000_000,
        until=NOW - 3_600_000_000,
        streams=("requests",),
        severities=("warning",),
        reasons=("untrusted_peer", "connect_failed"),
        path_classes=("public",),
        peer="192.0.2.0/24",
        client="2001:db8::1",
        user="ada",
        account="Ada",
        request_id="r-1",
        text="curl",
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kinds", "started"),
        ("", "x"),
        ("kind", "nonsense"),
        ("verdict", "a" * 10_000),
        ("peer", "300.1.1.1"),
        ("client", "10.0.0"),
        ("client", "fe80::g"),
        ("client", "x." * 5000),
    ],
)
def test_an_invalid_filter_is_named_and_clipped(name: str, value: str) -> None:
    with pytest.raises(FilterError) as fault:
        parse_filters([(name, value)], NOW)
    assert len(str(fault.value)) < 2000


@pytest.mark.parametrize("text", ["@", "*", "192.0.2.7", "2001:db8::1", "10.0.0.0/8"])
def test_an_address_a_network_and_a_unix_socket_are_accepted(text: str) -> None:
    assert parse_filters([("peer", text)], NOW).peer == text


def test_each_accepted_value_is_named_once() -> None:
    for values in CHOICES.values():
        assert len(set(values)) == len(values)


def test_an_invalid_time_zone_is_named() -> None:
    assert parse_zone("") is UTC
    assert parse_zone("Europe/Vienna") == VIENNA
    for text in ("Mars/Olympus", "../../etc/passwd", "\0", "x" * 5000):
        with pytest.raises(FilterError, match="zone"):
            parse_zone(text)
