"""Parse the text of a setting: one small parser for each kind of value.

A parser takes text and returns a frozen value, or raises ValueError with a sentence that describes a valid
value. Parsers know no setting names, read no files and see one value at a time; `shim.settings.validation`
compares values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import PlainValidator, SecretStr

from shim.http1.grammar import TOKEN_PATTERN
from shim.trust.identity import is_email_domain
from shim.trust.jwt import ALGORITHMS
from shim.trust.names import ASCII_LOWER
from shim.trust.peers import parse_entry

T = TypeVar("T")

MASK = "***"

# RFC 9110 §5.6.2
_TOKEN = re.compile(TOKEN_PATTERN.decode())
# SQLAlchemy ends the password at the first @. After a second one, the rest of the password would be the host.
_DEVICE_KEY = re.compile(r"[0-9A-Fa-f]{64}|[A-Za-z0-9+/_-]{43}=?")
_SQLITE = re.compile(r"sqlite:///[^/]|sqlite:////[^/]|sqlite://$")
_POSTGRESQL = re.compile(
    r"postgresql\+psycopg://(?=\S)([^:/@?]*(:[^@]*)?@)?"
    r"(\[[0-9A-Fa-f:.]+\]|[\w.,-]*)(:\d{1,5})?([/?][^@]*)?"
)
# A part of a distinguished name (RFC 4514 §3).
_DN_PART = re.compile(r"(cn|ou|dc|o|c|l|st|street|uid|sn|e|emailaddress)\s*=", re.IGNORECASE)
# Framing and hop-by-hop headers, and Navidrome's own: never the name of an identity header or a proof.
# `X-Forwarded-User` and similar names are allowed, because oauth2-proxy uses them.
_FORBIDDEN_HEADERS = frozenset(
    [
        "authorization",
        "connection",
        "content-length",
        "content-type",
        "cookie",
        "expect",
        "forwarded",
        "host",
        "keep-alive",
        "origin",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "range",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-method",
        "x-forwarded-port",
        "x-forwarded-prefix",
        "x-forwarded-proto",
        "x-forwarded-scheme",
        "x-forwarded-server",
        "x-forwarded-uri",
        "x-real-ip",
    ]
)


class Mode(int):
    """The mode of a file; its text is octal."""

    def __str__(self) -> str:
        return f"{int(self):04o}"


def reader(read: Callable[[str], T]) -> PlainValidator:
    """Make `read` the only validation of a field. A value that is not text was parsed before."""

    def validate(value: object) -> object:
        return read(value) if isinstance(value, str) else value

    return PlainValidator(validate)


def format_value(value: object) -> str:
    """Return a value as a user would write it, so that its parser returns it again. Secrets are masked."""
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case float():
            return f"{value:.6f}".rstrip("0").rstrip(".")
        case tuple():
            texts = [format_value(each) for each in value]
            plain = ",".join(texts)
            # A name in a JSON list may contain a comma.
            if any("," in each for each in texts) or plain.startswith("[") or _is_dn_list(texts):
                return json.dumps(texts, ensure_ascii=False)
            return plain
        case Mapping():
            return json.dumps(value, ensure_ascii=False)
        case SecretStr():
            return masked_url(value.get_secret_value())
        case _:
            return str(value)


def _is_dn_list(entries: Sequence[str]) -> bool:
    return len(entries) > 1 and any(map(_DN_PART.match, entries))


def masked_url(text: str) -> str:
    """Return a database URL without its password. Any other secret is masked completely."""
    if text.startswith("sqlite:") or text == "none":
        return text
    if not text.startswith("postgresql+psycopg://"):
        return MASK
    masked = re.sub(r"//.*@", f"//{MASK}@", text, flags=re.DOTALL)
    return masked.partition("?")[0]


def peers(text: str) -> tuple[str, ...]:
    """Parse a list of peers: IPs, CIDRs, host names and `@`, comma-separated."""
    return _entries(text, names=True)


def networks(text: str) -> tuple[str, ...]:
    """Parse a list of networks: IPs and CIDRs, comma-separated."""
    return _entries(text, names=False)


def header_name(text: str) -> str:
    """Parse a header name (RFC 9110 §5.6.2) that is neither a framing nor a hop-by-hop header."""
    if not _TOKEN.fullmatch(text):
        raise ValueError("expected a header name: letters, digits and -, without blanks or a colon")
    if not re.search(r"[A-Za-z0-9]", text):
        raise ValueError("expected a header name with a letter or a digit")
    if text.lower() in _FORBIDDEN_HEADERS or text.lower().startswith(("sec-", "x-nd-")):
        raise ValueError(
            "expected another name: this one is reserved by HTTP, the edge or Navidrome"
        )
    return text


def optional_header_name(text: str) -> str:
    """Parse a header name, or nothing for "none"."""
    return header_name(text) if text else ""


def claim_name(text: str) -> str:
    """Parse the name of a token's claim or the path to it, or nothing for "none"."""
    if not re.fullmatch(r"[!-~]{0,256}", text):
        raise ValueError("expected the name of a claim: visible ASCII characters without blanks")
    if re.search(r"[\[\]*]|^\$", text) or (text and not all(text.split("."))):
        raise ValueError(
            "expected the name of a claim, or a path of names with one dot between them, such as "
            "realm_access.roles"
        )
    return text


