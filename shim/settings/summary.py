"""What the settings mean for people: who may sign in, who is an admin, which proof an identity needs.

Read by `check` and written to the log at each start and reload: a setting that never reached the process is
seen there as what it is, absent.
"""

from __future__ import annotations

from shim.settings.model import Settings


def summary(settings: Settings) -> tuple[str, ...]:
    """One sentence each."""
    return (
        f"Identity headers count with: {', '.join(proofs(settings))}",
        f"May sign in: {_may_sign_in(settings)}",
        f"Admins: {_admins(settings)}",
    )


def proofs(settings: Settings) -> list[str]:
    """What an identity has to bring."""
    found = ["the peer's address"]
    if settings.proxy_secret:
        found.append(f"the shared secret in {settings.proxy_secret_header}")
    if settings.jwt_verify != "off":
        when = "where it is sent" if settings.jwt_verify == "optional" else "always"
        found.append(f"the provider's token in {settings.jwt_header}, {when}")
    return found


def _may_sign_in(settings: Settings) -> str:
    if not settings.provisioning:
        return "everybody whom the provider names (provisioning is off, groups are not checked)"
    if not settings.allowed_groups:
        return "everybody whom the provider names (SHIM_ALLOWED_GROUPS is not set)"
    return f"members of {', '.join(settings.allowed_groups)}"


def _admins(settings: Settings) -> str:
    if not settings.provisioning or not settings.admin_groups:
        return "as set in Navidrome (SHIM_ADMIN_GROUPS is not in force)"
    return f"members of {', '.join(settings.admin_groups)}"
