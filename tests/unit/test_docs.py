"""The documentation names every log event, metric and setting, and its links work."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.core import CounterMetricFamily, InfoMetricFamily

from shim.audit.events.schema import kinds
from shim.control.metrics import build_registry
from shim.proxy.counters import Counters
from shim.settings import ALIASES, SETTINGS

ROOT = Path(__file__).parents[2]
OPERATING = (ROOT / "docs/operating.md").read_text()
# Without the changelog, which may name settings that were removed.
PAGES = (
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "README.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "deploy").rglob("*.md")),
)


def _metric_names() -> Iterator[str]:
    registry = build_registry(Counters(), version="0")
    for family in registry.collect():
        if family.name.startswith("shim_"):
            suffix = {CounterMetricFamily: "_total", InfoMetricFamily: "_info"}
            yield family.name + suffix.get(type(family), "")


@pytest.mark.parametrize("kind", [kind.kind for kind in kinds()])
def test_operating_guide_names_every_log_event(kind: str) -> None:
    assert f"`{kind}`" in OPERATING


@pytest.mark.parametrize("metric", sorted(_metric_names()))
def test_operating_guide_names_every_metric(metric: str) -> None:
    assert f"`{metric}`" in OPERATING


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_name_only_settings_that_exist(page: Path) -> None:
    known = {setting.name for setting in SETTINGS} | {alias.name for alias in ALIASES}
    known |= {f"{setting.name}_FILE" for setting in SETTINGS if setting.secret}
    named = set(re.findall(r"\bSHIM_[A-Z0-9_]*[A-Z0-9]\b", page.read_text()))
    assert named <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_point_to_existing_files_and_headings(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            anchors = {
                re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings
            }
            assert anchor in anchors, link
