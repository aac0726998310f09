"""Results of changes in the address of the next page: only what the shim issued counts."""

from __future__ import annotations

from urllib.parse import parse_qsl

from shim.control.flash import FLASH_SECONDS, Flashes
from shim.control.keys import ControlKey

VALUES = {"done": "lock", "account": "bob & co"}


def query(flashes: Flashes, subject: str = "uid:1", page: str = "/a") -> dict[str, str]:
    return dict(parse_qsl(flashes.query(subject, page, VALUES)))


def test_a_result_is_read_by_its_subject_on_its_page_for_a_minute() -> None:
    now = [1_000_000.0]
    flashes = Flashes(ControlKey(), lambda: now[0])
    issued = query(flashes)
    assert flashes.read("uid:1", "/a", issued) == VALUES
    assert flashes.read("uid:2", "/a", issued) == {}
    assert flashes.read("uid:1", "/b", issued) == {}
    assert Flashes(ControlKey(), lambda: now[0]).read("uid:1", "/a", issued) == {}
    now[0] += FLASH_SECONDS - 1
    assert flashes.read("uid:1", "/a", issued) == VALUES
    now[0] += 1
    assert flashes.read("uid:1", "/a", issued) == {}


def test_an_altered_result_is_none() -> None:
    flashes = Flashes(ControlKey())
    issued = query(flashes)
    expiry, _, signature = issued["shown"].partition(".")
    for other in (
        {**issued, "account": "eve"},
        {**issued, "more": "1"},
        {name: value for name, value in issued.items() if name != "account"},
        {**issued, "shown": f"{int(expiry) + 1}.{signature}"},
        {**issued, "shown": f"{expiry}."},
        {**issued, "shown": "x.é\udcff"},
        VALUES,
        {},
    ):
        assert flashes.read("uid:1", "/a", other) == {}, other
