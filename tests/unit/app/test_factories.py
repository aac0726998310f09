"""The data plane's limits from the settings."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from shim.app.factories import build_limits
from shim.settings import load
from shim.settings.model import Settings

DEFAULTS = asdict(build_limits(load({})))

# The setting of each limit with another name.
RENAMED = {"header_bytes": "max_header_bytes", "header_lines": "max_headers"}
LIMITS = {
    limit: setting
    for limit in DEFAULTS
    if (setting := RENAMED.get(limit, limit)) in Settings.model_fields
}


@pytest.mark.parametrize(("limit", "setting"), LIMITS.items())
def test_a_setting_changes_its_limit_and_no_other(limit: str, setting: str) -> None:
    value = DEFAULTS[limit] - 1
    limits = asdict(build_limits(load({f"SHIM_{setting.upper()}": f"{value:g}"})))
    assert limits == {**DEFAULTS, limit: value}


def test_every_limit_without_a_setting_is_listed() -> None:
    assert {limit for limit in DEFAULTS if limit not in LIMITS} == {
        "max_buffered_bytes",
        "media_stall_timeout",
        "upstream_idle_timeout",
        "form_bytes",
        "buffered_bytes",
        "form_timeout",
        "linger_timeout",
    }
