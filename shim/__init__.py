"""navidrome-auth-shim: a sidecar that decides which identities Navidrome can trust."""

from __future__ import annotations

__version__ = "0.1.0"
