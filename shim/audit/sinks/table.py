"""The sinks of the audit trail that settings turn on, besides the log and the stored trail: one row for each.

A new sink needs its module with a `build` function, its row in `SINKS`, and the rows of its settings in
`shim/settings/model.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from shim.audit.errors import SinkError
from shim.audit.trail import Sink
from shim.health import Check, State

if TYPE_CHECKING:
    from shim.settings import Settings


class OptionalSink(Sink, Protocol):
    """A sink that a setting turns on."""

    @property
    def summary(self) -> str:
        """Return where the events go, without a secret, for `navidrome-shim check`."""

    def check(self) -> Check:
        """Return whether the events arrive, for `/readyz`."""


@dataclass(frozen=True, slots=True)
class SinkRow:
    """One sink. `name`: of its check. `setting`: the field of the setting that turns it on if it has a value.
    `build` creates the sink, and imports its code; it raises `SinkError`."""

    name: str
    setting: str
    build: Callable[[Settings], OptionalSink]

    def is_on(self, settings: Settings) -> bool:
        """Return whether the settings turn the sink on."""
        return bool(getattr(settings, self.setting))


def _notifications(settings: Settings) -> OptionalSink:
    from shim.audit.sinks.notify import build  # noqa: PLC0415 - Apprise is large

    return build(settings)


SINKS = (SinkRow("notifications", "notify_urls", _notifications),)


def build_sinks(settings: Settings) -> tuple[OptionalSink, ...]:
    """Return the sinks that the settings turn on. Raises `SinkError`."""
    return tuple(row.build(settings) for row in SINKS if row.is_on(settings))


def check_sinks(settings: Settings) -> tuple[Check, ...]:
    """Return for each sink that the settings turn on whether it can be used, for `navidrome-shim check`."""
    return tuple(_check(row, settings) for row in SINKS if row.is_on(settings))


def _check(row: SinkRow, settings: Settings) -> Check:
    try:
        sink = row.build(settings)
    except SinkError as error:
        remedy = f"Correct the setting; without SHIM_{row.setting.upper()} there are no {row.name}."
        return Check(row.name, State.FAILING, str(error), remedy)
    return Check(row.name, State.OK, sink.summary)
