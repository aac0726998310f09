"""Stored accounts are read back unchanged."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from shim.provisioning.models import (
    Binding,
    BindingState,
    Intent,
    IntentKind,
    LastWritten,
    binding_from_row,
    binding_values,
    intent_from_row,
    intent_values,
)
from shim.trust.identity import Identity
from tests.unit.trust.test_token_proof import IDENTITY_FIELDS, OPTIONAL, by_token, decide_on


def identities() -> dict[str, Identity]:
    """One identity of each kind that a request can have."""
    by_headers = decide_on(*IDENTITY_FIELDS, policy=OPTIONAL).identity
    verified = decide_on(by_token()).identity
    assert by_headers is not None and verified is not None
    return {
        "headers": by_headers,
        "token": verified,
        "empty": Identity("ada", "", "", (), "u1"),
        "absent": Identity("ada", None, None, None, "u1"),
    }


@pytest.mark.parametrize("kind", ["headers", "token", "empty", "absent"])
def test_a_binding_is_equal_after_it_was_stored(kind: str) -> None:
    binding = Binding(
        id=7,
        uid="5a1c",
        navidrome_id="N1",
        user_name="Ada",
        provider_username="ada",
        created_by_shim=True,
        state=BindingState.DENIED,
        lock_pending=True,
        first_seen=1.5,
        last_seen=2.5,
        identity=identities()[kind],
        last_written=LastWritten("Ada Lovelace", "ada@example.org"),
        version=3,
    )
    assert binding_from_row(SimpleNamespace(id=7, **binding_values(binding))) == binding


def test_an_intent_is_equal_after_it_was_stored() -> None:
    intent = Intent(
        key="write N1",
        kind=IntentKind.WRITE,
        navidrome_id="N1",
        user_name="ada",
        uid="5a1c",
        created_at="2026-01-01T00:00:00Z",
        owner="host/1/x",
        started_at=4.5,
    )
    assert intent_from_row(SimpleNamespace(**intent_values(intent))) == intent
