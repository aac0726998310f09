"""What `check` and the log say the settings mean for people."""

from __future__ import annotations

import pytest

from shim.settings import load
from shim.settings.summary import summary


@pytest.mark.parametrize(
    ("settings", "sentences"),
    [
        ({}, ("May sign in: all users", "Admins: as set in Navidrome", "needs: a trusted peer")),
        (
            {"ALLOWED_GROUPS": "music,family", "ADMIN_GROUPS": "admins"},
            ("May sign in: members of music, family", "Admins: members of admins"),
        ),
        (
            {"PROVISIONING": "false", "ALLOWED_GROUPS": "music", "ADMIN_GROUPS": "admins"},
            ("groups are not checked", "Admins: as set in Navidrome"),
        ),
        ({"PROXY_SECRET": "s3cret-s3cret-s3cret"}, ("the shared secret in X-Shim-Proxy-Secret",)),
    ],
)
def test_it_says_who_may_sign_in_who_is_admin_and_what_proves_it(
    settings: dict[str, str], sentences: tuple[str, ...]
) -> None:
    said = summary(load({f"SHIM_{name}": value for name, value in settings.items()}))
    for sentence in sentences:
        assert any(sentence in one for one in said)
    assert not any("s3cret-s3" in one for one in said)
