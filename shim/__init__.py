"""navidrome-auth-shim: the sidecar that decides whom Navidrome may believe."""

from __future__ import annotations

__version__ = "0.1.0"
