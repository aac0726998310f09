"""Descriptions of events."""

from __future__ import annotations

import re

import pytest

from shim.audit import words
from shim.audit.events.schema import kinds
from shim.audit.words import in_words
from shim.proxy.failures import Failure
from shim.settings import SETTINGS
from shim.trust.reasons import Reason, Verdict

STORED = [kind.kind for kind in kinds() if kind.stored]
REFUSALS = [r for r in Reason if r.verdict in (Verdict.STRIPPED, Verdict.REJECTED)]


@pytest.mark.parametrize("kind", STORED)
def test_every_stored_kind_of_event_has_a_description(kind: str) -> None:
    assert kind == "request_decision" or kind in words._KINDS
    assert in_words({"kind": kind}).label


@pytest.mark.parametrize("reason", REFUSALS)
def test_every_rejection_has_a_remedy(reason: Reason) -> None:
    assert reason.remedy.endswith((".", "`."))


@pytest.mark.parametrize("failure", list(Failure))
def test_every_failure_has_a_description(failure: Failure) -> None:
    found = in_words({"kind": "request_failed", "reason": str(failure), "method": "GET"})
    assert found.explanation.endswith(".")
    assert str(failure) not in found.explanation


def test_descriptions_name_only_existing_settings() -> None:
    texts = [*words._REMEDIES.values(), *(each.remedy for each in (*Reason, *Failure))]
    named = {name for text in texts for name in re.findall(r"SHIM_[A-Z0-9_]+", text)}
    assert named
    assert named <= {setting.name for setting in SETTINGS}


def test_a_rejected_request_is_described_with_user_request_reason_and_remedy() -> None:
    found = in_words(
        {
            "kind": "request_decision",
            "verdict": "rejected",
            "reason": "jwt_expired",
            "method": "GET",
            "path": "/app/",
            "claimed_user": "eve",
            "notes": ["the token expired 12 s ago"],
        }
    )
    assert found.label == "rejected"
    assert found.title == "eve: GET /app/"
    assert found.explanation == "The token has expired."
    assert found.notes == "The token expired 12 s ago."
    assert "SHIM_JWT_LEEWAY" in found.remedy


def test_braces_in_a_value_have_no_effect() -> None:
    record = {"kind": "account_created", "account": "{user.__class__}", "user": "{0}"}
    assert in_words(record).title == "The account {user.__class__} was created for {0}"


def test_an_unknown_kind_is_shown_by_its_name() -> None:
    assert in_words({"kind": "moon_landed", "detail": "twice"}).title == "moon landed"


def test_an_unknown_reason_is_shown_by_its_name() -> None:
    found = in_words({"kind": "request_decision", "verdict": "rejected", "reason": "too_new"})
    assert found.explanation == "Too new."
    assert not found.remedy


def test_a_note_that_repeats_the_reason_is_left_out() -> None:
    record = {
        "kind": "request_decision",
        "verdict": "rejected",
        "reason": "group_not_allowed",
        "notes": ["in no group of SHIM_ALLOWED_GROUPS", "the groups were cut"],
    }
    assert in_words(record).notes == "The groups were cut."


def test_the_warnings_about_the_settings_are_in_words() -> None:
    record = {"kind": "configuration_loaded", "warnings": ["SHIM_JWKS_URL is http"]}
    assert in_words(record).explanation == "SHIM_JWKS_URL is http."


def test_an_action_without_a_target_names_none() -> None:
    record = {"kind": "admin_action", "actor": "token", "action": "reload", "result": "done"}
    assert in_words(record).title == "token: reload, done"
    assert in_words({**record, "target": "x"}).title == "token: reload x, done"


def test_the_name_of_a_changed_field_stays_as_it_is() -> None:
    record = {"kind": "account_changed", "account": "ada", "changes": ["isAdmin: no → yes"]}
    assert in_words(record).explanation == "isAdmin: no → yes."
    assert in_words({**record, "changes": ["name: A → B"]}).explanation == "Name: A → B."
