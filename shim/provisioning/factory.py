"""Build provisioning from the settings. Imported only if provisioning is on."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass

from shim.audit.events import Event
from shim.health import Check
from shim.navidrome.api import Navidrome
from shim.navidrome.liveness import LivenessConnection, open_liveness
from shim.navidrome.session import HeaderSession, LoginSession, Session
from shim.navidrome.transport import Transport, upstream_tls
from shim.provisioning.admin import BootstrapAdmin, OwnAccount
from shim.provisioning.binding_store import BindingStore, new_owner
from shim.provisioning.gate import ProvisioningGate
from shim.provisioning.health import account_states, service_checks
from shim.provisioning.policy import account_policy
from shim.provisioning.service import ProvisioningService
from shim.settings import Settings
from shim.store.database import Database


@dataclass(frozen=True, slots=True)
class AccountParts:
    """The gate and the service, for the composition root."""

    gate: ProvisioningGate
    service: ProvisioningService

    def enforce(self, settings: Settings) -> None:
        """Apply these settings' groups from now on, if they differ from those in force."""
        policy = account_policy(settings)
        if policy != self.service.policy:
            self.service.apply_policy(policy)

    def checks(self) -> tuple[Check, ...]:
        """Return their state, for `/readyz`."""
        return service_checks(self.service)

    def states(self) -> dict[str, int]:
        """Return the number of accounts by state, for `/metrics`."""
        return account_states(self.service)


def build_service(
    settings: Settings,
    record: Callable[[Event], None],
    database: Database,
    tls: ssl.SSLContext | None = None,
) -> ProvisioningService:
    """Build the provisioning service, without any I/O. `database` is opened when it is first needed, and
    closed by the caller. `tls` is the context that verifies Navidrome's certificate, None to build it."""
    upstream, base_path = settings.upstream, settings.base_path
    tls = tls or upstream_tls(settings)
    timeout = settings.navidrome_timeout

    async def connect(on_disconnect: Callable[[], None]) -> LivenessConnection:
        return await open_liveness(upstream, base_path, tls, on_disconnect, timeout)

    return ProvisioningService(
        build_api(settings, tls),
        BindingStore(database, new_owner(), time.time),
        account_policy(settings),
        own_account(settings, tls),
        record,
        connect,
        reconcile_seconds=settings.reconcile_seconds,
    )


def build_accounts(
    settings: Settings,
    record: Callable[[Event], None],
    database: Database,
    tls: ssl.SSLContext | None = None,
) -> AccountParts:
    """Build the gate over its service: see `build_service`."""
    service = build_service(settings, record, database, tls)
    gate = ProvisioningGate(
        service,
        record,
        timeout=settings.provisioning_timeout,
    )
    return AccountParts(gate, service)


def build_api(settings: Settings, tls: ssl.SSLContext | None = None) -> Navidrome:
    """Build the client of Navidrome's API from the settings. `tls`: see `build_service`."""
    account = own_account(settings, tls)
    return _api(settings, account.user_name, account.password, tls)


def _api(
    settings: Settings,
    user_name: str,
    password: Callable[[], str] | None,
    tls: ssl.SSLContext | None,
) -> Navidrome:
    """Build the client of Navidrome's API as this user: by login if there is a password, else by the user
    header."""
    transport = Transport(
        settings.upstream,
        settings.base_path,
        tls=tls or upstream_tls(settings),
        timeout=settings.navidrome_timeout,
    )
    header = settings.reverse_proxy_user_header
    session: Session
    if password is not None:
        session = LoginSession(transport, user_name, password)
    else:
        session = HeaderSession(header, user_name)
    return Navidrome(transport, session, header)


def own_account(settings: Settings, tls: ssl.SSLContext | None = None) -> OwnAccount:
    """Return the account that the shim uses. `tls`: see `build_service`."""
    secret = settings.navidrome_admin_password
    return OwnAccount(
        settings.navidrome_admin_username,
        settings.reverse_proxy_user_header,
        None if secret is None else secret.get_secret_value,
        _bootstrap_admin(settings, tls),
        lambda user_name: _api(settings, user_name, None, tls),
    )


def _bootstrap_admin(settings: Settings, tls: ssl.SSLContext | None) -> BootstrapAdmin | None:
    name, secret = settings.bootstrap_admin, settings.bootstrap_admin_password
    if name is None:
        return None
    password = None if secret is None else secret.get_secret_value
    return BootstrapAdmin(name, lambda: _api(settings, name, password, tls))
