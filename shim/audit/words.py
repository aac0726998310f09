"""Say in words what an event means, and what to do about it.

Pure functions of a record, as `to_record` creates it or the trail stores it. The sentences contain texts of
clients, so the caller escapes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from shim.proxy.failures import Failure
from shim.trust.reasons import Reason, Verdict

Record: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Words:
    """An event in words. `label` is one or two words, such as the verdict; `title` says what happened,
    as a sentence without its full stop; `explanation` is the reason, `remedy` what to do, `notes` is more
    about the event; these can be empty."""

    label: str
    title: str
    explanation: str = ""
    remedy: str = ""
    notes: str = ""


def in_words(record: Record) -> Words:
    """Return the event in words."""
    kind = str(record.get("kind", ""))
    label, template = _KINDS.get(kind, ("event", kind.replace("_", " ")))
    if kind == "admin_action" and not record.get("target"):
        template = "{actor}: {action}, {result}"
    reason = reason_of(record.get("reason"))
    if kind == "request_decision":
        return Words(
            str(record.get("verdict")),
            _requested(record),
            _explanation(record, reason),
            _remedy(reason),
            _notes(record, already_said=_explanation(record, reason)),
        )
    if kind == "account_denied":
        return Words(label, _filled(template, record), _detail(record), _remedy(reason))
    if kind == "identity_seen":
        return Words(label, _filled(template, record), _explanation(record, reason))
    if kind == "request_failed":
        explanation, remedy = _failure(str(record.get("reason", "")))
        return Words(label, _requested(record), _sentence(explanation), remedy)
    if kind == "navidrome_token_found":
        name = str(record.get("reason", ""))
        return Words(label, _requested(record), _sentence(_TOKENS.get(name, name)))
    explanation = " ".join(filter(None, (_detail(record), _changes(record))))
    remedy = str(record.get("remedy") or _REMEDIES.get(kind, ""))
    return Words(label, _filled(template, record), explanation, remedy, _notes(record))


def reason_of(name: object) -> Reason | None:
    """Return the reason with this name, None for another name."""
    return _REASONS.get(str(name))


def _remedy(reason: Reason | None) -> str:
    return "" if reason is None else reason.remedy


def _failure(name: str) -> tuple[str, str]:
    failure = _FAILURES.get(name)
    return (name.replace("_", " "), "") if failure is None else (failure.cause, failure.remedy)


def _requested(record: Record) -> str:
    """Return the person, if the request named one, and the request line."""
    request = f"{record.get('method', '')} {record.get('path', '')}".strip()
    person = record.get("user") or record.get("claimed_user") or record.get("account")
    return f"{person}: {request}" if person else request


def _explanation(record: Record, reason: Reason | None) -> str:
    name = str(record.get("reason", ""))
    text = name.replace("_", " ") if reason is None else reason.text
    return _sentence(text)


def _detail(record: Record) -> str:
    return _sentence(str(record.get("detail") or ""))


def _changes(record: Record) -> str:
    found = [*record.get("changes", ())]
    found += [f"added {entry}" for entry in record.get("added", ())]
    found += [f"removed {entry}" for entry in record.get("removed", ())]
    found += record.get("faults", ())
    found += record.get("warnings", ())
    return _sentence("; ".join(map(str, found)))


def _notes(record: Record, already_said: str = "") -> str:
    """Return the notes that `already_said` does not say already."""
    known = already_said.lower()
    notes = (str(note) for note in record.get("notes", ()))
    return " ".join(_sentence(note) for note in notes if note.lower().rstrip(".") not in known)


def _sentence(text: str) -> str:
    text = text.strip()
    if not text:
        return ""
    # The name of a field, such as isAdmin, stays as it is.
    is_name = text.partition(":")[0].isalnum() and not text.partition(":")[0].islower()
    first = text if is_name else text[0].upper() + text[1:]
    return first if first.endswith((".", "!", "?", "…")) else f"{first}."


class _Fields(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return "–"


def _filled(template: str, record: Record) -> str:
    """Return the template with the record's fields. Braces in a value have no effect."""
    values = {
        name: ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        for name, value in record.items()
    }
    return template.format_map(_Fields(values))


_REASONS: Final = {str(reason): reason for reason in Reason}
_FAILURES: Final = {str(failure): failure for failure in Failure}

