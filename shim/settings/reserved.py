"""The accounts that no identity may use: the shim's own, and those that the settings protect."""

from __future__ import annotations

from shim.settings.model import DEFAULT_ADMIN_USERNAME, Settings
from shim.trust.names import normalize_name


def reserved_names(settings: Settings) -> frozenset[str]:
    """Return their names, normalized as Navidrome compares them."""
    names = (DEFAULT_ADMIN_USERNAME, settings.navidrome_admin_username, *settings.protected_users)
    return frozenset(map(normalize_name, names))
