"""Classify the path of a request: whether an identity counts there.

Only the path of the request line is used, never one from a header (GHSA-7x63-xv5r-3p2x).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from shim.http1.request_line import (
    COMMON_LINE,
    AmbiguousTarget,
    RequestLineError,
    UnknownMethod,
    parse_line,
    unquote,
)
from shim.trust.reasons import PathClass, Reason
from shim.trust.rejection import RequestRejected

_REASONS: dict[type[RequestLineError], Reason] = {
    RequestLineError: Reason.MALFORMED_HEAD,
    UnknownMethod: Reason.METHOD_NOT_IMPLEMENTED,
    AmbiguousTarget: Reason.AMBIGUOUS_TARGET,
}
# The manifest and icons of the web app, below /app/. Browsers fetch them without cookies, so the edge must
# leave them public, and no identity counts there.
_ASSETS = (
    b"manifest.webmanifest",
    b"browserconfig.xml",
    b"android-chrome-",
    b"apple-touch-icon",
    b"favicon",
    b"mstile-",
    b"safari-pinned-tab.svg",
)


# A person's own pages, below /_shim/.
_PERSONAL = (b"devices/", b"static/")


class PathZone(IntEnum):
    """The zone of a path, which determines whether an identity counts."""

    PROTECTED = 0
    PUBLIC = 1  # an identity counts only with the proof that `public_path_proof` names
    SHARE = 2  # public, never with an identity: shares, files fetched without cookies
    OUTSIDE = 3  # outside the base path: never with an identity
    INTERNAL = 4  # the shim's own pages for administrators
    NON_ASCII = 5  # protected, but an edge may parse it as public: never with an identity
    PERSONAL = 6  # the shim's own pages for every person


_CLASS = {
    PathZone.PROTECTED: PathClass.PROTECTED,
    PathZone.PUBLIC: PathClass.PUBLIC,
    PathZone.SHARE: PathClass.PUBLIC,
    PathZone.OUTSIDE: PathClass.PUBLIC,
    PathZone.INTERNAL: PathClass.INTERNAL,
    PathZone.NON_ASCII: PathClass.PROTECTED,
    PathZone.PERSONAL: PathClass.INTERNAL,
}


_PROTECTED = PathZone.PROTECTED
_PUBLIC = PathZone.PUBLIC


class Paths:
    """The path zones below a base path.

    `base` begins and ends with a slash. `public` are prefixes below it, as the settings name them
    (`/rest/`). A path is public if it begins with one of them, compared after percent-decoding, without
    the prefix's last slash and ignoring ASCII case. There is no boundary (`/restx` is public), because
    the rule of an edge may have none, and a path that is public by mistake only loses its identity. The
    base path itself is compared with case, as Navidrome mounts it. `subsonic` is the prefix of the
    Subsonic API.
    """

    __slots__ = (
        "_app",
        "_assets",
        "_base_bare",
        "_internal",
        "_open",
        "_public",
        "_share",
        "_special",
        "_subsonic",
        "base",
        "subsonic",
    )

    def __init__(
        self, base: str = "/", public: tuple[str, ...] = ("/rest/", "/share/", "/jellyfin/")
    ) -> None:
        root = f"/{base.strip('/')}/" if base.strip("/") else "/"
        lowered = root.lower()
        self.base = root.encode()
        self._base_bare = self.base[:-1] or b"/"
        self._public = tuple(_prefix_below(lowered, prefix).rstrip(b"/") for prefix in public)
        self._share = _prefix_below(lowered, "share").rstrip(b"/")
        self._internal = _prefix_below(lowered, "_shim")
        self._subsonic = _prefix_below(lowered, "rest")
        self.subsonic = self.base + b"rest/"
        self._app = _prefix_below(lowered, "app")
        self._assets = tuple(self._app + asset for asset in _ASSETS)
        self._open = (*self._public, self._share, *self._assets)
        # A path that begins with none of these is protected.
        self._special = (*self._public, self._share, self._app, self._internal.rstrip(b"/"))

    def zone(self, path: bytes) -> PathZone:
        """Return the zone of this path. `path` is the raw path of the target, without its query."""
        if b"%" not in path:
            return self.unescaped_zone(path)
        decoded = unquote(path)
        if not path.startswith(self.base):
            return PathZone.OUTSIDE
        if decoded.isascii():
            return self.unescaped_zone(decoded)
        # An edge may fold U+017F to "s" or U+0130 to "i", and match a public prefix. No protected path of
        # Navidrome has such a byte.
        return PathZone.SHARE if decoded.lower().startswith(self._open) else PathZone.NON_ASCII

    def unescaped_zone(self, path: bytes) -> PathZone:
        """Return the zone of a path without percent-escapes, which is the common case."""
        if not path.startswith(self.base) and path != self._base_bare:
            return PathZone.OUTSIDE
        lowered = path.lower()
        if not lowered.startswith(self._special):
            return _PROTECTED
        if lowered.startswith(self._share):
            return PathZone.SHARE
        # A configured prefix that covers the shim's own pages makes them public too: the edge does not
        # authenticate there.
        if lowered.startswith(self._public):
            return _PUBLIC
        if lowered.startswith(self._app):
            return PathZone.SHARE if lowered.startswith(self._assets) else _PROTECTED
        lowered += b"/"
        if not lowered.startswith(self._internal):
            return _PROTECTED
        page = lowered[len(self._internal) :]
        personal = page in (b"", b"/") or page.startswith(_PERSONAL)
        return PathZone.PERSONAL if personal else PathZone.INTERNAL

    def control_target(self, target: bytes) -> bytes:
        """Return the target relative to the shim's own prefix, as the control plane expects it."""
        path, separator, query = target.partition(b"?")
        if len(path) < len(self._internal):
            # The relative links of a page need the slash at the end.
            return b"/without-slash"
        return b"/" + path[len(self._internal) :] + separator + query

    def creates_admin(self, path: bytes) -> bool:
        """Return whether this is Navidrome's call that creates the first admin of an empty server, below
        any base path.
        """
        return path.lower().rstrip(b"/").endswith(b"/auth/createadmin")

    def is_login(self, path: bytes) -> bool:
        """Return whether this is a call of Navidrome's own login, below any base path."""
        return path.lower().rstrip(b"/").endswith((b"/auth/login", b"/auth/createadmin"))

    def writes_users(self, path: bytes) -> bool:
        """Return whether this is Navidrome's user API, below any base path."""
        return b"/api/user" in path.lower()

    def get_may_mutate(self, path: bytes) -> bool:
        """Return whether a GET may change data there, as Subsonic calls do."""
        return path.lower().startswith(self._subsonic)


