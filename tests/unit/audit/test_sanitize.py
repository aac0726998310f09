"""Text that can be written: without secrets, without line ends, and bounded."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shim.audit.sanitize import MAX_PATH, clip, escape, loggable_path, timestamp

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJpZCI6ImFsLTEifQ.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/rest/ping", "/rest/ping"),
        ("/rest/getUsers?u=admin&t=secret&s=salt", "/rest/getUsers"),
        ("/app/#/album?jwt=secret", "/app/"),
        ("http://ada:secret@music.example/rest/ping?x=1", "/rest/ping"),
        ("http://ada:secret@music.example", "/"),
        ("*", "*"),
        (f"/share/img/{JWT}", "/share/img/{token}"),
        (f"/share/img/%65yJ{JWT[3:]}", "/share/img/{token}"),
        (f"/share/s/{JWT}/rest", "/share/s/{token}"),
        ("/share/d/abc", "/share/d/{token}"),
        ("/share/abc", "/share/{id}"),
        ("/share/abc/m3u", "/share/{id}/m3u"),
        ("/music/share/abc", "/music/share/{id}"),
        ("/%73HARE/abc", "/%73HARE/{id}"),
        ("/share%2fabc", "/share%2f{id}"),
        ("/share/%69mg/abc", "/share/img/{token}"),
        ("/share/img", "/share/{id}"),
        ("/share/", "/share/"),
        ("/share//abc", "/share/{id}"),
        ("/api/share/abc", "/api/share/{id}"),
        ("/shared/abc", "/shared/abc"),
        (f"/other/{JWT}", "/other/{token}"),
        ("/a/http://b@c/d", "/a/http://b@c/d"),
    ],
)
def test_a_path_is_written_without_credentials(target: str, path: str) -> None:
    assert loggable_path(target) == path


@given(st.text())
@example("/" + "a" * 1000)
@example("/share/" * 100)
@example("/" + f"{JWT}/" * 100)
def test_a_path_is_bounded_and_unchanged_when_it_is_sanitized_again(target: str) -> None:
    path = loggable_path(target)

    assert len(path) <= MAX_PATH
    assert "?" not in path
    assert loggable_path(path) == path


def test_a_truncated_text_is_marked() -> None:
    assert clip("abcdef", 4) == "abc…"
    assert clip("abcd", 4) == "abcd"
    assert clip("\x00abc", 8) == r"\u0000a…"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("plain é 音楽", "plain é 音楽"),
        ("a\r\nb", r"a\u000d\u000ab"),
        ("\x1b[31m", r"\u001b[31m"),
        ("\x7f\x9b", r"\u007f\u009b"),
        ("\u202eabc", r"\u202eabc"),
        ("\u2028", r"\u2028"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\udb40\udc41"),
    ],
)
def test_unprintable_characters_are_escaped(text: str, escaped: str) -> None:
    assert escape(text) == escaped


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_escaped_json_has_the_same_value(text: str) -> None:
    line = escape(json.dumps({"value": text}, ensure_ascii=False))

    assert line.isprintable()
    assert json.loads(line) == {"value": text}


def test_times_are_utc_with_microseconds() -> None:
    assert timestamp(0) == "1970-01-01T00:00:00.000000Z"
    assert timestamp(1_795_518_123.4567) == "2026-11-24T11:02:03.456700Z"
