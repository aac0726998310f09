"""The data plane's limits, and the policy's flags, from the settings."""

from __future__ import annotations

from dataclasses import asdict, fields

import pytest

from shim.app.factories import FLAGS, build_limits, build_policy
from shim.settings import load
from shim.settings.model import Settings
from shim.trust.policy import Policy

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


@pytest.mark.parametrize("flag", FLAGS)
def test_a_setting_changes_the_flag_of_its_name_and_no_other(flag: str) -> None:
    assert Settings.model_fields[flag].annotation is bool
    for value in (True, False):
        environ = {f"SHIM_{name.upper()}": str(value is (name == flag)) for name in FLAGS}
        policy = build_policy(load(environ))
        assert {name: getattr(policy, name) for name in FLAGS} == {
            name: value is (name == flag) for name in FLAGS
        }


def test_every_flag_that_does_not_have_the_name_of_a_setting_is_listed() -> None:
    flags = {each.name for each in fields(Policy) if isinstance(getattr(Policy(), each.name), bool)}
    assert flags - set(FLAGS) == {
        "reject_untrusted",
        "create_admin_disabled",
        "suspended",
        "user_header_obeyed",
        "audit_available",
    }
