"""What the settings come to."""

from __future__ import annotations

from dataclasses import fields

from shim.app.factories import build_limits
from shim.proxy.limits import Limits
from shim.settings import load


def test_without_settings_the_limits_are_the_data_planes_own() -> None:
    assert build_limits(load({})) == Limits()


def test_every_limit_that_is_a_setting_follows_it() -> None:
    names = {
        "SHIM_MAX_HEADER_BYTES": "header_bytes",
        "SHIM_MAX_HEADERS": "header_lines",
        **{
            f"SHIM_{each.name.upper()}": each.name
            for each in fields(Limits)
            if each.name in type(load({})).model_fields
        },
    }
    assert len(names) == 11
    settings = load({name: str(5000 + at) for at, name in enumerate(names)})
    limits = build_limits(settings)
    assert {field: getattr(limits, field) for field in names.values()} == {
        field: 5000 + at for at, field in enumerate(names.values())
    }
