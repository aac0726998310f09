"""What settings mean together: contradictions, which stop the start, and warnings, which are said.

Each check reads the finished model and nothing else. A contradiction names every field that it read, so
that it can be passed over where one of them could not be read at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import SecretStr

from shim.settings.model import Settings
from shim.settings.places import Endpoint
from shim.trust.addresses import NetworkEntry, UnixEntry, parse_entry

_SHORT_SECRET = 16
# RFC 7518 §3.2: a key of the hash's own size or larger.
_SHORT_HS256_SECRET = 32


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Fields that cannot stand together, the one to look at first, and what would be right."""

    fields: tuple[str, ...]
    expected: str


def contradictions(settings: Settings) -> Iterator[Contradiction]:
    """Everything that stops the start though each value alone is fine."""
    yield from _listening(settings)
    yield from _proof(settings)
    yield from _headers(settings)
    yield from _groups(settings)


def warnings(settings: Settings) -> tuple[str, ...]:
    """Sentences for the log, `check` and `/readyz`: allowed, but probably not what was meant."""
    return (*_trust_warnings(settings), *_secret_warnings(settings), *_idle_settings(settings))


def _listening(settings: Settings) -> Iterator[Contradiction]:
    if not settings.control_listen.is_loopback and settings.control_token is None:
        yield Contradiction(
            ("control_listen", "control_token"),
            "expected a loopback address, or SHIM_CONTROL_TOKEN set (openssl rand -hex 32 makes one)",
        )
    if _same_place(settings.listen, settings.control_listen):
        yield Contradiction(
            ("control_listen", "listen"), "expected another place than SHIM_LISTEN has"
        )
    upstream = settings.upstream
    target = Endpoint(upstream.host, upstream.port, upstream.path)
    for field, own in (("listen", settings.listen), ("control_listen", settings.control_listen)):
        if target.is_loopback and _same_place(own, target):
            yield Contradiction(
                ("upstream", field), "expected Navidrome's address, but the shim listens there"
            )
    if (settings.tls_cert is None) != (settings.tls_key is None):
        lacking = "tls_cert" if settings.tls_cert is None else "tls_key"
        yield Contradiction(
            (lacking, "tls_cert", "tls_key"),
            "expected SHIM_TLS_CERT and SHIM_TLS_KEY both, or neither",
        )
    if settings.upstream_ca is not None and not upstream.tls:
        yield Contradiction(
            ("upstream_ca", "upstream"), "expected an https:// address in SHIM_UPSTREAM with it"
        )


def _proof(settings: Settings) -> Iterator[Contradiction]:
    verify = settings.jwt_verify
    if verify != "off":
        if settings.jwks_url is None and settings.jwt_hs256_secret is None:
            yield Contradiction(
                ("jwt_verify", "jwks_url", "jwt_hs256_secret"),
                "expected SHIM_JWKS_URL or SHIM_JWT_HS256_SECRET with it",
            )
        if settings.jwt_issuer is None:
            yield Contradiction(("jwt_verify", "jwt_issuer"), "expected SHIM_JWT_ISSUER with it")
        if not settings.jwt_audience:
            yield Contradiction(
                ("jwt_verify", "jwt_audience"),
                "expected SHIM_JWT_AUDIENCE with it (authentik's client id)",
            )
    if settings.jwt_hs256_secret is not None and not _is_secret(settings.jwt_hs256_secret):
        yield Contradiction(
            ("jwt_hs256_secret",), "expected a secret, and not a public key, PEM or a JWK"
        )
    if verify == "off" and settings.jwt_bearer:
        yield Contradiction(
            ("jwt_bearer", "jwt_verify"), "expected SHIM_JWT_VERIFY=optional or required with it"
        )
    if verify == "off" and settings.public_path_proof == "jwt":
        yield Contradiction(
            ("public_path_proof", "jwt_verify"),
            "expected SHIM_JWT_VERIFY=optional or required with it",
        )
    if settings.public_path_proof == "secret" and not settings.proxy_secret:
        yield Contradiction(
            ("public_path_proof", "proxy_secret"), "expected SHIM_PROXY_SECRET with it"
        )
    if settings.jwks_ca is not None and not (settings.jwks_url or "").startswith("https:"):
        yield Contradiction(
            ("jwks_ca", "jwks_url"), "expected an https:// address in SHIM_JWKS_URL with it"
        )


