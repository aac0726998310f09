"""The load's requests, their concurrency, and the goals.

Data only. All paths are of the protected class, so that a proxy that authenticates does all of its
work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

COVER_BYTES = 30_000
TRACK_BYTES = 50_000_000

Figure = Literal["cpu", "p50", "rss"]


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of load. `target` gets the request's number appended, so no request line comes twice."""

    name: str
    what: str
    target: str
    connections: int
    fresh_blocks: bool = False
    transfer_bytes: int | None = None  # where set, costs are counted per transfer of this size


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure of the shim that has to stay at or below `limit` times the baseline's, or below `limit` MB."""

    scenario: str
    figure: Figure
    limit: float
    baseline: str | None = (
        None  # "best" is the cheapest of the others; None makes the limit absolute
    )


_SONGS = "/api/song?_end=15&_order=ASC&_sort=title&_start="

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario("small", "300 bytes of JSON, header blocks of 40 browsers", _SONGS, 32),
        Scenario(
            "small-new", "300 bytes of JSON, every header block new", _SONGS, 32, fresh_blocks=True
        ),
        Scenario("cover", "30 kB picture", "/api/cover?size=300&id=al-", 32),
        Scenario("track", "50 MB download", "/api/track?id=tr-", 4, transfer_bytes=TRACK_BYTES),
        Scenario("single", "300 bytes of JSON, one connection", _SONGS, 1),
    )
}

GOALS: tuple[Goal, ...] = (
    Goal("small", "cpu", 1.1, "nginx"),
    Goal("small", "cpu", 0.40, "traefik"),
    Goal("small-new", "cpu", 1.7, "nginx"),
    Goal("small-new", "cpu", 0.60, "traefik"),
    Goal("cover", "cpu", 1.0, "nginx"),
    Goal("track", "cpu", 0.6, "best"),
    Goal("single", "p50", 1.3, "nginx"),
    Goal("small", "rss", 85.0),
)
