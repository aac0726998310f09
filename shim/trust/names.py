"""Compare user names as Navidrome does: `COLLATE NOCASE`, which ignores case for ASCII only."""

from __future__ import annotations

ASCII_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


def normalize_name(name: str) -> str:
    """Return the form that is equal for all names that Navidrome treats as the same."""
    return name.translate(ASCII_LOWER)
