"""Build the policy, limits and addresses of the data plane from the settings.

This is done before the first connection and with each reload.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING

from shim.monitors.jwks import JwksConfig
from shim.proxy.limits import Limits
from shim.proxy.pool import UpstreamAddress
from shim.settings import Settings
from shim.settings.identity import identity_rules
from shim.settings.reserved import reserved_names
from shim.trust.fields import FieldNames
from shim.trust.identity import Role
from shim.trust.jwks import Key, secret_key
from shim.trust.jwt import ClaimNames, TokenRules
from shim.trust.path_zones import Paths
from shim.trust.peers import Address as IPAddress
from shim.trust.peers import AddressList, parse_entry
from shim.trust.policy import Policy, Proof

if TYPE_CHECKING:
    from shim.monitors.user_header import UserHeaderState

# The settings that are flags of the policy with the same name.
FLAGS = tuple(
    each.name
    for each in fields(Policy)
    if each.type == "bool" and each.name in Settings.model_fields
)


def build_policy(
    settings: Settings,
    *,
    number: int = 0,
    resolved: Mapping[str, frozenset[IPAddress]] | None = None,
    suspended: bool = False,
    keys: tuple[Key, ...] = (),
    user_header: UserHeaderState | None = None,
    audit_available: bool = True,
) -> Policy:
    """Build the policy for these settings.

    `resolved`: the addresses of the host names in the list of trusted peers. `suspended`: trust no
    identity. `keys`: the keys of the provider's key set. `user_header`: whether Navidrome obeys the user
    header; None means that it does. `audit_available`: events can be stored, or need not be.
    """
    proof = settings.public_path_proof
    flags: dict[str, bool] = {name: getattr(settings, name) for name in FLAGS}
    return Policy(
        number=number,
        whitelist=AddressList(map(parse_entry, settings.reverse_proxy_whitelist), resolved),
        real_ip_proxies=AddressList(map(parse_entry, settings.real_ip_trusted_proxies)),
        paths=Paths(settings.base_path, settings.public_paths),
        names=_field_names(settings, user_header),
        rules=identity_rules(settings),
        secrets=tuple(secret.get_secret_value().encode() for secret in settings.proxy_secret),
        tokens=_tokens(settings, keys),
        public_path_proof=None if proof == "none" else Proof(proof),
        reject_untrusted=settings.untrusted_peers == "reject",
        required=_required(settings),
        admin_groups=frozenset(settings.admin_groups),
        # Without provisioning the groups are not checked, see `shim.settings.summary`.
        allowed_groups=frozenset(settings.allowed_groups if settings.provisioning else ()),
        reserved=reserved_names(settings),
        create_admin_disabled=settings.provisioning,
        suspended=suspended,
        user_header_obeyed=user_header is None or user_header.obeyed is not False,
        audit_available=audit_available,
        max_fields=settings.max_headers,
        **flags,
    )


def build_limits(settings: Settings) -> Limits:
    """Build the limits for these settings: a limit without a default is the setting of the same name."""
    values = {"header_bytes": settings.max_header_bytes, "header_lines": settings.max_headers}
    for each in fields(Limits):
        if each.default is MISSING and each.name not in values:
            values[each.name] = getattr(settings, each.name)
    return Limits(**values)


def jwks_config(settings: Settings) -> JwksConfig | None:
    """Return the address of the provider's key set, or None if none is configured."""
    if settings.jwt_verify == "off" or settings.jwks_url is None:
        return None
    return JwksConfig(
        url=settings.jwks_url,
        ca=None if settings.jwks_ca is None else str(settings.jwks_ca),
    )


def build_upstream_address(settings: Settings, tls: ssl.SSLContext | None) -> UpstreamAddress:
    """Return the address of Navidrome.

    `tls` verifies the certificate of Navidrome; None means without TLS.
    """
    upstream = settings.upstream
    return UpstreamAddress(upstream.host, upstream.port, upstream.path, tls)


def _field_names(settings: Settings, user_header: UserHeaderState | None) -> FieldNames:
    roles = {
        Role.USERNAME: settings.username_header,
        Role.NAME: settings.name_header,
        Role.EMAIL: settings.email_header,
        Role.GROUPS: settings.groups_header,
        Role.UID: settings.uid_header,
        Role.JWT: settings.jwt_header,
    }
    return FieldNames(
        {role: name for role, name in roles.items() if name},
        settings.identity_prefixes,
        settings.reverse_proxy_user_header,
        settings.proxy_secret_header,
        bearer=settings.jwt_bearer,
        percent_names=settings.name_encoding == "percent",
        email_decides=identity_rules(settings).email_decides,
        restricted=user_header is not None and user_header.obeyed is not True,
        other_user_header="" if user_header is None else user_header.other,
    )


def _tokens(settings: Settings, fetched: tuple[Key, ...]) -> TokenRules | None:
    if settings.jwt_verify == "off":
        return None
    secret = settings.jwt_hs256_secret
    configured = () if secret is None else (secret_key(secret.get_secret_value().encode()),)
    return TokenRules(
        keys=(*configured, *fetched),
        fetched=settings.jwks_url is not None,
        issuer=settings.jwt_issuer or "",
        audiences=frozenset(settings.jwt_audience),
        leeway=settings.jwt_leeway,
        required=settings.jwt_verify == "required",
        algorithms=frozenset(settings.jwt_algorithms),
        claims=ClaimNames(
            username=settings.jwt_username_claim,
            name=settings.jwt_name_claim,
            email=settings.jwt_email_claim,
            groups=settings.jwt_groups_claim,
            uid=settings.jwt_uid_claim,
        ),
    )


def _required(settings: Settings) -> frozenset[Role]:
    """Return the roles that every identity must have because the policy reads them."""
    required = set()
    if settings.provisioning and settings.uid_source != "username":
        required.add(Role.EMAIL if settings.uid_source == "email" else Role.UID)
    granting = settings.allowed_groups or settings.admin_groups or settings.library_groups
    if granting and settings.missing_groups == "reject":
        required.add(Role.GROUPS)
    return frozenset(required)


def sign_out_url(settings: Settings) -> str:
    """Return the sign-out address for the 403 page, or an empty string if it is unknown.

    For authentik it is derived from the sign-in address.
    """
    if settings.sign_out_url is not None:
        return settings.sign_out_url
    start = settings.sign_in_url or ""
    outpost, found, _ = start.partition("/outpost.goauthentik.io/start")
    return f"{outpost}/outpost.goauthentik.io/sign_out" if found else ""
