"""Properties of `decide` for any input.

The forwarded head is read by parsers that share nothing with the code under test: llhttp, and one
that accepts any line end, joins folded lines and normalizes names.
"""

from __future__ import annotations

import re
from collections import Counter
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shim.trust.decision import Decision
from shim.trust.fields import parse_field
from shim.trust.path_zones import Paths, parse_request_line
from shim.trust.peers import Peer, parse_peer
from shim.trust.policy import Policy
from shim.trust.reasons import Reason, Verdict
from shim.trust.rejection import RequestRejected
from tests.support.decisions import EDGE, UNTRUSTED, decided, head
from tests.support.reference_parsers import read_by_llhttp, read_leniently
from tests.support.request_strategies import POLICIES, policies, requests, single_fragment_requests

PEERS = (EDGE, UNTRUSTED, parse_peer("@"), parse_peer("fe80::1%eth0"))
# Navidrome's user header, and every header that carries an identity, as normalizing stacks see the
# names.
USER = b"remote-user"
SPEAKING = re.compile(
    rb"x-authentik-.*|x-shim-proxy-secret|x-webauth-.*|x-forwarded-user|remote-groups|cf-access-.*"
)
CLIENT = {b"true-client-ip", b"cf-connecting-ip", b"x-client-ip", b"x-cluster-client-ip"}
PROTOCOL_FAULTS = {
    Reason.MALFORMED_HEAD,
    Reason.AMBIGUOUS_TARGET,
    Reason.AMBIGUOUS_FRAMING,
    Reason.AMBIGUOUS_HOST,
    Reason.FRAMING_ALIAS,
    Reason.UPGRADE_REJECTED,
    Reason.METHOD_NOT_IMPLEMENTED,
    Reason.HEAD_TOO_LARGE,
}


def hold(decision: Decision, peer: Peer, policy: Policy) -> None:
    """Check every invariant."""
    trusted = decision.outcome.verdict is Verdict.AUTHENTICATED
    assert (decision.identity is not None) == trusted
    if decision.outcome.verdict is Verdict.REJECTED:
        assert 400 <= decision.outcome.status <= 503
        return
    if trusted:
        assert peer in policy.whitelist
        assert not policy.suspended
        assert_may_carry_an_identity(decision, policy)
    for forwarded, name in (
        (decision.render_head(), None),
        (decision.render_head(b"Ada L"), b"Ada L"),
    ):
        read = read_by_llhttp(forwarded)
        assert read is not None
        fields = read_leniently(forwarded)
        assert len(fields) == len(read.fields)
        names = [name for name, _ in fields]
        users = [value for name, value in fields if name == USER]
        if trusted:
            assert decision.identity is not None
            assert users == [name or decision.identity.username.encode()]
        else:
            assert users == []
        assert not [name for name in names if SPEAKING.fullmatch(name) or name in CLIENT]
        assert names.count(b"host") == 1
        assert names.count(b"x-real-ip") <= 1
        assert names.count(b"content-length") + names.count(b"transfer-encoding") <= 1
        assert names.count(b"connection") == names.count(b"upgrade") == decision.upgrade
        for name, value in read.fields:
            assert value == value.strip(b" \t"), name
        if peer not in policy.whitelist and peer.address is not None:
            assert dict(fields)[b"x-real-ip"] == str(peer.address).partition("%")[0].encode()
            assert dict(fields)[b"x-forwarded-for"] == dict(fields)[b"x-real-ip"]


