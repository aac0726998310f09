"""Charts as SVG."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest

from shim.control.pages.charts import HEIGHT, Bar, bar_chart

SVG = "{http://www.w3.org/2000/svg}"


def parsed(text: str) -> ET.Element:
    return ET.fromstring(str(text).replace("<svg ", f'<svg xmlns="{SVG[1:-1]}" ', 1))


def heights(text: str) -> list[float]:
    _, bars = parsed(text).findall(f"{SVG}path")
    return [HEIGHT - float(top) for top in re.findall(r"M\d+ ([\d.]+)h", bars.attrib["d"])]


def test_heights_are_in_proportion_to_the_counts() -> None:
    low, high = heights(bar_chart([Bar(10, "a"), Bar(0, "b"), Bar(40, "c")], "rejected"))
    assert high == HEIGHT - 2
    assert low == pytest.approx(high / 4, abs=0.1)


def test_a_single_event_stays_visible_beside_a_flood() -> None:
    low, _ = heights(bar_chart([Bar(1, "a"), Bar(1_000_000, "b")], "stripped"))
    assert low >= 3


@pytest.mark.parametrize("bars", [[], [Bar(0, "nothing")]], ids=["no bars", "only zeros"])
def test_without_events_the_chart_is_a_line(bars: list[Bar]) -> None:
    text = bar_chart(bars, "rejected")
    assert heights(text) == []
    assert parsed(text).attrib["class"] == "chart rejected"


def test_each_bar_has_a_tooltip_and_leads_to_its_events() -> None:
    root = parsed(bar_chart([Bar(3, "Monday: 3", "trail?since=1"), Bar(0, "Tuesday: 0")], "x"))
    assert [title.text for title in root.iter(f"{SVG}title")] == ["Monday: 3", "Tuesday: 0"]
    (link,) = root.iter(f"{SVG}a")
    assert link.attrib == {"href": "trail?since=1", "tabindex": "-1"}


def test_texts_are_escaped() -> None:
    text = bar_chart([Bar(1, "</title><script>", 'x"><script>')], "x")
    assert "<script>" not in text
    (title,) = parsed(text).iter(f"{SVG}title")
    assert title.text == "</title><script>"


def test_a_chart_has_no_inline_style() -> None:
    assert "style=" not in bar_chart([Bar(1, "a", "b")], "x")
