"""Events about the key set, the whitelist's host names, Navidrome's tokens and reloads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from shim.audit.events import (
    MAX_ITEMS,
    CoalescedEvent,
    Event,
    Severity,
    clip_items,
    clip_optional,
    set_sanitized,
)
from shim.audit.sanitize import clip, loggable_path


@dataclass(frozen=True, slots=True, kw_only=True)
class NavidromeTokenFound(CoalescedEvent):
    """A request had a Navidrome token.

    `reason` is `navidrome_token_void` if the token was void and was removed, `token_mismatch` if it named
    another account than that of `user` and was removed, or `token_without_identity` if the request had no
    identity on a protected path and the token passed. `locations` are the places of the token.
    """

    event: ClassVar[str] = "navidrome_token_found"

    request_id: str
    method: str
    path: str
    reason: str
    locations: tuple[str, ...]
    user: str | None = None

    def __post_init__(self) -> None:
        set_sanitized(
            self,
            method=clip(self.method, 32),
            path=loggable_path(self.path),
            locations=clip_items(self.locations),
            user=clip_optional(self.user),
        )

    @property
    def severity(self) -> Severity:
        return Severity.INFO if self.reason == "token_without_identity" else Severity.WARNING

    @property
    def group_key(self) -> tuple[str, ...]:
        return (self.event, self.reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class NameLookupFailed(Event):
    """A host name on the whitelist could not be resolved. `reason` is the error; `addresses` are used
    meanwhile."""

    event: ClassVar[str] = "name_lookup_failed"

    host: str
    reason: str
    addresses: tuple[str, ...]

    def __post_init__(self) -> None:
        set_sanitized(self, reason=clip(self.reason), addresses=clip_items(self.addresses))

    @property
    def severity(self) -> Severity:
        return Severity.WARNING if self.addresses else Severity.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class NameResolved(Event):
    """A host name on the whitelist was resolved again."""

    event: ClassVar[str] = "name_resolved"

    host: str
    addresses: tuple[str, ...]

    def __post_init__(self) -> None:
        set_sanitized(self, addresses=clip_items(self.addresses))


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySetFailed(Event):
    """The provider's key set could not be fetched. `reason` is the error; `keys` are used meanwhile."""

    event: ClassVar[str] = "key_set_failed"

    reason: str
    keys: tuple[str, ...]

    def __post_init__(self) -> None:
        set_sanitized(self, reason=clip(self.reason), keys=clip_items(self.keys))

    @property
    def severity(self) -> Severity:
        return Severity.WARNING if self.keys else Severity.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySetFetched(Event):
    """The provider's key set was fetched, for the first time or after a failure."""

    event: ClassVar[str] = "key_set_fetched"

    keys: tuple[str, ...]

    def __post_init__(self) -> None:
        set_sanitized(self, keys=clip_items(self.keys))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadRejected(Event):
    """A reload failed because the new settings are invalid. The old ones stay in force. `faults` has one line
    for each fault."""

    event: ClassVar[str] = "reload_rejected"

    faults: tuple[str, ...]

    def __post_init__(self) -> None:
        set_sanitized(self, faults=tuple(clip(fault, 400) for fault in self.faults[:MAX_ITEMS]))

    @property
    def severity(self) -> Severity:
        return Severity.ERROR