def algorithms(text: str) -> tuple[str, ...]:
    """Parse names of signature algorithms, comma-separated, at least one."""
    found = comma_list(text)
    if not found or not set(found) <= ALGORITHMS:
        raise ValueError(f"expected some of {', '.join(sorted(ALGORITHMS))}, comma-separated")
    return found


def email_domains(text: str) -> tuple[str, ...]:
    """Parse domains of e-mail addresses, comma-separated, to lower case."""
    found = comma_list(text.translate(ASCII_LOWER))
    for domain in found:
        if not is_email_domain(domain):
            raise ValueError(
                f"expected domains such as example.org, in ASCII (xn--…); {domain!r} is none"
            )
    return found


def header_prefixes(text: str) -> tuple[str, ...]:
    """Parse prefixes of header names, comma-separated, each with at least two letters or digits."""
    names = comma_list(text)
    for name in names:
        if not _TOKEN.fullmatch(name) or len(re.findall(r"[A-Za-z0-9]", name)) < 2:
            raise ValueError(
                f"expected prefixes of header names, such as X-authentik-; not {name!r}"
            )
        if any(forbidden.startswith(name.lower()) for forbidden in _FORBIDDEN_HEADERS):
            raise ValueError(
                f"expected a prefix that matches no standard HTTP header; {name!r} does"
            )
    return names


def comma_list(text: str) -> tuple[str, ...]:
    """Parse comma-separated words without the blanks around them. None may be empty or repeated."""
    if not text.strip():
        return ()
    found = tuple(item.strip() for item in text.split(","))
    if not all(found):
        raise ValueError("expected no empty entry between the commas")
    if len(set(found)) < len(found):
        raise ValueError("expected each entry once")
    return found


def names(text: str) -> tuple[str, ...]:
    """Parse names of groups, accounts or audiences: comma-separated, or a JSON list if a name contains a
    comma. None may be empty or repeated.

    A comma-separated entry that looks like a part of a distinguished name is invalid: `CN=a,OU=b` would be
    two groups, and a user may be in one of them.
    """
    if text.startswith("[") and text.endswith("]"):
        return _json_names(text)
    found = comma_list(text)
    if _is_dn_list(found):
        suggestion = json.dumps(_joined_dn_parts(found), ensure_ascii=not text.isprintable())
        raise ValueError("expected a JSON list, because a comma separates entries: " + suggestion)
    return found


def _json_names(text: str) -> tuple[str, ...]:
    expected = 'expected a JSON list of names such as ["CN=admins,OU=Groups", "family"]'
    try:
        found: object = json.loads(text)
    except RecursionError:
        raise ValueError(expected) from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{expected}; {error.msg} at character {error.pos + 1}") from None
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise ValueError(expected)
    if not all(each and each == each.strip() and each.isprintable() for each in found):
        raise ValueError(
            f"{expected}, none empty, with blanks at its ends or with control characters"
        )
    if len(set(found)) < len(found):
        raise ValueError("expected each entry once")
    return tuple(found)


