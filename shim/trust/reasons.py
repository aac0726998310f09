"""The closed vocabulary of the decision: verdicts, path classes, reasons.

Every reason belongs to exactly one verdict and one status, so the table below is the only place
where they meet; `explain`, the log, the metrics and the audit pages all read from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """What became of a request."""

    AUTHENTICATED = "authenticated"
    ANONYMOUS = "anonymous"
    STRIPPED = "stripped"
    REJECTED = "rejected"


class PathClass(StrEnum):
    """Who authenticates a path: the edge, nobody, or the shim itself."""

    PROTECTED = "protected"
    PUBLIC = "public"
    INTERNAL = "internal"


class Reason(StrEnum):
    """Why a request got its verdict."""

    # authenticated
    TRUSTED_PEER = "trusted_peer"
    PROXY_SECRET = "proxy_secret"
    VERIFIED_JWT = "verified_jwt"
    # anonymous
    NO_IDENTITY = "no_identity"
    # stripped
    UNTRUSTED_PEER = "untrusted_peer"
    PUBLIC_PATH = "public_path"
    OUTSIDE_BASE_PATH = "outside_base_path"
    NON_ASCII_PATH = "non_ascii_path"
    BASE_PATH_MISMATCH = "base_path_mismatch"
    SPOOFED_USER_HEADER = "spoofed_user_header"
    NAVIDROME_TOKEN_VOID = "navidrome_token_void"
    # rejected: the request itself
    MALFORMED_HEAD = "malformed_head"
    AMBIGUOUS_TARGET = "ambiguous_target"
    AMBIGUOUS_FRAMING = "ambiguous_framing"
    AMBIGUOUS_HOST = "ambiguous_host"
    FRAMING_ALIAS = "framing_alias"
    UPGRADE_REJECTED = "upgrade_rejected"
    METHOD_NOT_IMPLEMENTED = "method_not_implemented"
    HEAD_TOO_LARGE = "head_too_large"
    HEAD_TIMEOUT = "head_timeout"
    BODY_TOO_LARGE = "body_too_large"
    # rejected: the identity
    HEADER_ALIAS = "header_alias"
    IDENTITY_DUPLICATE = "identity_duplicate"
    IDENTITY_INVALID = "identity_invalid"
    IDENTITY_INCOMPLETE = "identity_incomplete"
    IDENTITY_REQUIRED = "identity_required"
    SECRET_MISSING = "secret_missing"
    SECRET_MISMATCH = "secret_mismatch"
    JWT_MISSING = "jwt_missing"
    JWT_INVALID = "jwt_invalid"
    JWT_UNKNOWN_KEY = "jwt_unknown_key"
    JWT_EXPIRED = "jwt_expired"
    JWT_NOT_YET_VALID = "jwt_not_yet_valid"
    JWT_CLAIM_MISMATCH = "jwt_claim_mismatch"
    # rejected: the policy
    UNTRUSTED_PEER_REJECTED = "untrusted_peer_rejected"
    CROSS_SITE = "cross_site"
    CREATE_ADMIN_DISABLED = "create_admin_disabled"
    LOCAL_LOGIN_DISABLED = "local_login_disabled"
    NOT_FOUND = "not_found"
    # rejected: the account
    GROUP_NOT_ALLOWED = "group_not_allowed"
    IDENTITY_CONFLICT = "identity_conflict"
    RESERVED_ACCOUNT = "reserved_account"
    RENAME_NOT_FOLLOWED = "rename_not_followed"
    NAME_HELD = "name_held"
    ACCOUNT_PENDING = "account_pending"
    NAVIDROME_UNAVAILABLE = "navidrome_unavailable"
    NAVIDROME_ACCESS_DENIED = "navidrome_access_denied"
    STORE_UNAVAILABLE = "store_unavailable"
    DATABASE_UNCONFIRMED = "database_unconfirmed"
    ACCOUNT_UNAVAILABLE = "account_unavailable"
    # rejected, while Navidrome obeys another header
    USER_HEADER_MISMATCH = "user_header_mismatch"


_VERDICTS: dict[Reason, tuple[Verdict, int]] = {
    Reason.TRUSTED_PEER: (Verdict.AUTHENTICATED, 200),
    Reason.PROXY_SECRET: (Verdict.AUTHENTICATED, 200),
    Reason.VERIFIED_JWT: (Verdict.AUTHENTICATED, 200),
    Reason.NO_IDENTITY: (Verdict.ANONYMOUS, 200),
    Reason.UNTRUSTED_PEER: (Verdict.STRIPPED, 200),
    Reason.PUBLIC_PATH: (Verdict.STRIPPED, 200),
    Reason.OUTSIDE_BASE_PATH: (Verdict.STRIPPED, 200),
    Reason.NON_ASCII_PATH: (Verdict.STRIPPED, 200),
    Reason.BASE_PATH_MISMATCH: (Verdict.STRIPPED, 200),
    Reason.SPOOFED_USER_HEADER: (Verdict.STRIPPED, 200),
    Reason.NAVIDROME_TOKEN_VOID: (Verdict.STRIPPED, 200),
    Reason.MALFORMED_HEAD: (Verdict.REJECTED, 400),
    Reason.AMBIGUOUS_TARGET: (Verdict.REJECTED, 400),
    Reason.AMBIGUOUS_FRAMING: (Verdict.REJECTED, 400),
    Reason.AMBIGUOUS_HOST: (Verdict.REJECTED, 400),
    Reason.FRAMING_ALIAS: (Verdict.REJECTED, 400),
    Reason.UPGRADE_REJECTED: (Verdict.REJECTED, 400),
    Reason.METHOD_NOT_IMPLEMENTED: (Verdict.REJECTED, 501),
    Reason.HEAD_TOO_LARGE: (Verdict.REJECTED, 431),
    Reason.HEAD_TIMEOUT: (Verdict.REJECTED, 408),
    Reason.BODY_TOO_LARGE: (Verdict.REJECTED, 413),
    Reason.HEADER_ALIAS: (Verdict.REJECTED, 400),
    Reason.IDENTITY_DUPLICATE: (Verdict.REJECTED, 400),
    Reason.IDENTITY_INVALID: (Verdict.REJECTED, 400),
    Reason.IDENTITY_INCOMPLETE: (Verdict.REJECTED, 403),
    Reason.IDENTITY_REQUIRED: (Verdict.REJECTED, 401),
    Reason.SECRET_MISSING: (Verdict.REJECTED, 401),
    Reason.SECRET_MISMATCH: (Verdict.REJECTED, 401),
    Reason.JWT_MISSING: (Verdict.REJECTED, 401),
    Reason.JWT_INVALID: (Verdict.REJECTED, 401),
    Reason.JWT_UNKNOWN_KEY: (Verdict.REJECTED, 401),
    Reason.JWT_EXPIRED: (Verdict.REJECTED, 401),
    Reason.JWT_NOT_YET_VALID: (Verdict.REJECTED, 401),
    Reason.JWT_CLAIM_MISMATCH: (Verdict.REJECTED, 401),
    Reason.UNTRUSTED_PEER_REJECTED: (Verdict.REJECTED, 403),
    Reason.CROSS_SITE: (Verdict.REJECTED, 403),
    Reason.CREATE_ADMIN_DISABLED: (Verdict.REJECTED, 403),
    Reason.LOCAL_LOGIN_DISABLED: (Verdict.REJECTED, 403),
    Reason.NOT_FOUND: (Verdict.REJECTED, 404),
    Reason.GROUP_NOT_ALLOWED: (Verdict.REJECTED, 403),
    Reason.IDENTITY_CONFLICT: (Verdict.REJECTED, 403),
    Reason.RESERVED_ACCOUNT: (Verdict.REJECTED, 403),
    Reason.RENAME_NOT_FOLLOWED: (Verdict.REJECTED, 403),
    Reason.NAME_HELD: (Verdict.REJECTED, 403),
    Reason.ACCOUNT_PENDING: (Verdict.REJECTED, 503),
    Reason.NAVIDROME_UNAVAILABLE: (Verdict.REJECTED, 503),
    Reason.NAVIDROME_ACCESS_DENIED: (Verdict.REJECTED, 503),
    Reason.STORE_UNAVAILABLE: (Verdict.REJECTED, 503),
    Reason.DATABASE_UNCONFIRMED: (Verdict.REJECTED, 503),
    Reason.ACCOUNT_UNAVAILABLE: (Verdict.REJECTED, 503),
    Reason.USER_HEADER_MISMATCH: (Verdict.REJECTED, 503),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One row of everything that can be decided.

    `status` is what a rejected request is answered with; any other outcome says 200 and is answered
    by Navidrome. `index` is the row's place in `OUTCOMES`: counters are a list of integers.
    """

    index: int
    verdict: Verdict
    reason: Reason
    status: int
    path_class: PathClass


OUTCOMES: tuple[Outcome, ...] = tuple(
    Outcome(index, _VERDICTS[reason][0], reason, _VERDICTS[reason][1], path_class)
    for index, (reason, path_class) in enumerate(
        (reason, path_class) for reason in Reason for path_class in PathClass
    )
)
_OUTCOME: dict[tuple[Reason, PathClass], Outcome] = {
    (outcome.reason, outcome.path_class): outcome for outcome in OUTCOMES
}


def outcome(reason: Reason, path_class: PathClass) -> Outcome:
    """The one `Outcome` of this reason on this class of path."""
    return _OUTCOME[reason, path_class]