def assert_may_carry_an_identity(decision: Decision, policy: Policy) -> None:
    """Compute the path and the proof again from the forwarded head."""
    assert decision.request_line is not None
    path = unquote_to_bytes(decision.request_line.target.partition(b"?")[0]).lower() + b"/"
    base = policy.paths.base
    assert decision.request_line.target.startswith(base) or path == base
    assert path.isascii()
    below = path[len(base) :]
    assert not below.startswith((b"share", b"app/manifest.webmanifest", b"app/favicon"))
    if below.startswith((b"rest", b"jellyfin")):
        assert policy.public_path_proof is not None
        assert decision.outcome.reason is Reason.PROXY_SECRET
    if below.startswith(b"_shim/"):
        assert decision.identity is not None
        page = below.removeprefix(b"_shim/")
        if page not in (b"", b"/") and not page.startswith((b"devices/", b"static/")):
            assert set(decision.identity.groups or ()) & policy.admin_groups
    assert (decision.outcome.reason is Reason.PROXY_SECRET) == bool(policy.secrets)


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(requests(), st.sampled_from(PEERS), policies())
def test_a_forwarded_head_names_a_user_once_if_trusted_and_never_otherwise(
    text: bytes, peer: Peer, policy: Policy
) -> None:
    hold(decided(text, peer, policy), peer, policy)


@settings(max_examples=500, deadline=None)
@given(requests(), st.data(), st.sampled_from((EDGE, UNTRUSTED)), policies())
def test_the_invariants_hold_after_a_changed_byte(
    text: bytes, data: st.DataObject, peer: Peer, policy: Policy
) -> None:
    at = data.draw(st.integers(0, len(text) - 1))
    byte = data.draw(st.binary(max_size=2))
    hold(decided(text[:at] + byte + text[at + 1 :], peer, policy), peer, policy)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=400), st.sampled_from(PEERS), policies())
def test_no_input_makes_it_raise(text: bytes, peer: Peer, policy: Policy) -> None:
    hold(decided(text, peer, policy), peer, policy)
    hold(
        decided(b"GET /app/ HTTP/1.1\r\nHost: a\r\n" + text + b"\r\n\r\n", peer, policy),
        peer,
        policy,
    )


def with_query_escaped(text: bytes) -> bytes:
    """The head with its query as it is forwarded: bytes from 0x80 percent-encoded."""
    line, end, rest = text.partition(b"\r\n")
    path, mark, query = line.partition(b"?")
    escaped = re.sub(rb"[\x80-\xff]", lambda match: b"%%%02X" % match[0][0], query)
    return path + mark + escaped + end + rest


@settings(max_examples=1000, deadline=None)
@given(requests(), st.data())
def test_llhttp_accepts_every_accepted_head(text: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(text)))
    text = text[:at] + data.draw(st.binary(max_size=2)) + text[at + data.draw(st.integers(0, 2)) :]
    decision = decided(text)
    if decision.outcome.reason not in PROTOCOL_FAULTS:
        assert read_by_llhttp(with_query_escaped(text)) is not None


@pytest.mark.parametrize("byte", range(256))
def test_a_header_line_with_any_byte_is_never_accepted_where_llhttp_rejects_it(
    byte: int,
) -> None:
    one = bytes([byte])
    for line in (
        b"%bName: value" % one,
        b"Na%bme: value" % one,
        b"Name%b: value" % one,
        b"Name:%b value" % one,
        b"Name: va%blue" % one,
        b"Name: value%b" % one,
        b"Name: %b" % one,
    ):
        try:
            parse_field(line, POLICIES[0].names)
        except RequestRejected:
            continue
        read = read_by_llhttp(head("GET / HTTP/1.1", line))
        assert read is not None, line
        assert len(read.fields) == 2, line  # nor as several


_LINE_PIECES = st.sampled_from(
    [b"Name", b"a", b"-", b"(", b":", b": ", b" ", b"\t", b"value", b'"', b"\r", b"\n", b"\x00", b"\x7f",
     b"\x80", b"\xe9"]
)  # fmt: skip


@given(
    st.tuples(
        st.sampled_from([b"Name", b"a-b", b"a!", b"", b"a b", b"a(", b"\xe9"]),
        st.sampled_from([b":", b": ", b" :", b""]),
        st.lists(_LINE_PIECES, max_size=5).map(b"".join),
    ).map(b"".join)
)
def test_a_header_line_is_never_accepted_where_llhttp_rejects_it(line: bytes) -> None:
    try:
        field = parse_field(line, POLICIES[0].names)
    except RequestRejected:
        return
    read = read_by_llhttp(b"GET / HTTP/1.1\r\n" + line + b"\r\n\r\n")
    assert read is not None
    assert [(name.lower(), value.strip(b" \t")) for name, value in read.fields] == [
        (field.name, field.value)
    ]


