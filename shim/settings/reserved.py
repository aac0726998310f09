"""The accounts that no identity may use: the shim's own, and those that the settings protect."""

from __future__ import annotations

from shim.settings import Settings
from shim.trust.names import normalize_name

# The default name of the shim's own account.
DEFAULT_ADMIN_USERNAME = "navidrome-shim"


def reserved_names(settings: Settings) -> frozenset[str]:
    """Return their names, normalized as Navidrome compares them."""
    names = (DEFAULT_ADMIN_USERNAME, settings.navidrome_admin_username, *settings.protected_users)
    return frozenset(map(normalize_name, names))
