"""Everything that a decision depends on beside the request, compiled once.

A policy is never changed: a reload, a resolved name or a fetched key set makes a new one with a higher
`number`, and nothing that was remembered under an older number matches.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Self

from shim.trust.fields import FieldNames
from shim.trust.identity import Role
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
    """What lets an identity count on a public path."""

    SECRET = "secret"
    JWT = "jwt"


def _default_names() -> FieldNames:
    return FieldNames(AUTHENTIK_HEADERS, ("X-authentik-",), "Remote-User", "X-Shim-Proxy-Secret")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What is believed, from whom, and where.

    `whitelist`: the peers whose identity headers count; empty trusts nobody.
    `hops`: proxies before the edge that the client's address is looked for behind.
    `secrets`: the shared secrets that prove the edge's authenticated route; empty asks for none.
    `tokens`: which of the provider's tokens hold; None looks at none.
    `required`: roles whose header may not be absent where an identity is claimed.
    `reserved`: accounts, by their folded names, that no identity may be.
    `local_login`: Navidrome's own login stays open where an identity is required.
    `suspended`: nobody is believed for now, since Navidrome contradicts the base path.
    `user_header_obeyed`: false while Navidrome is known not to obey the user header: identities are
    rejected. `names` has the allow-list of headers that belongs to it.
    `max_fields`: header lines of one request.
    """

    number: int = 0
    whitelist: AddressList = field(default_factory=AddressList)
    real_ip_proxies: AddressList = field(default_factory=AddressList)
    paths: Paths = field(default_factory=Paths)
    names: FieldNames = field(default_factory=_default_names)
    groups_separator: str = "|"
    secrets: tuple[bytes, ...] = ()
    tokens: TokenRules | None = None
    public_path_proof: Proof | None = None
    reject_untrusted: bool = False
    require_identity: bool = False
    required: frozenset[Role] = frozenset()
    admin_groups: frozenset[str] = frozenset()
    reserved: frozenset[str] = frozenset()
    create_admin_disabled: bool = True
    local_login: bool = False
    suspended: bool = False
    user_header_obeyed: bool = True
    max_fields: int = 100

    def trusts(self, peer: Peer) -> bool:
        """Whether this peer's identity headers may count."""
        return peer in self.whitelist

    def next_version(self, **changes: object) -> Self:
        """The next policy: these changes, and the next number."""
        return replace(self, number=self.number + 1, **changes)  # type: ignore[arg-type]
