"""The summary of the settings in `check` and the log."""

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
        ({}, ("Console at /_shim/: closed (404), because SHIM_ADMIN_GROUPS is not set",)),
        (
            {"ADMIN_GROUPS": "admins", "BASE_PATH": "/music"},
            ("Console at /music/_shim/: closed (404), because no proof is in force",),
        ),
        (
            {"ADMIN_GROUPS": "admins", "PROXY_SECRET": "s3cret-s3cret-s3cret"},
            ("Console at /_shim/: members of admins, with the shared secret",),
        ),
        (
            {
                "ADMIN_GROUPS": "admins",
                "ALLOWED_GROUPS": "family",
                "JWT_VERIFY": "required",
                "JWT_HS256_SECRET": "s3cret-s3cret-s3cret-s3cret-s3cret",
                "JWT_ISSUER": "https://auth.example.org/",
                "JWT_AUDIENCE": "x",
            },
            ("members of admins who may sign in (family), with a verified token",),
        ),
    ],
)
def test_it_states_who_may_sign_in_who_is_admin_and_which_proof_is_required(
    settings: dict[str, str], sentences: tuple[str, ...]
) -> None:
    lines = summary(load({f"SHIM_{name}": value for name, value in settings.items()}))
    for sentence in sentences:
        assert any(sentence in one for one in lines)
    assert not any("s3cret-s3" in one for one in lines)
