"""Merge settings that were read again into those that are in force.

A setting whose row says `reloadable` is applied between two requests. The others (addresses, Navidrome, the
database, limits) keep their value until a restart, and the result names them.
"""

from __future__ import annotations

from dataclasses import dataclass

from shim.settings import SETTINGS, Setting, Settings
from shim.settings.parsers import format_value
from shim.settings.validation import conflicts


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """The result of a reload. `faults`: why the old settings stay in force; empty if the new ones are.
    `changed`: names of the settings that were applied. `pending_restart`: names of those that need a
    restart. `changes`: the applied settings with their old and new values, secrets masked."""

    faults: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    pending_restart: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MergeResult:
    """The settings to put in force, and the result to report."""

    settings: Settings
    outcome: ReloadResult


def merge_settings(running: Settings, new: Settings) -> MergeResult:
    """Return the running settings with the reloadable ones of `new`."""
    changed = [
        each for each in SETTINGS if getattr(running, each.field) != getattr(new, each.field)
    ]
    reloadable = {each.field: getattr(new, each.field) for each in changed if each.reloadable}
    settings = running.model_copy(update=reloadable).with_origins(
        {each.field: new.origin(each.field) for each in SETTINGS if each.reloadable}
    )
    # Both are valid, but a mixture may not be.
    faults = tuple(
        f"{', '.join(f'SHIM_{field.upper()}' for field in one.fields)}: {one.expected}"
        for one in conflicts(settings)
    )
    return MergeResult(
        settings,
        ReloadResult(
            faults,
            tuple(each.name for each in changed if each.reloadable),
            tuple(each.name for each in changed if not each.reloadable),
            tuple(_change(each, running, new) for each in changed if each.reloadable),
        ),
    )


def _change(setting: Setting, running: Settings, new: Settings) -> str:
    old, value = (
        format_value(getattr(each, setting.field)) or "not set" for each in (running, new)
    )
    # Two secrets that differ are masked in the same way.
    return f"{setting.name}: {old} → {'another value' if value == old else value}"
