"""The settings in force, for the API and the console: each value with its source, secrets masked."""

from __future__ import annotations

from dataclasses import dataclass

from shim.settings.model import SETTINGS, Settings


@dataclass(frozen=True, slots=True)
class EffectiveSetting:
    """One setting. `value` is text as a user would write it, of a secret only whether it is set. `source`:
    `environment`, `.env line 3`, `file /run/secrets/x` or `default`."""

    name: str
    value: str
    source: str
    section: str
    description: str
    default: str
    secret: bool
    reloadable: bool


def effective_settings(settings: Settings) -> tuple[EffectiveSetting, ...]:
    """Return every setting, in the order of the documentation."""
    values = settings.public()
    return tuple(
        EffectiveSetting(
            name=each.name,
            value=values[each.name],
            source=settings.origin(each.field),
            section=each.section,
            description=each.description,
            default="" if each.default is None else each.default,
            secret=each.secret,
            reloadable=each.reloadable,
        )
        for each in SETTINGS
    )
