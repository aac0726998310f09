"""The identity that a request claims, and the border between bytes and text.

Values arrive trimmed. What is not clean UTF-8 without controls, or over its bound, is no identity:
Go, Python and a database would each make something else of it.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from enum import IntEnum

from shim.trust.reasons import Reason
from shim.trust.refusal import Refused


class Role(IntEnum):
    """What an identity header says of its owner."""

    USERNAME = 0
    NAME = 1
    EMAIL = 2
    GROUPS = 3
    UID = 4
    JWT = 5


# Characters that a value may have at most.
MOST_OF: dict[Role, int] = {
    Role.USERNAME: 255,
    Role.UID: 255,
    Role.NAME: 1024,
    Role.EMAIL: 320,
    Role.GROUPS: 16384,
    Role.JWT: 16384,
}
MAX_GROUPS = 2048
_NEVER_EMPTY = (Role.USERNAME, Role.UID)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the identity provider says is there. None stands for a header that was absent, an empty string
    or tuple for one that was empty. `verified`: a token that was verified says all of it."""

    username: str
    name: str | None = None
    email: str | None = None
    groups: tuple[str, ...] | None = None
    uid: str | None = None
    verified: bool = False


def read_text(role: Role, value: bytes) -> str:
    """The text of one identity header. Raises `Refused` (`identity_invalid`) as the module says."""
    most = MOST_OF[role]
    label = role.name.lower()
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused(Reason.IDENTITY_INVALID, f"the {label} is no UTF-8") from None
    if not text and role in _NEVER_EMPTY:
        raise Refused(Reason.IDENTITY_INVALID, f"the {label} is empty")
    if len(text) > most:
        raise Refused(Reason.IDENTITY_INVALID, f"the {label} has more than {most} characters")
    if not text.isprintable() and any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in text):
        raise Refused(Reason.IDENTITY_INVALID, f"the {label} has a control character")
    if text != text.strip():
        # Blanks that HTTP doesn't know (U+00A0 …): a name that reads like another one.
        raise Refused(Reason.IDENTITY_INVALID, f"the {label} begins or ends with a blank")
    return text


def split_groups(text: str, separator: str) -> tuple[str, ...]:
    """Split a header's text into groups, blanks around each removed, empty ones left out. Raises `Refused`
    (`identity_invalid`) for more than `MAX_GROUPS`."""
    if text.count(separator) >= MAX_GROUPS:
        raise Refused(Reason.IDENTITY_INVALID, f"there are more than {MAX_GROUPS} groups")
    groups = (group.strip() for group in text.split(separator))
    return tuple(group for group in groups if group)
