"""Build the parts of the stored trail from the settings."""

from __future__ import annotations

from collections.abc import Callable

from shim.audit.events import Event
from shim.audit.store.chain import Keys, build_keys
from shim.audit.store.reader import TrailReader
from shim.audit.store.retention import Limits, limits_of_days
from shim.audit.store.schema import Stream
from shim.audit.store.tables import default_url
from shim.audit.store.writer import TrailStore
from shim.settings import Settings


def trail_url(settings: Settings) -> str | None:
    """Return the URL of the trail's database, None if the trail is in the log only."""
    given = settings.audit_database_url
    if given is None:
        return default_url(settings.database_url.get_secret_value())
    url = given.get_secret_value()
    return None if url == "none" else url


def trail_keys(settings: Settings) -> Keys:
    """Return the keys of `SHIM_AUDIT_KEY`."""
    return build_keys([key.get_secret_value() for key in settings.audit_key])


def build_store(
    settings: Settings, *, log: Callable[[Event], None] = lambda _: None, replaces: bool = False
) -> TrailStore | None:
    """Return the stored trail, None if the trail is in the log only. See `TrailStore`. Raises `StoreError` if
    the driver is missing."""
    url = trail_url(settings)
    if url is None:
        return None
    return TrailStore(url, trail_keys(settings), log=log, replaces=replaces)


def build_reader(settings: Settings) -> TrailReader | None:
    """Return a reader of the stored trail, None if the trail is in the log only. Raises `StoreError` if the
    driver is missing."""
    url = trail_url(settings)
    return None if url is None else TrailReader(url)


def retention_limits(settings: Settings) -> dict[Stream, Limits]:
    """Return the limits of both streams now."""
    return {
        "requests": limits_of_days(settings.audit_requests_days, settings.audit_requests_max_size),
        "changes": limits_of_days(settings.audit_changes_days),
    }
