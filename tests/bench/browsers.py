"""The header blocks of the load: several browsers behind Traefik and authentik.

A block has the fields, names and sizes of a real request that Traefik forwarded after authentik had
authenticated it: 22 fields, 12 of them authentik's, a token of about 1.2 kB.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Iterable, Iterator

BROWSERS = 40
PEOPLE = 8

# The settings of a verifying proxy; every token below is really signed with it.
JWT_SECRET = "bench-only-client-secret-of-the-provider"
JWT_ISSUER = "https://auth.example.org/application/o/navidrome/"
JWT_AUDIENCE = "bench0nlyC1ientIdOfTheProvider"

Field = tuple[str, str]

_AGENTS = (
    "Mozilla/5.0 (X11; Linux x86_64; rv:144.0) Gecko/20100101 Firefox/144.0",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/26.1 Safari/605.1.15",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/142.0.0.0 Safari/537.36",
    "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/142.0.0.0 Mobile Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_7 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/26.1 Mobile/15E148 Safari/604.1",
)
_ISSUED = 1_790_000_000
_EXPIRES = 4_000_000_000


def username(browser: int) -> str:
    """The name of the user of this browser."""
    return f"listener-{browser % PEOPLE}"


def header_block(browser: int, unique: str | None = None, extra: Iterable[Field] = ()) -> str:
    """The header lines of one browser and the empty line after them.

    `unique` replaces the two values that differ from one browser session to the next: the session
    cookie and the web app's client id. Left out, the browser keeps its own.
    """
    own = unique if unique is not None else _digest("session", browser)[:24]
    lines = [f"{name}: {value}\r\n" for name, value in (*_fields(browser, own), *extra)]
    return "".join(lines) + "\r\n"


def _fields(browser: int, session: str) -> Iterator[Field]:
    person = username(browser)
    yield "Host", "music.example.org"
    yield "User-Agent", _AGENTS[browser % len(_AGENTS)]
    yield "Accept", "application/json"
    yield "Accept-Encoding", "gzip, deflate, br, zstd"
    yield "Cookie", f"authentik_proxy_4f1c2a9b={session}{_digest('cookie', browser)}; theme=dark"
    yield "Sec-Fetch-Site", "same-origin"
    yield "X-Authentik-Username", person
    yield "X-Authentik-Groups", "|".join(_groups(browser))
    yield "X-Authentik-Entitlements", ""
    yield "X-Authentik-Email", f"{person}@example.org"
    yield "X-Authentik-Name", f"Listener Number {browser % PEOPLE}"
    yield "X-Authentik-Uid", _digest("uid", browser % PEOPLE)
    yield "X-Authentik-Jwt", _token(browser)
    yield "X-Authentik-Meta-Jwks", f"{JWT_ISSUER}jwks/"
    yield "X-Authentik-Meta-Outpost", "authentik Embedded Outpost"
    yield "X-Authentik-Meta-Provider", "Navidrome forward auth"
    yield "X-Authentik-Meta-App", "navidrome"
    yield "X-Authentik-Meta-Version", "goauthentik.io/outpost/2026.8.1"
    yield "X-Forwarded-For", f"192.168.7.{browser + 10}"
    yield "X-Forwarded-Host", "music.example.org"
    yield "X-Forwarded-Proto", "https"
    yield "X-Nd-Client-Unique-Id", f"{session}-9a3b-4c7d"


def _groups(browser: int) -> tuple[str, ...]:
    return ("Navidrome users", "Family", f"House {browser % 2}")


def _token(browser: int) -> str:
    """An ID token as authentik issues it, HS256 (RFC 7515 §3.1)."""
    person = username(browser)
    claims = {
        "iss": JWT_ISSUER,
        "sub": _digest("uid", browser % PEOPLE),
        "aud": JWT_AUDIENCE,
        "exp": _EXPIRES,
        "iat": _ISSUED,
        "auth_time": _ISSUED - browser,
        "acr": "goauthentik.io/providers/oauth2/default",
        "amr": ["pwd", "mfa"],
        "sid": _digest("sid", browser),
        "jti": _digest("jti", browser)[:32],
        "email": f"{person}@example.org",
        "email_verified": True,
        "name": f"Listener Number {browser % PEOPLE}",
        "given_name": "Listener",
        "preferred_username": person,
        "nickname": person,
        "groups": list(_groups(browser)),
        "entitlements": [],
        "roles": [],
        "azp": JWT_AUDIENCE,
        "uid": _digest("token", browser)[:40],
        "ak_proxy": {"user_attributes": {}, "is_superuser": False, "host_override": ""},
    }
    signed = f"{_base64url({'alg': 'HS256', 'typ': 'JWT'})}.{_base64url(claims)}"
    signature = hmac.digest(JWT_SECRET.encode(), signed.encode(), "sha256")
    return f"{signed}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def _base64url(value: dict[str, object]) -> str:
    text = json.dumps(value, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def _digest(what: str, number: int) -> str:
    return hashlib.sha256(f"{what} {number}".encode()).hexdigest()
