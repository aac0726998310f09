"""Account names as Navidrome compares them, and reserved accounts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shim.app.factories import build_policy
from shim.settings import load
from shim.trust.names import normalize_name
from shim.trust.reasons import Reason, Verdict
from tests.support.decisions import EDGE, POLICY, decided, head

RESERVED = replace(POLICY, reserved=frozenset({"navidrome-shim", "böss"}))


@pytest.mark.parametrize(
    ("name", "folded"),
    [("Alice", "alice"), ("ÉCOLE", "École"), ("\u212a", "\u212a"), ("ß", "ß"), ("A_B", "a_b")],
)
def test_names_are_case_folded_for_ascii_only(name: str, folded: str) -> None:
    assert normalize_name(name) == folded


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("navidrome-shim", Reason.RESERVED_ACCOUNT),
        ("NAVIDROME-Shim", Reason.RESERVED_ACCOUNT),
        ("BöSS", Reason.RESERVED_ACCOUNT),
        ("BÖSS", Reason.TRUSTED_PEER),
        ("navidrome-shim2", Reason.TRUSTED_PEER),
    ],
)
def test_a_reserved_account_is_reserved_in_any_case(name: str, reason: Reason) -> None:
    field = f"X-authentik-username: {name}".encode()
    decision = decided(head("GET /app/ HTTP/1.1", field), EDGE, RESERVED)
    assert decision.outcome.reason is reason
    assert (decision.outcome.verdict is Verdict.REJECTED) == (reason is Reason.RESERVED_ACCOUNT)


@pytest.mark.parametrize("provisioning", ["true", "false"])
def test_the_shims_admin_and_the_protected_accounts_are_reserved(provisioning: str) -> None:
    settings = load(
        {
            "SHIM_PROVISIONING": provisioning,
            "SHIM_NAVIDROME_ADMIN_USERNAME": "Chief",
            "SHIM_PROTECTED_USERS": "Boss",
        }
    )
    assert build_policy(settings).reserved == {"navidrome-shim", "chief", "boss"}
