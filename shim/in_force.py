"""The settings in force, and how others take their place while the shim runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from shim.audit.events import ConfigurationInForce, Event
from shim.audit.proof_events import ReloadRefused
from shim.certificate import CertificateUnusable, listener_tls
from shim.enforcement import Enforcement
from shim.proxy.plane import DataPlane
from shim.reload import Reloaded, merged
from shim.settings import Settings, SettingsError, warnings
from shim.settings.summary import summary

if TYPE_CHECKING:
    from shim.provisioning.building import AccountParts  # which loads the database's code


class SettingsInForce:
    """What the shim goes by. `reread` reads the settings anew and raises `SettingsError`; without it they
    stay as they are. `record` takes events."""

    def __init__(
        self,
        settings: Settings,
        reread: Callable[[], Settings] | None,
        plane: DataPlane,
        enforcement: Enforcement,
        accounts: AccountParts | None,
        record: Callable[[Event], None],
    ) -> None:
        self._settings = settings
        self._reread = reread
        self._plane = plane
        self._enforcement = enforcement
        self._accounts = accounts
        self._record = record
        self._one_at_a_time = asyncio.Lock()
        self._tasks: set[asyncio.Task[Reloaded]] = set()

    def start_reload(self) -> None:
        """`reload`, for whoever can't wait for it."""
        task = asyncio.get_running_loop().create_task(self.reload())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def reload(self) -> Reloaded:
        """Read the settings anew and put them in force between two requests, or keep those from before
        and say why. What is under way goes on as it was decided."""
        async with self._one_at_a_time:
            outcome = await self._reload()
        if outcome.faults:
            self._record(ReloadRefused(time=time.time(), faults=outcome.faults))
        else:
            self.say(tuple(f"{name} is taken at the next start" for name in outcome.waiting))
        return outcome

    def say(self, notes: tuple[str, ...]) -> None:
        """Record what is in force, with `notes` beside the settings' own warnings."""
        said = tuple(f"{name}={value}" for name, value in self._settings.public().items() if value)
        warned = (*warnings(self._settings), *notes)
        self._record(
            ConfigurationInForce(
                time=time.time(),
                settings=said,
                summary=summary(self._settings),
                warnings=warned,
            )
        )

    async def _reload(self) -> Reloaded:
        if self._reread is None:
            return Reloaded(faults=("the settings can't be read anew",))
        try:
            fresh = merged(self._settings, self._reread())
            tls = listener_tls(self._settings)
        except SettingsError as error:
            return Reloaded(faults=tuple(map(str, error.faults)))
        except CertificateUnusable as error:
            return Reloaded(faults=(str(error),))
        if fresh.outcome.faults:
            return fresh.outcome
        if not fresh.outcome.changed:
            # Whoever asks for it without a change has one elsewhere in mind: a key, an address.
            await self._enforcement.look_again()
        elif (fault := await self._enforcement.take(fresh.settings)) is not None:
            return Reloaded(faults=(fault,))
        self._settings = fresh.settings
        self._plane.tls = tls
        if self._accounts is not None:
            self._accounts.enforce(fresh.settings)
        return fresh.outcome
