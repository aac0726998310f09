"""The verdicts, path classes and reasons of a decision.

A reason is one row of `Reason`: its name, verdict and status, and all texts about it. `explain`, the log, the
metrics, the pages and the shim's own responses read it. A new reason needs only its row and the code that
raises it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, Self


class RowEnum(StrEnum):
    """An enumeration whose members are rows of a table: named tuples, the first value of which is the
    member's. The others become its attributes, which the class annotates in the same order."""

    def __new__(cls, name: str, *values: Any) -> Self:
        """Create a member of a row."""
        member = str.__new__(cls, name)
        member._value_ = name
        for attribute, value in zip(cls.__annotations__, values, strict=True):
            setattr(member, attribute, value)
        return member


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


class _Row(NamedTuple):
    """The values of one reason.

    `name` in the log and the metrics; `verdict`; `status` of the response; `text`: what happened, for
    `explain` and the pages. `remedy`: what an administrator can change. `message` for the client, empty for
    that of the status; `contact`: SHIM_SUPPORT_CONTACT follows it. `other_account`: the person is signed in
    as a user without permission, so the page offers to sign out. `subsonic_code`: the error code in a
    response of status 200, as Subsonic has it; 0 for that of the status.
    """

    name: str
    verdict: Verdict
    status: int
    text: str
    remedy: str = ""
    message: str = ""
    contact: bool = False
    other_account: bool = False
    subsonic_code: int = 0


