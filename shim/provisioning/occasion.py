"""On what occasion something is done to an account, and for whom: what every event says of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from shim.proxy.gate import Asker
from shim.trust.identity import Identity


class Told(TypedDict):
    """The fields of an account's event that tell of its occasion."""

    cause: str
    name: str | None
    uid: str | None
    groups: tuple[str, ...] | None
    peer: str | None
    request_id: str | None


@dataclass(frozen=True, slots=True)
class Occasion:
    """`cause` is one of the words of `AccountEvent`; `asker` is set for a request."""

    cause: str
    identity: Identity | None = None
    asker: Asker | None = None

    def told(self) -> Told:
        """It as fields of an event."""
        identity, asker = self.identity, self.asker
        return {
            "cause": self.cause,
            "name": None if identity is None else identity.username,
            "uid": None if identity is None else identity.uid,
            "groups": None if identity is None else identity.groups,
            "peer": None if asker is None else asker.peer,
            "request_id": None if asker is None else asker.request_id,
        }
