"""What the shim remembers of an edge whose identities do not count."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from shim.health import State
from shim.monitors.edge import RECENT_SECONDS, RESOLVED_SECONDS, EdgeMonitor
from shim.trust.decision import decide
from shim.trust.identity import Role
from shim.trust.peers import parse_peer
from shim.trust.policy import Policy
from shim.trust.reasons import Reason
from tests.support.decisions import ADA, EDGE, head, trusting

SECRET = "s3cret-s3cret-s3cret"
WITH_SECRET = Policy(whitelist=trusting("127.0.0.2"), secrets=(SECRET.encode(),))
WITHOUT = Policy(whitelist=trusting("127.0.0.2"))
RIGHT = f"X-Shim-Proxy-Secret: {SECRET}"
WRONG = "X-Shim-Proxy-Secret: another-value"
UNTRUSTED = "192.0.2.9"


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def sent(monitor: EdgeMonitor, policy: Policy, *lines: str, peer: str = "127.0.0.2") -> Reason:
    """Let the monitor see the decision on this request, as the data plane does."""
    found = decide(head("GET /app/ HTTP/1.1", *lines), parse_peer(peer), policy)
    if found.identity is not None:
        monitor.identity_used(found)
    else:
        monitor.decided(found)
    return found.outcome.reason


@pytest.mark.parametrize(
    ("policy", "lines", "peer", "detail", "remedy"),
    [
        (WITHOUT, (ADA,), UNTRUSTED, "192.0.2.9 did not count", "SHIM_REVERSE_PROXY_WHITELIST"),
        (WITH_SECRET, (ADA,), "127.0.0.2", "without X-Shim-Proxy-Secret", "authenticated route"),
        (WITH_SECRET, (ADA, WRONG), "127.0.0.2", "another secret", "the same secret at the edge"),
        (WITHOUT, (ADA, RIGHT), "127.0.0.2", "SHIM_PROXY_SECRET is not set", "that the edge sends"),
    ],
)
def test_each_fault_is_named_with_its_remedy_and_no_value(
    policy: Policy, lines: tuple[str, ...], peer: str, detail: str, remedy: str
) -> None:
    monitor = EdgeMonitor(Clock())
    assert monitor.check(policy).state is State.OK
    sent(monitor, policy, *lines, peer=peer)
    check = monitor.check(policy)
    assert check.state is State.WARNING
    assert check.remedy is not None
    assert detail in check.detail and remedy in check.remedy
    assert SECRET not in check.detail and "another-value" not in check.detail


def test_an_identity_that_lacks_a_header_is_named_though_others_count() -> None:
    policy = Policy(whitelist=trusting("127.0.0.2"), required=frozenset({Role.GROUPS}))
    clock = Clock()
    monitor = EdgeMonitor(clock)
    assert sent(monitor, policy, ADA) is Reason.IDENTITY_INCOMPLETE
    clock.now += RESOLVED_SECONDS + 1
    # Another user, who is in a group.
    sent(monitor, policy, ADA, "X-authentik-groups: music")
    check = monitor.check(policy)
    assert check.state is State.WARNING
    assert check.remedy is not None
    assert "from 127.0.0.2 was rejected: the request has an identity without" in check.detail
    assert "groups" in check.detail and "SHIM_MISSING_GROUPS=none" in check.detail
    assert "copy every header of the provider" in check.remedy
    clock.now += RECENT_SECONDS
    assert monitor.check(policy).state is State.OK


def test_peers_that_are_rejected_are_remembered_too() -> None:
    policy = Policy(whitelist=trusting("127.0.0.2"), reject_untrusted=True)
    monitor = EdgeMonitor(Clock())
    assert sent(monitor, policy, ADA, peer=UNTRUSTED) is Reason.UNTRUSTED_PEER_REJECTED
    assert UNTRUSTED in monitor.check(policy).detail


@pytest.mark.parametrize(
    ("policy", "lines"), [(WITHOUT, (ADA,)), (WITHOUT, ()), (WITH_SECRET, (ADA, RIGHT))]
)
def test_an_edge_without_a_fault_has_none(policy: Policy, lines: tuple[str, ...]) -> None:
    monitor = EdgeMonitor(Clock())
    sent(monitor, policy, *lines)
    assert monitor.check(policy).state is State.OK


def test_a_finding_ends_after_its_time() -> None:
    clock = Clock()
    monitor = EdgeMonitor(clock)
    sent(monitor, WITHOUT, ADA, peer=UNTRUSTED)
    clock.now += RECENT_SECONDS - 1
    assert "last 899 s ago" in monitor.check(WITHOUT).detail
    clock.now += 1
    assert monitor.check(WITHOUT).state is State.OK


def test_a_peer_that_is_trusted_now_is_no_finding() -> None:
    monitor = EdgeMonitor(Clock())
    sent(monitor, WITHOUT, ADA, peer=UNTRUSTED)
    assert monitor.check(Policy(whitelist=trusting(UNTRUSTED))).state is State.OK


def test_an_identity_that_counts_ends_a_finding_after_a_minute() -> None:
    clock = Clock()
    monitor = EdgeMonitor(clock)
    sent(monitor, WITH_SECRET, ADA)
    clock.now += 1
    sent(monitor, WITH_SECRET, ADA, RIGHT)
    # The edge may have another route without the secret.
    assert monitor.check(WITH_SECRET).state is State.WARNING
    clock.now += RESOLVED_SECONDS
    assert monitor.check(WITH_SECRET).state is State.OK
    sent(monitor, WITH_SECRET, ADA)
    assert monitor.check(WITH_SECRET).state is State.WARNING


def test_many_peers_are_bounded_in_memory_and_in_the_text() -> None:
    monitor = EdgeMonitor(Clock())
    for number in range(200):
        sent(monitor, WITHOUT, ADA, peer=f"192.0.2.{number}")
    check = monitor.check(WITHOUT)
    assert "and 59 more" in check.detail
    assert len(check.detail) < 300
    assert EDGE.text not in check.detail
