"""The parts of provisioning put together from the settings. Imported only where provisioning is on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from shim.audit.events import Event
from shim.control.health import Check
from shim.navidrome.api import Navidrome
from shim.navidrome.presence import Presence, watch
from shim.navidrome.session import HeaderSession, LoginSession, Session
from shim.navidrome.transport import Transport, tls_context
from shim.provisioning.bindings import Bindings
from shim.provisioning.footing import BootstrapAdmin, OwnAccount
from shim.provisioning.gate import ProvisioningGate
from shim.provisioning.ground import Ground
from shim.provisioning.health import ground_checks
from shim.provisioning.owner import new_owner
from shim.provisioning.policy import account_policy
from shim.settings import Settings
from shim.store.database import Database


@dataclass(frozen=True, slots=True)
class AccountParts:
    """What looks after accounts, for whoever runs it."""

    gate: ProvisioningGate
    ground: Ground

    def enforce(self, settings: Settings) -> None:
        """Go by these settings' groups from now on, where they differ from those in force."""
        policy = account_policy(settings)
        if policy != self.ground.policy:
            self.ground.enforce(policy)

    def checks(self) -> tuple[Check, ...]:
        """How they are, for `/readyz`."""
        return ground_checks(self.ground)


def build_ground(settings: Settings, record: Callable[[Event], None]) -> Ground:
    """What provisioning stands on; nothing is opened or asked yet. Raises `StoreError` for a database
    that can't be spoken to."""
    upstream, base_path = settings.upstream, settings.base_path
    ca = None if settings.upstream_ca is None else str(settings.upstream_ca)
    tls = tls_context(upstream, ca) if upstream.tls else None
    timeout = settings.navidrome_timeout

    async def present(left: Callable[[], None]) -> Presence:
        return await watch(upstream, base_path, tls, left, timeout)

    return Ground(
        build_api(settings),
        Bindings(Database(settings.database_url.get_secret_value()), new_owner(), time.time),
        account_policy(settings),
        own_account(settings),
        record,
        present,
        reconcile_seconds=settings.reconcile_seconds,
    )


def build_accounts(settings: Settings, record: Callable[[Event], None]) -> AccountParts:
    """The gate, over its ground."""
    ground = build_ground(settings, record)
    gate = ProvisioningGate(
        ground,
        record,
        timeout=settings.provisioning_timeout,
        most=settings.max_provisioning,
    )
    return AccountParts(gate, ground)


def build_api(settings: Settings) -> Navidrome:
    """Navidrome's API, spoken to as the settings say."""
    own = own_account(settings)
    return _api(settings, own.user_name, own.password)


def _api(settings: Settings, user_name: str, password: Callable[[], str] | None) -> Navidrome:
    """Navidrome's API as this user: by login where there is a password, else by the user header."""
    ca = None if settings.upstream_ca is None else str(settings.upstream_ca)
    transport = Transport(
        settings.upstream, settings.base_path, ca=ca, timeout=settings.navidrome_timeout
    )
    header = settings.reverse_proxy_user_header
    session: Session
    if password is not None:
        session = LoginSession(transport, user_name, password)
    else:
        session = HeaderSession(header, user_name)
    return Navidrome(transport, session, header)


def own_account(settings: Settings) -> OwnAccount:
    """The account that the shim acts as."""
    secret = settings.navidrome_admin_password
    return OwnAccount(
        settings.navidrome_admin_username,
        settings.reverse_proxy_user_header,
        None if secret is None else secret.get_secret_value,
        _bootstrap_admin(settings),
        lambda user_name: _api(settings, user_name, None),
    )


def _bootstrap_admin(settings: Settings) -> BootstrapAdmin | None:
    name, secret = settings.bootstrap_admin, settings.bootstrap_admin_password
    if name is None:
        return None
    password = None if secret is None else secret.get_secret_value
    return BootstrapAdmin(name, lambda: _api(settings, name, password))
