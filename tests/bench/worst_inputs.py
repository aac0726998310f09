"""What 64 kB of the worst input known for each parser costs: milliseconds, the least of several runs.

    python -m tests.bench.worst_inputs [--check] [PART…]

A head is measured as the data plane has it: decided, with the response where it is rejected.
`--check` makes an input above the goal exit code 1. `PART` selects the inputs whose name contains it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial

from shim.http1.chunked import ChunkedDecoder, ChunkedError, encode_chunk
from shim.http1.response_head import InvalidResponse
from shim.http1.response_templates import ResponseTemplateCache
from shim.proxy.error_responses import error_response
from shim.proxy.sign_in import sign_in_location
from shim.trust.cached_decisions import DecisionCache
from shim.trust.navidrome_tokens import filter_form
from shim.trust.peers import AddressList, parse_entry, parse_peer
from shim.trust.policy import Policy
from shim.trust.reasons import Verdict

SIZE = 65536
GOAL_MS = 1.0
_RUNS = 7
_EDGE = "10.0.0.2"
POLICY = Policy(
    whitelist=AddressList([parse_entry(_EDGE)]),
    real_ip_proxies=AddressList([parse_entry("10.0.0.0/8")]),
)
PAGES_POLICY = Policy(whitelist=POLICY.whitelist, require_identity=True)
_IDENTITY = b"X-authentik-username: ada\r\n"
_BROWSER = b"Sec-Fetch-Mode: navigate\r\n"
_OWN_TOKEN = b"eyJhIjoxfQ.eyJzdWIiOiJhZGEiLCJ1aWQiOiIxIn0.c2ln"


def fill(unit: bytes, start: bytes = b"", end: bytes = b"") -> bytes:
    """`start`, then `unit` as often as 64 kB allow, then `end`."""
    return start + unit * ((SIZE - 600 - len(start) - len(end)) // len(unit)) + end


def head(line: bytes, *fields: bytes) -> bytes:
    return b"%b HTTP/1.1\r\n%b\r\n" % (line, b"".join((b"Host: h\r\n", *fields)))


def get(target: bytes, *fields: bytes) -> bytes:
    return head(b"GET " + target, *fields)


def field(name: bytes, value: bytes) -> bytes:
    return b"%b: %b\r\n" % (name, value)


def lines(line: bytes, count: int = 98) -> bytes:
    """`count` header lines of nearly 64 kB together; `%d` in the name is the number of the line."""
    room = (SIZE - 600) // count - 24
    return b"".join(b"X%d%b\r\n" % (number, line * (room // len(line))) for number in range(count))


_TWO_HOSTS = b"Host: i\r\n"

# Request heads by name. Each is sent by the trusted peer and by an untrusted one.
HEADS: dict[str, bytes] = {
    "query of bad escapes, rejected": get(fill(b"%=%&", b"/rest/x?"), _TWO_HOSTS),
    "query of parameters, rejected": get(fill(b"f=&", b"/rest/x?"), _TWO_HOSTS),
    "path of escapes": get(fill(b"%C3%A4", b"/")),
    "path of short segments": get(fill(b"/a", b"/a")),
    "path of slashes": get(fill(b"/")),
    "path of slashes and escapes": get(fill(b"/a", b"/%C3%A4")),
    "path of dots": get(fill(b"/a.", b"/a")),
    "path of escaped slashes": get(fill(b"%2F", b"/")),
    "path, then a space": get(fill(b"/a", b"/a", b" x")),
    "request line of spaces": get(fill(b" ")),
    "request line of one word": head(fill(b"G")),
    "absolute target": head(fill(b"a", b"GET http://")),
    "absolute target of dots": head(fill(b"/.", b"GET http://h")),
    "header block of short lines": get(b"/", b"a:\r\n" * 98),
    "header block of too many lines": get(b"/", fill(b"a:\r\n")),
    "header block of long lines": get(b"/", lines(b": a")),
    "header block of long names": get(b"/", lines(b"x")),
    "header value of blanks": get(b"/", field(b"A", fill(b" ", b"x", b"x"))),
    "header name, long": get(b"/", field(fill(b"x"), b"1")),
    "header name of underscores": get(b"/", field(fill(b"_"), b"1")),
    "identity prefix, long": get(b"/", field(fill(b"-x", b"X-authentik-"), b"1")),
    "Connection of options": get(b"/", field(b"Connection", fill(b"a,"))),
    "Connection of commas": get(b"/", field(b"Connection", fill(b","))),
    "Connection of different options": get(
        b"/", field(b"Connection", b",".join(b"x%d" % n for n in range(10000)))
    ),
    "Upgrade of commas": get(b"/", b"Connection: upgrade\r\n", field(b"Upgrade", fill(b","))),
    "X-Forwarded-For of commas": get(b"/", field(b"X-Forwarded-For", fill(b","))),
    "X-Forwarded-For of blanks": get(b"/", field(b"X-Forwarded-For", fill(b" ,"))),
    "X-Forwarded-For of addresses": get(
        b"/", field(b"X-Forwarded-For", fill(b"10.0.0.9,", b"", b"10.0.0.9"))
    ),
    "X-Forwarded-For of long addresses": get(
        b"/", field(b"X-Forwarded-For", fill(b"::ffff:10.0.0.9,", b"", b"10.0.0.9"))
    ),
    "X-Forwarded-For of one long entry": get(b"/", field(b"X-Forwarded-For", fill(b"1"))),
    "X-Forwarded-For of colons": get(b"/", field(b"X-Forwarded-For", fill(b":"))),
    "X-Forwarded-For of dots": get(b"/", field(b"X-Forwarded-For", fill(b"1."))),
    "Forwarded of commas": get(b"/", field(b"Forwarded", fill(b","))),
    "X-Forwarded-Host of commas": get(
        b"/", b"Origin: http://h\r\n", field(b"X-Forwarded-Host", fill(b","))
    ),
    "Host, long": head(b"GET /", field(b"Host", fill(b"a"))),
    "Host of dots": b"GET / HTTP/1.1\r\n" + field(b"Host", fill(b".")) + b"\r\n",
    "Host of digits": b"GET / HTTP/1.1\r\n" + field(b"Host", fill(b"1", b"a:")) + b"\r\n",
    "Content-Length of zeros": get(b"/", field(b"Content-Length", fill(b"0"))),
    "Origin, long": get(b"/", _IDENTITY, field(b"Origin", fill(b"a"))),
    "Expect, long": get(b"/", field(b"Expect", fill(b"a"))),
    "groups": get(b"/", _IDENTITY, field(b"X-authentik-groups", fill(b"|"))),
    "groups of 16,384": get(b"/", _IDENTITY, field(b"X-authentik-groups", b"a|" * 8192)),
    "groups of blanks": get(b"/", _IDENTITY, field(b"X-authentik-groups", b" |" * 8192)),
    "user name, long": get(b"/", field(b"X-authentik-username", fill(b"a"))),
    "name of joiners": get(b"/", _IDENTITY, field(b"X-authentik-name", b"\xe2\x80\x8d" * 1024)),
    "name of other letters": get(b"/", _IDENTITY, field(b"X-authentik-name", fill(b"\xc3\xa4"))),
    "provider's token of dots": get(b"/", _IDENTITY, field(b"X-authentik-jwt", fill(b"."))),
}
# Request heads with tokens of Navidrome's own, on a protected path.
TOKENS: dict[str, bytes] = {
    "query of empty parameters": get(fill(b"&", b"/api/x?jwt=1"), _IDENTITY),
    "query of tokens": get(fill(b"jwt=%b&" % _OWN_TOKEN, b"/api/x?"), _IDENTITY),
    "query of short tokens": get(fill(b"jwt=&", b"/api/x?"), _IDENTITY),
    "query of encoded keys": get(fill(b"%6Awt=%41&", b"/api/x?"), _IDENTITY),
    "query of escapes in one token": get(fill(b"%41", b"/api/x?jwt="), _IDENTITY),
    "query of pluses in one token": get(fill(b"+", b"/api/x?jwt="), _IDENTITY),
    "query of dots in one token": get(fill(b".", b"/api/x?jwt="), _IDENTITY),
    "query of semicolons": get(fill(b";", b"/api/x?jwt=1"), _IDENTITY),
    "query of percents": get(fill(b"%", b"/api/x?"), _IDENTITY),
    "cookie of semicolons": get(b"/api/x", _IDENTITY, field(b"Cookie", fill(b";", b"jwt=1"))),
    "cookie of blanks": get(b"/api/x", _IDENTITY, field(b"Cookie", fill(b" ", b"jwt=1;", b"x"))),
    "cookie of semicolons and blanks": get(
        b"/api/x", _IDENTITY, field(b"Cookie", fill(b"; ", b"jwt=1"))
    ),
    "cookie of names": get(b"/api/x", _IDENTITY, field(b"Cookie", fill(b";jwt"))),
    "cookie of blanks, then a name": get(
        b"/api/x", _IDENTITY, field(b"Cookie", fill(b";  jwt ", b"", b"x"))
    ),
    "cookie of tokens": get(b"/api/x", _IDENTITY, field(b"Cookie", fill(b"jwt=%b;" % _OWN_TOKEN))),
    "query of escapes for keys": get(fill(b"&%", b"/api/x?"), _IDENTITY),
    "query of escapes for Subsonic keys": get(fill(b"&%", b"/rest/x?"), _IDENTITY),
    "query of bad escapes": get(fill(b"%=%&", b"/api/x?"), _IDENTITY),
    "query of other keys": get(fill(b"&apikex", b"/api/x?", b"&apikey=1"), _IDENTITY),
    "query of encoded letters": get(fill(b"&%6Aw", b"/api/x?"), _IDENTITY),
    "cookies in many lines": get(
        b"/api/x", _IDENTITY, field(b"Cookie", b"jwt=1" + b";" * 600 + b"x") * 90
    ),
    "cookie of a name and blanks": get(
        b"/api/x", _IDENTITY, field(b"Cookie", fill(b" ", b";jwt", b"x"))
    ),
    "cookie of names that go on": get(
        b"/api/x", _IDENTITY, field(b"Cookie", fill(b"; jwt x", b"", b"x"))
    ),
    "Emby of quotes": get(
        b"/api/x", _IDENTITY, field(b"Authorization", fill(b'a="', b'Token="1"'))
    ),
    "Emby of names": get(b"/api/x", _IDENTITY, field(b"Authorization", fill(b"a=", b'Token="1"'))),
    "Emby of one name": get(
        b"/api/x", _IDENTITY, field(b"Authorization", fill(b"a", b'Token="1"'))
    ),
    "Emby in many lines": get(
        b"/api/x",
        _IDENTITY,
        field(b"X-Emby-Authorization", b'Token="1",' + b"a=" * 320) * 90,
    ),
    "token of dots": get(
        b"/api/x", _IDENTITY, field(b"X-ND-Authorization", fill(b".", b"Bearer "))
    ),
    "token, long": get(
        b"/api/x", _IDENTITY, field(b"X-ND-Authorization", fill(b"A", b"Bearer ", b".AAAA.AAAA"))
    ),
    "token of nested lists": get(
        b"/api/x", _IDENTITY, field(b"X-ND-Authorization", fill(b"W1tb", b"Bearer AAAA.", b".AAAA"))
    ),
}
# Heads that request a page and have no identity: redirected to sign in.
PAGES: Mapping[str, bytes] = {
    "page: cookie of semicolons": get(b"/", _BROWSER, field(b"Cookie", fill(b"shim-signing-i;"))),
    "page: cookies of cookies": get(b"/", _BROWSER, b"Cookie: a\r\n" * 96),
    "page: header of colons": get(b"/", _BROWSER, field(b"A", fill(b"cookie:"))),
    "page: blanks of a field": get(b"/", field(b"Accept", fill(b" ", b"a", b"a"))),
    "page: target to quote": get(fill(b"{", b"/?"), _BROWSER),
    "page: forwarded host of commas": get(b"/", _BROWSER, field(b"X-Forwarded-Host", fill(b","))),
    "page: forwarded host of letters": get(
        b"/", _BROWSER, field(b"X-Forwarded-Host", fill(b"a", b"", b"/"))
    ),
}

# Forms of 1 MiB, read before they are sent on.
_FORM = 1 << 20
FORMS: Mapping[str, bytes] = {
    "form of escapes": b"&%" * (_FORM // 2),
    "form of separators": b"jwt=1" + b"&" * (_FORM - 5),
    "form of semicolons": b"jwt=1" + b";" * (_FORM - 5),
    "form of keys": b"&jwt=1" * (_FORM // 6),
    "form of half keys": b"jwt=1" + b"&j" * (_FORM // 2 - 3),
    "form of encoded letters": b"jwt" + b"%74" * (_FORM // 3 - 1),
    "form of one long token": b"jwt=" + b"%41" * (_FORM // 3 - 2),
}

CHUNKED: Mapping[str, bytes] = {
    "chunks of one byte": fill(b"1\r\na\r\n"),
    "chunks with leading zeros": fill(b"0000000000000001\r\na\r\n"),
    "chunks with an extension": fill(b"1;a\r\na\r\n"),
    "chunk line of extensions": fill(b";a", b"1"),
    "chunk line of names": fill(b"a", b"1;"),
    "chunk line of quoted text": fill(b'\\"', b'1;a="'),
    "chunk line of quotes": fill(b';a=""', b"1"),
    "chunk trailers": fill(b"a:\r\n", b"0\r\n"),
    "chunk line without an end": fill(b"1"),
}

RESPONSES: Mapping[str, bytes] = {
    "response of short lines": b"HTTP/1.1 200 OK\r\n" + b"a:\r\n" * 100 + b"\r\n",
    "response of too many lines": fill(b"a:\r\n", b"HTTP/1.1 200 OK\r\n", b"\r\n"),
    "response of long lines": b"HTTP/1.1 200 OK\r\n" + lines(b": a") + b"\r\n",
    "response, reason of blanks": fill(b" ", b"HTTP/1.1 200 ", b"\r\n\r\n"),
    "response, Connection of options": fill(b"a,", b"HTTP/1.1 200 OK\r\nConnection: ", b"\r\n\r\n"),
}


def decide_head(data: bytes, policy: Policy, address: str) -> None:
    """Decide a head as the data plane does, and build the shim's own response where it is rejected."""
    decisions = DecisionCache(policy)
    context = decisions.connection_context(parse_peer(address), b"http")
    line, _, block = data[:-2].partition(b"\r\n")
    decision = decisions.decide(line, block, context, None, 1.0)
    decision = (
        decision.with_tokens_bound_to(b"ada", "1") if decision.has_navidrome_tokens else decision
    )
    if decision.outcome.verdict is Verdict.REJECTED:
        location = sign_in_location(decision, "/sign-in", policy.paths)
        error_response(decision.outcome.status, decision, "0" * 16, location=location)
    else:
        decision.render_head()


