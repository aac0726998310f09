"""On what occasion something is done to an account, and for whom: what every event says of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from shim.proxy.gate import RequestInfo
from shim.trust.identity import Identity


class AuditFields(TypedDict):
    """The fields of an account's event that tell of its occasion."""

    trigger: str
    name: str | None
    uid: str | None
    groups: tuple[str, ...] | None
    peer: str | None
    request_id: str | None


@dataclass(frozen=True, slots=True)
class AuditContext:
    """`cause` is one of the words of `AccountEvent`; `asker` is set for a request."""

    trigger: str
    identity: Identity | None = None
    request_info: RequestInfo | None = None

    def as_fields(self) -> AuditFields:
        """It as fields of an event."""
        identity, request_info = self.identity, self.request_info
        return {
            "trigger": self.trigger,
            "name": None if identity is None else identity.username,
            "uid": None if identity is None else identity.uid,
            "groups": None if identity is None else identity.groups,
            "peer": None if request_info is None else request_info.peer,
            "request_id": None if request_info is None else request_info.request_id,
        }
