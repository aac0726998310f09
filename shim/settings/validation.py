"""Check settings against each other: conflicts stop the start, warnings are logged.

Each check reads the finished model and nothing else. A conflict names every field that it read, so that the
caller can skip it if one of them was invalid.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from pydantic import SecretStr

from shim.settings.endpoints import Endpoint
from shim.settings.identity import email_decides, has_groups, verifies
from shim.settings.model import Settings
from shim.settings.providers import DEFAULT_PROVIDER, PRESETS
from shim.trust.jwks import secret_key
from shim.trust.names import normalize_name
from shim.trust.peers import NetworkEntry, UnixEntry, parse_entry

_SHORT_SECRET = 16
# 128 random bits in base64. The right token is always accepted, so nothing but its length stops guessing.
_SHORT_CONTROL_TOKEN = 22
# RFC 7518 §3.2: a key of the hash's own size or larger.
_SHORT_HS256_SECRET = 32
# The settings that name a header. Those of a proof come first, so that a fault names them.
_HEADERS = (
    "proxy_secret_header",
    "jwt_header",
    "uid_header",
    "groups_header",
    "username_header",
    "email_header",
    "name_header",
    "reverse_proxy_user_header",
)
_AUTHENTIK_PREFIX = "x-authentik-"
# Paths of Navidrome's web app, its API and its login, and of the shim's own pages.
_PROTECTED_PATHS = ("/app", "/api", "/auth", "/_shim")


@dataclass(frozen=True, slots=True)
class Conflict:
    """Fields that contradict each other, the one to change first, and the values expected."""

    fields: tuple[str, ...]
    expected: str


def conflicts(settings: Settings) -> Iterator[Conflict]:
    """Yield the contradictions that stop the start although each value is valid."""
    yield from _listening(settings)
    yield from _public_url(settings)
    yield from _proof(settings)
    yield from _headers(settings)
    yield from _identity(settings)
    yield from _groups(settings)
    yield from _bootstrap(settings)
    yield from _audit(settings)


def warnings(settings: Settings) -> tuple[str, ...]:
    """Return sentences for the log, `check` and `/readyz` about settings that are probably mistakes."""
    return (
        *_trust_warnings(settings),
        *_path_warnings(settings),
        *_email_warnings(settings),
        *_group_warnings(settings),
        *_secret_warnings(settings),
        *_unused_settings(settings),
    )


def _listening(settings: Settings) -> Iterator[Conflict]:
    if not settings.control_listen.is_loopback and settings.control_token is None:
        yield Conflict(
            ("control_listen", "control_token"),
            "expected a loopback address, or SHIM_CONTROL_TOKEN set (openssl rand -hex 32 makes one)",
        )
    if _same_endpoint(settings.listen, settings.control_listen):
        yield Conflict(("control_listen", "listen"), "expected another address than SHIM_LISTEN")
    upstream = settings.upstream
    target = Endpoint(upstream.host, upstream.port, upstream.path)
    for field, own_endpoint in (
        ("listen", settings.listen),
        ("control_listen", settings.control_listen),
    ):
        if target.is_loopback and _same_endpoint(own_endpoint, target):
            yield Conflict(
                ("upstream", field),
                "expected Navidrome's address, but the shim listens there",
            )
    if (settings.tls_cert is None) != (settings.tls_key is None):
        missing = "tls_cert" if settings.tls_cert is None else "tls_key"
        yield Conflict(
            (missing, "tls_cert", "tls_key"),
            "expected SHIM_TLS_CERT and SHIM_TLS_KEY both, or neither",
        )
    if settings.upstream_ca is not None and not upstream.tls:
        yield Conflict(
            ("upstream_ca", "upstream"), "expected an https:// address in SHIM_UPSTREAM too"
        )


def _audit(settings: Settings) -> Iterator[Conflict]:
    url = settings.audit_database_url
    if url is None:
        return
    trail, bindings = url.get_secret_value(), settings.database_url.get_secret_value()
    if trail == "none" and settings.audit_fail_mode == "closed":
        yield Conflict(
            ("audit_fail_mode", "audit_database_url"),
            "expected open, because SHIM_AUDIT_DATABASE_URL is none",
        )
    if trail.startswith("sqlite:") and trail == bindings:
        yield Conflict(
            ("audit_database_url", "database_url"), "expected another file than SHIM_DATABASE_URL"
        )


def _proof(settings: Settings) -> Iterator[Conflict]:
    verify = settings.jwt_verify
    if verify != "off":
        if settings.jwks_url is None and settings.jwt_hs256_secret is None:
            yield Conflict(
                ("jwt_verify", "jwks_url", "jwt_hs256_secret"),
                "expected SHIM_JWKS_URL or SHIM_JWT_HS256_SECRET too",
            )
        if settings.jwt_issuer is None:
            yield Conflict(("jwt_verify", "jwt_issuer"), "expected SHIM_JWT_ISSUER too")
        if not settings.jwt_audience:
            yield Conflict(
                ("jwt_verify", "jwt_audience"),
                "expected SHIM_JWT_AUDIENCE too (the client id at the provider)",
            )
    if settings.jwt_hs256_secret is not None and not _is_secret(settings.jwt_hs256_secret):
        yield Conflict(("jwt_hs256_secret",), "expected a secret, not a public key, PEM or JWK")
    if verify == "off" and settings.jwt_bearer:
        yield Conflict(
            ("jwt_bearer", "jwt_verify"), "expected SHIM_JWT_VERIFY=optional or required too"
        )
    if verify == "off" and settings.public_path_proof == "jwt":
        yield Conflict(
            ("public_path_proof", "jwt_verify"),
            "expected SHIM_JWT_VERIFY=optional or required too",
        )
    if settings.public_path_proof == "secret" and not settings.proxy_secret:
        yield Conflict(("public_path_proof", "proxy_secret"), "expected SHIM_PROXY_SECRET too")
    if settings.jwks_ca is not None and not (settings.jwks_url or "").startswith("https:"):
        yield Conflict(("jwks_ca", "jwks_url"), "expected an https:// address in SHIM_JWKS_URL too")


def _headers(settings: Settings) -> Iterator[Conflict]:
    """Check that each header has one role, also under an alias (`X_Name`). Only the user name may use
    Navidrome's user header, which is read, removed and set again."""
    for index, field in enumerate(_HEADERS):
        for other in _HEADERS[index + 1 :]:
            if {field, other} == {"reverse_proxy_user_header", "username_header"}:
                continue
            name = _normalized(getattr(settings, field))
            if name and name == _normalized(getattr(settings, other)):
                yield Conflict((field, other), f"expected another header than SHIM_{other.upper()}")


