"""The account operations as administrative actions: each is recorded before it is answered.

The API, the console and the `users` commands use this; `operations.py` does the work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shim.audit.admin_actions import AdminActions
from shim.audit.events import Operator
from shim.audit.performing import Performed, perform
from shim.provisioning.operations import AccountRow, Change, Hold, Operations, Rebinding


@dataclass(frozen=True, slots=True)
class AccountList:
    """The accounts by name. `problem`: why the list is incomplete, empty if it is not."""

    rows: tuple[AccountRow, ...]
    problem: str = ""


class AccountAdministration:
    """The actions on accounts. `operations` returns the operations of a person. Raises `OperationError`, and
    what the store and Navidrome's API raise; an action that gives a right raises `NotStored`, too."""

    def __init__(self, operations: Callable[[Operator], Operations], actions: AdminActions) -> None:
        self._operations = operations
        self._actions = actions

    async def accounts(self, operator: Operator) -> AccountList:
        """Return every account."""
        operations = self._operations(operator)
        return AccountList(tuple(await operations.rows()), operations.unavailable_reason)

    def holds(self, operator: Operator) -> list[Hold]:
        """Return every user name that is held."""
        return self._operations(operator).holds()

    async def sync_plan(self, operator: Operator, name: str | None) -> list[Change]:
        """Return what `sync` would change."""
        return await self._operations(operator).plan(name)

    async def sync(self, operator: Operator, name: str | None) -> Performed[list[Change]]:
        """Update one account, or all, to the last state of their identities. Return the changes."""
        operations = self._operations(operator)

        async def work() -> list[Change]:
            changes = await operations.plan(name)
            await operations.sync(name)
            return changes

        return await perform(
            self._actions,
            operator,
            "users.sync",
            work,
            target=name,
            grants_access=True,
            changes=lambda found: tuple(map(str, found)),
        )

    def lock_plan(self, operator: Operator, name: str) -> list[str]:
        """Return the effects of `lock`, in sentences."""
        return self._operations(operator).lock_plan(name)

    async def lock(self, operator: Operator, name: str) -> Performed[None]:
        """Replace the account's password, and make its tokens void."""
        operations = self._operations(operator)
        return await perform(
            self._actions, operator, "users.lock", lambda: operations.lock(name), target=name
        )

    def unlock_plan(self, operator: Operator, name: str) -> list[str]:
        """Return the effects of `unlock`, in sentences."""
        return self._operations(operator).unlock_plan(name)

    async def unlock(self, operator: Operator, name: str) -> Performed[None]:
        """End the lock of an account that is not linked."""
        operations = self._operations(operator)
        return await perform(
            self._actions,
            operator,
            "users.unlock",
            lambda: operations.unlock(name),
            target=name,
            grants_access=True,
        )

    def unlink_plan(self, operator: Operator, name: str) -> list[str]:
        """Return the effects of `unlink`, in sentences."""
        return self._operations(operator).unlink_plan(name)

    async def unlink(self, operator: Operator, name: str) -> Performed[bool]:
        """Unlink the account from its person. The value says whether its password is already replaced."""
        operations = self._operations(operator)
        return await perform(
            self._actions,
            operator,
            "users.unlink",
            lambda: operations.unlink(name),
            target=name,
            grants_access=True,
        )

    def rebind_plan(
        self, operator: Operator, name: str | None, *, same_source: bool
    ) -> list[Rebinding]:
        """Return how accounts would be bound by `rebind`."""
        return self._operations(operator).rebind_plan(name, same_source=same_source)

    async def rebind(
        self, operator: Operator, plans: Sequence[Rebinding], *, target: str | None
    ) -> Performed[None]:
        """Bind accounts to their new uids. `target` is the account's name, None for all accounts."""
        operations = self._operations(operator)
        return await perform(
            self._actions,
            operator,
            "users.rebind",
            lambda: operations.rebind(plans),
            target=target,
            grants_access=True,
        )

    async def end_hold(self, operator: Operator, name: str) -> Performed[None]:
        """End the hold of a user name."""
        operations = self._operations(operator)
        return await perform(
            self._actions,
            operator,
            "users.holds.end",
            lambda: operations.end_hold(name),
            target=name,
            grants_access=True,
        )
