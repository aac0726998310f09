"""Every reason of a decision in one sentence, for the operator of the shim."""

from __future__ import annotations

from shim.trust.reasons import Reason

REASON_TEXTS: dict[Reason, str] = {
    Reason.TRUSTED_PEER: "the peer is on SHIM_REVERSE_PROXY_WHITELIST, and no other proof is required",
    Reason.PROXY_SECRET: "the request has the shared secret",
    Reason.VERIFIED_JWT: "the provider's token is valid and has this identity",
    Reason.NO_IDENTITY: "the request has no identity; it is forwarded without a user header",
    Reason.UNTRUSTED_PEER: "the peer is not on SHIM_REVERSE_PROXY_WHITELIST, so its identity headers do not "
    "count",
    Reason.PUBLIC_PATH: "the edge does not authenticate this path, so identity headers do not count on it",
    Reason.NON_ASCII_PATH: "the path has a byte beyond ASCII, which an edge may read as a public path, so "
    "identity headers do not count on it",
    Reason.NAVIDROME_TOKEN_VOID: "the request has a void Navidrome token, which is removed",
    Reason.BODY_TOO_LARGE: "the request body is larger than this path allows",
    Reason.USER_HEADER_MISMATCH: "Navidrome does not obey SHIM_REVERSE_PROXY_USER_HEADER, so no identity is "
    "trusted",
    Reason.OUTSIDE_BASE_PATH: "the path is outside SHIM_BASE_PATH, so identity headers do not count on it",
    Reason.BASE_PATH_MISMATCH: "Navidrome's base path differs from SHIM_BASE_PATH, so no identity is "
    "trusted",
    Reason.SPOOFED_USER_HEADER: "the client sent Navidrome's user header, which is removed",
    Reason.MALFORMED_HEAD: "the request head is not valid HTTP",
    Reason.AMBIGUOUS_TARGET: "two parsers could read the request target differently",
    Reason.AMBIGUOUS_FRAMING: "two parsers could read the length of the body differently",
    Reason.AMBIGUOUS_HOST: "the Host header is missing, repeated or invalid",
    Reason.FRAMING_ALIAS: "a header name is similar to a framing header",
    Reason.UPGRADE_REJECTED: "the upgrade is not a valid WebSocket handshake",
    Reason.METHOD_NOT_IMPLEMENTED: "the method is not supported",
    Reason.HEAD_TOO_LARGE: "the request head exceeds SHIM_MAX_HEADER_BYTES or SHIM_MAX_HEADERS",
    Reason.HEAD_TIMEOUT: "the request head took longer than SHIM_REQUEST_HEADER_TIMEOUT",
    Reason.HEADER_ALIAS: "a header name is an alias of an identity header: the edge must delete it",
    Reason.IDENTITY_DUPLICATE: "an identity header occurs twice",
    Reason.IDENTITY_INVALID: "an identity header has an invalid value",
    Reason.IDENTITY_INCOMPLETE: "a header that the settings need is missing (the uid or the groups)",
    Reason.IDENTITY_REQUIRED: "SHIM_REQUIRE_IDENTITY is on, and the request has no identity",
    Reason.SECRET_MISSING: "SHIM_PROXY_SECRET is set, and the request does not have it",
    Reason.SECRET_MISMATCH: "the request has another secret than SHIM_PROXY_SECRET",
    Reason.JWT_MISSING: "SHIM_JWT_VERIFY is required, and the request has no token",
    Reason.JWT_INVALID: "the token is invalid",
    Reason.JWT_UNKNOWN_KEY: "the token is signed with a key that is not in the key set",
    Reason.JWT_EXPIRED: "the token has expired",
    Reason.JWT_NOT_YET_VALID: "the token is not valid yet",
    Reason.JWT_CLAIM_MISMATCH: "the token has another identity than the headers",
    Reason.UNTRUSTED_PEER_REJECTED: "SHIM_UNTRUSTED_PEERS is reject, and the peer is not trusted",
    Reason.CROSS_SITE: "another site made the browser send the request",
    Reason.CREATE_ADMIN_DISABLED: "POST /auth/createAdmin is never forwarded while provisioning is on",
    Reason.LOCAL_LOGIN_DISABLED: "SHIM_REQUIRE_IDENTITY is on, and SHIM_LOCAL_LOGIN is not",
    Reason.NOT_FOUND: "the shim's own pages need an authenticated member of SHIM_ADMIN_GROUPS",
    Reason.GROUP_NOT_ALLOWED: "the identity is in no group of SHIM_ALLOWED_GROUPS",
    Reason.IDENTITY_CONFLICT: "the account with this name is not linked to this identity, and cannot be",
    Reason.RESERVED_ACCOUNT: "the name belongs to the shim's own account or is in SHIM_PROTECTED_USERS",
    Reason.RENAME_NOT_FOLLOWED: "the provider renamed the user, and SHIM_FOLLOW_RENAMES does not "
    "allow to rename the account",
    Reason.NAME_HELD: "the name belonged to another account until recently, and is held for its user",
    Reason.ACCOUNT_PENDING: "the account is not ready yet",
    Reason.NAVIDROME_UNAVAILABLE: "Navidrome's API does not respond",
    Reason.NAVIDROME_ACCESS_DENIED: "Navidrome does not let the shim manage accounts",
    Reason.STORE_UNAVAILABLE: "the database does not respond or cannot be used",
    Reason.DATABASE_UNCONFIRMED: "the database is new or was lost, and was not confirmed",
    Reason.ACCOUNT_UNAVAILABLE: "an internal error occurred while preparing the account",
}
