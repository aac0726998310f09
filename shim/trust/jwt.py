"""The provider's token (RFC 7519): read strictly, verified with configured keys alone.

The token's header only picks among keys that are known; it brings none (`jku`, `x5u`, `jwk` are not read)
and names no algorithm that the key doesn't have. The signature is looked at before anything that it signs
is read, so that what a forged token says costs nothing and is never told. Time is handed in, and kept as a
span that every request is held against: that a token was verified once says nothing of now.
"""

from __future__ import annotations

import hashlib
import json
import math
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NoReturn

from shim.trust.reasons import Reason
from shim.trust.rejection import RequestRejected

if TYPE_CHECKING:
    from shim.trust.jwks import Key  # which loads what only tokens need

# A token is as long as a head may be. What is read of it before its signature is verified is bounded, since
# reading JSON takes longer than verifying.
MAX_HEADER = 8192
_MAX_UNVERIFIED_PAYLOAD = 16384
# Keys that a token without a key's name is tried with.
_MAX_KEYS_TRIED = 4
# A provider's tokens share a few headers, and mostly short ones: only those are remembered.
_SHORT_HEADER = 1024
_TYPES = ("jwt", "at+jwt")
# RFC 7515 §4.1.11 and RFC 7797: what has to be understood, and is not.
_NOT_UNDERSTOOD = ("crit", "b64", "zip", "enc")
_LATEST = 2.0**53
_FETCHED = ("RS256", "ES256", "EdDSA")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRules:
    """Which tokens hold.

    `keys`: the only ones there are. `fetched`: some of them come from a key set, which may have others by
    now. `issuer` and one of `audiences` is what a token must name. `leeway`: seconds that the provider's
    clock may be off. `required`: no identity without a token.
    """

    keys: tuple[Key, ...] = ()
    fetched: bool = False
    issuer: str
    audiences: frozenset[str]
    leeway: float = 30.0
    required: bool = False


@dataclass(frozen=True, slots=True)
class Validity:
    """When a token holds: from `start` to `end`, in seconds since the epoch, the leeway included."""

    start: float
    end: float

    def check(self, now: float | None) -> None:
        """Raises `Rejected` where `now` is outside, or not known."""
        if now is None or not now < self.end:
            raise RequestRejected(Reason.JWT_EXPIRED, "the token has expired")
        if now < self.start:
            raise RequestRejected(
                Reason.JWT_NOT_YET_VALID, "the token is not valid yet; is the clock right?"
            )


@dataclass(frozen=True, slots=True)
class Token:
    """What a verified token says of its owner. None stands for a claim that is absent."""

    subject: str
    username: str | None
    name: str | None
    email: str | None
    groups: tuple[str, ...] | None
    validity: Validity


def verify_token(text: str, rules: TokenRules, now: float | None) -> Token:
    """What the token says, if it holds at `now`.

    Raises `Rejected`: `jwt_expired` and `jwt_not_yet_valid` by the clock; `jwt_unknown_key` where a key set
    may have its key by now; `jwt_invalid` for everything else.
    """
    head, body, end = _parts(text)
    keys = _candidates(_header(head), rules)
    if not keys:
        # Only for a token that would hold the key set is asked again.
        if len(body) <= _MAX_UNVERIFIED_PAYLOAD:
            _read(_payload(body), rules).validity.check(now)
        raise RequestRejected(Reason.JWT_UNKNOWN_KEY, "the token's key is not in the key set")
    signature = _segment(end)
    signed = text[: -len(end) - 1].encode()
    if not any(key.verify(signed, signature) for key in keys[:_MAX_KEYS_TRIED]):
        if len(keys) > _MAX_KEYS_TRIED:
            _invalid(
                f"{len(keys)} keys may have signed it, and none of the first {_MAX_KEYS_TRIED} did"
            )
        _invalid("the signature is not that of the key")
    token = _read(_payload(body), rules)
    token.validity.check(now)
    return token


def digest(text: str) -> bytes:
    """What a verified token is remembered by."""
    return hashlib.sha256(text.encode()).digest()


def read_segment(segment: str) -> bytes | None:
    """The bytes of base64url without padding (RFC 7515 §2), None where it is not spelt in the one way."""
    try:
        data = urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    except (Base64Error, ValueError):
        return None
    # Python passes over what is foreign, and over bits that are left at the end.
    return data if urlsafe_b64encode(data).rstrip(b"=") == segment.encode() else None


