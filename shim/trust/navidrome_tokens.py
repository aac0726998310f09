"""Find, check and filter Navidrome's own tokens in a request.

On its API, Navidrome prefers such a token to the user header, so an old token of another account would
override the identity. Tokens are found as Navidrome parses them. Only Navidrome can verify a token; this
module only parses it. A token that cannot be parsed in exactly one way fails every check. Every parser is
linear in its input. At most `MAX_TOKENS` tokens of a request are checked: from a request with more, all
are removed. The same applies to text with more candidate positions than any app sends.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple, TypeAlias
from urllib.parse import unquote_to_bytes

from shim.trust.block import HeaderBlock
from shim.trust.fields import EMBY_FIELD, Field, token_cookies
from shim.trust.jwt import read_object, read_segment
from shim.trust.path_zones import RequestLine

MAX_TOKENS = 16
# Maximum length of one token in characters; a user name has a few hundred at most.
_MAX_LENGTH = 8192
_CACHED_LENGTH = 1024
# Maximum number of positions in a query or form where a parameter name may begin a token: about 0.3 µs
# each.
_MAX_CANDIDATES = 512
_MAX_EMBY_BYTES = 16384  # bytes of all these headers of a request; a token has a few hundred
_JWT = rb"(?P<jwt>(?:j|%6[aA])(?:w|%77)(?:t|%74))"
# Jellyfin's keys are compared in lower case as Go does it: "K" (U+212A) is a k, and "İ" (U+0130) is an i.
_API_KEY = (
    rb"(?i:(?:a|%[46]1)(?:p|%[57]0)(?:i|%[46]9|(?:\xc4|%c4)(?:\xb0|%b0))(?:_|%5f)?"
    rb"(?:k|%[46]b|(?:\xe2|%e2)(?:\x84|%84)(?:\xaa|%aa))(?:e|%[46]5)(?:y|%[57]9))"
)
_PERCENT, _W, _K, _CAPITAL_K = b"%wkK"
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_COOKIE = b"cookie"
_ND_AUTHORIZATION = b"x-nd-authorization"
_EMBY_AUTHORIZATION = (b"authorization", b"x-emby-authorization")


class _Keys(NamedTuple):
    """The names of parameters that may hold a token, each with the separator before it.

    `fold` maps a text so that every position where `pattern` may match reads `&j`. A search for these two
    bytes is several times as fast as a search for the pattern, for any text.
    """

    fold: bytes
    pattern: re.Pattern[bytes]

    def candidates(self, text: bytes) -> list[int] | None:
        """Return the positions where the pattern may match, or None if there are too many."""
        folded = text.translate(self.fold)
        found: list[int] = []
        at = folded.find(b"&j")
        while at >= 0:
            if len(found) == _MAX_CANDIDATES:
                return None
            found.append(at)
            at = folded.find(b"&j", at + 2)
        return found


# A key after percent-decoding, also for parsers that accept ";" as a separator.
_SUBSONIC_KEYS = _Keys(bytes.maketrans(b";%", b"&j"), re.compile(rb"[&;]%b(?:[=&;]|\Z)" % _JWT))
_ALL_KEYS = _Keys(
    bytes.maketrans(b";%aA", b"&jjj"),
    re.compile(rb"[&;](?:%b|%b)(?:[=&;]|\Z)" % (_JWT, _API_KEY)),
)


@dataclass(frozen=True, slots=True)
class NavidromeClaims:
    """The claims of a Navidrome token: `sub`, `uid`, and `iat` in seconds since the epoch."""

    username: str
    user_id: str
    issued_at: float

    def names(self, user_name: bytes, user_id: str | None) -> bool:
        """Return whether the claims name exactly this account; False if its id is None."""
        return (
            self.user_id == user_id and self.username.encode("utf-8", "surrogatepass") == user_name
        )


Accept: TypeAlias = Callable[[NavidromeClaims], bool]


@dataclass(frozen=True, slots=True)
class FilteredTokens:
    """A request without the tokens that were not accepted.

    `removed` lists the locations of the removed tokens, `accepted` the claims of the remaining ones.
    """

    line: RequestLine
    block: HeaderBlock
    removed: tuple[str, ...]
    accepted: tuple[NavidromeClaims, ...]


class _Token(NamedTuple):
    """A token in a text: the span to cut out to remove it, and the token, None if it cannot be parsed."""

    start: int
    end: int
    text: bytes | None
    location: str


def in_query(target: bytes, path: bytes, subsonic_root: bytes) -> bool:
    """Return whether the query has a parameter that Navidrome may read a token from, in any spelling.

    Also returns True if there are too many candidate positions to check. Below `subsonic_root` Navidrome
    reads `jwt` only.
    """
    # Hot path: a search for a byte given as a number is several times as fast as one for bytes.
    if (
        _PERCENT not in target
        and (_W not in target or target.find(b"jwt") < 0)
        and (
            (_K not in target and _CAPITAL_K not in target)
            or path.startswith(subsonic_root)
            or target.lower().find(b"key") < 0
        )
    ):
        return False
    keys = _keys(path.startswith(subsonic_root))
    query = b"&" + target.partition(b"?")[2]
    candidates = keys.candidates(query)
    return candidates is None or any(keys.pattern.match(query, at) for at in candidates)


def token_locations(
    request_line: RequestLine, block: HeaderBlock, *, subsonic: bool
) -> tuple[str, ...]:
    """Return where the request carries data that Navidrome may read as one of its own tokens."""
    fields, query = _find(request_line, block, subsonic)
    return _names((*(token for tokens in fields for token in tokens), *query))


def filter_tokens(
    request_line: RequestLine, block: HeaderBlock, accept: Accept, *, subsonic: bool
) -> FilteredTokens:
    """Remove every token that cannot be parsed or that `accept` rejects, and change nothing else."""
    in_fields, in_target = _find(request_line, block, subsonic)
    check = _Check(accept, sum(map(len, in_fields)) + len(in_target))
    remaining: list[Field] = []
    dropped: list[Field] = []
    old = block.metadata.tokens
    for field, tokens in zip(old, in_fields, strict=True):
        removed = check.rejected(tokens)
        remainder = _without_tokens(field, removed) if removed else field
        if remainder is not None:
            remaining.append(remainder)
        if remainder is not field and field.name != _COOKIE:
            dropped.append(field)
    removed = check.rejected(in_target)
    if removed:
        path, _, query = request_line.target.partition(b"?")
        query = _remove_tokens(query, removed)
        # Without a query the target is the same object as the path, which marks a request line without a
        # query.
        request_line = replace(
            request_line, target=path + b"?" + query if query else request_line.path
        )
    if check.removed:
        passing = block.forward[sum(len(field.wire) for field in old) :]
        forward = b"".join(field.wire for field in remaining) + passing
        envelope = replace(block.metadata, tokens=tuple(remaining))
        block = replace(
            block, metadata=envelope, forward=forward, hop_by_hop=(*block.hop_by_hop, *dropped)
        )
    return FilteredTokens(request_line, block, _names(check.removed), tuple(check.accepted))


def filter_form(body: bytes, accept: Accept) -> tuple[bytes, bool, tuple[NavidromeClaims, ...]]:
    """Filter the body of an `application/x-www-form-urlencoded` request below `/rest/` in the same way.

    Returns the body, whether a token was removed, and the claims of the remaining tokens.
    """
    tokens = _in_parameters(body, "form ", _SUBSONIC_KEYS)
    check = _Check(accept, len(tokens))
    removed = check.rejected(tokens)
    return _remove_tokens(body, removed), bool(removed), tuple(check.accepted)


class _Check:
    """Check the tokens of a request, `count` in all, and collect the results."""

    __slots__ = ("_accept", "_too_many", "accepted", "removed")

    def __init__(self, accept: Accept, count: int) -> None:
        self._accept = accept
        self._too_many = count > MAX_TOKENS
        self.accepted: list[NavidromeClaims] = []
        self.removed: list[_Token] = []

    def rejected(self, tokens: Sequence[_Token]) -> list[_Token]:
        """Return the tokens to remove."""
        rejected = []
        for token in tokens:
            claims = None if self._too_many or token.text is None else read_claims(token.text)
            if claims is not None and self._accept(claims):
                self.accepted.append(claims)
            else:
                rejected.append(token)
        self.removed += rejected
        return rejected


def read_claims(text: bytes) -> NavidromeClaims | None:
    """Return the claims of a token, or None if its encoding is not canonical or a claim is missing."""
    if len(text) <= _CACHED_LENGTH:
        return _read_cached(text)
    return _read_claims(text) if len(text) <= _MAX_LENGTH else None


def _read_claims(text: bytes) -> NavidromeClaims | None:
    if not text.isascii():
        return None
    parts = [read_segment(segment) for segment in text.decode("ascii").split(".", 3)]
    if len(parts) != 3 or parts[1] is None or None in parts:
        return None
    claims = read_object(parts[1]) or {}
    username, user_id, issued_at = claims.get("sub"), claims.get("uid"), claims.get("iat")
    if not isinstance(username, str) or not isinstance(user_id, str) or not username or not user_id:
        return None
    if isinstance(issued_at, bool) or not isinstance(issued_at, int | float):
        return None
    try:
        seconds = float(issued_at)
    except OverflowError:
        return None
    return NavidromeClaims(username, user_id, seconds) if math.isfinite(seconds) else None


# An app sends the same token with each request. The cache takes at most about 1 MB.
_read_cached = lru_cache(maxsize=512)(_read_claims)


def _keys(subsonic: bool) -> _Keys:
    return _SUBSONIC_KEYS if subsonic else _ALL_KEYS


def _names(tokens: Iterable[_Token]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(token.location for token in tokens))


def _find(
    request_line: RequestLine, block: HeaderBlock, subsonic: bool
) -> tuple[list[Sequence[_Token]], Sequence[_Token]]:
    """Find the tokens of each field that may carry one, and those of the query."""
    found = block.metadata.tokens
    emby = sum(len(field.value) for field in found if field.name in _EMBY_AUTHORIZATION)
    if len(found) > MAX_TOKENS or emby > _MAX_EMBY_BYTES:
        fields: list[Sequence[_Token]] = [
            (_Token(0, len(field.value), None, _location(field)),) for field in found
        ]
        fields[0] = _too_many(found[0].value, _location(found[0]))
    else:
        fields = [_in_field(field) for field in found]
    query = request_line.target.partition(b"?")[2]
    return fields, _in_parameters(query, "query ", _keys(subsonic)) if query else ()


def _location(field: Field) -> str:
    return "cookie jwt" if field.name == _COOKIE else field.sent_name


def _in_field(field: Field) -> Sequence[_Token]:
    value, name = field.value, field.sent_name
    if field.name == _COOKIE:
        return _in_cookie(value)
    if field.name in _EMBY_AUTHORIZATION:
        return _in_authorization(value, name)
    text: bytes | None = value
    if field.name == _ND_AUTHORIZATION:
        # Navidrome checks the first six characters, in any case, and skips any seventh.
        text = value[7:] if len(value) > 7 and value[:6].upper() == b"BEARER" else None
    return (_Token(0, len(value), text, name),)


def _in_authorization(value: bytes, name: str) -> Sequence[_Token]:
    """Find every `Token="…"`, for any scheme."""
    if value.count(b'"') > 8 * MAX_TOKENS:
        return _too_many(value, name)
    tokens: list[_Token] = []
    for match in EMBY_FIELD.finditer(value):
        text = match["token"]
        # With an invalid escape, Navidrome uses the text undecoded; a token that is too long is void in
        # both cases.
        if text and len(text) <= _MAX_LENGTH and b"%" in text and not _BAD_ESCAPE.search(text):
            text = unquote_to_bytes(text)
        if text:
            tokens.append(_Token(*match.span("token"), text, name))
    return tokens


def _in_cookie(value: bytes) -> Sequence[_Token]:
    cookies = token_cookies(value)
    if cookies is None:
        return _too_many(value, "cookie jwt")
    tokens: list[_Token] = []
    for start, end in cookies:
        text = value[start:end].partition(b"=")[2].rstrip(b" \t")
        if len(text) > 1 and text[:1] == text[-1:] == b'"':
            text = text[1:-1]
        tokens.append(_Token(*_with_separator(value, start, end), text, "cookie jwt"))
        if len(tokens) > MAX_TOKENS:
            return _too_many(value, "cookie jwt")
    return tokens


def _in_parameters(text: bytes, where: str, keys: _Keys) -> Sequence[_Token]:
    """Find the tokens of a query or a form.

    If the key follows a ";", the whole part between "&" separators counts as the token.
    """
    padded = b"&" + text
    candidates = keys.candidates(padded)
    if candidates is None:
        return _too_many(text, where + "jwt")
    tokens: list[_Token] = []
    at = 0
    for candidate in candidates:
        match = keys.pattern.match(padded, candidate) if candidate >= at else None
        if match is None:
            continue
        start = padded.rfind(b"&", 0, candidate + 1)
        at = padded.find(b"&", start + 1)
        if at < 0:
            at = len(padded)
        end = at - 1
        name = where + ("apikey" if match["jwt"] is None else "jwt")
        token = _parameter_value(text[start:end])
        tokens.append(_Token(*_with_separator(text, start, end), token, name))
        if len(tokens) > MAX_TOKENS:
            return _too_many(text, name)
    return tokens


def _with_separator(text: bytes, start: int, end: int) -> tuple[int, int]:
    """Return the span to cut out to remove this part: with the separator after it, or the one before it."""
    return (start, end + 1) if end < len(text) else (max(0, start - 1), end)


def _too_many(text: bytes, location: str) -> Sequence[_Token]:
    """Return a placeholder for more tokens than are checked: the whole text as one unreadable token."""
    return (_Token(0, len(text), None, location),) * (MAX_TOKENS + 1)


def _parameter_value(part: bytes) -> bytes | None:
    # Go's ParseQuery skips a parameter with a ";" or an invalid escape.
    text = part.partition(b"=")[2]
    if b";" in part or len(text) > 3 * _MAX_LENGTH or _BAD_ESCAPE.search(text):
        return None
    return unquote_to_bytes(text.replace(b"+", b" "))


def _without_tokens(field: Field, removed: Sequence[_Token]) -> Field | None:
    """Return the field without these tokens, or None if it becomes empty."""
    value = _remove_tokens(field.value, removed).strip(b" \t")
    if not value:
        return None
    return replace(field, value=value, wire=b"%b: %b\r\n" % (field.sent_name.encode(), value))


def _remove_tokens(text: bytes, tokens: Sequence[_Token]) -> bytes:
    """Return the text without these tokens."""
    pieces: list[bytes] = []
    at = 0
    for token in tokens:
        pieces.append(text[at : token.start])
        at = token.end
    return b"".join((*pieces, text[at:]))
