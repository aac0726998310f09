"""The request line: method, target, version, and the class of the path.

A target that two parsers could read in two ways is refused, never normalised: whatever the edge matched
its routes against has to be what Navidrome serves. The path decided on is the one on the request line
and nothing else (GHSA-7x63-xv5r-3p2x: one that came in a header).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from urllib.parse import unquote_to_bytes

from shim.trust.reasons import PathClass, Reason
from shim.trust.refusal import Refused

METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"})

_VERSIONS = {b"HTTP/1.1": 11, b"HTTP/1.0": 10}
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 §5.6.2
_VISIBLE = bytes(range(0x21, 0x7F)).replace(b"#", b"")
# Characters of a path that nobody reads in two ways; "." and "/" are looked at apart.
_PLAIN = bytes(set(_VISIBLE) - set(b"%;\\?"))
_ESCAPE = re.compile(rb"%(?:([0-9A-Fa-f]{2})|)")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_DELIMITERS = frozenset(b"/\\;%?#\x7f") | frozenset(range(0x20))
# What most request lines are: a path that nobody reads in two ways, as one expression. Whatever it takes,
# the steps below take too, and make the same of it. No possessive quantifiers: Python before 3.11.5 gets
# those of groups wrong.
_USUAL = re.compile(
    rb"(GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS) "
    rb"(/|(?:/[!$&'()*+,\-0-9:=@A-Z_a-z~][!$&'()*+,\-.0-9:=@A-Z_a-z~]*)+/?)(\?[!-\"$-~]*)? HTTP/1\.([01])"
)
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?#@\\]+)(/[^#]*)?")


class Place(IntEnum):
    """Where a path leads, as far as an identity is concerned."""

    PROTECTED = 0
    PUBLIC = 1  # an identity counts only with the proof that `public_path_proof` names
    SHARE = 2  # never carries one
    OUTSIDE = 3  # outside the base path: never carries one
    OWN = 4


_CLASS = {
    Place.PROTECTED: PathClass.PROTECTED,
    Place.PUBLIC: PathClass.PUBLIC,
    Place.SHARE: PathClass.PUBLIC,
    Place.OUTSIDE: PathClass.PUBLIC,
    Place.OWN: PathClass.OWN,
}


_PROTECTED = Place.PROTECTED
_PUBLIC = Place.PUBLIC


class Paths:
    """The path classes below a base path.

    `base` begins and ends with a slash. `public` are prefixes below it, as the settings name them
    (`/rest/`). They are compared without case and hold with and without their last slash; more public is
    more closed. The base path itself is compared with case, as Navidrome mounts it. `subsonic` begins the
    paths of its Subsonic API, as it is mounted.
    """

    __slots__ = (
        "_base_bare",
        "_own",
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
        self._public = tuple(_below(lowered, prefix) for prefix in public)
        self._share = _below(lowered, "share")
        self._own = _below(lowered, "_shim")
        self._subsonic = _below(lowered, "rest")
        self.subsonic = self.base + b"rest/"
        # What begins with none of these, once it ends in a slash, is protected.
        self._special = (*self._public, self._share, self._own)

    def place(self, path: bytes) -> Place:
        """Where this path leads. `path` is the raw path of the target, without its query."""
        if not path.startswith(self.base) and path != self._base_bare:
            return Place.OUTSIDE
        lowered = path.lower()
        if not lowered.startswith(self._special):
            lowered += b"/"
            if lowered not in self._special:
                return _PROTECTED
        if lowered.startswith(self._share):
            return Place.SHARE
        # Where a prefix of the settings covers the shim's own pages, the edge authenticates them no more.
        return _PUBLIC if lowered.startswith(self._public) else Place.OWN

    def own_target(self, target: bytes) -> bytes:
        """The target below the shim's own prefix, as its control plane knows it."""
        path, mark, query = target.partition(b"?")
        return b"/" + path[len(self._own) :] + mark + query

    def creates_admin(self, path: bytes) -> bool:
        """Whether this is Navidrome's call that makes the first admin of an empty server, below whichever
        base path it has."""
        return path.lower().rstrip(b"/").endswith(b"/auth/createadmin")

    def logs_in(self, path: bytes) -> bool:
        """Whether this is a call of Navidrome's own login, below whichever base path it has."""
        return path.lower().rstrip(b"/").endswith((b"/auth/login", b"/auth/createadmin"))

    def writes_users(self, path: bytes) -> bool:
        """Return whether this is Navidrome's user API, below whichever base path it has."""
        return b"/api/user" in path.lower()

    def acts_by_get(self, path: bytes) -> bool:
        """Whether a GET may change something there: Subsonic's calls do."""
        return path.lower().startswith(self._subsonic)


