"""Every reason of a decision in one sentence, for whoever runs the shim."""

from __future__ import annotations

from shim.trust.reasons import Reason

REASON_TEXTS: dict[Reason, str] = {
    Reason.TRUSTED_PEER: "the peer is on SHIM_REVERSE_PROXY_WHITELIST, and no other proof is required",
    Reason.PROXY_SECRET: "the request carries the shared secret",
    Reason.VERIFIED_JWT: "the provider's token was verified and names this identity",
    Reason.NO_IDENTITY: "the request names nobody; it is forwarded without a user header",
    Reason.UNTRUSTED_PEER: "the peer is not on SHIM_REVERSE_PROXY_WHITELIST, so its identity headers do not "
    "count",
    Reason.PUBLIC_PATH: "the edge does not authenticate this path, so identity headers do not count on it",
    Reason.NON_ASCII_PATH: "the path holds a byte beyond ASCII, which an edge may read as a public path, so "
    "identity headers do not count on it",
    Reason.NAVIDROME_TOKEN_VOID: "the request carried a Navidrome token that is void; it is removed",
    Reason.BODY_TOO_LARGE: "the body is longer than allowed on this path",
    Reason.USER_HEADER_MISMATCH: "Navidrome does not obey SHIM_REVERSE_PROXY_USER_HEADER, so nobody is "
    "trusted",
    Reason.OUTSIDE_BASE_PATH: "the path is outside SHIM_BASE_PATH, so identity headers do not count on it",
    Reason.BASE_PATH_MISMATCH: "Navidrome's base path is another one than SHIM_BASE_PATH, so nobody is "
    "trusted",
    Reason.SPOOFED_USER_HEADER: "the client sent Navidrome's user header itself; it is removed",
    Reason.MALFORMED_HEAD: "the request head is not valid HTTP",
    Reason.AMBIGUOUS_TARGET: "the request target can be read in more than one way",
    Reason.AMBIGUOUS_FRAMING: "the length of the body can be read in more than one way",
    Reason.AMBIGUOUS_HOST: "Host is absent, repeated or not valid",
    Reason.FRAMING_ALIAS: "a header name only resembles a framing header",
    Reason.UPGRADE_REJECTED: "the upgrade is not a valid WebSocket handshake",
    Reason.METHOD_NOT_IMPLEMENTED: "the method is not supported",
    Reason.HEAD_TOO_LARGE: "the request head is over SHIM_MAX_HEADER_BYTES or SHIM_MAX_HEADERS",
    Reason.HEAD_TIMEOUT: "the request head took too long",
    Reason.HEADER_ALIAS: "a header name only resembles an identity header: the edge has to delete it",
    Reason.IDENTITY_DUPLICATE: "an identity header is sent twice",
    Reason.IDENTITY_INVALID: "an identity header has a value that is not allowed",
    Reason.IDENTITY_INCOMPLETE: "a header is absent that the settings need (the uid or the groups)",
    Reason.IDENTITY_REQUIRED: "SHIM_REQUIRE_IDENTITY is on, and the request names nobody",
    Reason.SECRET_MISSING: "SHIM_PROXY_SECRET is set, and the request does not carry it",
    Reason.SECRET_MISMATCH: "the request carries another secret than SHIM_PROXY_SECRET",
    Reason.JWT_MISSING: "SHIM_JWT_VERIFY is required, and the request carries no token",
    Reason.JWT_INVALID: "the token is not valid",
    Reason.JWT_UNKNOWN_KEY: "the token is signed with a key that the key set does not have",
    Reason.JWT_EXPIRED: "the token has expired",
    Reason.JWT_NOT_YET_VALID: "the token is not valid yet",
    Reason.JWT_CLAIM_MISMATCH: "the token names another identity than the headers",
    Reason.UNTRUSTED_PEER_REJECTED: "SHIM_UNTRUSTED_PEERS is reject, and the peer is not trusted",
    Reason.CROSS_SITE: "another site made the browser send the request",
    Reason.CREATE_ADMIN_DISABLED: "POST /auth/createAdmin is never forwarded while provisioning is on",
    Reason.LOCAL_LOGIN_DISABLED: "SHIM_REQUIRE_IDENTITY is on, and SHIM_LOCAL_LOGIN is not",
    Reason.NOT_FOUND: "the shim's own pages need an authenticated member of SHIM_ADMIN_GROUPS",
    Reason.GROUP_NOT_ALLOWED: "the identity is in no group of SHIM_ALLOWED_GROUPS",
    Reason.IDENTITY_CONFLICT: "the account of this name is not linked to this identity, and may not be",
    Reason.RESERVED_ACCOUNT: "the name is the shim's own account's or one of SHIM_PROTECTED_USERS",
    Reason.RENAME_NOT_FOLLOWED: "the provider's new name for the account is not followed: see "
    "SHIM_FOLLOW_RENAMES",
    Reason.NAME_HELD: "the name was another account's until recently, and is held for it",
    Reason.ACCOUNT_PENDING: "the account is still being prepared",
    Reason.NAVIDROME_UNAVAILABLE: "Navidrome's API does not respond",
    Reason.NAVIDROME_ACCESS_DENIED: "Navidrome does not let the shim manage accounts",
    Reason.STORE_UNAVAILABLE: "the database does not respond or cannot be used",
    Reason.DATABASE_UNCONFIRMED: "the database is new or was lost, and is not confirmed",
    Reason.ACCOUNT_UNAVAILABLE: "the account could not be prepared because of an internal error",
}