def _headers(settings: Settings) -> Iterator[Contradiction]:
    """A proof's header is nobody else's, also under an alias (`X_Name`)."""
    identity = ("username_header", "name_header", "email_header", "groups_header", "uid_header")
    for proof, others in (
        ("proxy_secret_header", ("reverse_proxy_user_header", "jwt_header", *identity)),
        ("jwt_header", ("reverse_proxy_user_header", *identity)),
    ):
        for other in others:
            if _folded(getattr(settings, proof)) == _folded(getattr(settings, other)):
                yield Contradiction(
                    (proof, other), f"expected another header than SHIM_{other.upper()} names"
                )


def _groups(settings: Settings) -> Iterator[Contradiction]:
    separator = settings.groups_separator
    for field in ("allowed_groups", "admin_groups", "library_groups"):
        for group in getattr(settings, field):
            if separator in group:
                yield Contradiction(
                    (field, "groups_separator"),
                    f"expected groups without SHIM_GROUPS_SEPARATOR in their names; {group!r} never matches",
                )


def _trust_warnings(settings: Settings) -> Iterator[str]:
    name = "SHIM_REVERSE_PROXY_WHITELIST"
    if not settings.reverse_proxy_whitelist:
        yield f"{name} is empty: nobody is believed, every visitor is a stranger to Navidrome."
    entries = [parse_entry(text) for text in settings.reverse_proxy_whitelist]
    for entry in entries:
        if isinstance(entry, NetworkEntry) and entry.network.prefixlen == 0:
            yield f"{name} has {entry.text}: whoever reaches the shim can name any user; name the edge alone."
        elif isinstance(entry, NetworkEntry) and entry.host_bits:
            yield f"{name} has {entry.text}, which lists all of {entry.network}."
    unix = any(isinstance(entry, UnixEntry) for entry in entries)
    if unix and settings.listen.path is None:
        yield f"{name} has @, but SHIM_LISTEN is no Unix socket: that entry matches nobody."
    if entries and not unix and settings.listen.path is not None:
        yield f"SHIM_LISTEN is a Unix socket, but {name} lacks @: nobody is believed."
    if settings.listen.path is not None and settings.listen_socket_mode & 0o006:
        yield "SHIM_LISTEN_SOCKET_MODE lets everybody on this machine speak as the edge."


def _secret_warnings(settings: Settings) -> Iterator[str]:
    if any(len(each.get_secret_value()) < _SHORT_SECRET for each in settings.proxy_secret):
        yield f"SHIM_PROXY_SECRET has a value under {_SHORT_SECRET} characters, which can be guessed."
    token = settings.control_token
    if token is not None and len(token.get_secret_value()) < _SHORT_SECRET:
        yield f"SHIM_CONTROL_TOKEN has under {_SHORT_SECRET} characters and can be guessed."
    key = settings.jwt_hs256_secret
    if key is not None and len(key.get_secret_value().encode()) < _SHORT_HS256_SECRET:
        yield f"SHIM_JWT_HS256_SECRET has under {_SHORT_HS256_SECRET} bytes: any token lets it be guessed."
    if (settings.jwks_url or "").startswith("http:"):
        yield "SHIM_JWKS_URL is plain HTTP: whoever is between can put keys of their own in place."


def _idle_settings(settings: Settings) -> Iterator[str]:
    if settings.jwt_verify == "off" and (settings.jwks_url or settings.jwt_hs256_secret):
        yield "SHIM_JWT_VERIFY is off: keys are set, but no token is looked at."
    if settings.public_path_proof == "jwt" and settings.proxy_secret:
        yield (
            "SHIM_PUBLIC_PATH_PROOF=jwt and SHIM_PROXY_SECRET: a token on a public path counts only with "
            "the secret beside it, so the edge has to add it there too."
        )
    if not settings.require_identity and (settings.sign_in_url or settings.local_login):
        yield "SHIM_SIGN_IN_URL and SHIM_LOCAL_LOGIN mean nothing without SHIM_REQUIRE_IDENTITY=true."


def _is_secret(secret: SecretStr) -> bool:
    from shim.trust.jwt_keys import secret_key  # noqa: PLC0415 - megabytes, for tokens alone

    try:
        secret_key(secret.get_secret_value().encode())
    except ValueError:
        return False
    return True


def _same_place(one: Endpoint, other: Endpoint) -> bool:
    if one.path is not None or other.path is not None:
        return one.path == other.path
    if one.port != other.port or one.port == 0:
        return False
    everywhere = {"0.0.0.0", "::"}
    return one.host == other.host or one.host in everywhere or other.host in everywhere


def _folded(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "-", name.lower())
