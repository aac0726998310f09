"""Look up whose account a name is, without an identity: for the devices of people.

Look-ups only, without I/O: nothing here counts as a visit of the person, and nothing is written to Navidrome.
"""

from __future__ import annotations

from enum import Enum, auto

from shim.navidrome.models import User
from shim.provisioning.models import Binding, BindingState
from shim.provisioning.policy import AccountPolicy, is_header_safe
from shim.provisioning.service import ProvisioningService
from shim.proxy.gate import Account
from shim.trust.identity import Identity
from shim.trust.names import normalize_name


class UsersNotListed(Enum):
    """Navidrome's users must be listed before an account may be named."""

    USERS_NOT_LISTED = auto()


USERS_NOT_LISTED = UsersNotListed.USERS_NOT_LISTED


class AccountLookup:
    """The accounts of one service."""

    def __init__(self, service: ProvisioningService) -> None:
        self._service = service
        # The last result for each person, with what it depends on.
        self._by_uid: dict[str, tuple[int, User, AccountPolicy, Account | None]] = {}

    @property
    def generation(self) -> int:
        """Return a number that rises whenever a name may belong to another person."""
        return self._service.directory.version + self._service.bindings.version

    def person_of(self, name: bytes) -> str | None:
        """Return the uid of the person whose account has this name, None if there is none.

        The name is the one in Navidrome: exactly, or else the only one that is equal without ASCII case.
        """
        try:
            text = name.decode("utf-8")
        except UnicodeDecodeError:
            return None
        service = self._service
        user = service.directory.find(text)
        if user is not None:
            binding = service.bindings.by_account(user.id)
        elif service.directory.is_empty:
            # Navidrome was not reached yet. The name alone lets nobody in: `of_person` waits for the list.
            binding = service.bindings.by_name(normalize_name(text))
        else:
            return None
        return None if binding is None else binding.uid

    def of_person(self, uid: str, *, listed: bool) -> Account | UsersNotListed | None:
        """Return the person's account if it may be used now.

        None if the person has none, or if it is locked, denied, reserved or deleted. `USERS_NOT_LISTED` while
        Navidrome's users must be listed first; `listed` states that they were, after the request arrived.
        """
        service = self._service
        binding = self._usable(uid)
        if binding is None:
            return None
        directory = service.directory
        if service.fault is not None or not (listed or directory.current):
            return USERS_NOT_LISTED
        user = directory.by_id(binding.navidrome_id)
        if user is None:
            return None
        # The rest depends on the user, the other names and the policy alone.
        version, policy, known = directory.version, service.policy, self._by_uid.get(uid)
        if known is not None and known[0] == version and known[1] is user and known[2] is policy:
            return known[3]
        account = self._named_account(user)
        self._by_uid[uid] = (version, user, policy, account)
        return account

    def _named_account(self, user: User) -> Account | None:
        """Return the account by its name, None if the user header can't name it or may not."""
        directory, name = self._service.directory, user.user_name
        if not is_header_safe(name) or self._service.policy.reserves(name):
            return None
        if directory.by_name(name) is not user:
            return None  # Navidrome would take the name for another account's
        return Account(name.encode(), user.id)

    def identity_of(self, uid: str) -> Identity | None:
        """Return the person's last identity."""
        binding = self._service.bindings.by_uid(uid)
        return None if binding is None else binding.identity

    def is_seen_since(self, uid: str, since: float) -> bool:
        """Return whether the person was seen signed in since this time, in seconds since the epoch."""
        binding = self._service.bindings.by_uid(uid)
        if binding is None:
            return False
        # The time of the last visits is stored later.
        return binding.last_seen > since or self._service.cache.is_seen(uid)

    def last_seen(self, uid: str, now: float) -> float:
        """Return when the person was last seen signed in, 0 if there is none. All times are in seconds since
        the epoch. A visit that is not stored yet counts as one at `now`."""
        binding = self._service.bindings.by_uid(uid)
        if binding is None:
            return 0.0
        return now if self._service.cache.is_seen(uid) else binding.last_seen

    async def read_last_seen(self) -> None:
        """Read when people were last seen by other processes. Raises `StoreError`."""
        await self._service.bindings.read_last_seen()

    def _usable(self, uid: str) -> Binding | None:
        bindings = self._service.bindings
        binding = bindings.by_uid(uid)
        if binding is None or bindings.is_locked(binding.navidrome_id):
            return None
        active = binding.state is BindingState.ACTIVE and self._service.policy.allows(
            binding.identity
        )
        return binding if active else None
