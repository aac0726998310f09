"""Decide which requests may be sent again after the first attempt met a stale connection.

A GET is not always safe to repeat at Navidrome: Subsonic's `createPlaylist`, `scrobble` or `startScan` change
data by GET. Below `/rest/` only endpoints that read are retried.
"""

from __future__ import annotations

from shim.trust.decision import Decision
from shim.trust.path_zones import Paths

_READ_ONLY_CALLS = (b"get", b"stream", b"download", b"ping")


def is_retryable(decision: Decision, paths: Paths) -> bool:
    """Return whether this request is idempotent, and was sent whole: it has no body."""
    request_line = decision.request_line
    if request_line is None or decision.has_body or decision.upgrade:
        return False
    if request_line.method not in (b"GET", b"HEAD"):
        return False
    path_below_base = request_line.path[len(paths.base) :]
    if path_below_base[:5].lower() == b"rest/":
        return path_below_base[5:].startswith(_READ_ONLY_CALLS)
    return True
