"""The ground that provisioning stands on: the store open, Navidrome's users known, nothing left half done.

It is attained before any account is looked after, lost whenever Navidrome may be another one than before,
and attained again at once. `number` changes with every loss: what was found out on older ground is void.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from shim.audit.events import Event
from shim.audit.provisioning_events import (
    AccountFailed,
    AdminCreated,
    ProvisioningReady,
    ProvisioningUnready,
)
from shim.navidrome.api import Navidrome
from shim.navidrome.errors import NavidromeError, NotAuthenticated, PermissionDenied, Unavailable
from shim.navidrome.models import User
from shim.navidrome.presence import Presence
from shim.provisioning.bindings import Bindings, Busy, Watcher
from shim.provisioning.footing import Footing, OwnAccount, find_footing
from shim.provisioning.means import Means
from shim.provisioning.occasion import Occasion
from shim.provisioning.policy import AccountPolicy
from shim.provisioning.provisioner import Provisioner
from shim.provisioning.reconcile import Reconciler
from shim.provisioning.writer import Risen
from shim.store.errors import StoreError

# What goes wrong outside of the shim while an account is looked after.
FAULTS = (NavidromeError, StoreError, Busy, Risen)
# What another process changed in the store is seen after this long at most.
REFRESH_SECONDS = 0.5
_FIRST_PAUSE = 1.0
_LAST_PAUSE = 15.0
# Between two lists of users that are read because a request may have changed them.
_LIST_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Fault:
    """Why there is no ground to stand on, and what to do; `retry_after` is in seconds."""

    detail: str
    remedy: str | None = None
    retry_after: float = 5.0


class Listener(Watcher, Protocol):
    """Who passes people on because of what is known."""

    def forget_all(self) -> None:
        """Everything that is known is void."""

    def take_seen(self) -> dict[int, float]:
        """The bindings that were asked for since this was called last, and when."""


class Ground:
    """Attains the ground and keeps it. `watch` opens the connection that tells when Navidrome leaves.

    `peopled`: Navidrome is known to have users, so that no visitor becomes its first admin. `fault` says
    why there is no ground, None while there is.
    """

    def __init__(
        self,
        api: Navidrome,
        bindings: Bindings,
        policy: AccountPolicy,
        own: OwnAccount,
        record: Callable[[Event], None],
        watch: Callable[[Callable[[], None]], Awaitable[Presence]],
        *,
        reconcile_seconds: float = 60.0,
    ) -> None:
        self.api = api
        self.bindings = bindings
        self._means = means = Means(api, bindings, policy, record)
        self.directory = means.directory
        self.locks = means.locks
        self.provisioner = Provisioner(means, self.refresh)
        self.reconciler = Reconciler(means, self.provisioner, self)
        self.listener: Listener = _Nobody()
        bindings.watch(self)
        self.number = 0
        self.peopled = False
        self.fault: Fault | None = Fault("Navidrome was not asked yet")
        self.store_fault: str | None = f"{bindings.database.place}: not opened yet"
        self._own = own
        self._record = record
        self._watch = watch
        self._presence: Presence | None = None
        self._reconcile_seconds = reconcile_seconds
        self._reconcile_at = 0.0
        self._listed_at = -_LIST_SECONDS
        self._attempt = asyncio.Lock()
        self._tried_at = -_FIRST_PAUSE
        self._said: Fault | None = None
        self._wake = asyncio.Event()
        self._following: asyncio.Task[None] | None = None
        self._opened = False

    @property
    def policy(self) -> AccountPolicy:
        """The one in force."""
        return self._means.policy

    def enforce(self, policy: AccountPolicy) -> None:
        """Go by this policy from now on: everybody is looked at anew before their next request."""
        self._means.policy = policy
        self.lose("the settings changed")

    async def attain(self) -> int | None:
        """The number of the ground; None where there is none, and `fault` says why."""
        async with self._attempt:
            loop = asyncio.get_running_loop()
            if self.fault is not None and loop.time() - self._tried_at >= _FIRST_PAUSE:
                await self._try()
                self._tried_at = loop.time()
            return None if self.fault is not None else self.number

    def lose(self, why: str) -> None:
        """Navidrome may be another one than before: nothing that is known of it holds."""
        self.number += 1
        self.peopled = False
        if self.fault is None:
            self.fault = Fault(why, retry_after=1.0)
            self._tried_at = -_FIRST_PAUSE
        self._let_go()
        self.listener.forget_all()
        self._wake.set()

    async def keep(self) -> None:
        """Attain the ground again when it is lost, and reconcile now and then; until cancelled."""
        pause = _FIRST_PAUSE
        while True:
            await self._rest(REFRESH_SECONDS if self.fault is None else pause)
            if self.fault is not None:
                pause = min(_LAST_PAUSE, pause * 2)
                await self.attain()
            if self.fault is None:
                pause = _FIRST_PAUSE
                await self._guarded(self._look_after())

    def users_may_have_changed(self) -> None:
        """A request was sent that can change Navidrome's users: read them again at once."""
        self.directory.users_may_have_changed()
        if self._following is None or self._following.done():
            self._following = asyncio.get_running_loop().create_task(self._follow_names())

    def forget(self, uid: str | None) -> None:
        """This person's account is not what it was."""
        self.listener.forget(uid)

    def revoked(self) -> None:
        """An account was locked, denied, unlinked, deleted or bound to another uid."""
        self.listener.revoked()

    async def close(self) -> None:
        """Note who was seen, and let go of everything."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        if self.store_fault is None:
            with contextlib.suppress(*FAULTS):
                await self._note_seen()
        self._let_go()
        await self.api.close()
        await asyncio.to_thread(self.bindings.database.close)

    async def refresh(self) -> None:
        """Take in what other processes changed in the store, once. Raises `StoreError`."""
        for uid in await self.bindings.refresh():
            self.forget(uid)

    async def reconcile(self) -> None:
        """Hold Navidrome's accounts against the bindings, once. Raises what the API and the store do."""
        await self.reconciler.run()

    # attaining

    async def _try(self) -> None:
        number = self.number
        try:
            await self._stand()
        except _NoFooting as error:
            self._failed(Fault(error.problem, error.remedy))
        except Unavailable as error:
            self._failed(Fault(str(error), retry_after=error.retry_after))
        except FAULTS as error:
            self._failed(Fault(str(error)))
        except Exception as error:  # noqa: BLE001 - whoever keeps the ground is never to stop
            self._failed(Fault(f"{type(error).__name__}: {error}"))
        else:
            if number == self.number:
                self.fault = self._said = None
                self._reconcile_at = 0.0
                self._record(
                    ProvisioningReady(
                        time=time.time(),
                        accounts=len(self.directory.all()),
                        bindings=len(self.bindings),
                    )
                )
                self._wake.set()

    async def _stand(self) -> None:
        await self._open_store()
        self._let_go()
        number = self.number
        self._presence = await self._watch(lambda: self._left(number))
        footing = await self._find_footing()
        for name in footing.made:
            first = name == self._own.user_name
            self._record(AdminCreated(time=time.time(), account=name, first=first))
        self.peopled = footing.peopled and number == self.number
        if footing.users is None:
            raise _NoFooting(footing.problem, footing.remedy)
        self.directory.libraries = ()
        await self.reconciler.look_after_intents(Occasion("start"))

    async def _find_footing(self) -> Footing:
        found: list[Footing] = []

        async def users() -> tuple[User, ...]:
            found.append(await find_footing(self.api, self._own))
            return found[0].users or ()

        await self.directory.read(users)
        return found[0]

    async def _open_store(self) -> None:
        try:
            if not self._opened:
                await self.bindings.database.opened()
                self._opened = True
            await self.bindings.load()
        except StoreError as error:
            self.store_fault = str(error)
            raise
        self.store_fault = None

    def _left(self, number: int) -> None:
        if number == self.number:
            self.lose("Navidrome closed the connection that watches it")

    def _let_go(self) -> None:
        presence, self._presence = self._presence, None
        if presence is not None:
            presence.close()

    def _failed(self, fault: Fault) -> None:
        self.fault = fault
        self._let_go()
        if self._said != fault:
            self._said = fault
            self._record(
                ProvisioningUnready(time=time.time(), detail=fault.detail, remedy=fault.remedy)
            )

    # keeping

    async def _rest(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        self._wake.clear()

    async def _look_after(self) -> None:
        loop = asyncio.get_running_loop()
        await self.refresh()
        self.store_fault = None
        if loop.time() >= self._reconcile_at:
            self._reconcile_at = loop.time() + self._reconcile_seconds
            await self._note_seen()
            await self.reconcile()

    async def _follow_names(self) -> None:
        """List the users until the list includes every change."""
        loop = asyncio.get_running_loop()
        while self.fault is None and not self.directory.current:
            await asyncio.sleep(self._listed_at + _LIST_SECONDS - loop.time())
            self._listed_at = loop.time()
            await self._guarded(self.reconciler.follow_names())

    async def _guarded(self, work: Awaitable[None]) -> None:
        """Do work that goes on in the background: what fails is recorded."""
        try:
            await work
        except (NotAuthenticated, PermissionDenied) as error:
            self.lose(str(error))
        except Exception as error:  # noqa: BLE001 - whoever keeps the ground is never to stop
            if isinstance(error, StoreError):
                self.store_fault = str(error)
            detail = str(error) if isinstance(error, FAULTS) else f"{type(error).__name__}: {error}"
            self._record(AccountFailed(time=time.time(), peer="-", detail=detail))

    async def _note_seen(self) -> None:
        seen = self.listener.take_seen()
        if seen:
            await self.bindings.saw(seen)


class _Nobody:
    """Who listens where nobody passes people on: for commands."""

    def forget_all(self) -> None:
        pass

    def forget(self, uid: str | None) -> None:
        pass

    def revoked(self) -> None:
        pass

    def take_seen(self) -> dict[int, float]:
        return {}


class _NoFooting(NavidromeError):
    """Navidrome answers, and the shim may not look after accounts there."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy
