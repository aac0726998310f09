"""Events about the key set, the whitelist's host names and Navidrome's tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from shim.audit.events import Event, RequestEvent, Severity, Stream


@dataclass(frozen=True, slots=True, kw_only=True)
class NavidromeTokenFound(RequestEvent):
    """A request had a Navidrome token.

    `reason` is `navidrome_token_void` if the token was void and was removed, `token_mismatch` if it named
    another account than that of `user` and was removed, or `token_without_identity` if the request had no
    identity on a protected path and the token passed. `locations` are the places of the token.
    """

    kind: ClassVar[str] = "navidrome_token_found"

    reason: str
    locations: tuple[str, ...]

    @property
    def severity(self) -> Severity:
        return Severity.INFO if self.reason == "token_without_identity" else Severity.WARNING

    @property
    def group_key(self) -> tuple[str, ...]:
        return (self.kind, self.reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class NameLookupFailed(Event):
    """A host name on the whitelist could not be resolved. `detail` is the error; the addresses
    in `addresses` are still used."""

    kind: ClassVar[str] = "name_lookup_failed"
    stream: ClassVar[Stream] = Stream.CHANGES

    host: str
    detail: str
    addresses: tuple[str, ...]

    @property
    def severity(self) -> Severity:
        return Severity.WARNING if self.addresses else Severity.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class NameResolved(Event):
    """A host name on the whitelist was resolved again."""

    kind: ClassVar[str] = "name_resolved"
    stream: ClassVar[Stream] = Stream.CHANGES

    host: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySetFailed(Event):
    """The provider's key set could not be fetched. `detail` is the error. The keys in `keys`
    are still used."""

    kind: ClassVar[str] = "key_set_failed"
    stream: ClassVar[Stream] = Stream.CHANGES

    detail: str
    keys: tuple[str, ...]

    @property
    def severity(self) -> Severity:
        return Severity.WARNING if self.keys else Severity.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySetFetched(Event):
    """The provider's key set was fetched, for the first time or after a failure."""

    kind: ClassVar[str] = "key_set_fetched"
    stream: ClassVar[Stream] = Stream.CHANGES

    keys: tuple[str, ...]
