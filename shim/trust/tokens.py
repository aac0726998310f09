"""Navidrome's own tokens in a request: found as Navidrome reads them, and bound to one account.

On its API such a token beats the user header, so an old one of another account would speak for it. Whether
a token is genuine only Navidrome knows; here it is only read. Whatever cannot be read in one way is
nobody's.
"""

from __future__ import annotations

import re
from dataclasses import replace
from urllib.parse import unquote_to_bytes

from shim.trust.block import HeaderBlock
from shim.trust.fields import Field
from shim.trust.jwt import read_object, read_segment
from shim.trust.target import RequestLine

# A query key after percent-decoding, also where somebody takes ";" for what parts two keys.
_IN_QUERY = re.compile(rb"[&;](?:j|%6[aA])(?:w|%77)(?:t|%74)(?:[=&;]|$)")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_COOKIE = b"cookie"


def in_query(target: bytes) -> bool:
    """Whether the query has the parameter `jwt`, under any spelling."""
    if b"jwt" not in target and b"%" not in target:
        return False
    return _has_key(target.partition(b"?")[2])


def _has_key(query: bytes) -> bool:
    return _IN_QUERY.search(b"&" + query) is not None


def places_of(line: RequestLine, block: HeaderBlock) -> tuple[str, ...]:
    """Where the request carries what Navidrome may take for a token of its own."""
    found = ["cookie jwt" if f.name == _COOKIE else f.sent_name for f in block.envelope.tokens]
    if in_query(line.target):
        found.append("query jwt")
    return tuple(dict.fromkeys(found))


def belong_to(line: RequestLine, block: HeaderBlock, user_name: bytes, user_id: str | None) -> bool:
    """Whether every token of the request names exactly this account, by name and id; where its id is not
    known, none does."""
    if user_id is None:
        return False
    texts = [text for field in block.envelope.tokens for text in _in_field(field)]
    texts += _in_target(line.target)
    return all(text is not None and _names(text, user_name, user_id) for text in texts)


def without_tokens(line: RequestLine, block: HeaderBlock) -> tuple[RequestLine, HeaderBlock]:
    """The same request, with no token of Navidrome's in any place."""
    path, mark, query = line.target.partition(b"?")
    kept = b"&".join(part for part in query.split(b"&") if not _has_key(part))
    target = path + mark + kept if kept else path
    fields = block.envelope.tokens
    cleaned = b"".join(_without_cookie(field) for field in fields if field.name == _COOKIE)
    rest = block.forward[sum(len(field.wire) for field in fields) :]
    dropped = tuple(field for field in fields if field.name != _COOKIE)
    return replace(line, target=target), replace(
        block, forward=cleaned + rest, dropped=(*block.dropped, *dropped)
    )


def _in_field(field: Field) -> list[bytes | None]:
    """The tokens in a header line, None for one that cannot be read."""
    value = field.value
    if field.name != _COOKIE:
        # The first six characters, in any case, and any seventh.
        return [value[7:] if len(value) > 7 and value[:6].upper() == b"BEARER" else None]
    found: list[bytes | None] = []
    for part in value.split(b";"):
        name, _, text = part.strip(b" \t").partition(b"=")
        if name.strip(b" \t") == b"jwt":
            quoted = len(text) > 1 and text[:1] == text[-1:] == b'"'
            found.append(text[1:-1] if quoted else text)
    return found


def _in_target(target: bytes) -> list[bytes | None]:
    found: list[bytes | None] = []
    for part in target.partition(b"?")[2].split(b"&"):
        if not _has_key(part):
            continue
        text = part.partition(b"=")[2]
        readable = b";" not in part and not _BAD_ESCAPE.search(text)
        found.append(unquote_to_bytes(text.replace(b"+", b" ")) if readable else None)
    return found


def _names(text: bytes, user_name: bytes, user_id: str) -> bool:
    try:
        segments = text.decode("ascii").split(".")
    except UnicodeDecodeError:
        return False
    parts = [read_segment(segment) for segment in segments]
    if len(parts) != 3 or parts[1] is None or None in parts:
        return False
    claims = read_object(parts[1])
    if claims is None:
        return False
    subject = claims.get("sub")
    return (
        isinstance(subject, str)
        and subject.encode(errors="surrogatepass") == user_name
        and claims.get("uid") == user_id
    )


def _without_cookie(field: Field) -> bytes:
    parts = [
        part
        for part in field.value.split(b";")
        if part.strip(b" \t").partition(b"=")[0].strip(b" \t") != b"jwt"
    ]
    rest = b";".join(parts).strip(b" \t")
    return b"%b: %b\r\n" % (field.sent_name.encode(), rest) if rest else b""
