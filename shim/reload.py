"""Which settings can be taken anew while the shim runs, and what becomes of the others.

Whatever the policy is made of is taken between two requests. What was bound, opened or measured at the
start (addresses, Navidrome, the database, limits) keeps its value until a restart, and that is said.
"""

from __future__ import annotations

from dataclasses import dataclass

from shim.settings import SETTINGS, Settings
from shim.settings.checks import contradictions

TAKEN = frozenset(
    {
        "admin_groups",
        "allowed_groups",
        "email_header",
        "forwarding_hops",
        "groups_header",
        "groups_separator",
        "identity_prefixes",
        "jwks_ca",
        "jwks_max_age",
        "jwks_max_bytes",
        "jwks_min_interval",
        "jwks_refresh_seconds",
        "jwks_timeout",
        "jwks_url",
        "jwt_audience",
        "jwt_bearer",
        "jwt_header",
        "jwt_hs256_secret",
        "jwt_issuer",
        "jwt_leeway",
        "jwt_verify",
        "library_groups",
        "local_login",
        "name_encoding",
        "name_header",
        "proxy_secret",
        "proxy_secret_header",
        "public_path_proof",
        "public_paths",
        "require_identity",
        "reverse_proxy_whitelist",
        "sign_in_url",
        "sign_out_url",
        "uid_header",
        "untrusted_peers",
        "username_header",
        "whitelist_keep_seconds",
        "whitelist_refresh_seconds",
    }
)


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What came of a reload. `faults`: why the settings from before stay in force, empty where they don't.
    `changed`: names of settings that have another value now; `waiting`: of those that a restart takes."""

    faults: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Merged:
    """The settings that can be put in force, and what `Reloaded` says of them."""

    settings: Settings
    outcome: Reloaded


def merged(running: Settings, fresh: Settings) -> Merged:
    """The settings that run, with what can be taken of the fresh ones."""
    differing = [
        each for each in SETTINGS if getattr(running, each.field) != getattr(fresh, each.field)
    ]
    taken = {each.field: getattr(fresh, each.field) for each in differing if each.field in TAKEN}
    settings = running.model_copy(update=taken)
    # Each whole is sound, but a mixture of both may not be.
    faults = tuple(
        f"{', '.join(f'SHIM_{field.upper()}' for field in one.fields)}: {one.expected}"
        for one in contradictions(settings)
    )
    return Merged(
        settings,
        Reloaded(
            faults,
            tuple(each.name for each in differing if each.field in TAKEN),
            tuple(each.name for each in differing if each.field not in TAKEN),
        ),
    )
