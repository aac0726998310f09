"""Summarize the settings: who may sign in, who is an admin, which proof an identity needs.

`check` prints the summary, and each start and reload logs it. So a user sees if a setting did not reach the
process.
"""

from __future__ import annotations

from shim.settings.model import Settings


def summary(settings: Settings) -> tuple[str, ...]:
    """Return one sentence for each."""
    return (
        f"An identity needs: {', '.join(proofs(settings))}",
        f"May sign in: {_may_sign_in(settings)}",
        f"Admins: {_admins(settings)}",
        f"Console at {settings.base_path.rstrip('/')}/_shim/: {_console(settings)}",
    )


def proofs(settings: Settings) -> list[str]:
    """Return what an identity needs."""
    found = ["a trusted peer"]
    if settings.proxy_secret:
        found.append(f"the shared secret in {settings.proxy_secret_header}")
    if settings.jwt_verify != "off":
        when = "if it is sent" if settings.jwt_verify == "optional" else "always"
        found.append(f"the provider's token in {settings.jwt_header}, {when}")
    return found


def _may_sign_in(settings: Settings) -> str:
    if not settings.provisioning:
        return "all users of the provider (SHIM_PROVISIONING is off, groups are not checked)"
    if not settings.allowed_groups:
        return "all users of the provider (SHIM_ALLOWED_GROUPS is not set)"
    return f"members of {', '.join(settings.allowed_groups)}"


def _admins(settings: Settings) -> str:
    if not settings.provisioning or not settings.admin_groups:
        return "as set in Navidrome (SHIM_ADMIN_GROUPS is not set or has no effect)"
    return f"members of {', '.join(settings.admin_groups)}"


def _console(settings: Settings) -> str:
    """Return who may use the console through the edge, or why nobody may."""
    if not settings.admin_groups:
        return "closed (404), because SHIM_ADMIN_GROUPS is not set"
    if settings.proxy_secret:
        proof = "the shared secret"
        if settings.jwt_verify == "required":
            proof += " and a verified token"
    elif settings.jwt_verify != "off":
        proof = "a verified token"
    else:
        remedy = "set SHIM_PROXY_SECRET, or SHIM_JWT_VERIFY=required"
        return f"closed (404), because no proof is in force: {remedy}"
    allowed = settings.allowed_groups if settings.provisioning else ()
    members = f"members of {', '.join(settings.admin_groups)}"
    if allowed:
        members += f" who may sign in ({', '.join(allowed)})"
    return f"{members}, with {proof}"
