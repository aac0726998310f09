"""How the parts are, and what to do where one is not well.

The parts answer from what they know already: a check does no I/O, so that asking costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

# The default of SHIM_CONTROL_LISTEN. It is here because the container's health check loads no settings.
DEFAULT_CONTROL_LISTEN: Final = "127.0.0.1:4535"


class State(StrEnum):
    """`warning` asks for a look, `failing` means that the shim can't do its work."""

    OK = "ok"
    WARNING = "warning"
    FAILING = "failing"


@dataclass(frozen=True, slots=True)
class Check:
    """How the part `name` is: in `detail` what was found, in `remedy` what to do about it."""

    name: str
    state: State
    detail: str
    remedy: str | None = None


class HealthSource(Protocol):
    """Whoever knows how the parts are."""

    def checks(self) -> tuple[Check, ...]: ...


def is_ready(checks: Iterable[Check]) -> bool:
    """Whether requests may be sent here: nothing is failing."""
    return all(check.state is not State.FAILING for check in checks)
