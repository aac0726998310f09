"""The state of each part, with a remedy for each problem.

A check reads known state and does no I/O, so that it is cheap.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

# The default of SHIM_CONTROL_LISTEN. It is here because the container's health check loads no settings.
DEFAULT_CONTROL_LISTEN: Final = "127.0.0.1:4535"


class State(StrEnum):
    """`warning` needs attention; `failing` means that the shim cannot work."""

    OK = "ok"
    WARNING = "warning"
    FAILING = "failing"


@dataclass(frozen=True, slots=True)
class Check:
    """The state of the part `name`: `detail` is the finding, `remedy` what to do."""

    name: str
    state: State
    detail: str
    remedy: str | None = None


class HealthSource(Protocol):
    """A source of checks."""

    def checks(self) -> tuple[Check, ...]: ...


def is_ready(checks: Iterable[Check]) -> bool:
    """Return whether the shim is ready, that is, no check is failing."""
    return all(check.state is not State.FAILING for check in checks)