def read_object(data: bytes) -> dict[str, object] | None:
    """A JSON object in which every name stands once, or None."""
    try:
        found = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_reject_duplicate_names,
            parse_constant=_no_constant,
        )
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _parts(text: str) -> list[str]:
    segments = text.split(".", 3)
    if (
        len(segments) != 3
        or len(segments[0]) > MAX_HEADER
        or not all(segments)
        or not text.isascii()
    ):
        _invalid("the token is not: header, payload, signature")
    return segments


def _segment(segment: str) -> bytes:
    data = read_segment(segment)
    if data is None:
        _invalid("a part of the token is no base64url")
    return data


def _object(segment: str, part: str) -> dict[str, object]:
    found = read_object(_segment(segment))
    if found is None:
        _invalid(f"the token's {part} is no JSON object, or has a name twice")
    return found


def _payload(segment: str) -> dict[str, object]:
    return _object(segment, "payload")


@dataclass(frozen=True, slots=True)
class _Header:
    """What a token's header says of its key."""

    algorithm: object
    kid: str | None


def _header(segment: str) -> _Header:
    return _known_header(segment) if len(segment) <= _SHORT_HEADER else _read_header(segment)


def _read_header(segment: str) -> _Header:
    header = _object(segment, "header")
    kid, kind = header.get("kid"), header.get("typ")
    if any(name in header for name in _NOT_UNDERSTOOD):
        _invalid("the token's header asks for an extension")
    if not (kid is None or isinstance(kid, str)):
        _invalid("the name of the token's key is no text")
    if kind is not None and (
        not isinstance(kind, str) or kind.lower().removeprefix("application/") not in _TYPES
    ):
        # RFC 8725 §3.11: a token of another kind (for a logout) is signed with the same keys.
        _invalid("the token is of another kind")
    algorithm = header.get("alg")
    # RFC 9864 §2.2: the same with the curve said.
    return _Header("EdDSA" if algorithm == "Ed25519" else algorithm, kid)


_known_header = lru_cache(maxsize=128)(_read_header)


def _candidates(header: _Header, rules: TokenRules) -> tuple[Key, ...]:
    """The keys that the signature may be of; none where a key set may have them by now."""
    algorithm, kid = header.algorithm, header.kid
    named = [key for key in rules.keys if kid is None or key.kid is None or key.kid == kid]
    keys = tuple(key for key in named if key.algorithm == algorithm)
    if not keys:
        if not rules.fetched or algorithm not in _FETCHED:
            _invalid("no key that is known has the token's algorithm")
        if kid is not None and any(key.kid == kid for key in named):
            _invalid("the token's algorithm is not that of its key")
    return keys


def _read(claims: dict[str, object], rules: TokenRules) -> Token:
    if claims.get("iss") != rules.issuer:
        _invalid("the issuer is not the one that is expected")
    audience = claims.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    if not any(isinstance(one, str) and one in rules.audiences for one in audiences):
        _invalid("none of the audiences is one that is expected")
    starts = [_time(claims, name) for name in ("nbf", "iat")]
    end = _time(claims, "exp")
    if end is None:
        _invalid("the token has no end (exp)")
    start = max((start for start in starts if start is not None), default=-math.inf)
    subject = _text(claims, "sub")
    if subject is None:
        _invalid("the token has no subject (sub)")
    return Token(
        subject,
        _text(claims, "preferred_username"),
        _text(claims, "name"),
        _text(claims, "email"),
        _texts(claims, "groups"),
        Validity(start - rules.leeway, end + rules.leeway),
    )


def _time(claims: dict[str, object], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _LATEST:
        _invalid(f"{name} is no time")
    return float(value)


def _text(claims: dict[str, object], name: str) -> str | None:
    value = claims.get(name)
    if not (value is None or isinstance(value, str)):
        _invalid(f"{name} is no text")
    return value


def _texts(claims: dict[str, object], name: str) -> tuple[str, ...] | None:
    value = claims.get(name)
    if value is None:
        return None
    if not isinstance(value, list):
        _invalid(f"{name} is no list of texts")
    texts = tuple(one for one in value if isinstance(one, str))
    if len(texts) != len(value):
        _invalid(f"{name} is no list of texts")
    return texts


def _reject_duplicate_names(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _no_constant(_: str) -> NoReturn:
    raise ValueError("JSON has no such number")


def _invalid(detail: str) -> NoReturn:
    raise RequestRejected(Reason.JWT_INVALID, detail)
