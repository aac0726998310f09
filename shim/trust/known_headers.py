"""List the identity headers of all known providers and proxies, which are removed from every request.

Navidrome obeys the user header that it is configured with, which may differ from the one that the shim
writes (`ND_EXTAUTH_USERHEADER=X-WebAuth-User`). So a header that any proxy uses to name a user never
passes, from any peer, under any alias. This is the only list of them. `Authorization`, `X-ND-*` and
`X-Emby-*` are not on it: apps sign in to Navidrome with those.
"""

from __future__ import annotations

# Headers that hold a user name and may be configured as Navidrome's user header. A monitor checks which of
# them Navidrome obeys.
USER_HEADERS: tuple[str, ...] = (
    "Remote-User",  # Navidrome's default; Authelia, tinyauth, Pangolin
    "X-authentik-username",
    "X-Forwarded-User",  # oauth2-proxy, traefik-forward-auth
    "X-Forwarded-Preferred-Username",
    "X-Forwarded-Email",
    "X-Auth-Request-User",  # oauth2-proxy as auth_request
    "X-Auth-Request-Preferred-Username",
    "X-Auth-Request-Email",
    "X-WebAuth-User",  # Grafana's guide
    "X-Remote-User",  # Kubernetes, Home Assistant, Apache
    "X-Remote-User-Name",
    "X-Auth-User",
    "X-Auth-Username",  # Keycloak Gatekeeper
    "X-Auth-Email",
    "X-Authenticated-User",
    "X-Proxy-User",
    "X-User",
    "X-Username",
    "Auth-User",  # LemonLDAP::NG, YunoHost
    "X-Vouch-User",
    "X-Pomerium-Claim-User",
    "X-Pomerium-Claim-Email",
    "X-Pomerium-Claim-Preferred-Username",
    "Cf-Access-Authenticated-User-Email",
    "X-Goog-Authenticated-User-Email",
    "Tailscale-User-Login",
    "X-MS-Client-Principal-Name",  # Azure
    "X-Amzn-Oidc-Identity",
    "OIDC-Claim-Preferred-Username",  # mod_auth_openidc
    "OIDC-Claim-Email",
    "OIDC-Claim-Sub",
    "SM-User",  # SiteMinder
    "IV-User",  # WebSEAL
    "CAS-User",
    "X-Token-User-Name",  # Caddy's security app
    "X-Token-User-Email",
    "Remote-Name",  # beside Remote-User, in case it is configured by mistake
    "Remote-Email",
)
# Headers with other facts about the user, where no prefix covers them.
_OTHERS: tuple[str, ...] = (
    "Remote-Groups",
    "Remote-Role",
    "Remote-Sub",
    "X-Forwarded-Groups",
    "X-Forwarded-Access-Token",
    "X-Remote-Group",
    "X-Auth-Name",
    "X-Auth-Groups",
    "X-Auth-Roles",
    "X-Auth-Subject",
    "X-Auth-Userid",
    "X-Authenticated-Userid",
    "X-Authenticated-Email",
    "X-Authenticated-Groups",
    "X-User-Name",
    "X-User-Email",
    "X-Email",
    "Auth-Mail",
    "Auth-Groups",
)
# Prefixes that cover all headers of a provider.
_PREFIXES: tuple[str, ...] = (
    "X-authentik-",
    "X-Auth-Request-",
    "X-WebAuth-",
    "X-Remote-User-",
    "X-Remote-Extra-",
    "X-Vouch-",
    "X-Pomerium-",
    "Cf-Access-",
    "X-Goog-Authenticated-User-",
    "X-Goog-IAP-",
    "Tailscale-",
    "X-MS-Client-Principal",
    "X-MS-Token-",
    "X-Amzn-Oidc-",
    "OIDC-",
)

_NAMES = frozenset(name.lower().encode() for name in (*USER_HEADERS, *_OTHERS))
_LOWER_PREFIXES = tuple(prefix.lower().encode() for prefix in _PREFIXES)


def is_known_identity(folded: bytes) -> bool:
    """Return whether a header with this normalized name carries an identity.

    A normalized name is lower case, with `-` for any other character.
    """
    return folded in _NAMES or folded.startswith(_LOWER_PREFIXES)
