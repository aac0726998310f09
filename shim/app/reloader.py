"""Hold the active settings and replace them while the shim runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from shim.app.policy_updater import PolicyUpdater
from shim.app.tls import CertificateError, build_listener_tls
from shim.audit.events import ConfigurationLoaded, Event, ReloadRejected
from shim.proxy.server import DataPlane
from shim.settings import Settings, SettingsError, warnings
from shim.settings.reload import ReloadResult, merge_settings
from shim.settings.summary import summary

if TYPE_CHECKING:
    from shim.provisioning.factory import AccountParts  # importing it loads the database code


class ConfigReloader:
    """Reload the settings at run time.

    `load_settings` reads the settings again and raises `SettingsError`; if it is None, the settings never
    change. `record` takes events.
    """

    def __init__(
        self,
        settings: Settings,
        load_settings: Callable[[], Settings] | None,
        plane: DataPlane,
        policy_updater: PolicyUpdater,
        accounts: AccountParts | None,
        record: Callable[[Event], None],
    ) -> None:
        self._settings = settings
        self._load_settings = load_settings
        self._plane = plane
        self._policy_updater = policy_updater
        self._accounts = accounts
        self._record = record
        self._reload_lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[ReloadResult]] = set()

    def start_reload(self) -> None:
        """Start `reload` as a task, for callers that cannot wait for it."""
        task = asyncio.get_running_loop().create_task(self.reload())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def reload(self) -> ReloadResult:
        """Read the settings again and apply them between two requests.

        If they are invalid, the previous settings stay active and the result gives the reason. Requests
        in progress continue under their earlier decision.
        """
        async with self._reload_lock:
            outcome = await self._reload()
        if outcome.faults:
            self._record(ReloadRejected(time=time.time(), faults=outcome.faults))
        else:
            self.log_configuration(
                tuple(f"{name} takes effect after restart" for name in outcome.pending_restart)
            )
        return outcome

    def log_configuration(self, notes: tuple[str, ...]) -> None:
        """Record the active settings, with `notes` in addition to the warnings of the settings."""
        values = tuple(
            f"{name}={value}" for name, value in self._settings.public().items() if value
        )
        all_warnings = (*warnings(self._settings), *notes)
        self._record(
            ConfigurationLoaded(
                time=time.time(),
                trigger="start",
                settings=values,
                summary=summary(self._settings),
                warnings=all_warnings,
            )
        )

    async def _reload(self) -> ReloadResult:
        if self._load_settings is None:
            return ReloadResult(faults=("the settings can't be read again",))
        try:
            merged_settings = merge_settings(self._settings, self._load_settings())
            tls = build_listener_tls(self._settings)
        except SettingsError as error:
            return ReloadResult(faults=tuple(map(str, error.faults)))
        except CertificateError as error:
            return ReloadResult(faults=(str(error),))
        if merged_settings.outcome.faults:
            return merged_settings.outcome
        if not merged_settings.outcome.changed:
            # A reload without changed settings follows an external change: a key, an address.
            await self._policy_updater.refresh_now()
        elif (
            fault := await self._policy_updater.apply_settings(merged_settings.settings)
        ) is not None:
            return ReloadResult(faults=(fault,))
        self._settings = merged_settings.settings
        self._plane.apply_options(replace(self._plane.options, tls=tls))
        if self._accounts is not None:
            self._accounts.enforce(merged_settings.settings)
        return merged_settings.outcome