def _prefix_below(root: str, prefix: str) -> bytes:
    bare = prefix.strip("/").lower()
    return f"{root}{bare}/".encode() if bare else root.encode()


@dataclass(slots=True)
class RequestLine:
    """A parsed request line.

    `target` is in origin form, `path` is the target without the query. `hosts` are the values of `Host`,
    in lower case, that match an absolute-form target; None for another form. `version` is 10 or 11.
    Treated as frozen; not declared frozen, because creating one is on the hot path.
    """

    method: bytes
    target: bytes
    path: bytes
    version: int
    zone: PathZone
    hosts: tuple[bytes, ...] | None

    @property
    def path_class(self) -> PathClass:
        return _CLASS[self.zone]


def parse_request_line(line: bytes, paths: Paths) -> RequestLine:
    """Parse a request line without its line end.

    Raises `RequestRejected`: `malformed_head` if it is not three words separated by one blank each, with
    HTTP/1.0 or 1.1; `method_not_implemented` for a method that is not forwarded; `ambiguous_target` for a
    target that could be parsed in two ways (RFC 9112 §3; RFC 3986 §6.2.2).
    """
    common = COMMON_LINE.fullmatch(line)
    if common is not None:
        method, path, query, minor = common.groups()
        target = path if query is None else path + query
        return RequestLine(
            method, target, path, 11 if minor == b"1" else 10, paths.unescaped_zone(path), None
        )
    return _parse_uncommon(line, paths)


def _parse_uncommon(line: bytes, paths: Paths) -> RequestLine:
    try:
        method, target, path, version, hosts = parse_line(line)
    except RequestLineError as error:
        raise RequestRejected(_REASONS[type(error)], str(error)) from None
    return RequestLine(method, target, path, version, paths.zone(path), hosts)