def _joined_dn_parts(parts: tuple[str, ...]) -> list[str]:
    """Guess the intended entries: consecutive parts are one name, until a part begins a new one."""
    joined: list[str] = []
    in_name = False
    for part in parts:
        match = _DN_PART.match(part)
        if in_name and match is not None and match[1].lower() not in ("cn", "uid"):
            joined[-1] += f",{part}"
        else:
            joined.append(part)
        in_name = match is not None
    return joined


def account_name(text: str) -> str:
    """Parse a Navidrome user name: 1 to 255 printable characters."""
    if not 1 <= len(text) <= 255 or not text.isprintable() or text != text.strip():
        raise ValueError("expected 1 to 255 printable characters without blanks at the ends")
    return text


def line(text: str) -> str:
    """Parse one line of at most 512 printable characters."""
    if not 1 <= len(text) <= 512 or not text.isprintable():
        raise ValueError("expected one line of at most 512 printable characters")
    return text


def separator(text: str) -> str:
    """Parse a separator: one to three punctuation characters."""
    if not re.fullmatch(r"[!-/:-@\[-`{-~]{1,3}", text):
        raise ValueError("expected one to three punctuation characters, such as | or ,")
    return text


def library_groups(text: str) -> Mapping[str, tuple[str | int, ...]]:
    """Parse a JSON object with the names or ids of the libraries of each group."""
    expected = 'expected a JSON object such as {"family": ["Music Library", 2]}'
    try:
        found: object = json.loads(text, object_pairs_hook=_reject_duplicate_groups)
    except RecursionError:
        raise ValueError(expected) from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{expected}; {error.msg} at character {error.pos + 1}") from None
    if not isinstance(found, dict):
        raise ValueError(expected)  # noqa: TRY004 - the text is at fault, not the code
    groups: dict[str, tuple[str | int, ...]] = {}
    for group, libraries in found.items():
        if not group.strip() or not isinstance(libraries, list) or not libraries:
            raise ValueError(f"{expected}, with at least one library for each group")
        if not all(
            type(each) is int or (isinstance(each, str) and each.strip()) for each in libraries
        ):
            raise ValueError(f"{expected}; a library is a name or a whole number")
        groups[group] = tuple(libraries)
    return groups


def flag(text: str) -> bool:
    """Parse `true` or `false`, or one of their usual synonyms."""
    meaning = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
    meaning |= {"on": True, "off": False}
    if text.lower() not in meaning:
        raise ValueError("expected true or false")
    return meaning[text.lower()]