def read_form(data: bytes) -> None:
    filter_form(data, lambda claims: claims.username == "ada")


def decode_chunks(data: bytes) -> None:
    decoder = ChunkedDecoder()
    try:
        pieces, _ = decoder.feed(data)
        encode_chunk(pieces)
    except ChunkedError:
        return


def decode_chunks_by_pieces(data: bytes) -> None:
    """The same in pieces of 1,400 bytes, as a network carries them."""
    decoder = ChunkedDecoder()
    try:
        for at in range(0, len(data), 1400):
            decoder.feed(data[at : at + 1400])
    except ChunkedError:
        return


def read_response(data: bytes) -> None:
    try:
        ResponseTemplateCache(1 << 17, 100).read(data)
    except InvalidResponse:
        return


def measure(call: Callable[[], None]) -> float:
    """The least of several runs, in milliseconds."""
    best = float("inf")
    for _ in range(_RUNS):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best * 1000


def cases() -> dict[str, Callable[[], None]]:
    found: dict[str, Callable[[], None]] = {}
    for name, data in (HEADS | TOKENS).items():
        for who, address in (("trusted", _EDGE), ("untrusted", "203.0.113.9")):
            found[f"{name} ({who})"] = partial(decide_head, data, POLICY, address)
    for name, data in PAGES.items():
        found[name] = partial(decide_head, data, PAGES_POLICY, _EDGE)
    for name, data in FORMS.items():
        found[name] = partial(read_form, data)
    for name, data in CHUNKED.items():
        found[name] = partial(decode_chunks, data)
        found[f"{name}, in pieces"] = partial(decode_chunks_by_pieces, data)
    for name, data in RESPONSES.items():
        found[name] = partial(read_response, data)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("part", nargs="*")
    options = parser.parse_args()
    over = 0
    for name, call in cases().items():
        if options.part and not any(part in name for part in options.part):
            continue
        # A form has 1 MiB: what 64 kB of it cost.
        ms = measure(call) * (SIZE / _FORM if name in FORMS else 1)
        over += ms > GOAL_MS
        print(f"{ms:8.3f} ms  {'!' if ms > GOAL_MS else ' '} {name}", flush=True)
    print(f"{over} above {GOAL_MS:g} ms")
    return 1 if options.check and over else 0


if __name__ == "__main__":
    sys.exit(main())
