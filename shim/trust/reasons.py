"""The verdicts, path classes and reasons of a decision.

A reason is one row of `Reason`: name, verdict, status and text. `explain`, the log, the metrics and the
audit pages read it. A new reason needs only its row and the code that raises it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Self


class Verdict(StrEnum):
    """The result of a decision."""

    AUTHENTICATED = "authenticated"
    ANONYMOUS = "anonymous"
    STRIPPED = "stripped"
    REJECTED = "rejected"


class PathClass(StrEnum):
    """The party that authenticates a path: the edge (protected), none (public), or the shim (internal)."""

    PROTECTED = "protected"
    PUBLIC = "public"
    INTERNAL = "internal"


class Reason(StrEnum):
    """The reason of a verdict.

    Each reason is one row: its name in the log and the metrics, the verdict, the status of the response,
    and the text that `explain` prints.
    """

    verdict: Verdict
    status: int
    text: str

    def __new__(cls, name: str, verdict: Verdict, status: int, text: str) -> Self:
        """Create a row of the table."""
        reason = str.__new__(cls, name)
        reason._value_ = name
        reason.verdict = verdict
        reason.status = status
        reason.text = text
        return reason

    # authenticated
    TRUSTED_PEER = (
        "trusted_peer",
        Verdict.AUTHENTICATED,
        200,
        "the peer is on SHIM_REVERSE_PROXY_WHITELIST, and no other proof is required",
    )
    PROXY_SECRET = ("proxy_secret", Verdict.AUTHENTICATED, 200, "the request has the shared secret")
    VERIFIED_JWT = (
        "verified_jwt",
        Verdict.AUTHENTICATED,
        200,
        "the provider's token is valid and has this identity",
    )
    DEVICE_PASSWORD = (
        "device_password",
        Verdict.AUTHENTICATED,
        200,
        "the request has the password of a device, which a person added",
    )
    # anonymous
    NO_IDENTITY = (
        "no_identity",
        Verdict.ANONYMOUS,
        200,
        "the request has no identity; it is forwarded without a user header",
    )
    # stripped
    UNTRUSTED_PEER = (
        "untrusted_peer",
        Verdict.STRIPPED,
        200,
        "the peer is not on SHIM_REVERSE_PROXY_WHITELIST, so its identity headers do not count",
    )
    PUBLIC_PATH = (
        "public_path",
        Verdict.STRIPPED,
        200,
        "the edge does not authenticate this path, so identity headers do not count on it",
    )
    OUTSIDE_BASE_PATH = (
        "outside_base_path",
        Verdict.STRIPPED,
        200,
        "the path is outside SHIM_BASE_PATH, so identity headers do not count on it",
    )
    NON_ASCII_PATH = (
        "non_ascii_path",
        Verdict.STRIPPED,
        200,
        (
            "the path has a byte beyond ASCII, which an edge may read as a public path, so "
            "identity headers do not count on it"
        ),
    )
    BASE_PATH_MISMATCH = (
        "base_path_mismatch",
        Verdict.STRIPPED,
        200,
        "Navidrome's base path differs from SHIM_BASE_PATH, so no identity is trusted",
    )
    SPOOFED_USER_HEADER = (
        "spoofed_user_header",
        Verdict.STRIPPED,
        200,
        "the client sent Navidrome's user header, which is removed",
    )
    NAVIDROME_TOKEN_VOID = (
        "navidrome_token_void",
        Verdict.STRIPPED,
        200,
        "the request has a void Navidrome token, which is removed",
    )
    # rejected: the request itself
    MALFORMED_HEAD = ("malformed_head", Verdict.REJECTED, 400, "the request head is not valid HTTP")
    AMBIGUOUS_TARGET = (
        "ambiguous_target",
        Verdict.REJECTED,
        400,
        "two parsers could read the request target differently",
    )
    AMBIGUOUS_FRAMING = (
        "ambiguous_framing",
        Verdict.REJECTED,
        400,
        "two parsers could read the length of the body differently",
    )
    AMBIGUOUS_HOST = (
        "ambiguous_host",
        Verdict.REJECTED,
        400,
        "the Host header is missing, repeated or invalid",
    )
    FRAMING_ALIAS = (
        "framing_alias",
        Verdict.REJECTED,
        400,
        "a header name is similar to a framing header",
    )
    UPGRADE_REJECTED = (
        "upgrade_rejected",
        Verdict.REJECTED,
        400,
        "the upgrade is not a valid WebSocket handshake",
    )
    METHOD_NOT_IMPLEMENTED = (
        "method_not_implemented",
        Verdict.REJECTED,
        501,
        "the method is not supported",
    )
    HEAD_TOO_LARGE = (
        "head_too_large",
        Verdict.REJECTED,
        431,
        "the request head exceeds SHIM_MAX_HEADER_BYTES or SHIM_MAX_HEADERS",
    )
    HEAD_TIMEOUT = (
        "head_timeout",
        Verdict.REJECTED,
        408,
        "the request head took longer than SHIM_REQUEST_HEADER_TIMEOUT",
    )
    BODY_TOO_LARGE = (
        "body_too_large",
        Verdict.REJECTED,
        413,
        "the request body is larger than this path allows",
    )
    # rejected: the identity
    HEADER_ALIAS = (
        "header_alias",
        Verdict.REJECTED,
        400,
        "a header name is an alias of an identity header: the edge must delete it",
    )
    IDENTITY_DUPLICATE = (
        "identity_duplicate",
        Verdict.REJECTED,
        400,
        "an identity header occurs twice",
    )
    IDENTITY_INVALID = (
        "identity_invalid",
        Verdict.REJECTED,
        400,
        "an identity header has an invalid value",
    )
    IDENTITY_INCOMPLETE = (
        "identity_incomplete",
        Verdict.REJECTED,
        403,
        "a header that the settings need is missing (the uid or the groups)",
    )
    EMAIL_NOT_ALLOWED = (
        "email_not_allowed",
        Verdict.REJECTED,
        403,
        "the e-mail is the user name or the uid, and its domain is not in SHIM_EMAIL_DOMAINS",
    )
    EMAIL_NOT_VERIFIED = (
        "email_not_verified",
        Verdict.REJECTED,
        403,
        "the e-mail is the user name or the uid, and the token says that it is not verified",
    )
    IDENTITY_REQUIRED = (
        "identity_required",
        Verdict.REJECTED,
        401,
        "SHIM_REQUIRE_IDENTITY is on, and the request has no identity",
    )
    SECRET_MISSING = (
        "secret_missing",
        Verdict.REJECTED,
        401,
        "SHIM_PROXY_SECRET is set, and the request does not have it",
    )
    SECRET_MISMATCH = (
        "secret_mismatch",
        Verdict.REJECTED,
        401,
        "the request has another secret than SHIM_PROXY_SECRET",
    )
    JWT_MISSING = (
        "jwt_missing",
        Verdict.REJECTED,
        401,
        "SHIM_JWT_VERIFY is required, and the request has no token",
    )
    JWT_INVALID = ("jwt_invalid", Verdict.REJECTED, 401, "the token is invalid")
    JWT_UNKNOWN_KEY = (
        "jwt_unknown_key",
        Verdict.REJECTED,
        401,
        "the token is signed with a key that is not in the key set",
    )
    JWT_EXPIRED = ("jwt_expired", Verdict.REJECTED, 401, "the token has expired")
    JWT_NOT_YET_VALID = ("jwt_not_yet_valid", Verdict.REJECTED, 401, "the token is not valid yet")
    JWT_CLAIM_MISMATCH = (
        "jwt_claim_mismatch",
        Verdict.REJECTED,
        401,
        "the token has another identity than the headers",
    )
    # rejected: the policy
    UNTRUSTED_PEER_REJECTED = (
        "untrusted_peer_rejected",
        Verdict.REJECTED,
        403,
        "SHIM_UNTRUSTED_PEERS is reject, and the peer is not trusted",
    )
    CROSS_SITE = (
        "cross_site",
        Verdict.REJECTED,
        403,
        "another site made the browser send the request",
    )
    CREATE_ADMIN_DISABLED = (
        "create_admin_disabled",
        Verdict.REJECTED,
        403,
        "POST /auth/createAdmin is never forwarded while provisioning is on",
    )
    LOCAL_LOGIN_DISABLED = (
        "local_login_disabled",
        Verdict.REJECTED,
        403,
        "SHIM_REQUIRE_IDENTITY is on, and SHIM_LOCAL_LOGIN is not",
    )
    NOT_FOUND = (
        "not_found",
        Verdict.REJECTED,
        404,
        (
            "the shim's own pages need an authenticated identity, and a group of SHIM_ALLOWED_GROUPS if that "
            "is set; the console also needs a group of SHIM_ADMIN_GROUPS, and a proof: SHIM_PROXY_SECRET or "
            "a verified token"
        ),
    )
    # rejected: the account
    GROUP_NOT_ALLOWED = (
        "group_not_allowed",
        Verdict.REJECTED,
        403,
        "the identity is in no group of SHIM_ALLOWED_GROUPS",
    )
    IDENTITY_CONFLICT = (
        "identity_conflict",
        Verdict.REJECTED,
        403,
        "the account with this name is not linked to this identity, and cannot be",
    )
    UID_SOURCE_CHANGED = (
        "uid_source_changed",
        Verdict.REJECTED,
        403,
        "the account with this uid is bound to a uid of another source; see users rebind",
    )
    RESERVED_ACCOUNT = (
        "reserved_account",
        Verdict.REJECTED,
        403,
        "the name belongs to the shim's own account or is in SHIM_PROTECTED_USERS",
    )
    RENAME_NOT_FOLLOWED = (
        "rename_not_followed",
        Verdict.REJECTED,
        403,
        (
            "the provider renamed the user, and SHIM_FOLLOW_RENAMES does not allow to rename "
            "the account"
        ),
    )
    NAME_HELD = (
        "name_held",
        Verdict.REJECTED,
        403,
        "the name belonged to another account until recently, and is held for its user",
    )
    ACCOUNT_PENDING = ("account_pending", Verdict.REJECTED, 503, "the account is not ready yet")
    NAVIDROME_UNAVAILABLE = (
        "navidrome_unavailable",
        Verdict.REJECTED,
        503,
        "Navidrome's API does not respond",
    )
    NAVIDROME_ACCESS_DENIED = (
        "navidrome_access_denied",
        Verdict.REJECTED,
        503,
        "Navidrome does not let the shim manage accounts",
    )
    STORE_UNAVAILABLE = (
        "store_unavailable",
        Verdict.REJECTED,
        503,
        "the database does not respond or cannot be used",
    )
    DATABASE_UNCONFIRMED = (
        "database_unconfirmed",
        Verdict.REJECTED,
        503,
        "the database is new or was lost, and was not confirmed",
    )
    ACCOUNT_UNAVAILABLE = (
        "account_unavailable",
        Verdict.REJECTED,
        503,
        "an internal error occurred while preparing the account",
    )
    # rejected: the credentials of a Subsonic app, with HTTP status 200 as Subsonic has it
    CREDENTIALS_CONFLICT = (
        "credentials_conflict",
        Verdict.REJECTED,
        200,
        "a Subsonic request has credentials twice, or an API key beside others",
    )
    API_KEY_UNKNOWN = (
        "api_key_unknown",
        Verdict.REJECTED,
        200,
        "a Subsonic request has an API key that belongs to no device",
    )
    DEVICE_SIGN_IN_DUE = (
        "device_sign_in_due",
        Verdict.REJECTED,
        200,
        "the device's owner has not signed in for SHIM_DEVICE_SIGN_IN_DAYS",
    )
    TOO_MANY_FAILURES = (
        "too_many_failures",
        Verdict.REJECTED,
        200,
        "too many sign-ins of Subsonic apps have failed",
    )
    # rejected, while Navidrome obeys another header
    USER_HEADER_MISMATCH = (
        "user_header_mismatch",
        Verdict.REJECTED,
        503,
        "Navidrome does not obey SHIM_REVERSE_PROXY_USER_HEADER, so no identity is trusted",
    )
    # rejected, while the audit trail cannot be written
    AUDIT_UNAVAILABLE = (
        "audit_unavailable",
        Verdict.REJECTED,
        503,
        "the audit trail cannot be written, and with SHIM_AUDIT_FAIL_MODE=closed no identity is trusted",
    )


# Rejected with an error in a response of status 200, as Subsonic has it.
SUBSONIC_REASONS = frozenset(
    {
        Reason.CREDENTIALS_CONFLICT,
        Reason.API_KEY_UNKNOWN,
        Reason.DEVICE_SIGN_IN_DUE,
        Reason.TOO_MANY_FAILURES,
    }
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One row of the table of all possible outcomes.

    `status` is the response status of a rejected request; it is 200 for any other outcome, for which
    Navidrome sends the response, and for `SUBSONIC_REASONS`. `index` is the position of the row in
    `OUTCOMES`: counters are a list of integers.
    """

    index: int
    verdict: Verdict
    reason: Reason
    status: int
    path_class: PathClass


OUTCOMES: tuple[Outcome, ...] = tuple(
    Outcome(index, reason.verdict, reason, reason.status, path_class)
    for index, (reason, path_class) in enumerate(
        (reason, path_class) for reason in Reason for path_class in PathClass
    )
)
_OUTCOME: dict[tuple[Reason, PathClass], Outcome] = {
    (outcome.reason, outcome.path_class): outcome for outcome in OUTCOMES
}


def outcome(reason: Reason, path_class: PathClass) -> Outcome:
    """Return the `Outcome` of this reason on this path class."""
    return _OUTCOME[reason, path_class]
