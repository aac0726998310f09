"""Define the identity that a request claims, and decode header bytes to text.

Values are already trimmed. A value that is not valid UTF-8, has control characters or exceeds its limit
is rejected: Go, Python and a database would each read it differently.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode
from binascii import a2b_qp
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from urllib.parse import unquote_to_bytes

from shim.trust.names import ASCII_LOWER
from shim.trust.reasons import Reason
from shim.trust.rejection import RequestRejected


class Role(IntEnum):
    """The meaning of an identity header."""

    USERNAME = 0
    NAME = 1
    EMAIL = 2
    GROUPS = 3
    UID = 4
    JWT = 5


# Maximum length of a value in characters. The request head limits groups and tokens.
MAX_LENGTH: dict[Role, int] = {
    Role.USERNAME: 255,
    Role.UID: 255,
    Role.NAME: 1024,
    Role.EMAIL: 320,
}
# An empty value of these roles counts as absent.
NEVER_EMPTY = frozenset({Role.USERNAME, Role.UID, Role.JWT})
# These describe a person and do not affect the decision: an unusable value is dropped.
DESCRIPTIVE = frozenset({Role.NAME, Role.EMAIL})
_ONLY_NAME = frozenset({Role.NAME})
_NEVER_EMPTY_OR_EMAIL = NEVER_EMPTY | {Role.EMAIL}

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# These characters change the order in which a name is displayed, so that it looks like another one (Unicode
# TR 36 §2.5).
_BIDIRECTIONAL = re.compile("[\u202a-\u202e\u2066-\u2069]")
# Maximum size of an encoded display name in bytes: four bytes per character, each of them escaped.
_MAX_ENCODED_NAME = 12 * 1024
# RFC 2047 §2; a language may follow the character set (RFC 2231 §5).
_WORD = rb"=\?[A-Za-z0-9_.:-]+(?:\*[A-Za-z0-9-]*)?\?[BbQq]\?[!->@-~]*\?="
_ENCODED_WORDS = re.compile(_WORD + rb"(?:[ \t]+" + _WORD + rb")*")
_QUOTED_GROUP = re.compile(r'[ \t]*"([^"]*)"[ \t]*')
_DOMAIN = re.compile(
    r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*"
)
_CHARSETS = frozenset({"utf-8", "us-ascii", "iso-8859-1", "iso-8859-15", "windows-1252"})
MAX_GROUPS = 2048
SHOWN_GROUPS = 100


@dataclass(frozen=True, slots=True)
class Identity:
    """The identity as the provider asserts it.

    None means that the header was absent, an empty string or tuple that it was empty. `uid_source` is where
    the uid comes from, in words: equal uids of two sources are two people.
    """

    username: str
    name: str | None = None
    email: str | None = None
    groups: tuple[str, ...] | None = None
    uid: str | None = None
    uid_source: str = ""

    def as_json(self) -> bytes:
        """Return what the control plane shows of it besides user name and uid, in ASCII: a JSON object with
        the first `SHOWN_GROUPS` groups."""
        groups = self.groups and self.groups[:SHOWN_GROUPS]
        fields = {
            "name": self.name,
            "email": self.email,
            "groups": groups,
            "uid_source": self.uid_source,
        }
        return json.dumps(fields).encode()


class UidSource(StrEnum):
    """The part of an identity that is its uid. `HEADER`: the uid header, or the token's uid claim; `CLAIM`:
    only the latter."""

    HEADER = "header"
    CLAIM = "claim"
    USERNAME = "username"
    EMAIL = "email"


class UsernameFromEmail(StrEnum):
    """The part of the e-mail address that is the user name."""

    OFF = "off"
    FULL = "full"
    LOCAL_PART = "local-part"


class GroupsFormat(StrEnum):
    """The form of the groups in their header: `a|b`, `"a"|"b"`, or `["a", "b"]`."""

    PLAIN = "plain"
    QUOTED = "quoted"
    JSON = "json"


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityRules:
    """The rules that make an identity of a provider's values, for headers and claims alike.

    `uid_source_name`: the source of the uid for the binding, in words. `email_domains`: lower-case domains
    that an e-mail must have if it decides; empty allows any.
    """

    uid_source: UidSource = UidSource.HEADER
    uid_source_name: str = ""
    username_from_email: UsernameFromEmail = UsernameFromEmail.OFF
    email_domains: frozenset[str] = frozenset()
    groups_format: GroupsFormat = GroupsFormat.PLAIN
    groups_separator: str = "|"

    # Derived, because reading members of an enumeration on each request is slow: whether the e-mail address
    # is the user name or the uid; the roles that do not decide; those whose empty value counts as absent; and
    # the one that the user name comes from.
    email_decides: bool = field(init=False)
    descriptive: frozenset[Role] = field(init=False)
    never_empty: frozenset[Role] = field(init=False)
    username_role: Role = field(init=False)

    def __post_init__(self) -> None:
        from_email = self.username_from_email is not UsernameFromEmail.OFF
        decides = from_email or self.uid_source is UidSource.EMAIL
        derived = {
            "email_decides": decides,
            "descriptive": _ONLY_NAME if decides else DESCRIPTIVE,
            "never_empty": _NEVER_EMPTY_OR_EMAIL if decides else NEVER_EMPTY,
            "username_role": Role.EMAIL if from_email else Role.USERNAME,
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def username(self, values: Mapping[Role, str]) -> str | None:
        """Return the user name in these values, None if it is absent. A deciding e-mail is valid already."""
        name = values.get(self.username_role)
        if name is None or self.username_from_email is not UsernameFromEmail.LOCAL_PART:
            return name
        return name.rpartition("@")[0]

    def uid(self, values: Mapping[Role, str]) -> str | None:
        """Return the uid in these values, None if it is absent."""
        if self.uid_source is UidSource.USERNAME:
            return self.username(values)
        return values.get(Role.EMAIL if self.uid_source is UidSource.EMAIL else Role.UID)

    def identity(self, values: Mapping[Role, str], groups: tuple[str, ...] | None) -> Identity:
        """Return the identity of these values, which have a user name. Raises `RequestRejected`
        (`email_not_allowed`)."""
        username = self.username(values)
        assert username is not None
        email = values.get(Role.EMAIL)
        if self.email_decides:
            self._check_domain(email or "")
        return Identity(
            username,
            values.get(Role.NAME),
            email,
            groups,
            self.uid(values),
            self.uid_source_name,
        )

    def split_groups(self, text: str) -> tuple[str, ...]:
        """Split the text of the groups header. Raises `RequestRejected` (`identity_invalid`)."""
        if self.groups_format is GroupsFormat.PLAIN:
            return split_groups(text, self.groups_separator)
        if self.groups_format is GroupsFormat.QUOTED:
            return _split_quoted(text, self.groups_separator)
        return _json_groups(text)

    def _check_domain(self, email: str) -> None:
        domain = email.rpartition("@")[2].translate(ASCII_LOWER)
        if self.email_domains and domain not in self.email_domains:
            raise RequestRejected(
                Reason.EMAIL_NOT_ALLOWED, "the e-mail's domain is not in SHIM_EMAIL_DOMAINS"
            )


def parse_value(role: Role, value: bytes, *, decides: bool = False) -> str:
    """Parse the value of one identity header. `decides`: an e-mail is the user name or the uid, so it follows
    the rules of the user name. Raises `RequestRejected` (`identity_invalid`)."""
    label = role.name.lower()
    as_username = role is Role.USERNAME or (role is Role.EMAIL and decides)
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        raise RequestRejected(Reason.IDENTITY_INVALID, f"the {label} is not UTF-8") from None
    max_length = MAX_LENGTH.get(Role.USERNAME if as_username else role)
    if max_length is not None and len(text) > max_length:
        raise RequestRejected(
            Reason.IDENTITY_INVALID, f"the {label} has more than {max_length} characters"
        )
    if not text.isprintable() and _CONTROL.search(text):
        raise RequestRejected(Reason.IDENTITY_INVALID, f"the {label} has a control character")
    if as_username and not text.isascii() and _BIDIRECTIONAL.search(text):
        raise RequestRejected(Reason.IDENTITY_INVALID, f"the {label} has a bidirectional control")
    if text != text.strip():
        # Blanks that HTTP does not trim (U+00A0 …) make a name look like another one.
        raise RequestRejected(Reason.IDENTITY_INVALID, f"the {label} begins or ends with a blank")
    if decides and role is Role.EMAIL and text and not _is_email(text):
        raise RequestRejected(
            Reason.IDENTITY_INVALID,
            "the e-mail is the user name or the uid, and does not have a name, @ and a domain in ASCII",
        )
    return text


def is_email_domain(text: str) -> bool:
    """Return whether the text can be the domain of an e-mail address: letters, digits, hyphens and dots.

    A domain beyond ASCII is none: two programs may fold its case differently (İ, the Kelvin sign).
    """
    return len(text) <= 253 and _DOMAIN.fullmatch(text) is not None


def _is_email(text: str) -> bool:
    local, at, domain = text.partition("@")
    return bool(local and at) and local == local.strip() and is_email_domain(domain)


def decode_name(value: bytes, *, percent: bool) -> bytes:
    """Decode a display name once: percent-escapes, or the encoded words of RFC 2047.

    Returns UTF-8, which the caller must check like any other value. Raises `RequestRejected`
    (`identity_invalid`) if the name cannot be decoded.
    """
    if len(value) > _MAX_ENCODED_NAME:
        raise RequestRejected(
            Reason.IDENTITY_INVALID, f"the name has more than {_MAX_ENCODED_NAME} bytes"
        )
    if percent:
        return unquote_to_bytes(value)
    try:
        return _ENCODED_WORDS.sub(lambda match: _decode_words(match[0]), value)
    except ValueError:
        raise RequestRejected(
            Reason.IDENTITY_INVALID, "the name has an invalid encoded word"
        ) from None


def _decode_words(words: bytes) -> bytes:
    # RFC 2047 §6.2: blanks between two encoded words are not part of the text.
    return "".join(map(_decode_word, words.split())).encode()


def _decode_word(word: bytes) -> str:
    _, charset, encoding, text, _ = word.split(b"?")
    name = charset.partition(b"*")[0].decode("ascii").lower()
    if name not in _CHARSETS:
        raise ValueError(name)
    data = b64decode(text, validate=True) if encoding in b"Bb" else a2b_qp(text, header=True)
    return data.decode(name)


def _split_quoted(text: str, separator: str) -> tuple[str, ...]:
    if text.count('"') > 2 * MAX_GROUPS:
        raise RequestRejected(Reason.IDENTITY_INVALID, f"there are more than {MAX_GROUPS} groups")
    groups, at = [], 0
    while text:
        match = _QUOTED_GROUP.match(text, at)
        if match is None:
            break
        groups.append(match[1].strip())
        at = match.end()
        if at == len(text):
            return tuple(group for group in groups if group)
        if not text.startswith(separator, at):
            break
        at += len(separator)
    if text:
        raise RequestRejected(
            Reason.IDENTITY_INVALID,
            "the groups are not quoted, with the separator between them",
        )
    return ()


def _json_groups(text: str) -> tuple[str, ...]:
    if not text:
        return ()
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise RequestRejected(Reason.IDENTITY_INVALID, "the groups are not a JSON list of texts")
    if len(found) > MAX_GROUPS:
        raise RequestRejected(Reason.IDENTITY_INVALID, f"there are more than {MAX_GROUPS} groups")
    return tuple(group for each in found if (group := each.strip()))


def split_groups(text: str, separator: str) -> tuple[str, ...]:
    """Split a header's text into groups, without surrounding blanks and empty groups.

    Raises `RequestRejected` (`identity_invalid`) for more than `MAX_GROUPS`.
    """
    if text.count(separator) >= MAX_GROUPS:
        raise RequestRejected(Reason.IDENTITY_INVALID, f"there are more than {MAX_GROUPS} groups")
    groups = (group.strip() for group in text.split(separator))
    return tuple(group for group in groups if group)
