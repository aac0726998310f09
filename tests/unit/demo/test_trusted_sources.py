"""Navidrome's list of trusted sources: what matches, and what never does, without an error."""

from __future__ import annotations

import pytest

from demo.navidrome.sources import TrustedSources


@pytest.mark.parametrize(
    ("listed", "peer", "trusted"),
    [
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.9.9.9/8", "10.1.2.3", True),
        ("10.0.0.5/32", "10.0.0.6", False),
        ("0.0.0.0/0", "192.0.2.1", True),
        ("0.0.0.0/0", "::1", False),
        ("::1/128", "::1", True),
        ("fd00::/8,10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "::ffff:10.1.2.3", True),
        ("::ffff:10.0.0.0/104", "10.1.2.3", True),
        ("::ffff:0:0/96", "10.1.2.3", True),
        ("::ffff:0:0/95", "10.1.2.3", False),
        ("::/0", "10.1.2.3", False),
        ("@", "@", True),
        ("@", "127.0.0.1", False),
        ("127.0.0.0/8", "@", False),
        ("10.0.0.5", "10.0.0.5", False),
        ("127.0.0.0/8, 10.0.0.0/8", "10.1.2.3", False),
        ("127.0.0.0/8, @", "@", False),
        ("10.0.0.0/255.0.0.0", "10.1.2.3", False),
        ("edge", "10.1.2.3", False),
        ("", "127.0.0.1", False),
        ("0.0.0.0/0", "", False),
    ],
)
def test_only_cidrs_match(listed: str, peer: str, trusted: bool) -> None:
    assert TrustedSources.parse(listed).trusts(peer) is trusted
