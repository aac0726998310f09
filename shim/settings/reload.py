"""Which settings can be taken again while the shim runs, and what becomes of the others.

Whatever the policy is made of is taken between two requests. What was bound, opened or measured at the
start (addresses, Navidrome, the database, limits) keeps its value until a restart, and that is said.
"""

from __future__ import annotations

from dataclasses import dataclass

from shim.settings import SETTINGS, Settings
from shim.settings.validation import conflicts

RELOADABLE = frozenset(
    {
        "admin_groups",
        "allowed_groups",
        "email_header",
        "real_ip_trusted_proxies",
        "groups_header",
        "groups_separator",
        "identity_prefixes",
        "jwks_ca",
        "jwks_min_interval",
        "jwks_refresh_seconds",
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
        "dns_stale_seconds",
        "dns_refresh_seconds",
    }
)


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """What came of a reload. `faults`: why the settings from before stay in force, empty where they don't.
    `changed`: names of settings that have another value now; `waiting`: of those that a restart takes."""

    faults: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    pending_restart: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MergeResult:
    """The settings that can be put in force, and what `Reloaded` says of them."""

    settings: Settings
    outcome: ReloadResult


def merge_settings(running: Settings, new: Settings) -> MergeResult:
    """The settings that run, with what can be taken of the fresh ones."""
    changed = [
        each for each in SETTINGS if getattr(running, each.field) != getattr(new, each.field)
    ]
    reloadable = {
        each.field: getattr(new, each.field) for each in changed if each.field in RELOADABLE
    }
    settings = running.model_copy(update=reloadable)
    # Each whole is sound, but a mixture of both may not be.
    faults = tuple(
        f"{', '.join(f'SHIM_{field.upper()}' for field in one.fields)}: {one.expected}"
        for one in conflicts(settings)
    )
    return MergeResult(
        settings,
        ReloadResult(
            faults,
            tuple(each.name for each in changed if each.field in RELOADABLE),
            tuple(each.name for each in changed if each.field not in RELOADABLE),
        ),
    )
