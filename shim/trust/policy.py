"""The inputs of a decision apart from the request, compiled once.

A policy never changes: a reload, a resolved name or a fetched key set creates a new one with a higher
`number`, and no entry cached under an older number matches.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Self

from shim.trust.fields import FieldNames
from shim.trust.identity import Identity, IdentityRules, Role, UidSource
from shim.trust.jwt import TokenRules
from shim.trust.path_zones import Paths
from shim.trust.peers import AddressList, Peer

AUTHENTIK_HEADERS: dict[Role, str] = {
    Role.USERNAME: "X-authentik-username",
    Role.NAME: "X-authentik-name",
    Role.EMAIL: "X-authentik-email",
    Role.GROUPS: "X-authentik-groups",
    Role.UID: "X-authentik-uid",
    Role.JWT: "X-authentik-jwt",
}


class Proof(StrEnum):
    """The proof that makes an identity count on a public path."""

    SECRET = "secret"
    JWT = "jwt"


def _default_names() -> FieldNames:
    return FieldNames(AUTHENTIK_HEADERS, ("X-authentik-",), "Remote-User", "X-Shim-Proxy-Secret")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The rules that determine which identities are trusted, from which peers and on which paths.

    `whitelist`: the peers whose identity headers count; an empty list trusts no peer.
    `real_ip_proxies`: proxies before the edge, which are skipped in the search for the client's address.
    `names`: the header names, with their allow-list.
    `rules`: how the values of a provider become an identity.
    `secrets`: the shared secrets that prove the edge's authenticated route; empty requires none.
    `tokens`: the rules for the provider's tokens; None ignores tokens.
    `required`: roles whose header must be present if an identity is claimed.
    `admin_groups`: groups whose members may use the control plane's pages. `allowed_groups`: groups that an
    account needs; empty: no restriction.
    `reserved`: accounts, by their normalized names, that no identity may use.
    `local_login`: Navidrome's own login stays open if an identity is required.
    `suspended`: no identity is trusted for now, since Navidrome's base path differs.
    `user_header_obeyed`: false while Navidrome is known not to obey the user header: identities are
    rejected, and `names` has the allow-list of headers for this state.
    `audit_available`: false while events cannot be stored and must be: identities are rejected.
    `max_fields`: maximum number of header lines of one request.
    """

    number: int = 0
    whitelist: AddressList = field(default_factory=AddressList)
    real_ip_proxies: AddressList = field(default_factory=AddressList)
    paths: Paths = field(default_factory=Paths)
    names: FieldNames = field(default_factory=_default_names)
    rules: IdentityRules = field(default_factory=IdentityRules)
    secrets: tuple[bytes, ...] = ()
    tokens: TokenRules | None = None
    public_path_proof: Proof | None = None
    reject_untrusted: bool = False
    require_identity: bool = False
    required: frozenset[Role] = frozenset()
    admin_groups: frozenset[str] = frozenset()
    allowed_groups: frozenset[str] = frozenset()
    reserved: frozenset[str] = frozenset()
    create_admin_disabled: bool = True
    local_login: bool = False
    suspended: bool = False
    user_header_obeyed: bool = True
    audit_available: bool = True
    max_fields: int = 100

    @property
    def only_tokens_name_users(self) -> bool:
        """Return whether no header carries the user name or the uid: both come from a required token."""
        if self.tokens is None or not self.tokens.required:
            return False
        roles = self.names.roles
        return self.rules.uid_source is UidSource.CLAIM or self.rules.username_role not in roles

    def trusts(self, peer: Peer) -> bool:
        """Return whether the identity headers of this peer may count."""
        return peer in self.whitelist

    def admits_admin(self, identity: Identity) -> bool:
        """Return whether the groups of this identity allow the control plane's pages."""
        groups = identity.groups or ()
        return not self.admin_groups.isdisjoint(groups) and self.admits(identity)

    def admits(self, identity: Identity) -> bool:
        """Return whether the groups of this identity allow an account."""
        groups = identity.groups or ()
        return not self.allowed_groups or not self.allowed_groups.isdisjoint(groups)

    def next_version(self, **changes: object) -> Self:
        """Return a new policy with these changes and the next number."""
        return replace(self, number=self.number + 1, **changes)  # type: ignore[arg-type]
