"""Read the settings of the identity: how the provider's values become one, and what accounts are bound to."""

from __future__ import annotations

from shim.settings.model import Settings
from shim.trust.identity import GroupsFormat, IdentityRules, UidSource, UsernameFromEmail


def identity_rules(settings: Settings) -> IdentityRules:
    """Return how the provider's values become an identity."""
    return IdentityRules(
        uid_source=UidSource(settings.uid_source),
        uid_source_name=uid_source_name(settings),
        username_from_email=UsernameFromEmail(settings.username_from_email),
        email_domains=frozenset(settings.email_domains),
        groups_format=GroupsFormat(settings.groups_format),
        groups_separator=settings.groups_separator,
    )


def uid_source_name(settings: Settings) -> str:
    """Return the source of the uid in words, as bindings store it.

    If the uids of two settings may belong to different people, the settings have different names: a header
    belongs to the provider, a claim to the issuer, and a user name or an e-mail to the provider that sends
    it.
    """
    match settings.uid_source:
        case "username":
            return f"user name of {settings.provider}"
        case "email":
            return f"e-mail of {settings.provider}"
        case "header" if settings.uid_header:
            return f"header {settings.uid_header.lower()}"
        case _:
            return f"claim {settings.jwt_uid_claim} of {settings.jwt_issuer}"


def has_groups(settings: Settings) -> bool:
    """Return whether an identity can have groups."""
    return bool(settings.groups_header or (verifies(settings) and settings.jwt_groups_claim))


def email_decides(settings: Settings) -> bool:
    """Return whether the e-mail address is the user name or the uid."""
    return settings.username_from_email != "off" or settings.uid_source == "email"


def verifies(settings: Settings) -> bool:
    """Return whether tokens are verified."""
    return settings.jwt_verify != "off"
