"""Merge settings that were read again into those that are in force.

A setting whose row says `reloadable` is applied between two requests. The others (addresses, Navidrome, the
database, limits) keep their value until a restart, and the result names them.
"""

from __future__ import annotations

from dataclasses import dataclass

from shim.settings import SETTINGS, Settings
from shim.settings.validation import conflicts


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """What came of a reload. `faults`: why the settings from before stay in force, empty where they don't.
    `changed`: names of settings that have another value now; `waiting`: of those that a restart takes."""

    faults: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    pending_restart: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MergeResult:
    """The settings that can be put in force, and what `Reloaded` says of them."""

    settings: Settings
    outcome: ReloadResult


def merge_settings(running: Settings, new: Settings) -> MergeResult:
    """The settings that run, with what can be taken of the fresh ones."""
    changed = [
        each for each in SETTINGS if getattr(running, each.field) != getattr(new, each.field)
    ]
    reloadable = {each.field: getattr(new, each.field) for each in changed if each.reloadable}
    settings = running.model_copy(update=reloadable)
    # Each whole is sound, but a mixture of both may not be.
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
        ),
    )
