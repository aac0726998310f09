"""Summarize the settings: who may sign in, who is an admin, which proof an identity needs.

`check` prints the summary, and each start and reload logs it. So a user sees if a setting did not reach the
process.
"""

from __future__ import annotations

from shim.settings.identity import uid_source_name, verifies
from shim.settings.model import Settings


def summary(settings: Settings) -> tuple[str, ...]:
    """Return one sentence for each."""
    return (
        f"Provider {settings.provider}: {', '.join(_sources(settings))}",
        f"Accounts are bound to: {_binding(settings)}",
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
        token = f"the provider's token in {' or '.join(_token_headers(settings))}, {when}"
        found.append(f"{token} ({', '.join(settings.jwt_algorithms)})")
    return found


def _sources(settings: Settings) -> list[str]:
    """Return where each part of an identity comes from."""
    username = _source(settings, settings.username_header, settings.jwt_username_claim)
    email = _source(settings, settings.email_header, settings.jwt_email_claim)
    if settings.username_from_email != "off":
        part = {"full": "the e-mail", "local-part": "the e-mail before the @"}
        username = part[settings.username_from_email]
        if settings.email_domains:
            username += f" (of {' or '.join(settings.email_domains)})"
    separated = f" ({settings.groups_format}, separated by {settings.groups_separator})"
    if settings.groups_format == "json":
        separated = " (json)"
    groups = _source(settings, settings.groups_header, settings.jwt_groups_claim)
    return [
        f"user name from {username}",
        f"display name from {_source(settings, settings.name_header, settings.jwt_name_claim)}",
        f"e-mail from {email}",
        f"groups from {groups}{separated if settings.groups_header else ''}",
    ]


def _binding(settings: Settings) -> str:
    found = uid_source_name(settings)
    if settings.uid_source in ("username", "email"):
        return f"{found} (not permanent: who gets it at the provider gets the account)"
    return found


def _source(settings: Settings, header: str, claim: str) -> str:
    """Return where a value comes from: a header, a claim, or both, where the claim has priority."""
    found = [header] if header else []
    if verifies(settings) and claim:
        found.append(f"the token's {claim}")
    return " or ".join(found) or "nowhere"


def _token_headers(settings: Settings) -> list[str]:
    bearer = ["Authorization: Bearer"] if settings.jwt_bearer else []
    return [*([settings.jwt_header] if settings.jwt_header else []), *bearer]


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
