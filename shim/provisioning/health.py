"""Build the checks of accounts and the store for `/readyz` and `check`, from known state and without I/O."""

from __future__ import annotations

from collections.abc import Iterable

from shim.health import Check, State
from shim.navidrome.models import Library
from shim.provisioning.models import BindingState
from shim.provisioning.policy import AccountPolicy
from shim.provisioning.service import ProvisioningService


def service_checks(service: ProvisioningService) -> tuple[Check, ...]:
    """Return the checks of provisioning."""
    store = store_check(service.bindings.database.display_url, service.store_fault)
    return (store, _accounts(service))


def account_states(service: ProvisioningService) -> dict[str, int]:
    """Return the number of accounts in each state, with the words of `users list`. Any thread may call it."""
    bindings = service.bindings.all()
    counts = dict.fromkeys((*BindingState, "unbound", "reserved"), 0)
    for binding in bindings:
        counts[binding.state] += 1
    bound = {binding.navidrome_id for binding in bindings}
    for user in service.directory.all():
        if service.policy.reserves(user.user_name):
            counts["reserved"] += 1
        elif user.id not in bound:
            counts["unbound"] += 1
    return {str(state): count for state, count in counts.items()}


def accounts_check(
    accounts: int,
    bindings: int | None,
    without_password: Iterable[str],
    unknown: Iterable[str],
    unreadable: int = 0,
) -> Check:
    """Return the check of accounts that can be provisioned. `unreadable` records are too large."""
    open_accounts = tuple(without_password)
    if open_accounts:
        return Check(
            "accounts",
            State.WARNING,
            f"an empty password opens: {', '.join(open_accounts)}",
            "Run `navidrome-shim users lock NAME` for each, or delete it in Navidrome.",
        )
    if unreadable:
        return Check(
            "accounts",
            State.WARNING,
            f"{unreadable} of Navidrome's accounts can't be read, because their records are too large: their "
            "users get 503",
            "In Navidrome, as an admin, shorten the account's name or e-mail, or delete the account.",
        )
    missing = tuple(unknown)
    if missing:
        return Check(
            "accounts",
            State.WARNING,
            f"SHIM_LIBRARY_GROUPS names libraries that Navidrome does not have: {', '.join(missing)}",
            "Use the names in Navidrome (Settings → Libraries), or their ids.",
        )
    linked = "" if bindings is None else f", {bindings} linked to a user"
    return Check("accounts", State.OK, f"{accounts} in Navidrome{linked}")


def _accounts(service: ProvisioningService) -> Check:
    if service.fault is not None:
        return Check("accounts", State.FAILING, service.fault.detail, service.fault.remedy)
    return accounts_check(
        len(service.directory.all()),
        len(service.bindings),
        service.reconciler.without_password,
        _unknown(service.policy, service.directory.libraries),
        service.api.unreadable,
    )


def _unknown(policy: AccountPolicy, libraries: tuple[Library, ...]) -> tuple[str, ...]:
    return policy.unknown_libraries(libraries) if libraries else ()


def store_check(display_url: str, fault: str | None) -> Check:
    """Return the check of the store at `display_url`; `fault` is why it can't be used, None if it can."""
    if fault is None:
        return Check("store", State.OK, display_url)
    remedy = "Check that the database responds and can be written, or set SHIM_DATABASE_URL to another one."
    return Check("store", State.FAILING, fault, remedy)
