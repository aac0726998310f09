"""Evaluate the account settings: which identities are admitted, with which rights, and which accounts they
may claim.

Pure: no I/O, no clock. This module computes the desired state of an account; other modules write it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from shim.navidrome.models import Library, User
from shim.provisioning.models import NOTHING_WRITTEN, LastWritten
from shim.settings import Settings
from shim.settings.model import DEFAULT_ADMIN_USERNAME
from shim.settings.reserved import reserved_names
from shim.trust.identity import Identity
from shim.trust.names import normalize_name

# One @ between two words; Navidrome itself accepts any text.
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+")
# A header value ends at a control character, and loses blanks at both ends in transit.
_NOT_HEADER_SAFE = re.compile(r"[\x00-\x1f\x7f]|^[ \t]|[ \t]$|^$")


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountPolicy:
    """The settings that concern accounts, compiled once.

    `own_name`: the account that the shim uses. `reserved`: folded names of the accounts that no identity may
    have. `name_hold_seconds`: how long a freed name is held. `fail_open`: known accounts pass without an
    update while Navidrome's API fails. `only_device_passwords`: the owner of an account may set no password
    in Navidrome, so that Subsonic apps need a device password.
    """

    own_name: str = DEFAULT_ADMIN_USERNAME
    reserved: frozenset[str] = frozenset({DEFAULT_ADMIN_USERNAME})
    allowed_groups: frozenset[str] = frozenset()
    admin_groups: frozenset[str] = frozenset()
    library_groups: Mapping[str, tuple[str | int, ...]] = field(default_factory=dict)
    follow_renames: Literal["jwt", "headers", "off"] = "jwt"
    link_existing: Literal["none", "users", "all"] = "users"
    name_hold_seconds: float = 48 * 3600.0
    fail_open: bool = False
    only_device_passwords: bool = False

    def allows(self, identity: Identity) -> bool:
        """Return whether the identity is in a group that is allowed."""
        groups = identity.groups or ()
        return not self.allowed_groups or not self.allowed_groups.isdisjoint(groups)

    def reserves(self, user_name: str) -> bool:
        """Return whether the account is reserved: no identity may have it, and the shim never writes to
        it."""
        return normalize_name(user_name) in self.reserved

    def admin(self, identity: Identity) -> bool | None:
        """Return whether the identity's account is an admin; None if no setting decides it."""
        if not self.admin_groups:
            return None
        return not self.admin_groups.isdisjoint(identity.groups or ())

    def libraries(self, identity: Identity, known: Iterable[Library]) -> frozenset[int] | None:
        """Return the libraries of the identity's account while it is no admin, perhaps none; None for no
        change.

        An identity in no group with libraries gets those of every new user: a person who left a group keeps
        none of its libraries. The same applies if the libraries of its groups do not exist.
        """
        if not self.library_groups:
            return None
        known = tuple(known)
        groups = identity.groups or ()
        names = [name for group in groups for name in self.library_groups.get(group, ())]
        found = {library.id for library in known if library.id in names or library.name in names}
        if not found:
            found = {library.id for library in known if library.default}
        return frozenset(found)

    def unknown_libraries(self, known: Iterable[Library]) -> tuple[str, ...]:
        """Return the libraries in the settings that do not exist."""
        existing: set[str | int] = set()
        for library in known:
            existing |= {library.id, library.name}
        named = (name for names in self.library_groups.values() for name in names)
        return tuple(dict.fromkeys(str(name) for name in named if name not in existing))

    def follows(self, *, verified: bool) -> bool:
        """Return whether the provider's new name for a person renames the account. `verified`: a verified
        token states the name."""
        return self.follow_renames == "headers" or (self.follow_renames == "jwt" and verified)

    def link_error(self, user: User, identity: Identity, *, unlinked: bool) -> str | None:
        """Return why the identity may not claim this account by its name, None if it may. `unlinked`: the
        shim created the account, and it was unlinked."""
        if unlinked and (not user.is_admin or self.admin(identity)):
            return None
        if self.link_existing == "none":
            return "the shim did not create the account, and SHIM_LINK_EXISTING is none"
        if self.link_existing == "users" and user.is_admin and not self.admin(identity):
            return (
                "the account is an admin that the shim did not create, SHIM_LINK_EXISTING is users, and the "
                "user is in no group of SHIM_ADMIN_GROUPS"
            )
        return None

    def grants_admin(self, user: User, identity: Identity) -> bool:
        """Return whether a link to this identity gives the admin right to an account without it: then its
        password and its tokens become void."""
        return not user.is_admin and self.admin(identity) is True


def account_policy(settings: Settings) -> AccountPolicy:
    """Build the policy from these settings."""
    return AccountPolicy(
        own_name=settings.navidrome_admin_username,
        reserved=reserved_names(settings),
        allowed_groups=frozenset(settings.allowed_groups),
        admin_groups=frozenset(settings.admin_groups),
        library_groups=settings.library_groups,
        follow_renames=settings.follow_renames,
        link_existing=settings.link_existing,
        name_hold_seconds=settings.name_reuse_delay_hours * 3600.0,
        fail_open=settings.provisioning_fail_mode == "open",
        only_device_passwords=settings.subsonic_passwords == "devices",
    )


def is_header_safe(user_name: str) -> bool:
    """Return whether a user header can carry this name unchanged. Navidrome itself checks no name."""
    return _NOT_HEADER_SAFE.search(user_name) is None


def usable_email(email: str | None) -> str | None:
    """Return the e-mail address if it is valid, else None."""
    return email if email and _EMAIL.fullmatch(email) else None


def field_changes(
    identity: Identity, user: User, last_written: LastWritten, policy: AccountPolicy
) -> dict[str, object]:
    """Return the fields of the account's record that must change, by the record's own names.

    Display name and e-mail are written only if the provider changed them, so that the owner's changes in
    Navidrome are kept; the admin right always follows the groups.
    """
    changes: dict[str, object] = {}
    if identity.name and identity.name not in (last_written.name, user.name):
        changes["name"] = identity.name
    email = usable_email(identity.email)
    if email is not None and email not in (last_written.email, user.email):
        changes["email"] = email
    admin = policy.admin(identity)
    if admin is not None and admin is not user.is_admin:
        changes["isAdmin"] = admin
    return changes


def last_written(identity: Identity, before: LastWritten = NOTHING_WRITTEN) -> LastWritten:
    """Return the last written values after an identity's changes are written."""
    return LastWritten(
        name=identity.name or before.name, email=usable_email(identity.email) or before.email
    )
