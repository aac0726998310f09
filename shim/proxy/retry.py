"""Which requests may be sent a second time, when the first one met a connection that had gone stale.

A GET is not safe to repeat at Navidrome: Subsonic's `createPlaylist`, `scrobble` or `startScan` change
things by GET. Below `/rest/` only names that read are sent again.
"""

from __future__ import annotations

from shim.trust.path_zones import Paths, RequestLine

_READ_ONLY_CALLS = (b"get", b"stream", b"download", b"ping")


def is_retryable(request_line: RequestLine, paths: Paths) -> bool:
    """Whether this request, which has no body, changes nothing however often it is sent."""
    if request_line.method not in (b"GET", b"HEAD"):
        return False
    below = request_line.path[len(paths.base) :]
    if below[:5].lower() == b"rest/":
        return below[5:].startswith(_READ_ONLY_CALLS)
    return True
