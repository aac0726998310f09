"""Which settings a reload applies, and which wait for a restart.

A reload applies the settings of the policy, between two requests. Listening addresses, Navidrome's address,
the database and the limits keep their values until a restart, and the result of the reload names them.
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
    """The result of a reload. `faults`: why the old settings stay in force; empty if the new ones are.
    `changed`: names of the settings that were applied. `pending_restart`: names of those that need a
    restart."""

    faults: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    pending_restart: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MergeResult:
    """The settings to put in force, and the result to report."""

    settings: Settings
    outcome: ReloadResult


def merge_settings(running: Settings, new: Settings) -> MergeResult:
    """Return the running settings with the reloadable ones of `new`."""
    changed = [
        each for each in SETTINGS if getattr(running, each.field) != getattr(new, each.field)
    ]
    reloadable = {
        each.field: getattr(new, each.field) for each in changed if each.field in RELOADABLE
    }
    settings = running.model_copy(update=reloadable)
    # Both are valid, but a mixture may not be.
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
