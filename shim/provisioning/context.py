"""What everybody who looks after accounts works with, and the one place where the policy in force stands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from shim.audit.events import Event
from shim.navidrome.api import Navidrome
from shim.provisioning.binding_store import BindingStore
from shim.provisioning.directory import Directory
from shim.provisioning.locks import KeyLocks
from shim.provisioning.policy import AccountPolicy
from shim.provisioning.user_writes import UserWrites


@dataclass(slots=True)
class ProvisioningContext:
    """`api` is Navidrome's, `bindings` are the store's; `policy` is replaced by a reload. `record` takes
    events. `directory` is what is known of Navidrome's accounts, `locks` are held for a person and a name
    while their account is worked on. `user_writes` are people's own requests that change Navidrome's
    users."""

    api: Navidrome
    bindings: BindingStore
    policy: AccountPolicy
    record: Callable[[Event], None]
    directory: Directory = field(default_factory=Directory)
    locks: KeyLocks = field(default_factory=KeyLocks)
    user_writes: UserWrites = field(default_factory=UserWrites)
