"""Parse the provider's token (RFC 7519) strictly, and verify it with configured keys only.

The token's header only selects among known keys: it supplies no key (`jku`, `x5u` and `jwk` are ignored)
and no algorithm that the key does not have. The signature is verified before the signed claims are read,
so that the claims of a forged token cost nothing and are never reported. The caller passes the current
time. The validity is kept as a period and checked with every request, since an earlier verification does
not prove that the token is still valid.
"""

from __future__ import annotations

import hashlib
import json
import math
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from dataclasses import dataclass
from functools import lru_cache
from typing import NoReturn

from shim.trust.jwks import Key
from shim.trust.reasons import Reason
from shim.trust.rejection import RequestRejected

# The request head limits the length of a token. The part that is parsed before the signature is verified is
# limited here, since parsing JSON takes longer than verifying.
MAX_HEADER = 8192
_MAX_UNVERIFIED_PAYLOAD = 16384
# Maximum number of keys that a signature is checked with, for a token without `kid`.
_MAX_KEYS_TRIED = 4
# The tokens of a provider share a few headers, most of them short: only short headers are cached.
_SHORT_HEADER = 1024
_TYPES = ("jwt", "at+jwt")
# RFC 7515 §4.1.11 and RFC 7797: header parameters that must be understood, and are not supported.
_NOT_UNDERSTOOD = ("crit", "b64", "zip", "enc")
_LATEST = 2.0**53
_FETCHED = ("RS256", "ES256", "EdDSA")
ALGORITHMS = frozenset({*_FETCHED, "HS256"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimNames:
    """The names of the claims that make an identity (OpenID Connect Core §5.1); empty reads none.

    A name with dots can be a path into objects (`realm_access.roles`): see `find_claim`.
    """

    username: str = "preferred_username"
    name: str = "name"
    email: str = "email"
    groups: str = "groups"
    uid: str = "sub"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRules:
    """The rules that a token must meet.

    `keys`: the only accepted keys. `fetched`: some keys come from a key set, which may have changed
    since. `issuer` and one of `audiences`: required claims. `leeway`: clock difference to the provider in
    seconds that is accepted. `required`: an identity without a token is rejected. `algorithms`: those that
    a token may have. `claims`: the claims to read.
    """

    keys: tuple[Key, ...] = ()
    fetched: bool = False
    issuer: str
    audiences: frozenset[str]
    leeway: float = 30.0
    required: bool = False
    algorithms: frozenset[str] = ALGORITHMS
    claims: ClaimNames = ClaimNames()


@dataclass(frozen=True, slots=True)
class Validity:
    """The validity period of a token: `start` to `end` in seconds since the epoch, including the leeway."""

    start: float
    end: float

    def check(self, now: float | None) -> None:
        """Raise `RequestRejected` if `now` is outside the period or None."""
        if now is None or not now < self.end:
            raise RequestRejected(Reason.JWT_EXPIRED, "the token has expired")
        if now < self.start:
            raise RequestRejected(
                Reason.JWT_NOT_YET_VALID, "the token is not valid yet; is the clock right?"
            )


@dataclass(frozen=True, slots=True)
class Token:
    """The claims of a verified token. None means that the claim is absent. `email_refused`: the token states
    that the e-mail is not verified."""

    uid: str | None
    username: str | None
    name: str | None
    email: str | None
    groups: tuple[str, ...] | None
    validity: Validity
    email_refused: bool = False


def verify_token(text: str, rules: TokenRules, now: float | None) -> Token:
    """Verify a token and return its claims if it is valid at `now`.

    Raises `RequestRejected`: `jwt_expired` and `jwt_not_yet_valid` by the clock; `jwt_unknown_key` if a
    newer key set may have its key; `jwt_invalid` otherwise.
    """
    head, body, end = _parts(text)
    keys = _candidates(_header(head), rules)
    if not keys:
        # The key set is fetched again only for a token that is valid apart from its signature.
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
        _invalid("the signature does not match the key")
    token = _read(_payload(body), rules)
    token.validity.check(now)
    return token


def digest(text: str) -> bytes:
    """Return the digest of a token, which is its cache key."""
    return hashlib.sha256(text.encode()).digest()


def read_segment(segment: str) -> bytes | None:
    """Decode base64url without padding (RFC 7515 §2). Returns None unless the encoding is canonical."""
    try:
        data = urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    except (Base64Error, ValueError):
        return None
    # Python ignores foreign characters and non-zero trailing bits.
    return data if urlsafe_b64encode(data).rstrip(b"=") == segment.encode() else None


def read_object(data: bytes) -> dict[str, object] | None:
    """Parse a JSON object without duplicate names. Returns None for anything else."""
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
        _invalid("the token does not have a header, a payload and a signature")
    return segments


def _segment(segment: str) -> bytes:
    data = read_segment(segment)
    if data is None:
        _invalid("a part of the token is not base64url")
    return data


def _object(segment: str, part: str) -> dict[str, object]:
    found = read_object(_segment(segment))
    if found is None:
        _invalid(f"the token's {part} is not a JSON object, or has a name twice")
    return found


def _payload(segment: str) -> dict[str, object]:
    return _object(segment, "payload")


@dataclass(frozen=True, slots=True)
class _Header:
    """The parts of a token's header that select its key."""

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
        _invalid("the name of the token's key is not text")
    if kind is not None and (
        not isinstance(kind, str) or kind.lower().removeprefix("application/") not in _TYPES
    ):
        # RFC 8725 §3.11: tokens of another type (for example logout tokens) are signed with the same
        # keys.
        _invalid("the token has another type")
    algorithm = header.get("alg")
    # RFC 9864 §2.2: Ed25519 is EdDSA with the curve specified.
    return _Header("EdDSA" if algorithm == "Ed25519" else algorithm, kid)


_known_header = lru_cache(maxsize=128)(_read_header)


def _candidates(header: _Header, rules: TokenRules) -> tuple[Key, ...]:
    """Return the keys that may have made the signature.

    Returns an empty tuple if a newer key set may have the key. Raises `RequestRejected` if no key can
    match.
    """
    algorithm, kid = header.algorithm, header.kid
    if not isinstance(algorithm, str) or algorithm not in rules.algorithms:
        _invalid("the token's algorithm is not accepted")
    named = [key for key in rules.keys if kid is None or key.kid is None or key.kid == kid]
    keys = tuple(key for key in named if key.algorithm == algorithm)
    if not keys:
        if not rules.fetched or algorithm not in _FETCHED:
            _invalid("no known key has the token's algorithm")
        if kid is not None and any(key.kid == kid for key in named):
            _invalid("the token's algorithm is not that of its key")
    return keys


def _read(claims: dict[str, object], rules: TokenRules) -> Token:
    if claims.get("iss") != rules.issuer:
        _invalid("the issuer is not SHIM_JWT_ISSUER")
    audience = claims.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    if not any(isinstance(one, str) and one in rules.audiences for one in audiences):
        _invalid("none of the audiences is in SHIM_JWT_AUDIENCE")
    starts = [_time(claims, name) for name in ("nbf", "iat")]
    end = _time(claims, "exp")
    if end is None:
        _invalid("the token has no expiry (exp)")
    start = max((start for start in starts if start is not None), default=-math.inf)
    if _text(claims, "sub") is None:
        _invalid("the token has no subject (sub)")
    names = rules.claims
    return Token(
        _text(claims, names.uid),
        _text(claims, names.username),
        _text(claims, names.name),
        _text(claims, names.email),
        _texts(claims, names.groups),
        Validity(start - rules.leeway, end + rules.leeway),
        _refuses_email(claims, names),
    )


def _refuses_email(claims: dict[str, object], names: ClaimNames) -> bool:
    """Return whether the token states that the e-mail is not verified, in `email_verified` on the top level
    or beside a claim that may be the e-mail. Without the claim nothing is stated; some providers send the
    texts "true" and "false"."""
    verified_values = [claims.get("email_verified", True)]
    for name in {names.email, names.username, names.uid}:
        found = _claim_place(claims, name) if name else None
        if found is not None:
            verified_values.append(found[0].get("email_verified", True))
    return any(verified is not True and verified != "true" for verified in verified_values)


def _time(claims: dict[str, object], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _LATEST:
        _invalid(f"{name} is not a time")
    return float(value)


def find_claim(claims: dict[str, object], name: str) -> object:
    """Return the value of a claim, None if it is absent.

    A claim with exactly this name counts first. Otherwise a name with dots is a path into objects. In each
    object the longest name counts that the path may begin with there, so a name in the path may have dots
    itself (`resource_access.music.example.org.roles`). Raises `RequestRejected` if the path leads into a
    value that is no object.
    """
    found = _claim_place(claims, name)
    return None if found is None else found[0][found[1]]


def _claim_place(claims: dict[str, object], name: str) -> tuple[dict[str, object], str] | None:
    """Return the object that has a claim and its name there, None if it is absent: see `find_claim`."""
    parent, rest = claims, name
    while rest not in parent:
        end = rest.rfind(".")
        while end > 0 and rest[:end] not in parent:
            end = rest.rfind(".", 0, end)
        if end <= 0:
            return None
        value, rest = parent[rest[:end]], rest[end + 1 :]
        if value is None:
            return None
        if not isinstance(value, dict):
            found = name[: len(name) - len(rest) - 1]
            _invalid(f"{found} is no object, so there is no {name} in it")
        parent = value
    return parent, rest


def _text(claims: dict[str, object], name: str) -> str | None:
    value = find_claim(claims, name) if name else None
    if not (value is None or isinstance(value, str)):
        _invalid(f"{name} is not text")
    return value


def _texts(claims: dict[str, object], name: str) -> tuple[str, ...] | None:
    value = find_claim(claims, name) if name else None
    if value is None:
        return None
    if not isinstance(value, list):
        _invalid(f"{name} is not a list of texts")
    texts = tuple(one for one in value if isinstance(one, str))
    if len(texts) != len(value):
        _invalid(f"{name} is not a list of texts")
    return texts


def _reject_duplicate_names(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _no_constant(_: str) -> NoReturn:
    raise ValueError("the number is not valid JSON")


def _invalid(detail: str) -> NoReturn:
    raise RequestRejected(Reason.JWT_INVALID, detail)