def one_of(*choices: str) -> Callable[[str], str]:
    """Return a parser for one word of a closed set, in any case."""

    def read(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(f"expected {', '.join(choices[:-1])} or {choices[-1]}")
        return text.lower()

    return read


def seconds(minimum: float, maximum: float) -> Callable[[str], float]:
    """Return a parser for a duration in seconds, both bounds included."""

    def read(text: str) -> float:
        if (
            not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", text)
            or not minimum <= float(text) <= maximum
        ):
            raise ValueError(
                f"expected seconds as a plain number from {minimum:g} to {maximum:.0f}"
            )
        return float(text)

    return read


def count(minimum: int, maximum: int, expected: str = "a whole number") -> Callable[[str], int]:
    """Return a parser for a whole number, both bounds included."""

    def read(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", text) or not minimum <= int(text) <= maximum:
            raise ValueError(f"expected {expected} from {minimum} to {maximum}")
        return int(text)

    return read


def socket_mode(text: str) -> Mode:
    """Parse the octal mode of a Unix socket. Its owner must be able to use it."""
    if not re.fullmatch(r"0?[0-7]{3}", text) or int(text, 8) & 0o600 != 0o600:
        raise ValueError("expected an octal mode that lets the owner read and write, such as 0660")
    return Mode(int(text, 8))


def readable_file(text: str) -> Path:
    """Parse the path of a file that exists and can be opened."""
    path = Path(text)
    try:
        with path.open("rb"):
            return path
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        raise ValueError(f"expected the path of a readable PEM file ({reason})") from None


def secret(text: str) -> SecretStr:
    """Parse one secret without control characters."""
    if not text or re.search(r"[\x00-\x1f\x7f]", text):
        raise ValueError("expected one line without control characters, not empty")
    return SecretStr(text)


def header_secrets(text: str) -> tuple[SecretStr, ...]:
    """Parse secrets for a header, comma-separated: visible ASCII without blanks."""
    found = comma_list(text)
    if not all(re.fullmatch(r"[!-~]+", each) for each in found):
        raise ValueError(
            "expected visible ASCII characters without blanks; a comma separates two secrets"
        )
    return tuple(SecretStr(each) for each in found)


def service_urls(text: str) -> tuple[SecretStr, ...]:
    """Parse URLs of notification services, separated by blanks."""
    found = text.split()
    if not all(re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*://[!-~]+", each) for each in found):
        raise ValueError(
            "expected Apprise URLs such as ntfys://ntfy.example.org/topic, separated by blanks; write other "
            "characters than ASCII as %XX"
        )
    if len(set(found)) < len(found):
        raise ValueError("expected each URL once")
    return tuple(SecretStr(each) for each in found)


def bearer_token(text: str) -> SecretStr:
    """Parse a bearer token (RFC 6750 §2.1)."""
    if not re.fullmatch(r"[A-Za-z0-9._~+/-]+=*", text):
        raise ValueError(
            "expected a token of letters, digits and -._~+/ (openssl rand -hex 32 makes one)"
        )
    return SecretStr(text)


def device_key(text: str) -> SecretStr:
    """Parse keys of 32 bytes, the current one first: hexadecimal or base64, separated by commas or line
    ends."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    words = [word for word in re.split(r"[\s,]+", "\n".join(lines)) if word]
    if not words or not all(map(_DEVICE_KEY.fullmatch, words)):
        raise ValueError(
            "expected 64 hexadecimal digits (openssl rand -hex 32 makes them); to replace a key: NEW,OLD"
        )
    return SecretStr(text)


def database_url(text: str) -> SecretStr:
    """Parse `sqlite:///FILE` or `postgresql+psycopg://USER:PASSWORD@HOST/NAME`. The password must be
    unambiguous, because messages show all other parts."""
    if not (_SQLITE.match(text) or _POSTGRESQL.fullmatch(text)):
        raise ValueError(
            "expected sqlite:///file.db or postgresql+psycopg://user:password@host/name; write an @ in the "
            "password as %40"
        )
    return SecretStr(text)


def audit_database_url(text: str) -> SecretStr:
    """Parse a database URL, or `none`."""
    if text.lower() == "none":
        return SecretStr("none")
    try:
        return database_url(text)
    except ValueError as error:
        raise ValueError(f"{error}; or none") from None


def byte_size(minimum: int, maximum: int) -> Callable[[str], int]:
    """Return a parser for a size: bytes, or a number with KiB, MiB, GiB or TiB."""
    units = {"": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}

    def read(text: str) -> int:
        found = re.fullmatch(r"([0-9]{1,15}) ?([KMGT]iB)?", text, re.IGNORECASE)
        size = 0 if found is None else int(found[1]) * units[(found[2] or "").upper()]
        if not minimum <= size <= maximum:
            raise ValueError(
                f"expected a size such as 1GiB or 500MiB, from {minimum} to {maximum} bytes"
            )
        return size

    return read


def _entries(text: str, *, names: bool) -> tuple[str, ...]:
    entries = comma_list(text)
    for entry in entries:
        try:
            host = getattr(parse_entry(entry), "network", None) is None
        except ValueError as error:
            raise ValueError(f"{entry!r} is {error}") from None
        if host and not names:
            raise ValueError(f"expected only IP addresses and CIDRs; {entry!r} is neither")
    return entries


def _reject_duplicate_groups(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("expected each group once in the JSON object")
    return found