def _identity(settings: Settings) -> Iterator[Conflict]:
    """Check that the user name and the uid have a source, and that two people cannot have the same."""
    required = settings.jwt_verify == "required"
    from_email = settings.username_from_email != "off"
    email_settings = ("email_header", "jwt_verify", "jwt_email_claim")
    claimed = required and settings.jwt_username_claim
    if not from_email and not settings.username_header and not claimed:
        yield Conflict(
            ("username_header", "username_from_email", "jwt_verify", "jwt_username_claim"),
            "expected the header with the user name; or SHIM_USERNAME_FROM_EMAIL; or "
            "SHIM_JWT_VERIFY=required with SHIM_JWT_USERNAME_CLAIM",
        )
    if email_decides(settings) and not (
        settings.email_header or (required and settings.jwt_email_claim)
    ):
        yield Conflict(
            ("username_from_email" if from_email else "uid_source", *email_settings),
            "expected SHIM_EMAIL_HEADER too, or SHIM_JWT_VERIFY=required with SHIM_JWT_EMAIL_CLAIM",
        )
    if settings.uid_source == "claim" and not (required and settings.jwt_uid_claim):
        yield Conflict(
            ("uid_source", "jwt_verify", "jwt_uid_claim"),
            "expected SHIM_JWT_VERIFY=required and SHIM_JWT_UID_CLAIM too",
        )
    if _lacks_uid_header(settings):
        yield Conflict(
            (
                "uid_header",
                "username_header",
                "uid_source",
                "jwt_verify",
                "provisioning",
                "provider",
            ),
            "expected the header with the provider's permanent id, because provisioning binds accounts to "
            "it; or SHIM_UID_SOURCE=username or email if the provider has none, or "
            "SHIM_JWT_VERIFY=required, or SHIM_PROVISIONING=false",
        )
    if (
        settings.username_from_email == "local-part"
        and settings.uid_source == "username"
        and len(settings.email_domains) != 1
    ):
        yield Conflict(
            ("username_from_email", "uid_source", "email_domains"),
            "expected exactly one domain in SHIM_EMAIL_DOMAINS, or another SHIM_UID_SOURCE: ada@one.example "
            "and ada@two.example would be one user",
        )
    if settings.email_domains and not email_decides(settings):
        yield Conflict(
            ("email_domains", "username_from_email", "uid_source"),
            "expected SHIM_USERNAME_FROM_EMAIL or SHIM_UID_SOURCE=email too: else the setting restricts "
            "nobody",
        )
    if verifies(settings) and not settings.jwt_header and not settings.jwt_bearer:
        yield Conflict(
            ("jwt_header", "jwt_bearer", "jwt_verify"),
            "expected the header with the token, or SHIM_JWT_BEARER=true",
        )