def _below(root: str, prefix: str) -> bytes:
    bare = prefix.strip("/").lower()
    return f"{root}{bare}/".encode() if bare else root.encode()


@dataclass(slots=True)
class RequestLine:
    """What a request line says.

    `target` is in origin form, `path` is it without the query, `authority` is what an absolute form
    named. `version` is 10 or 11. Treated as frozen; not declared so, because making one is on the hot
    path.
    """

    method: bytes
    target: bytes
    path: bytes
    version: int
    place: Place
    authority: bytes | None

    @property
    def path_class(self) -> PathClass:
        return _CLASS[self.place]


def parse_request_line(line: bytes, paths: Paths) -> RequestLine:
    """Read a request line, without its line end.

    Raises `Refused`: `malformed_head` where it is not three words with one blank between them and
    HTTP/1.0 or 1.1, `method_not_implemented` for a method that is not passed on, `ambiguous_target` for
    a target that could be read in two ways (RFC 9112 §3; RFC 3986 §6.2.2).
    """
    usual = _USUAL.fullmatch(line)
    if usual is not None:
        method, path, query, minor = usual.groups()
        target = path if query is None else path + query
        return RequestLine(
            method, target, path, 11 if minor == b"1" else 10, paths.place(path), None
        )
    return _parse_unusual(line, paths)


def _parse_unusual(line: bytes, paths: Paths) -> RequestLine:
    words = line.split(b" ")
    if len(words) != 3:
        raise Refused(Reason.MALFORMED_HEAD, "the request line is not: method, target, version")
    method, target, protocol = words
    version = _VERSIONS.get(protocol)
    if version is None:
        raise Refused(Reason.MALFORMED_HEAD, "the version is neither HTTP/1.1 nor HTTP/1.0")
    if method not in METHODS:
        if _TOKEN.fullmatch(method):
            raise Refused(Reason.METHOD_NOT_IMPLEMENTED, "the method is not passed on")
        raise Refused(Reason.MALFORMED_HEAD, "the method is no token")
    if target.translate(None, _VISIBLE):
        raise Refused(
            Reason.AMBIGUOUS_TARGET, "the target has a byte that is no visible ASCII, or a #"
        )
    authority = None
    if target[:1] != b"/":
        target, authority = _absolute(target)
    path = target.partition(b"?")[0]
    if path.translate(None, _PLAIN) or b"//" in path or b"/." in path:
        _examine(path)
    return RequestLine(method, target, path, version, paths.place(path), authority)


def _absolute(target: bytes) -> tuple[bytes, bytes]:
    # RFC 9112 §3.2.2: a server accepts the absolute form. What it names has to agree with Host.
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        raise Refused(Reason.AMBIGUOUS_TARGET, "the target is neither a path nor an http address")
    return match[2] or b"/", match[1].lower()


def _examine(path: bytes) -> None:
    if b"//" in path:
        raise Refused(Reason.AMBIGUOUS_TARGET, "the path has an empty segment (//)")
    if any(segment in (b".", b"..") for segment in path.split(b"/")):
        raise Refused(Reason.AMBIGUOUS_TARGET, "the path has a dot segment")
    if b";" in path or b"\\" in path:
        raise Refused(Reason.AMBIGUOUS_TARGET, "the path has a semicolon or a backslash")
    for match in _ESCAPE.finditer(path):
        if match[1] is None:
            raise Refused(Reason.AMBIGUOUS_TARGET, "the path has a % that is no escape")
        byte = int(match[1], 16)
        if byte in _UNRESERVED or byte in _DELIMITERS:
            # RFC 3986 §6.2.2.2: one parser decodes it before it matches, the other does not.
            raise Refused(Reason.AMBIGUOUS_TARGET, f"the path escapes the byte {byte:#04x}")
    try:
        unquote_to_bytes(path).decode()
    except UnicodeDecodeError:
        raise Refused(Reason.AMBIGUOUS_TARGET, "the path is no UTF-8") from None
