"""What each provider sends for one user, taken from the provider's source, and the identity that it names.

Sources: Authelia `handleAuthzAuthorizedStandard`, oauth2-proxy `getXAuthRequestHeaders` (values joined with a
comma by `flattenHeaders`), Pomerium `getJWTPayload`, Tailscale `addTailscaleIdentityHeaders`, tinyauth
`proxyHandler` (`SanitizeHeader` drops what is not ASCII).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from shim.settings import Settings, load
from shim.trust.identity import Identity
from shim.trust.jwks import Key, read_key_set
from tests.support.jwt_minting import ec_key, jwk, key_set, rsa_key, token

ISSUER = "https://team.cloudflareaccess.com"
HOST = "music.example.org"


@dataclass(frozen=True)
class Sent:
    """The headers of one user's request as the edge sends it, the settings beside the preset, and the
    identity.

    `name_field`: the header that a client would forge. `without_token`: the reason for that header alone,
    through an edge route without authentication.
    """

    provider: str
    fields: tuple[str, ...]
    identity: Identity
    name_field: str
    settings: dict[str, str] = field(default_factory=dict)
    without_token: str = "trusted_peer"

    def load(self, **settings: str) -> Settings:
        """Load the preset's settings, with these."""
        all_settings = {"PROVIDER": self.provider, "REVERSE_PROXY_WHITELIST": "127.0.0.2"}
        all_settings |= self.settings | settings
        return load({f"SHIM_{name}": value for name, value in all_settings.items()})


def keys() -> tuple[Key, ...]:
    """The keys of the providers that sign."""
    return read_key_set(key_set(jwk(rsa_key(), "rsa-0"), jwk(ec_key(), "ec-0")))


# Longer than a run of all tests: the assertions of the tables are signed when the module is loaded.
_VALID_SECONDS = 86_400


def pomerium_assertion(**changes: object) -> str:
    """The assertion that Pomerium signs for ada, valid now, with these claims changed."""
    now = int(time.time())
    entries = {
        "iss": HOST,
        "aud": HOST,
        "jti": "2c0a",
        "iat": now,
        "exp": now + _VALID_SECONDS,
        "sub": "idp-7",
        "user": "idp-7",
        "email": "ada@example.org",
        "groups": ["family", "admins"],
        "sid": "s-1",
        "name": "Ada Lövelace",
        **changes,
    }
    return token(entries, key=ec_key(), algorithm="ES256", kid="ec-0")


def access_assertion(**changes: object) -> str:
    """The assertion that Cloudflare Access signs for ada, valid now, with these claims changed."""
    now = int(time.time())
    entries = {
        "aud": ["aud-tag"],
        "email": "ada@example.org",
        "exp": now + _VALID_SECONDS,
        "iat": now,
        "nbf": now,
        "iss": ISSUER,
        "type": "app",
        "identity_nonce": "n",
        "sub": "cf-7",
        "country": "DE",
        **changes,
    }
    return token(entries)


def _token_settings(issuer: str, audience: str) -> dict[str, str]:
    return {
        "JWKS_URL": "https://keys.example.org/",
        "JWT_ISSUER": issuer,
        "JWT_AUDIENCE": audience,
    }


GROUPS = ("family", "admins")
SENDS = [
    Sent(
        "authentik",
        (
            "X-Authentik-Username: ada",
            "X-Authentik-Groups: family|admins",
            "X-Authentik-Entitlements: ",
            "X-Authentik-Email: ada@example.org",
            "X-Authentik-Name: Ada Lövelace",
            "X-Authentik-Uid: 5a1c",
            "X-Authentik-Meta-App: navidrome",
        ),
        Identity(
            "ada", "Ada Lövelace", "ada@example.org", GROUPS, "5a1c", "header x-authentik-uid"
        ),
        "X-Authentik-Username",
    ),
    Sent(
        "authelia",
        (
            "Remote-User: ada",
            "Remote-Groups: family,admins",
            "Remote-Name: Ada Lövelace",
            "Remote-Email: ada@example.org",
        ),
        Identity("ada", "Ada Lövelace", "ada@example.org", GROUPS, "ada", "user name of authelia"),
        "Remote-User",
    ),
    Sent(
        "oauth2-proxy",
        (
            "X-Auth-Request-User: idp-7",
            "X-Auth-Request-Email: ada@example.org",
            "X-Auth-Request-Preferred-Username: ada",
            "X-Auth-Request-Groups: family,admins",
        ),
        Identity("ada", None, "ada@example.org", GROUPS, "idp-7", "header x-auth-request-user"),
        "X-Auth-Request-Preferred-Username",
    ),
    Sent(
        "pomerium",
        (
            f"X-Pomerium-Jwt-Assertion: {pomerium_assertion()}",
            "X-Pomerium-Claim-Email: ada@example.org",
        ),
        Identity(
            "ada@example.org",
            "Ada Lövelace",
            "ada@example.org",
            GROUPS,
            "idp-7",
            f"claim sub of {HOST}",
        ),
        # Nothing unsigned is read.
        "X-Pomerium-Claim-Email",
        _token_settings(HOST, HOST),
        "spoofed_user_header",
    ),
    Sent(
        "cloudflare-access",
        (
            "Cf-Access-Authenticated-User-Email: ada@example.org",
            f"Cf-Access-Jwt-Assertion: {access_assertion()}",
        ),
        Identity(
            "ada@example.org", None, "ada@example.org", None, "cf-7", f"claim sub of {ISSUER}"
        ),
        "Cf-Access-Authenticated-User-Email",
        _token_settings(ISSUER, "aud-tag"),
        "jwt_missing",
    ),
    Sent(
        "tailscale",
        (
            "Tailscale-User-Login: ada@example.org",
            "Tailscale-User-Name: =?utf-8?q?Ada_L=C3=B6velace?=",
            "Tailscale-User-Profile-Pic: https://example.org/ada.png",
            "Tailscale-Headers-Info: https://tailscale.com/s/serve-headers",
        ),
        Identity(
            "ada@example.org",
            "Ada Lövelace",
            "ada@example.org",
            None,
            "ada@example.org",
            "user name of tailscale",
        ),
        "Tailscale-User-Login",
    ),
    Sent(
        "tinyauth",
        (
            "Remote-User: ada",
            "Remote-Name: Ada Lvelace",
            "Remote-Email: ada@example.org",
            "Remote-Groups: family,admins",
            "Remote-Sub: ",
        ),
        Identity("ada", "Ada Lvelace", "ada@example.org", GROUPS, "ada", "user name of tinyauth"),
        "Remote-User",
    ),
    # vouch-proxy: groups in quotes, and the uid as a claim header of its own.
    Sent(
        "custom",
        (
            "X-Vouch-User: ada@example.org",
            'X-Vouch-IdP-Claims-Groups: "family","admins"',
            "X-Vouch-IdP-Claims-Sub: idp-7",
            "X-Vouch-IdP-Claims-Name: Ada Lövelace",
        ),
        Identity(
            "ada@example.org",
            "Ada Lövelace",
            None,
            GROUPS,
            "idp-7",
            "header x-vouch-idp-claims-sub",
        ),
        "X-Vouch-User",
        {
            "IDENTITY_PREFIXES": "X-Vouch-",
            "USERNAME_HEADER": "X-Vouch-User",
            "NAME_HEADER": "X-Vouch-IdP-Claims-Name",
            "GROUPS_HEADER": "X-Vouch-IdP-Claims-Groups",
            "GROUPS_FORMAT": "quoted",
            "GROUPS_SEPARATOR": ",",
            "UID_HEADER": "X-Vouch-IdP-Claims-Sub",
        },
    ),
]
