"""The accounts of people, as the pages of devices show them."""

from __future__ import annotations

from dataclasses import dataclass

from shim.provisioning.models import BindingState, is_person
from shim.provisioning.service import ProvisioningService
from shim.trust.identity import Identity


@dataclass(frozen=True, slots=True)
class OwnAccount:
    """The account of an identity. `name` is empty without one. `problem` says why it can have no device,
    empty if it can. `is_admin` and `libraries` are those in Navidrome, None if they are not known."""

    name: str = ""
    problem: str = ""
    is_admin: bool | None = None
    libraries: tuple[str, ...] | None = None


NO_ACCOUNT = OwnAccount(
    problem="You have no account on the music server yet. Open the music server once: that creates it."
)


class People:
    """The people who have an account, from what the running shim knows. No I/O."""

    def __init__(self, service: ProvisioningService) -> None:
        self._service = service

    def names(self) -> dict[str, str]:
        """Return the account's name of each uid."""
        return {
            binding.uid: binding.user_name
            for binding in self._service.bindings.all()
            if binding.uid is not None
        }

    def own_account(self, identity: Identity) -> OwnAccount:
        """Return the account of an identity."""
        service = self._service
        binding = None if identity.uid is None else service.bindings.by_uid(identity.uid)
        if binding is None or not is_person(binding.uid, binding.uid_source, identity):
            return NO_ACCOUNT
        name = binding.user_name
        if service.bindings.is_locked(binding.navidrome_id):
            # A locked person who may sign in is readmitted by the next visit.
            return OwnAccount(
                name,
                "Your account is locked. Open the music server once; if that does not help, ask the "
                "administrator.",
            )
        if binding.state is not BindingState.ACTIVE:
            return OwnAccount(
                name,
                "Your last sign-in to the music server was denied. If you may sign in again, open the music "
                "server once.",
            )
        user = service.directory.by_id(binding.navidrome_id)
        if user is None:
            return OwnAccount(name)
        libraries = {library.id: library.name for library in service.directory.libraries}
        known = tuple(sorted(libraries.get(each, str(each)) for each in user.libraries))
        return OwnAccount(
            user.user_name,
            is_admin=user.is_admin,
            libraries=("all",) if user.is_admin else known if libraries else None,
        )