class Reason(RowEnum):
    """The reason of a verdict. Each is one row, see `_Row`."""

    verdict: Verdict
    status: int
    text: str
    remedy: str
    message: str
    contact: bool
    other_account: bool
    subsonic_code: int

    # authenticated
    TRUSTED_PEER = _Row(
        "trusted_peer",
        Verdict.AUTHENTICATED,
        200,
        "the peer is on SHIM_REVERSE_PROXY_WHITELIST, and no other proof is required",
    )
    PROXY_SECRET = _Row(
        "proxy_secret",
        Verdict.AUTHENTICATED,
        200,
        "the request has the shared secret",
    )
    VERIFIED_JWT = _Row(
        "verified_jwt",
        Verdict.AUTHENTICATED,
        200,
        "the provider's token is valid and has this identity",
    )
    DEVICE_PASSWORD = _Row(
        "device_password",
        Verdict.AUTHENTICATED,
        200,
        "the request has the password of a device, which a person added",
    )
    # anonymous
    NO_IDENTITY = _Row(
        "no_identity",
        Verdict.ANONYMOUS,
        200,
        "the request has no identity; it is forwarded without a user header",
    )
    # stripped
    UNTRUSTED_PEER = _Row(
        "untrusted_peer",
        Verdict.STRIPPED,
        200,
        "the peer is not on SHIM_REVERSE_PROXY_WHITELIST, so its identity headers do not count",
        remedy=(
            "If the peer is your edge, add its address to SHIM_REVERSE_PROXY_WHITELIST. If not, "
            "somebody reaches the shim without the edge: block this route in the network."
        ),
    )
    PUBLIC_PATH = _Row(
        "public_path",
        Verdict.STRIPPED,
        200,
        "the edge does not authenticate this path, so identity headers do not count on it",
        remedy=(
            "This is normal for apps and for visitors of open paths. If the edge authenticates "
            "this path, remove it from SHIM_PUBLIC_PATHS, or set SHIM_PUBLIC_PATH_PROOF."
        ),
    )
    OUTSIDE_BASE_PATH = _Row(
        "outside_base_path",
        Verdict.STRIPPED,
        200,
        "the path is outside SHIM_BASE_PATH, so identity headers do not count on it",
        remedy="If Navidrome is below another path, set SHIM_BASE_PATH.",
    )
    NON_ASCII_PATH = _Row(
        "non_ascii_path",
        Verdict.STRIPPED,
        200,
        (
            "the path has a byte beyond ASCII, which an edge may read as a public path, so "
            "identity headers do not count on it"
        ),
        remedy="No change is needed: no path of Navidrome that needs an identity has such a byte.",
    )
    BASE_PATH_MISMATCH = _Row(
        "base_path_mismatch",
        Verdict.STRIPPED,
        200,
        "Navidrome's base path differs from SHIM_BASE_PATH, so no identity is trusted",
        remedy="Set SHIM_BASE_PATH to the path of Navidrome's ND_BASEURL.",
    )
    SPOOFED_USER_HEADER = _Row(
        "spoofed_user_header",
        Verdict.STRIPPED,
        200,
        "the client sent Navidrome's user header, which is removed",
        remedy=(
            "No change is needed: the header was removed. If the client is one of yours, stop it "
            "from sending the header."
        ),
    )
    NAVIDROME_TOKEN_VOID = _Row(
        "navidrome_token_void",
        Verdict.STRIPPED,
        200,
        "the request has a void Navidrome token, which is removed",
        remedy="The person must sign in again. If the account is locked, see Accounts.",
    )
    # rejected: the request itself
    MALFORMED_HEAD = _Row(
        "malformed_head",
        Verdict.REJECTED,
        400,
        "the request head is not valid HTTP",
        remedy="If the client is one of yours, correct the request. Otherwise no change is needed.",
    )
    AMBIGUOUS_TARGET = _Row(
        "ambiguous_target",
        Verdict.REJECTED,
        400,
        "two parsers could read the request target differently",
        remedy=(
            "If a real app sends this path, report it. Otherwise no change is needed: such paths "
            "are used in attacks."
        ),
    )
    AMBIGUOUS_FRAMING = _Row(
        "ambiguous_framing",
        Verdict.REJECTED,
        400,
        "two parsers could read the length of the body differently",
        remedy=(
            "Check the edge, which passed this on. Such requests are used to smuggle a second "
            "request."
        ),
    )
    AMBIGUOUS_HOST = _Row(
        "ambiguous_host",
        Verdict.REJECTED,
        400,
        "the Host header is missing, repeated or invalid",
        remedy="Check that the edge sends exactly one Host header.",
    )
    FRAMING_ALIAS = _Row(
        "framing_alias",
        Verdict.REJECTED,
        400,
        "a header name is similar to a framing header",
        remedy="Make the edge delete headers with underscores or other unusual characters.",
    )
    UPGRADE_REJECTED = _Row(
        "upgrade_rejected",
        Verdict.REJECTED,
        400,
        "the upgrade is not a valid WebSocket handshake",
        remedy="If a real app sends this, check that the edge passes WebSocket headers unchanged.",
    )
    METHOD_NOT_IMPLEMENTED = _Row(
        "method_not_implemented",
        Verdict.REJECTED,
        501,
        "the method is not supported",
        remedy="No change is needed: Navidrome does not use this method.",
    )
    HEAD_TOO_LARGE = _Row(
        "head_too_large",
        Verdict.REJECTED,
        431,
        "the request head exceeds SHIM_MAX_HEADER_BYTES or SHIM_MAX_HEADERS",
        remedy=(
            "If the request is a real one, raise SHIM_MAX_HEADER_BYTES or SHIM_MAX_HEADERS, or "
            "make the cookies smaller."
        ),
    )
    HEAD_TIMEOUT = _Row(
        "head_timeout",
        Verdict.REJECTED,
        408,
        "the request head took longer than SHIM_REQUEST_HEADER_TIMEOUT",
        remedy="If the client's connection is slow, raise SHIM_REQUEST_HEADER_TIMEOUT.",
    )
    BODY_TOO_LARGE = _Row(
        "body_too_large",
        Verdict.REJECTED,
        413,
        "the request has a longer body or more parameters than this path allows",
        remedy="No change is needed: no app sends so much here.",
    )
    # rejected: the identity
    HEADER_ALIAS = _Row(
        "header_alias",
        Verdict.REJECTED,
        400,
        "a header name is an alias of an identity header: the edge must delete it",
        remedy=(
            "Change the edge's configuration: it must delete the header from every request of a "
            "client. For Traefik, set aliasheadersstrategy=delete."
        ),
    )
    IDENTITY_DUPLICATE = _Row(
        "identity_duplicate",
        Verdict.REJECTED,
        400,
        "an identity header occurs twice",
        remedy=(
            "Change the edge's configuration: it must replace the identity headers of a client, "
            "not append to them."
        ),
    )
    IDENTITY_INVALID = _Row(
        "identity_invalid",
        Verdict.REJECTED,
        400,
        "an identity header has an invalid value",
        remedy=(
            "Correct the value at the identity provider: no control characters, valid UTF-8, not "
            "too long."
        ),
    )
    IDENTITY_INCOMPLETE = _Row(
        "identity_incomplete",
        Verdict.REJECTED,
        403,
        "a header that the settings need is missing (the uid or the groups)",
        remedy=(
            "Make the edge forward the uid and the groups too (authResponseHeaders in Traefik, "
            "copy_headers in Caddy)."
        ),
        message=(
            "Your sign-in arrived without your user id or your groups. Contact the administrator: "
            "the reverse proxy leaves out a header."
        ),
        contact=True,
    )
    EMAIL_NOT_ALLOWED = _Row(
        "email_not_allowed",
        Verdict.REJECTED,
        403,
        "the e-mail is the user name or the uid, and its domain is not in SHIM_EMAIL_DOMAINS",
        remedy="If this person may sign in, add the domain of the e-mail to SHIM_EMAIL_DOMAINS.",
    )
    EMAIL_NOT_VERIFIED = _Row(
        "email_not_verified",
        Verdict.REJECTED,
        403,
        "the e-mail is the user name or the uid, and the token says that it is not verified",
        remedy=(
            "Let the person confirm the e-mail at the identity provider. authentik marks every "
            "e-mail as not verified until you change its scope mapping for e-mail."
        ),
    )
    IDENTITY_REQUIRED = _Row(
        "identity_required",
        Verdict.REJECTED,
        401,
        "SHIM_REQUIRE_IDENTITY is on, and the request has no identity",
        remedy=(
            "The person must sign in at the identity provider. If the edge does not ask for it, "
            "check its router for this path."
        ),
        message=(
            "You are not signed in. If you just signed in, contact the administrator: your "
            "identity did not arrive here."
        ),
        contact=True,
    )
    SECRET_MISSING = _Row(
        "secret_missing",
        Verdict.REJECTED,
        401,
        "SHIM_PROXY_SECRET is set, and the request does not have it",
        remedy=(
            "Make the edge add the header of SHIM_PROXY_SECRET_HEADER on the authenticated route, "
            "with the value of SHIM_PROXY_SECRET."
        ),
    )
    SECRET_MISMATCH = _Row(
        "secret_mismatch",
        Verdict.REJECTED,
        401,
        "the request has another secret than SHIM_PROXY_SECRET",
        remedy="Give the edge and the shim the same secret (SHIM_PROXY_SECRET).",
    )
    JWT_MISSING = _Row(
        "jwt_missing",
        Verdict.REJECTED,
        401,
        "SHIM_JWT_VERIFY is required, and the request has no token",
        remedy=(
            "Make the edge forward the header of SHIM_JWT_HEADER. authentik's proxy providers have "
            "no token that can be verified: use SHIM_PROXY_SECRET with them."
        ),
    )
    JWT_INVALID = _Row(
        "jwt_invalid",
        Verdict.REJECTED,
        401,
        "the token is invalid",
        remedy=(
            "Compare issuer and audience of the token with SHIM_JWT_ISSUER and SHIM_JWT_AUDIENCE, "
            "and its algorithm with the key set."
        ),
    )
    JWT_UNKNOWN_KEY = _Row(
        "jwt_unknown_key",
        Verdict.REJECTED,
        401,
        "the token is signed with a key that is not in the key set",
        remedy="Check SHIM_JWKS_URL. If the provider changed its key, reload the settings.",
    )
    JWT_EXPIRED = _Row(
        "jwt_expired",
        Verdict.REJECTED,
        401,
        "the token has expired",
        remedy=(
            "The person must sign in again. If it happens often, the edge keeps old tokens, or the "
            "clocks differ (SHIM_JWT_LEEWAY)."
        ),
        message="Your sign-in has expired. Sign in again.",
    )
    JWT_NOT_YET_VALID = _Row(
        "jwt_not_yet_valid",
        Verdict.REJECTED,
        401,
        "the token is not valid yet",
        remedy="Set the clocks of the provider and of this machine (SHIM_JWT_LEEWAY).",
    )
    JWT_CLAIM_MISMATCH = _Row(
        "jwt_claim_mismatch",
        Verdict.REJECTED,
        401,
        "the token has another identity than the headers",
        remedy=(
            "Change the edge's configuration: the headers and the token must come from the same "
            "sign-in. A client may have sent one of them."
        ),
    )
    # rejected: the policy
    UNTRUSTED_PEER_REJECTED = _Row(
        "untrusted_peer_rejected",
        Verdict.REJECTED,
        403,
        "SHIM_UNTRUSTED_PEERS is reject, and the peer is not trusted",
        remedy=(
            "If the peer is your edge, add its address to SHIM_REVERSE_PROXY_WHITELIST. If not, no "
            "change is needed."
        ),
    )
    CROSS_SITE = _Row(
        "cross_site",
        Verdict.REJECTED,
        403,
        "another site made the browser send the request",
        remedy=(
            "No change is needed if you do not know the other site. If the edge changes the Host "
            "header, make it send X-Forwarded-Host."
        ),
        message="The request came from another site, so it was not forwarded.",
    )
    CREATE_ADMIN_DISABLED = _Row(
        "create_admin_disabled",
        Verdict.REJECTED,
        403,
        "POST /auth/createAdmin is never forwarded while provisioning is on",
        remedy="No change is needed: the shim creates the first admin itself.",
    )
    LOCAL_LOGIN_DISABLED = _Row(
        "local_login_disabled",
        Verdict.REJECTED,
        403,
        "SHIM_REQUIRE_IDENTITY is on, and SHIM_LOCAL_LOGIN is not",
        remedy=(
            "The person must sign in at the identity provider. To allow Navidrome's own login, set "
            "SHIM_LOCAL_LOGIN=true."
        ),
        message="Password login is disabled. Sign in with your identity provider.",
    )
    NOT_FOUND = _Row(
        "not_found",
        Verdict.REJECTED,
        404,
        (
            "the shim's own pages need an authenticated identity, and a group of "
            "SHIM_ALLOWED_GROUPS if that is set; the console also needs a group of "
            "SHIM_ADMIN_GROUPS, and a proof: SHIM_PROXY_SECRET or a verified token"
        ),
        remedy=(
            "To open the console to this person, make them a member of a group in "
            "SHIM_ADMIN_GROUPS."
        ),
    )
    # rejected: the account
    GROUP_NOT_ALLOWED = _Row(
        "group_not_allowed",
        Verdict.REJECTED,
        403,
        "the identity is in no group of SHIM_ALLOWED_GROUPS",
        remedy=(
            "To let the person in, add them to a group of SHIM_ALLOWED_GROUPS at the identity "
            "provider, or add one of their groups to the setting."
        ),
        message=(
            "You are signed in, but you are not in a group that may use this music server. Ask the "
            "administrator to add you."
        ),
        contact=True,
        other_account=True,
    )
    IDENTITY_CONFLICT = _Row(
        "identity_conflict",
        Verdict.REJECTED,
        403,
        "the account with this name is not linked to this identity, and cannot be",
        remedy=(
            "If the account belongs to this person, unlink it from the other identity, or set "
            "SHIM_LINK_EXISTING. If not, give one of the two another name."
        ),
        message=(
            "This music server already has an account with your user name, and it is not linked to "
            "your sign-in. Ask the administrator to link it, or to free the name."
        ),
        contact=True,
        other_account=True,
    )
    UID_SOURCE_CHANGED = _Row(
        "uid_source_changed",
        Verdict.REJECTED,
        403,
        "the account with this uid is bound to a uid of another source; see users rebind",
        remedy=(
            "After a change of the provider, run `navidrome-shim users rebind --all --dry-run`, "
            "then without --dry-run."
        ),
    )
    RESERVED_ACCOUNT = _Row(
        "reserved_account",
        Verdict.REJECTED,
        403,
        "the name belongs to the shim's own account or is in SHIM_PROTECTED_USERS",
        remedy="Give the person another user name, or remove the name from SHIM_PROTECTED_USERS.",
        message=(
            "Your user name is reserved on this music server. Ask the administrator for another "
            "one."
        ),
        contact=True,
        other_account=True,
    )
    RENAME_NOT_FOLLOWED = _Row(
        "rename_not_followed",
        Verdict.REJECTED,
        403,
        (
            "the provider renamed the user, and SHIM_FOLLOW_RENAMES does not allow to rename the "
            "account"
        ),
        remedy=(
            "Set SHIM_FOLLOW_RENAMES, or rename the account in Navidrome, or restore the old name "
            "at the provider."
        ),
        message=(
            "Your user name changed at the identity provider, and your account here still has the "
            "old one. The account is yours: ask the administrator to rename it, or to set "
            "SHIM_FOLLOW_RENAMES."
        ),
        contact=True,
        other_account=True,
    )
    NAME_HELD = _Row(
        "name_held",
        Verdict.REJECTED,
        403,
        "the name belonged to another account until recently, and is held for its user",
        remedy="Wait, or end the hold with `navidrome-shim users holds end NAME`.",
        message=(
            "Your user name belonged to another account until recently and is still reserved for "
            "it. Try again in a few days, or ask the administrator to end the hold."
        ),
        contact=True,
        other_account=True,
    )
    ACCOUNT_PENDING = _Row(
        "account_pending",
        Verdict.REJECTED,
        503,
        "the account is not ready yet",
        remedy=(
            "The person must try again. If it happens again, check Navidrome and SHIM_PROVISIONING_TIMEOUT."
        ),
        message="Your account is being prepared. Try again in a moment.",
    )
    NAVIDROME_UNAVAILABLE = _Row(
        "navidrome_unavailable",
        Verdict.REJECTED,
        503,
        "Navidrome's API does not respond",
        remedy="Check that Navidrome runs, and that SHIM_UPSTREAM is right.",
        message="The music server (Navidrome) is not available right now. Try again in a minute.",
    )
    NAVIDROME_ACCESS_DENIED = _Row(
        "navidrome_access_denied",
        Verdict.REJECTED,
        503,
        "Navidrome does not let the shim manage accounts",
        remedy="See Health on the Overview, or run `navidrome-shim check`: both have the remedy.",
        message=(
            "The music server is not set up completely: Navidrome does not let the sign-in service "
            "manage accounts. Contact the administrator."
        ),
        contact=True,
    )
    STORE_UNAVAILABLE = _Row(
        "store_unavailable",
        Verdict.REJECTED,
        503,
        "the database does not respond or cannot be used",
        remedy="Check the disk, and the database that SHIM_DATABASE_URL names.",
        message=(
            "The database of the sign-in service is not available right now. Try again in a "
            "minute. If this continues, contact the administrator."
        ),
        contact=True,
    )
    DATABASE_UNCONFIRMED = _Row(
        "database_unconfirmed",
        Verdict.REJECTED,
        503,
        "the database is new or was lost, and was not confirmed",
        remedy=(
            "Restore the database, or confirm the new one with `navidrome-shim database "
            "confirm-new`."
        ),
        message=(
            "The database of the sign-in service is new or was lost, so nobody can sign in until "
            "the administrator confirms it."
        ),
        contact=True,
    )
    ACCOUNT_UNAVAILABLE = _Row(
        "account_unavailable",
        Verdict.REJECTED,
        503,
        "an internal error occurred while preparing the account",
        remedy="Look for the request id in the log.",
        message=(
            "Your account could not be prepared because of an internal error. Try again in a "
            "minute. If this continues, contact the administrator with the request number."
        ),
    )
    # rejected: the credentials of a Subsonic app, with HTTP status 200 as Subsonic has it
    CREDENTIALS_CONFLICT = _Row(
        "credentials_conflict",
        Verdict.REJECTED,
        200,
        "a Subsonic request has credentials twice, or an API key beside others",
        remedy=(
            "Let the app send one kind of credentials: an API key, or user name and password, and "
            "each once."
        ),
        message="Multiple conflicting authentication mechanisms provided.",
        subsonic_code=43,
    )
    API_KEY_UNKNOWN = _Row(
        "api_key_unknown",
        Verdict.REJECTED,
        200,
        "a Subsonic request has an API key that belongs to no device",
        remedy=(
            "If the app belongs to one of your users, it needs the password of a new device. "
            "Otherwise no change is needed."
        ),
        message="Invalid API key.",
        subsonic_code=44,
    )
    DEVICE_SIGN_IN_DUE = _Row(
        "device_sign_in_due",
        Verdict.REJECTED,
        200,
        "the device's owner has not signed in for SHIM_DEVICE_SIGN_IN_DAYS",
        remedy=(
            "The person must sign in once with a browser. SHIM_DEVICE_SIGN_IN_DAYS sets how often."
        ),
        message=(
            "This device's password is paused, because you have not signed in for a long time. Sign in "
            "once with a browser, then it works again."
        ),
        subsonic_code=40,
    )
    TOO_MANY_FAILURES = _Row(
        "too_many_failures",
        Verdict.REJECTED,
        200,
        "too many sign-ins of Subsonic apps have failed",
        remedy=(
            "No change is needed: the limit ends by itself. If an app has an old password, correct "
            "it there."
        ),
        message="Wrong username or password, too often. Try again in a minute.",
        subsonic_code=40,
    )
    # rejected, while Navidrome obeys another header
    USER_HEADER_MISMATCH = _Row(
        "user_header_mismatch",
        Verdict.REJECTED,
        503,
        "Navidrome does not obey SHIM_REVERSE_PROXY_USER_HEADER, so no identity is trusted",
        remedy="See Health on the Overview: it names Navidrome's setting to change.",
    )
    # rejected, while the audit trail cannot be written
    AUDIT_UNAVAILABLE = _Row(
        "audit_unavailable",
        Verdict.REJECTED,
        503,
        (
            "the audit trail cannot be written, and with SHIM_AUDIT_FAIL_MODE=closed no identity "
            "is trusted"
        ),
        remedy="Check the disk, and the database of the audit trail.",
    )


# Rejected with an error in a response of status 200, as Subsonic has it.
SUBSONIC_REASONS = frozenset(reason for reason in Reason if reason.subsonic_code)


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
