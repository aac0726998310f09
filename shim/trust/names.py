"""User names as Navidrome compares them: `COLLATE NOCASE`, which is blind to case for ASCII alone."""

from __future__ import annotations

_TO_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


def normalize_name(name: str) -> str:
    """The name that every name which Navidrome takes for this one has in common."""
    return name.translate(_TO_LOWER)
