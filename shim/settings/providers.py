"""The presets of the identity providers: one row for each value of `SHIM_PROVIDER`.

A row gives the settings that describe what a provider sends: names of headers and claims, the form of its
groups, and what accounts are bound to. A value is text, as a user would write it, and the setting's own
parser reads it. A setting that the user makes wins over the row. What a row leaves out is empty: the
provider does not send it. A new provider needs only its row, and its section in `docs/providers.md`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """The settings of one provider, by the setting's field.

    `omits_empty_groups` is not a setting: for a user in no group, the provider sends neither a header nor a
    claim with the groups.
    """

    identity_prefixes: str = ""
    username_header: str = ""
    name_header: str = ""
    email_header: str = ""
    groups_header: str = ""
    groups_separator: str = ","
    uid_header: str = ""
    jwt_header: str = ""
    uid_source: str = "header"
    username_from_email: str = "off"
    jwt_verify: str = "off"
    jwt_algorithms: str = "RS256,ES256,EdDSA,HS256"
    jwt_username_claim: str = "preferred_username"
    jwt_name_claim: str = "name"
    jwt_email_claim: str = "email"
    jwt_groups_claim: str = "groups"
    jwt_uid_claim: str = "sub"
    omits_empty_groups: bool = False


PRESETS: dict[str, Preset] = {
    "authentik": Preset(
        identity_prefixes="X-authentik-",
        username_header="X-authentik-username",
        name_header="X-authentik-name",
        email_header="X-authentik-email",
        groups_header="X-authentik-groups",
        groups_separator="|",
        uid_header="X-authentik-uid",
        jwt_header="X-authentik-jwt",
    ),
    "authelia": Preset(
        identity_prefixes="Remote-",
        username_header="Remote-User",
        name_header="Remote-Name",
        email_header="Remote-Email",
        groups_header="Remote-Groups",
        uid_source="username",
    ),
    "oauth2-proxy": Preset(
        identity_prefixes="X-Auth-Request-",
        username_header="X-Auth-Request-Preferred-Username",
        email_header="X-Auth-Request-Email",
        groups_header="X-Auth-Request-Groups",
        uid_header="X-Auth-Request-User",
        omits_empty_groups=True,
    ),
    "pomerium": Preset(
        identity_prefixes="X-Pomerium-",
        jwt_header="X-Pomerium-Jwt-Assertion",
        uid_source="claim",
        username_from_email="full",
        jwt_verify="required",
        jwt_algorithms="ES256",
        jwt_username_claim="",
    ),
    "cloudflare-access": Preset(
        identity_prefixes="Cf-Access-",
        email_header="Cf-Access-Authenticated-User-Email",
        jwt_header="Cf-Access-Jwt-Assertion",
        uid_source="claim",
        username_from_email="full",
        jwt_verify="required",
        jwt_algorithms="RS256",
        jwt_username_claim="",
        jwt_name_claim="",
        jwt_groups_claim="",
    ),
    "tailscale": Preset(
        identity_prefixes="Tailscale-User-",
        name_header="Tailscale-User-Name",
        email_header="Tailscale-User-Login",
        uid_source="username",
        username_from_email="full",
    ),
    "tinyauth": Preset(
        identity_prefixes="Remote-",
        username_header="Remote-User",
        name_header="Remote-Name",
        email_header="Remote-Email",
        groups_header="Remote-Groups",
        uid_source="username",
        omits_empty_groups=True,
    ),
    "custom": Preset(),
}
# The defaults of the settings.
DEFAULT_PROVIDER = "authentik"
DEFAULT = PRESETS[DEFAULT_PROVIDER]


def preset_values(provider: str) -> dict[str, str]:
    """Return the settings of a provider's row, by the setting's field."""
    values = asdict(PRESETS[provider])
    del values["omits_empty_groups"]
    return values
