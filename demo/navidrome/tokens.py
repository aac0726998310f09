"""Navidrome's session tokens: their locations, claims and lifetime.

A token names an account by its *user name* and is checked against nothing else, so it outlives a
rename and a deletion and is valid for the next account of that name (`UsernameFromToken`).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

import jwt

from demo.navidrome.accounts import Account
from demo.navidrome.request import Request

AUTHORIZATION = "X-ND-Authorization"
ISSUER = "ND"


@dataclass(frozen=True, slots=True)
class Claims:
    """A token's claims. `user_id` and `is_admin` are included, and never checked."""

    subject: str
    issued_at: int
    user_id: str
    is_admin: bool


@dataclass(frozen=True, slots=True)
class Tokens:
    """Issues and verifies tokens with its own key.

    timeout: the lifetime of a token in seconds from its last refresh.
    clock: Unix seconds.
    """

    timeout: float
    clock: Callable[[], float]
    key: str = field(default_factory=lambda: secrets.token_hex(32), repr=False)

    def issue(self, account: Account) -> str:
        """A new token for an account."""
        now = int(self.clock())
        return self.refresh(Claims(account.user_name, now, account.id, account.is_admin))

    def refresh(self, claims: Claims) -> str:
        """The same claims with a new expiry."""
        payload: dict[str, str | int | bool] = {
            "exp": int(self.clock() + self.timeout),
            "iat": claims.issued_at,
            "iss": ISSUER,
            "sub": claims.subject,
            "uid": claims.user_id,
        }
        if claims.is_admin:
            payload["adm"] = True
        return jwt.encode(payload, self.key, algorithm="HS256")

    def read(self, token: str) -> Claims | None:
        """A token's claims, or None if it is malformed, has another key, or has expired."""
        try:
            payload = jwt.decode(
                token,
                self.key,
                algorithms=["HS256"],
                options={"verify_exp": False, "verify_iat": False},
            )
        except jwt.InvalidTokenError:
            return None
        subject, expires = payload.get("sub"), payload.get("exp")
        if not isinstance(subject, str) or not isinstance(expires, int) or expires <= self.clock():
            return None
        issued = payload.get("iat")
        return Claims(
            subject,
            issued if isinstance(issued, int) else 0,
            str(payload.get("uid", "")),
            payload.get("adm") is True,
        )


def carried_token(request: Request) -> str:
    """The token of a request: of its header, else its cookie `jwt`, else its query; "" if none.

    The header's seventh character may be anything, and its first six are `bearer` in any case. Only
    an *empty* location falls back to the next: an invalid token in one hides a valid one in
    another.
    """
    header = request.header(AUTHORIZATION)
    if len(header) > 7 and header[:6].upper() == "BEARER":
        return header[7:]
    return request.cookie("jwt") or request.query.first("jwt")