def _lacks_uid_header(settings: Settings) -> bool:
    """Return whether accounts are bound to a uid header that no setting names for this provider."""
    if not settings.provisioning or settings.uid_source != "header":
        return False
    if not settings.uid_header:
        return settings.jwt_verify != "required" or not settings.jwt_uid_claim
    # authentik's own uid header is a default, also if the user name comes from another provider.
    return (
        settings.provider == DEFAULT_PROVIDER
        and settings.jwt_verify != "required"
        and "uid_header" not in settings.model_fields_set
        and not _normalized(settings.username_header).startswith(_AUTHENTIK_PREFIX)
        and settings.username_from_email == "off"
    )


def _groups(settings: Settings) -> Iterator[Conflict]:
    separator = settings.groups_separator
    plain = settings.groups_format == "plain" and settings.groups_header
    for field in ("allowed_groups", "admin_groups", "library_groups"):
        if getattr(settings, field) and not has_groups(settings):
            yield Conflict(
                (field, "groups_header", "jwt_verify", "jwt_groups_claim", "provider"),
                f"expected no groups, because SHIM_PROVIDER={settings.provider} sends none; or "
                "SHIM_GROUPS_HEADER, or a verified token with SHIM_JWT_GROUPS_CLAIM",
            )
        for group in getattr(settings, field):
            if plain and separator in group:
                yield Conflict(
                    (field, "groups_separator"),
                    f"expected groups without SHIM_GROUPS_SEPARATOR in their names; {group!r} never matches",
                )


def _public_url(settings: Settings) -> Iterator[Conflict]:
    path = urlsplit(settings.public_url or "").path
    if path and path != settings.base_path:
        yield Conflict(
            ("public_url", "base_path"),
            "expected a URL without a path, or with the path in SHIM_BASE_PATH",
        )


def _bootstrap(settings: Settings) -> Iterator[Conflict]:
    name = settings.bootstrap_admin
    if name is not None and normalize_name(name) == normalize_name(
        settings.navidrome_admin_username
    ):
        yield Conflict(
            ("bootstrap_admin", "navidrome_admin_username"),
            "expected the name of an existing admin, not of the account to create",
        )


def _trust_warnings(settings: Settings) -> Iterator[str]:
    name = "SHIM_REVERSE_PROXY_WHITELIST"
    if not settings.reverse_proxy_whitelist:
        yield f"{name} is empty: no identity is trusted."
    entries = [parse_entry(text) for text in settings.reverse_proxy_whitelist]
    for entry in entries:
        if isinstance(entry, NetworkEntry) and entry.network.prefixlen == 0:
            yield f"{name} has {entry.text}: every client can use any user name. Name only the edge."
        elif isinstance(entry, NetworkEntry) and entry.host_bits:
            yield f"{name} has {entry.text}, which trusts all of {entry.network}."
    unix = any(isinstance(entry, UnixEntry) for entry in entries)
    if unix and settings.listen.path is None:
        yield f"{name} has @, but SHIM_LISTEN is not a Unix socket: this entry matches no peer."
    if entries and not unix and settings.listen.path is not None:
        yield f"SHIM_LISTEN is a Unix socket, but {name} lacks @: no identity is trusted."
    if settings.listen.path is not None and settings.listen_socket_mode & 0o006:
        yield "SHIM_LISTEN_SOCKET_MODE lets every user of this machine connect as the edge."


def _path_warnings(settings: Settings) -> Iterator[str]:
    """Warn about public prefixes that cover too much. A prefix has no boundary: it covers every path that
    begins with it."""
    for prefix in settings.public_paths:
        bare = prefix.rstrip("/").lower()
        covered = [path for path in _PROTECTED_PATHS if path.startswith(bare)]
        if covered:
            yield (
                f"SHIM_PUBLIC_PATHS has {prefix}, which covers {', '.join(covered)}: no identity is accepted "
                "there. Name only the paths that the edge leaves open."
            )
        elif settings.base_path.lower().startswith(bare):
            yield (
                f"SHIM_BASE_PATH={settings.base_path} begins with the public prefix {prefix}: an "
                f"edge rule for {prefix} leaves every path open. Write the edge's rules with the base path: "
                f"{settings.base_path}{prefix}."
            )