# A label and what happened, with the fields of the record.
_KINDS: Final[Mapping[str, tuple[str, str]]] = {
    "identity_seen": (str(Verdict.AUTHENTICATED), "{user} used the server, from {client}"),
    "request_failed": ("failed", ""),
    "navidrome_token_found": ("token", ""),
    "account_denied": ("no account", "{user} got no account"),
    "account_created": ("account", "The account {account} was created for {user}"),
    "account_changed": ("account", "The account {account} was changed"),
    "account_demotion_skipped": ("account", "The account {account} stays an admin"),
    "account_linked": ("account", "The existing account {account} was linked to {user}"),
    "account_unlinked": ("account", "The account {account} was unlinked from {user}"),
    "account_locked": ("account", "The account {account} was locked"),
    "account_readmitted": ("account", "{user} may use the account {account} again"),
    "account_renamed": ("account", "{previous_account} was renamed to {account} in Navidrome"),
    "account_binding_removed": ("account", "The account {account} was deleted in Navidrome"),
    "account_recreated_by_race": (
        "account",
        "The deleted account {account} was created again by a write",
    ),
    "account_rebound": ("account", "The account {account} was bound to another id of {user}"),
    "provisioning_failed": ("account", "A change to an account failed"),
    "admin_created": ("account", "The shim created its own account {account}"),
    "own_account_secured": (
        "account",
        "The account {account} got a new password, for the shim alone",
    ),
    "provisioning_ready": (
        "service",
        "Accounts can be managed: {account_count} accounts, {binding_count} linked",
    ),
    "provisioning_unavailable": ("service", "Accounts cannot be managed"),
    "empty_passwords_found": ("account", "An empty password opens {accounts}"),
    "device_added": ("device", "{account} got a password for the device {device_name}"),
    "device_renamed": ("device", "A device of {account} is now named {device_name}"),
    "device_revoked": ("device", "The device {device_name} of {account} was revoked ({reason})"),
    "device_key_rotated": ("device", "{device_count} device passwords got a new key"),
    "device_login_failed": ("device", "Wrong credentials of an app, from {client} ({reason})"),
    "devices_available": ("device", "Device passwords work again"),
    "devices_unavailable": ("device", "Device passwords are refused"),
    "control_token_rejected": ("token", "A control token from {client} was refused ({reason})"),
    "admin_action": ("action", "{actor}: {action} {target}, {result}"),
    "configuration_loaded": ("settings", "The settings are in force"),
    "reload_rejected": ("settings", "A reload was rejected: the old settings stay in force"),
    "policy_changed": ("settings", "A new policy is in force: {subject}"),
    "started": ("service", "The shim started, version {version}"),
    "stopped": ("service", "The shim stopped ({trigger})"),
    "upstream_up": ("service", "Navidrome responds"),
    "upstream_down": ("service", "Navidrome stopped responding"),
    "name_lookup_failed": ("service", "The host name {host} could not be resolved"),
    "name_resolved": ("service", "The host name {host} was resolved again"),
    "key_set_failed": ("service", "The provider's key set could not be fetched"),
    "key_set_fetched": ("service", "The provider's key set was fetched"),
    "events_dropped": ("trail", "{dropped} events were not stored by {sink}"),
    "audit_chain_started": ("trail", "A new chain of the trail began"),
    "audit_rows_removed": (
        "trail",
        "The events {first_index} to {last_index} were removed from the trail ({reason})",
    ),
    "audit_database_replaced": ("trail", "The trail's database was replaced by a new one"),
    "audit_unavailable": ("trail", "Events could not be stored"),
    "audit_available": ("trail", "Events are stored again, after {down_seconds} seconds"),
}

_REMEDIES: Final[Mapping[str, str]] = {
    "account_linked": (
        "Check that the account belongs to this person. If not, lock it, then unlink it. After all users "
        "have signed in once, set SHIM_LINK_EXISTING=none."
    ),
    "account_locked": "To let the person in again, correct the groups at the identity provider.",
    "account_recreated_by_race": "Check that the account no longer exists in Navidrome.",
    "provisioning_failed": "Check Navidrome and its log. The shim tries again with the next request.",
    "empty_passwords_found": "Set a password for each of these accounts in Navidrome, or lock them.",
    "account_rebound": "If you did not expect this, lock the account, and see who ran the command.",
    "device_login_failed": (
        "If the person says that an app does not connect, check its user name and password. Many failures "
        "from one address can be password guessing: block the address at the edge."
    ),
    "control_token_rejected": (
        "If a program of yours has an old SHIM_CONTROL_TOKEN, correct it there. If not, somebody guesses: "
        "let only your own machines reach SHIM_CONTROL_LISTEN."
    ),
    "reload_rejected": "Correct the settings that are named, then reload again.",
    "upstream_down": "Check that Navidrome runs, and that SHIM_UPSTREAM is right.",
    "name_lookup_failed": "Check the name, and the name server of this machine.",
    "key_set_failed": "Check SHIM_JWKS_URL, and the connection to the provider.",
    "events_dropped": "Check the disk, and the database of the trail.",
    "audit_database_replaced": "Keep the old file: it has the events before.",
    "audit_unavailable": "Check the disk, and the database of the trail.",
    "own_account_secured": "If you did not expect this, check who created the account in Navidrome.",
}

_TOKENS: Final[Mapping[str, str]] = {
    "navidrome_token_void": "the Navidrome token was issued before the account was locked, and was removed",
    "token_mismatch": "the Navidrome token belongs to another account than the identity, and was removed",
    "token_without_identity": "the request had a Navidrome token and no identity; the token was forwarded",
}
