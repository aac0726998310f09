"""Rendering: escaping, relative links, times."""

from __future__ import annotations

import pytest
from starlette.requests import Request

from shim.control.pages.rendering import environment, number, prose, root_of, time_element

EVIL = '<script>alert(1)</script> "\u202eevil\u2066 \x1b[31m\x07 =cmd\r\n' + "🎵" * 255


def rendered(template: str, **values: object) -> str:
    return environment().from_string(template).render(values)


def request(raw_path: bytes) -> Request:
    return Request({"type": "http", "path": raw_path.decode(), "raw_path": raw_path, "headers": []})


def test_text_of_an_attacker_is_inert() -> None:
    text = rendered('<p title="{{ value }}">{{ value }}</p>', value=EVIL)
    assert "<script>" not in text
    assert '""' not in text
    assert r"\u202eevil\u2066 \u001b[31m\u0007 =cmd\u000d\u000a" in text
    assert "🎵" * 255 in text
    assert not set(text) & set("\u202e\u2066\x1b\x07\r\n")


def test_a_lone_surrogate_can_be_sent() -> None:
    assert rendered("{{ value }}", value="a\udcff").encode() == rb"a\udcff"


def test_text_of_several_lines_keeps_only_its_line_ends() -> None:
    text = rendered("<textarea>{{ value | lines }}</textarea>", value="a: 1\n</textarea>\x1b\u202e")
    assert text == "<textarea>a: 1\n&lt;/textarea&gt;\\u001b\\u202e</textarea>"


def test_the_shims_own_markup_is_not_escaped() -> None:
    assert rendered("{{ value | number }}", value=1_234_567) == "1\u202f234\u202f567"
    assert number(12) == "12"


@pytest.mark.parametrize(
    ("path", "root"),
    [
        (b"/", "./"),
        (b"/sign-in", "./"),
        (b"/admin/", "../"),
        (b"/admin/trail", "../"),
        (b"/admin/trail/01a0", "../../"),
        (b"/admin/trail/a%2Fb", "../../"),
        (b"/admin/accounts/lock", "../../"),
    ],
)
def test_links_are_relative_to_the_mount(path: bytes, root: str) -> None:
    assert root_of(request(path)) == root


@pytest.mark.parametrize(
    ("style", "text"),
    [
        ("second", "2026-11-01 08:30:05 UTC"),
        ("minute", "2026-11-01 08:30 UTC"),
        ("day", "2026-11-01"),
    ],
)
def test_a_time_is_in_utc_until_a_script_converts_it(style: str, text: str) -> None:
    element = time_element(1_793_521_805_123_456, style)
    assert element == (
        f'<time datetime="2026-11-01T08:30:05.123Z" data-style="{style}">{text}</time>'
    )


def test_a_sentence_has_code_and_names_that_can_be_broken() -> None:
    shown = prose("Set SHIM_A_B, or run `navidrome-shim users unlock`.")
    assert shown == "Set SHIM_<wbr>A_<wbr>B, or run <code>navidrome-shim users unlock</code>."
    assert "<script>" not in prose(f"`{EVIL}` {EVIL}")
    assert "\u202e" not in prose(f"`{EVIL}` {EVIL}")
    assert prose("one ` alone") == "one <code> alone</code>"
