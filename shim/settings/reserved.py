"""The accounts that no identity may be: the shim's own, and those that the settings protect."""

from __future__ import annotations

from shim.settings import Settings
from shim.trust.names import normalize_name

# Under this name the shim makes an account of its own, where it is told of no other.
DEFAULT_ADMIN_USERNAME = "navidrome-shim"


def reserved_names(settings: Settings) -> frozenset[str]:
    """Their names, as Navidrome compares them."""
    names = (DEFAULT_ADMIN_USERNAME, settings.navidrome_admin_username, *settings.protected_users)
    return frozenset(map(normalize_name, names))