def _email_warnings(settings: Settings) -> Iterator[str]:
    """Warn if users of several domains compete for one name."""
    if settings.username_from_email == "local-part" and len(settings.email_domains) != 1:
        yield (
            "SHIM_USERNAME_FROM_EMAIL=local-part: ada@one.example and ada@two.example have the same user "
            "name, and the first one who signs in gets the account. Set SHIM_EMAIL_DOMAINS to one domain."
        )


def _group_warnings(settings: Settings) -> Iterator[str]:
    """Warn if groups from a header grant rights, because the provider joins their names without escaping, and
    if a user who has left the last group keeps them."""
    granting = [
        f"SHIM_{field.upper()}"
        for field in ("allowed_groups", "admin_groups", "library_groups")
        if getattr(settings, field)
    ]
    if granting and settings.jwt_verify != "required" and settings.groups_format != "json":
        separator = settings.groups_separator
        group = next(iter(getattr(settings, granting[0].removeprefix("SHIM_").lower())))
        group_name = "x" + separator + group
        if settings.groups_format == "quoted":
            group_name = f'x"{separator}"{group}'
        yield (
            f"{' and '.join(granting)}: rights depend on the header {settings.groups_header}. The provider "
            f"joins groups with {separator} and escapes nothing, so a group named {group_name!r} grants them "
            "too. Let no other user name groups at the provider; or, if it signs a token, set "
            "SHIM_JWT_VERIFY=required."
        )
    provider = settings.provider
    omitted = PRESETS[provider].omits_empty_groups
    if granting and omitted and settings.missing_groups == "reject":
        yield (
            f"{' and '.join(granting)}: {provider} sends no groups for a user in no group. The shim rejects "
            "such a request, so a user who leaves the last group keeps the account, its rights and its "
            "devices. Set SHIM_MISSING_GROUPS=none, if the edge copies the header with the groups."
        )


def _secret_warnings(settings: Settings) -> Iterator[str]:
    if any(len(each.get_secret_value()) < _SHORT_SECRET for each in settings.proxy_secret):
        yield f"SHIM_PROXY_SECRET has a value under {_SHORT_SECRET} characters. Use openssl rand -hex 32."
    token = settings.control_token
    if token is not None and len(token.get_secret_value()) < _SHORT_CONTROL_TOKEN:
        yield (
            f"SHIM_CONTROL_TOKEN has under {_SHORT_CONTROL_TOKEN} characters and may be guessed. Use openssl "
            "rand -hex 32."
        )
    if any(len(each.get_secret_value()) < _SHORT_SECRET for each in settings.audit_key):
        yield f"SHIM_AUDIT_KEY has a value under {_SHORT_SECRET} characters. Use openssl rand -hex 32."
    key = settings.jwt_hs256_secret
    if key is not None and len(key.get_secret_value().encode()) < _SHORT_HS256_SECRET:
        yield (
            f"SHIM_JWT_HS256_SECRET has under {_SHORT_HS256_SECRET} bytes: it can be computed from any token."
        )
    if (settings.jwks_url or "").startswith("http:"):
        yield "SHIM_JWKS_URL is plain HTTP: an attacker on the network can replace the keys. Use https."


def _unused_settings(settings: Settings) -> Iterator[str]:
    if settings.jwt_verify == "off" and (settings.jwks_url or settings.jwt_hs256_secret):
        yield "SHIM_JWT_VERIFY is off: keys are set, but no token is verified."
    if settings.public_path_proof == "jwt" and settings.proxy_secret:
        yield (
            "SHIM_PUBLIC_PATH_PROOF=jwt and SHIM_PROXY_SECRET: a token on a public path counts only with "
            "the secret, so the edge must add the secret there too."
        )
    if not settings.require_identity and (settings.sign_in_url or settings.local_login):
        yield "SHIM_SIGN_IN_URL and SHIM_LOCAL_LOGIN have no effect without SHIM_REQUIRE_IDENTITY=true."
    if settings.bootstrap_admin_password is not None and settings.bootstrap_admin is None:
        yield "SHIM_BOOTSTRAP_ADMIN_PASSWORD has no effect without SHIM_BOOTSTRAP_ADMIN."


def _is_secret(secret: SecretStr) -> bool:
    try:
        secret_key(secret.get_secret_value().encode())
    except ValueError:
        return False
    return True


def _same_endpoint(one: Endpoint, other: Endpoint) -> bool:
    if one.path is not None or other.path is not None:
        return one.path == other.path
    if one.port != other.port or one.port == 0:
        return False
    everywhere = {"0.0.0.0", "::"}
    return one.host == other.host or one.host in everywhere or other.host in everywhere


def _normalized(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "-", name.lower())