@pytest.mark.parametrize("byte", range(256))
def test_a_request_line_with_any_byte_is_never_accepted_where_llhttp_rejects_it(
    byte: int,
) -> None:
    one = bytes([byte])
    for line in (
        b"%bGET / HTTP/1.1" % one,
        b"GE%bT / HTTP/1.1" % one,
        b"GET%b / HTTP/1.1" % one,
        b"GET %b HTTP/1.1" % one,
        b"GET /a%bb HTTP/1.1" % one,
        b"GET /a?b%bc HTTP/1.1" % one,
        b"GET / HTTP%b/1.1" % one,
        b"GET / HTTP/1.1%b" % one,
    ):
        try:
            parsed = parse_request_line(line, Paths())
        except RequestRejected:
            continue
        read = read_by_llhttp(with_query_escaped(line + b"\r\nHost: a\r\n\r\n"))
        assert read is not None, line
        assert read.method == parsed.method
        assert read.target == parsed.target


@pytest.mark.parametrize("byte", range(256))
def test_an_authority_with_any_byte_is_never_accepted_where_llhttp_rejects_it(
    byte: int,
) -> None:
    name = b"a%bb" % bytes([byte])
    text = b"GET http://%b/ HTTP/1.1\r\nHost: %b\r\n\r\n" % (name, name)
    if decided(text).outcome.reason not in PROTOCOL_FAULTS:
        assert read_by_llhttp(text) is not None


REACHED = {
    Reason.TRUSTED_PEER,
    Reason.PROXY_SECRET,
    Reason.NO_IDENTITY,
    Reason.UNTRUSTED_PEER,
    Reason.PUBLIC_PATH,
    Reason.OUTSIDE_BASE_PATH,
    Reason.NON_ASCII_PATH,
    Reason.BASE_PATH_MISMATCH,
    Reason.SPOOFED_USER_HEADER,
    Reason.MALFORMED_HEAD,
    Reason.AMBIGUOUS_TARGET,
    Reason.AMBIGUOUS_FRAMING,
    Reason.AMBIGUOUS_HOST,
    Reason.FRAMING_ALIAS,
    Reason.UPGRADE_REJECTED,
    Reason.METHOD_NOT_IMPLEMENTED,
    Reason.HEADER_ALIAS,
    Reason.IDENTITY_DUPLICATE,
    Reason.IDENTITY_INVALID,
    Reason.IDENTITY_INCOMPLETE,
    Reason.IDENTITY_REQUIRED,
    Reason.SECRET_MISSING,
    Reason.SECRET_MISMATCH,
    Reason.UNTRUSTED_PEER_REJECTED,
    Reason.CROSS_SITE,
    Reason.CREATE_ADMIN_DISABLED,
    Reason.LOCAL_LOGIN_DISABLED,
    Reason.NOT_FOUND,
}


def test_requests_of_a_single_fragment_reach_every_reason() -> None:
    found_reasons: set[Reason] = set()
    for text in single_fragment_requests():
        for policy in POLICIES:
            for peer in (EDGE, UNTRUSTED):
                decision = decided(text, peer, policy)
                hold(decision, peer, policy)
                found_reasons.add(decision.outcome.reason)
    assert found_reasons == REACHED


def test_random_requests_get_every_verdict_often() -> None:
    verdicts: Counter[Verdict] = Counter()

    @settings(max_examples=1000, database=None, derandomize=True, deadline=None)
    @given(requests(), st.sampled_from((EDGE, UNTRUSTED)), policies())
    def collect_reason(text: bytes, peer: Peer, policy: Policy) -> None:
        verdicts[decided(text, peer, policy).outcome.verdict] += 1

    collect_reason()
    assert min(verdicts[verdict] for verdict in Verdict) > verdicts.total() // 20
