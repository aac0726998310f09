"""The data plane's limits for tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from shim.app.factories import build_limits
from shim.proxy.limits import Limits
from shim.settings import load

_DEFAULTS = build_limits(load({}))


def limits_with(**changes: Any) -> Limits:
    """Return the limits of the default settings with these changes."""
    return replace(_DEFAULTS, **changes)
