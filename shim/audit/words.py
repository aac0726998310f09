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
    as a sentence without its full stop; `why` is the reason, `remedy` what to do, `notes` is more about the
    event; these can be empty."""

    label: str
    title: str
    why: str = ""
    remedy: str = ""
    notes: str = ""


def in_words(record: Record) -> Words:
    """Return the event in words."""
    kind = str(record.get("kind", ""))
    label, template = _KINDS.get(kind, ("event", kind.replace("_", " ")))
    reason = reason_of(record.get("reason"))
    if kind == "request_decision":
        return Words(
            str(record.get("verdict")),
            _requested(record),
            _why(record, reason),
            remedy_of(reason),
            _notes(record),
        )
    if kind == "account_denied":
        return Words(label, _filled(template, record), _detail(record), remedy_of(reason))
    if kind == "identity_seen":
        return Words(label, _filled(template, record), _why(record, reason))
    if kind == "request_failed":
        why, remedy = _failure(str(record.get("reason", "")))
        return Words(label, _requested(record), _sentence(why), remedy)
    if kind == "navidrome_token_found":
        word = str(record.get("reason", ""))
        return Words(label, _requested(record), _sentence(_TOKENS.get(word, word)))
    why = " ".join(filter(None, (_detail(record), _changes(record))))
    remedy = str(record.get("remedy") or _REMEDIES.get(kind, ""))
    return Words(label, _filled(template, record), why, remedy, _notes(record))


def remedy_of(reason: Reason | None) -> str:
    """Return what an administrator can change about a decision with this reason, or nothing."""
    return "" if reason is None else _REASON_REMEDIES.get(reason, "")


def reason_of(name: object) -> Reason | None:
    """Return the reason with this name, None for another name."""
    return _REASONS.get(str(name))


def _failure(name: str) -> tuple[str, str]:
    failure = _FAILURES.get(name)
    return (name.replace("_", " "), "") if failure is None else _FAILURE_WORDS[failure]


def _requested(record: Record) -> str:
    """Return the person, if the request named one, and the request line."""
    request = f"{record.get('method', '')} {record.get('path', '')}".strip()
    person = record.get("user") or record.get("claimed_user") or record.get("account")
    return f"{person}: {request}" if person else request


def _why(record: Record, reason: Reason | None) -> str:
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
    return _sentence("; ".join(map(str, found)))


def _notes(record: Record) -> str:
    return " ".join(_sentence(str(note)) for note in record.get("notes", ()))


def _sentence(text: str) -> str:
    text = text.strip()
    if not text:
        return ""
    first = text[0].upper() + text[1:]
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
    "identity_seen": (str(Verdict.AUTHENTICATED), "{user} was here, from {client}"),
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
    "reload_rejected": "Correct the settings that are named, then reload again.",
    "upstream_down": "Check that Navidrome runs, and that SHIM_UPSTREAM is right.",
    "name_lookup_failed": "Check the name, and the name server of this machine.",
    "key_set_failed": "Check SHIM_JWKS_URL, and the connection to the provider.",
    "events_dropped": "Check the disk, and the database of the trail.",
    "audit_database_replaced": "Keep the old file: it has the events before.",
    "audit_unavailable": "Check the disk, and the database of the trail.",
    "own_account_secured": "If you did not expect this, check who created the account in Navidrome.",
}

_CHECK_NAVIDROME: Final = "Check that Navidrome runs, and look at its log."
_TOKENS: Final[Mapping[str, str]] = {
    "navidrome_token_void": "the Navidrome token was issued before the account was locked, and was removed",
    "token_mismatch": "the Navidrome token belongs to another account than the identity, and was removed",
    "token_without_identity": "the request had a Navidrome token and no identity; the token was forwarded",
}

_FAILURE_WORDS: Final[Mapping[Failure, tuple[str, str]]] = {
    Failure.CLIENT_LEFT: (
        "the client closed the connection before the response was complete",
        "No change is needed: players do this with each track that is skipped.",
    ),
    Failure.SEND_TIMEOUT: ("the client did not read the response in time", ""),
    Failure.BODY_TIMEOUT: ("the body of the request took too long to arrive", ""),
    Failure.SENT_AHEAD: ("the client sent too much before it read the last response", ""),
    Failure.SHUTDOWN: ("the shim was stopping", ""),
    Failure.DESCRIPTORS_EXHAUSTED: (
        "no more files could be opened",
        "Raise the limit of open files (ulimit -n).",
    ),
    Failure.BUFFER_FULL: ("the bodies that were waiting filled the buffer", ""),
    Failure.POOL_EXHAUSTED: (
        "all connections to Navidrome were in use",
        "If it happens often, raise SHIM_MAX_UPSTREAM_CONNECTIONS.",
    ),
    Failure.ACCOUNT_TIMEOUT: (
        "the account took too long",
        "Check Navidrome and SHIM_PROVISIONING_TIMEOUT.",
    ),
    Failure.ACCOUNT_UNAVAILABLE: ("the account could not be prepared", "See the log."),
    Failure.ACCOUNT_REVOKED: ("the account lost its rights during the request", ""),
    Failure.CONNECT_FAILED: ("no connection to Navidrome", _CHECK_NAVIDROME),
    Failure.CONNECT_TIMEOUT: ("Navidrome did not accept the connection in time", _CHECK_NAVIDROME),
    Failure.UPSTREAM_RESPONSE_TIMEOUT: ("Navidrome did not respond in time", _CHECK_NAVIDROME),
    Failure.UPSTREAM_RESPONSE_MISSING: (
        "Navidrome closed the connection without a response",
        _CHECK_NAVIDROME,
    ),
    Failure.UPSTREAM_RESPONSE_MALFORMED: (
        "Navidrome's response was not valid HTTP",
        _CHECK_NAVIDROME,
    ),
    Failure.UPSTREAM_RESPONSE_TRUNCATED: (
        "Navidrome ended its response early",
        _CHECK_NAVIDROME,
    ),
}

_EDGE: Final = "Change the edge's configuration"
_REASON_REMEDIES: Final[Mapping[Reason, str]] = {
    Reason.UNTRUSTED_PEER: (
        "If the peer is your edge, add its address to SHIM_REVERSE_PROXY_WHITELIST. If not, somebody "
        "reaches the shim past the edge: block this route in the network."
    ),
    Reason.PUBLIC_PATH: (
        "This is normal for apps and for visitors of open paths. If the edge authenticates this path, "
        "remove it from SHIM_PUBLIC_PATHS, or set SHIM_PUBLIC_PATH_PROOF."
    ),
    Reason.OUTSIDE_BASE_PATH: "If Navidrome is below another path, set SHIM_BASE_PATH.",
    Reason.NON_ASCII_PATH: (
        "No change is needed: no path of Navidrome that needs an identity has such a byte."
    ),
    Reason.BASE_PATH_MISMATCH: "Set SHIM_BASE_PATH to the path of Navidrome's ND_BASEURL.",
    Reason.SPOOFED_USER_HEADER: (
        "No change is needed: the header was removed. If the client is one of yours, stop it from sending "
        "the header."
    ),
    Reason.NAVIDROME_TOKEN_VOID: "The person must sign in again. If the account is locked, see Accounts.",
    Reason.MALFORMED_HEAD: (
        "If the client is one of yours, correct the request. Otherwise no change is needed."
    ),
    Reason.AMBIGUOUS_TARGET: (
        "If a real app sends this path, report it. Otherwise no change is needed: such paths are used in "
        "attacks."
    ),
    Reason.AMBIGUOUS_FRAMING: (
        "Check the edge, which passed this on. Such requests are used to smuggle a second request."
    ),
    Reason.AMBIGUOUS_HOST: "Check that the edge sends exactly one Host header.",
    Reason.FRAMING_ALIAS: "Make the edge delete headers with underscores or other unusual characters.",
    Reason.UPGRADE_REJECTED: (
        "If a real app sends this, check that the edge passes WebSocket headers unchanged."
    ),
    Reason.METHOD_NOT_IMPLEMENTED: "No change is needed: Navidrome does not use this method.",
    Reason.HEAD_TOO_LARGE: (
        "If the request is a real one, raise SHIM_MAX_HEADER_BYTES or SHIM_MAX_HEADERS, or make the cookies "
        "smaller."
    ),
    Reason.HEAD_TIMEOUT: "If the client's connection is slow, raise SHIM_REQUEST_HEADER_TIMEOUT.",
    Reason.BODY_TOO_LARGE: "No change is needed: no app sends a body of this size here.",
    Reason.HEADER_ALIAS: (
        f"{_EDGE}: it must delete the header from every request of a client. For Traefik, set "
        "aliasheadersstrategy=delete."
    ),
    Reason.IDENTITY_DUPLICATE: (
        f"{_EDGE}: it must replace the identity headers of a client, not append to them."
    ),
    Reason.IDENTITY_INVALID: (
        "Correct the value at the identity provider: no control characters, valid UTF-8, not too long."
    ),
    Reason.IDENTITY_INCOMPLETE: (
        "Make the edge forward the uid and the groups too (authResponseHeaders in Traefik, copy_headers in "
        "Caddy)."
    ),
    Reason.EMAIL_NOT_ALLOWED: (
        "If this person may sign in, add the domain of the e-mail to SHIM_EMAIL_DOMAINS."
    ),
    Reason.EMAIL_NOT_VERIFIED: (
        "Let the person confirm the e-mail at the identity provider. authentik marks every e-mail as "
        "not verified until you change its scope mapping for e-mail."
    ),
    Reason.UID_SOURCE_CHANGED: (
        "After a change of the provider, run `navidrome-shim users rebind --all --dry-run`, then without "
        "--dry-run."
    ),
    Reason.CREDENTIALS_CONFLICT: (
        "Let the app send one kind of credentials: an API key, or user name and password, and each once."
    ),
    Reason.API_KEY_UNKNOWN: (
        "If the app belongs to one of your users, it needs the password of a new device. Otherwise no change "
        "is needed."
    ),
    Reason.DEVICE_SIGN_IN_DUE: (
        "The person must sign in once with a browser. SHIM_DEVICE_SIGN_IN_DAYS sets how often."
    ),
    Reason.TOO_MANY_FAILURES: (
        "No change is needed: the limit ends by itself. If an app has an old password, correct it there."
    ),
    Reason.IDENTITY_REQUIRED: (
        "The person must sign in at the identity provider. If the edge does not ask for it, check its router "
        "for this path."
    ),
    Reason.SECRET_MISSING: (
        "Make the edge add the header of SHIM_PROXY_SECRET_HEADER on the authenticated route, with the "
        "value of SHIM_PROXY_SECRET."
    ),
    Reason.SECRET_MISMATCH: "Give the edge and the shim the same secret (SHIM_PROXY_SECRET).",
    Reason.JWT_MISSING: (
        "Make the edge forward the header of SHIM_JWT_HEADER. authentik's proxy providers have no token "
        "that can be verified: use SHIM_PROXY_SECRET with them."
    ),
    Reason.JWT_INVALID: (
        "Compare issuer and audience of the token with SHIM_JWT_ISSUER and SHIM_JWT_AUDIENCE, and its "
        "algorithm with the key set."
    ),
    Reason.JWT_UNKNOWN_KEY: "Check SHIM_JWKS_URL. If the provider changed its key, reload the settings.",
    Reason.JWT_EXPIRED: (
        "The person must sign in again. If it happens often, the edge keeps old tokens, or the clocks differ "
        "(SHIM_JWT_LEEWAY)."
    ),
    Reason.JWT_NOT_YET_VALID: "Set the clocks of the provider and of this machine (SHIM_JWT_LEEWAY).",
    Reason.JWT_CLAIM_MISMATCH: (
        f"{_EDGE}: the headers and the token must come from the same sign-in. A client may have sent one of "
        "them."
    ),
    Reason.UNTRUSTED_PEER_REJECTED: (
        "If the peer is your edge, add its address to SHIM_REVERSE_PROXY_WHITELIST. If not, no change is "
        "needed."
    ),
    Reason.CROSS_SITE: (
        "No change is needed if you do not know the other site. If the edge changes the Host header, make "
        "it send X-Forwarded-Host."
    ),
    Reason.CREATE_ADMIN_DISABLED: "No change is needed: the shim creates the first admin itself.",
    Reason.LOCAL_LOGIN_DISABLED: (
        "The person must sign in at the identity provider. To allow Navidrome's own login, set "
        "SHIM_LOCAL_LOGIN=true."
    ),
    Reason.NOT_FOUND: (
        "To open the console to this person, make them a member of a group in SHIM_ADMIN_GROUPS."
    ),
    Reason.GROUP_NOT_ALLOWED: (
        "To let the person in, add them to a group of SHIM_ALLOWED_GROUPS at the identity provider, or add "
        "one of their groups to the setting."
    ),
    Reason.IDENTITY_CONFLICT: (
        "If the account belongs to this person, unlink it from the other identity, or set "
        "SHIM_LINK_EXISTING. If not, give one of the two another name."
    ),
    Reason.RESERVED_ACCOUNT: (
        "Give the person another user name, or remove the name from SHIM_PROTECTED_USERS."
    ),
    Reason.RENAME_NOT_FOLLOWED: (
        "Set SHIM_FOLLOW_RENAMES, or rename the account in Navidrome, or restore the old name at the "
        "provider."
    ),
    Reason.NAME_HELD: "Wait, or end the hold with `navidrome-shim users holds end NAME`.",
    Reason.ACCOUNT_PENDING: (
        "The person must try again. If it happens again, check Navidrome and SHIM_PROVISIONING_TIMEOUT."
    ),
    Reason.NAVIDROME_UNAVAILABLE: "Check that Navidrome runs, and that SHIM_UPSTREAM is right.",
    Reason.NAVIDROME_ACCESS_DENIED: (
        "See Health on the Overview, or run `navidrome-shim check`: both have the remedy."
    ),
    Reason.STORE_UNAVAILABLE: "Check the disk, and the database that SHIM_DATABASE_URL names.",
    Reason.AUDIT_UNAVAILABLE: "Check the disk, and the database of the audit trail.",
    Reason.DATABASE_UNCONFIRMED: (
        "Restore the database, or confirm the new one with `navidrome-shim database confirm-new`."
    ),
    Reason.ACCOUNT_UNAVAILABLE: "Look for the request id in the log.",
    Reason.USER_HEADER_MISMATCH: "See Health on the Overview: it names Navidrome's setting to change.",
}
