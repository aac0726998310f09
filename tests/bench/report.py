"""From measurements to a report: medians, goals, a table and a JSON file.

Pure until `write_json`: nothing here measures.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Group
from rich.table import Table

from tests.bench.rounds import Measurement
from tests.bench.scenarios import GOALS, Figure, Goal, Scenario


@dataclass(frozen=True, slots=True)
class Summary:
    """Medians over the rounds of one proxy under one scenario, and how far the cost strayed."""

    proxy: str
    scenario: str
    cpu_us: float
    cpu_us_least: float
    cpu_us_most: float
    rate: float
    p50_us: float
    p99_us: float
    rss_mb: float  # after the last round
    busy: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """A goal compared with the measurement."""

    proxy: str
    goal: Goal
    baseline: str | None
    value: float

    @property
    def reached(self) -> bool:
        return self.value <= self.goal.limit


def summarize(measurements: Sequence[Measurement]) -> list[Summary]:
    grouped: dict[tuple[str, str], list[Measurement]] = {}
    for measurement in measurements:
        grouped.setdefault((measurement.scenario, measurement.proxy), []).append(measurement)
    return [_summary(scenario, proxy, group) for (scenario, proxy), group in grouped.items()]


def check_goals(summaries: Sequence[Summary]) -> list[Outcome]:
    """Every goal for every variant of the shim; those without a measured baseline are left out."""
    figures = {(summary.scenario, summary.proxy): summary for summary in summaries}
    outcomes: list[Outcome] = []
    for name in dict.fromkeys(
        summary.proxy for summary in summaries if summary.proxy.startswith("shim")
    ):
        for goal in GOALS:
            own = figures.get((goal.scenario, name))
            if own is None:
                continue
            if goal.baseline is None:
                outcomes.append(Outcome(name, goal, None, _figure(own, goal.figure)))
            elif (baseline := _baseline(goal, summaries)) is not None:
                ratio = _figure(own, goal.figure) / _figure(baseline, goal.figure)
                outcomes.append(Outcome(name, goal, baseline.proxy, ratio))
    return outcomes


def render(
    scenarios: Sequence[Scenario], summaries: Sequence[Summary], outcomes: Sequence[Outcome]
) -> Group:
    tables = [_scenario_table(scenario, summaries) for scenario in scenarios]
    return Group(*tables, _goal_table(outcomes)) if outcomes else Group(*tables)


def write_json(
    path: Path,
    settings: dict[str, object],
    measurements: Sequence[Measurement],
    summaries: Sequence[Summary],
    outcomes: Sequence[Outcome],
) -> None:
    document = {
        "machine": {
            "cores": os.cpu_count(),
            "kernel": platform.release(),
            "python": platform.python_version(),
        },
        "settings": settings,
        "summaries": [asdict(summary) for summary in summaries],
        "goals": [asdict(outcome) | {"reached": outcome.reached} for outcome in outcomes],
        "measurements": [asdict(measurement) for measurement in measurements],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")


def _summary(scenario: str, proxy: str, group: Sequence[Measurement]) -> Summary:
    costs = [measurement.cpu_us for measurement in group]
    return Summary(
        proxy=proxy,
        scenario=scenario,
        cpu_us=statistics.median(costs),
        cpu_us_least=min(costs),
        cpu_us_most=max(costs),
        rate=statistics.median(measurement.rate for measurement in group),
        p50_us=statistics.median(measurement.p50_us for measurement in group),
        p99_us=statistics.median(measurement.p99_us for measurement in group),
        rss_mb=group[-1].rss_mb,
        busy=statistics.median(measurement.busy for measurement in group),
    )


def _baseline(goal: Goal, summaries: Sequence[Summary]) -> Summary | None:
    candidates = [
        summary
        for summary in summaries
        if summary.scenario == goal.scenario
        and not summary.proxy.startswith("shim")
        and goal.baseline in ("best", summary.proxy)
    ]
    return min(candidates, key=lambda summary: _figure(summary, goal.figure), default=None)


def _figure(summary: Summary, figure: Figure) -> float:
    match figure:
        case "cpu":
            return summary.cpu_us
        case "p50":
            return summary.p50_us
        case "rss":
            return summary.rss_mb


def _scenario_table(scenario: Scenario, summaries: Sequence[Summary]) -> Table:
    rows = [summary for summary in summaries if summary.scenario == scenario.name]
    nginx = next((row.cpu_us for row in rows if row.proxy == "nginx"), None)
    in_ms = scenario.transfer_bytes is not None
    unit, scale, each = ("ms", 1000.0, "transfer") if in_ms else ("µs", 1.0, "request")
    table = Table(
        title=f"{scenario.name}: {scenario.what}, connections: {scenario.connections}",
        title_justify="left",
    )
    table.add_column("proxy")
    for heading in (
        f"CPU {unit}/{each}",
        "least–most",
        "× nginx",
        f"{each}s/s",
        "p50",
        "p99",
        "RSS MB",
        "core used",
    ):
        table.add_column(heading, justify="right")
    for row in sorted(rows, key=lambda summary: summary.cpu_us):
        table.add_row(
            row.proxy,
            f"{row.cpu_us / scale:.1f}",
            f"{row.cpu_us_least / scale:.1f}–{row.cpu_us_most / scale:.1f}",
            f"{row.cpu_us / nginx:.2f}" if nginx else "",
            f"{row.rate:,.1f}" if in_ms else f"{row.rate:,.0f}",
            _duration(row.p50_us),
            _duration(row.p99_us),
            f"{row.rss_mb:.0f}",
            f"{row.busy:.0%}",
            style="bold" if row.proxy.startswith("shim") else None,
        )
    return table


def _goal_table(outcomes: Sequence[Outcome]) -> Table:
    table = Table(title="What it must reach", title_justify="left")
    for heading in ("proxy", "scenario", "figure", "measured", "at most", ""):
        table.add_column(heading)
    for outcome in outcomes:
        goal = outcome.goal
        unit = f"× {outcome.baseline}" if outcome.baseline else "MB"
        baseline = f"{unit} (best of the others)" if goal.baseline == "best" else unit
        verdict = "[green]reached[/]" if outcome.reached else "[red]missed[/]"
        figures = (f"{outcome.value:.2f} {unit}", f"{goal.limit:g} {baseline}")
        table.add_row(outcome.proxy, goal.scenario, goal.figure, *figures, verdict)
    return table


def _duration(microseconds: float) -> str:
    return f"{microseconds / 1000:,.1f} ms" if microseconds >= 10_000 else f"{microseconds:,.0f} µs"
