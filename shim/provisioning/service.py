"""Make provisioning ready and keep it ready: the store open, Navidrome's users listed, no intent left open.

It is ready before any account is changed. It stops being ready whenever Navidrome may be a different
instance, and becomes ready again at once. `generation` rises each time; results of an earlier generation are
invalid.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from shim.audit.events import Event
from shim.audit.events.provisioning import (
    AdminCreated,
    OwnAccountSecured,
    ProvisioningFailed,
    ProvisioningReady,
    ProvisioningUnavailable,
)
from shim.navidrome.api import Navidrome
from shim.navidrome.errors import (
    NavidromeError,
    NotAuthenticated,
    PermissionDenied,
    ResponseTooLarge,
    Unavailable,
)
from shim.navidrome.liveness import LivenessConnection
from shim.navidrome.models import User
from shim.provisioning.account_writer import AccountRecreated, AccountWriter
from shim.provisioning.admin import AdminAccess, OwnAccount, OwnAccountRecords, ensure_admin_access
from shim.provisioning.binding_store import BindingStore, Busy
from shim.provisioning.directory import Directory, KeyLocks
from shim.provisioning.lifecycle import AccountLifecycle, Provisioner
from shim.provisioning.models import AuditContext
from shim.provisioning.policy import AccountPolicy
from shim.provisioning.reconcile import Reconciler
from shim.provisioning.user_writes import UserWrites
from shim.store.errors import StoreError
from shim.trust.reasons import Reason

# Errors from outside of the shim while an account is provisioned.
EXTERNAL_ERRORS = (NavidromeError, StoreError, Busy, AccountRecreated)
# Changes of another process in the store are seen after at most this many seconds.
REFRESH_SECONDS = 0.5
# Between two attempts to write while the last write failed.
CHECK_WRITABLE_SECONDS = 5.0
# How long a stop waits for the store.
STORE_STOP_SECONDS = 2.0
_MIN_PAUSE = 1.0
# Between two attempts while Navidrome is down and requests wait.
HOLD_RETRY_SECONDS = 0.1
_MAX_PAUSE = 15.0
# Between two lists of users that are read because a request may have changed them, and between two
# announcements of such requests.
_LIST_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Fault:
    """Why provisioning is not ready, and what to do; `retry_after` is in seconds. `temporary`: Navidrome is
    down, and may be back in a moment. `reason` is the reason of requests that are rejected meanwhile."""

    detail: str
    remedy: str | None = None
    retry_after: float = 5.0
    temporary: bool = False
    reason: Reason = Reason.NAVIDROME_UNAVAILABLE


class CacheListener(Protocol):
    """A cache of known accounts, which must be invalidated."""

    def discard(self, uid: str | None) -> None:
        """Drop this person's account, since it has changed."""

    def revoked(self) -> None:
        """Handle a revocation: an account was locked, denied, unlinked, deleted or bound to another uid."""

    def clear(self) -> None:
        """Drop every known account."""

    def drain_last_seen(self) -> dict[int, float]:
        """Return the bindings that were looked up since the last call, and when."""

    def is_seen(self, uid: str) -> bool:
        """Return whether this person was looked up since the last time was stored."""


class ProvisioningService:
    """Makes provisioning ready and keeps it ready. `open_liveness` opens the connection whose end shows that
    Navidrome went down.

    `has_users`: Navidrome is known to have users, so that no visitor becomes its first admin. `fault` is why
    provisioning is not ready, None while it is.
    """

    def __init__(
        self,
        api: Navidrome,
        bindings: BindingStore,
        policy: AccountPolicy,
        own_account: OwnAccount,
        record: Callable[[Event], None],
        open_liveness: Callable[[Callable[[], None]], Awaitable[LivenessConnection]],
        *,
        reconcile_seconds: float = 60.0,
    ) -> None:
        self.api = api
        self.bindings = bindings
        self.policy = policy
        self.directory = directory = Directory()
        self.locks = KeyLocks()
        self.user_writes = UserWrites(self._reconcile_now)
        self.writer = AccountWriter(
            api, bindings, directory, self.user_writes, self._policy_in_force, record
        )
        self.lifecycle = AccountLifecycle(
            api, bindings, directory, self.user_writes, self.writer, self._policy_in_force, record
        )
        self.provisioner = Provisioner(
            api,
            bindings,
            directory,
            self.writer,
            self.lifecycle,
            self._policy_in_force,
            record,
            self.refresh,
        )
        self.reconciler = Reconciler(
            api,
            bindings,
            directory,
            self.locks,
            self.writer,
            self.lifecycle,
            self._policy_in_force,
            record,
            self,
        )
        self.cache: CacheListener = _NoListener()
        bindings.watch(self)
        self.generation = 0
        self.has_users = False
        self._suspended = False
        self.fault: Fault | None = Fault("Navidrome was not queried yet", temporary=True)
        self._open_fault: str | None = f"{bindings.database.display_url}: not opened yet"
        self._own_account = own_account
        self._record = record
        self._open_liveness = open_liveness
        self._liveness: LivenessConnection | None = None
        self._reconcile_seconds = reconcile_seconds
        self._reconcile_at = 0.0
        self._listed_at = -_LIST_SECONDS
        self._attempt_lock = asyncio.Lock()
        self._tried_at = -_MIN_PAUSE
        self._last_reported: Fault | None = None
        self._wake = asyncio.Event()
        self._following: asyncio.Task[None] | None = None
        # Whether a request that can change users must still be announced to other processes.
        self._unannounced = False
        self._announcing: asyncio.Task[None] | None = None
        self._announced_at = -_LIST_SECONDS
        self._opened = False
        self._check_writable_at = 0.0

    @property
    def store_fault(self) -> str | None:
        """Return why the store can't be used, None if it can."""
        return self._open_fault or self.bindings.database.fault

    def apply_policy(self, policy: AccountPolicy) -> None:
        """Apply this policy from now on: every account is checked again before the next request."""
        self.policy = policy
        self.invalidate("the settings changed")

    async def ensure_ready(self) -> int | None:
        """Return the generation once provisioning is ready; None if it is not, and `fault` is the reason."""
        async with self._attempt_lock:
            loop = asyncio.get_running_loop()
            fault = self.fault
            pause = HOLD_RETRY_SECONDS if fault is not None and fault.temporary else _MIN_PAUSE
            if fault is not None and loop.time() - self._tried_at >= pause:
                await self._attempt_ready()
                self._tried_at = loop.time()
            return None if self.fault is not None else self.generation

    def invalidate(self, reason: str) -> None:
        """Drop all cached state, since Navidrome may be a different instance."""
        self.generation += 1
        self.has_users = False
        if self.fault is None:
            self.fault = Fault(reason, retry_after=1.0, temporary=True)
            self._tried_at = -_MIN_PAUSE
        self._close_liveness()
        self.cache.clear()
        self._wake.set()

    async def run(self) -> None:
        """Become ready again after a fault, and reconcile periodically; until cancelled."""
        pause = _MIN_PAUSE
        while True:
            await self._sleep(REFRESH_SECONDS if self.fault is None else pause)
            if self.fault is not None:
                pause = min(_MAX_PAUSE, pause * 2)
                await self.ensure_ready()
            if self.fault is None:
                pause = _MIN_PAUSE
                await self._guarded(self._maintain())

    def suspend(self, suspended: bool) -> None:
        """Change no account in the background while `suspended`, because it could not be recorded. Changes of
        other processes are still read."""
        self._suspended = suspended
        self._wake.set()

    def users_may_have_changed(self) -> None:
        """Read the users again at once, since a request was sent that can change them, through this process
        or another one."""
        self.directory.users_may_have_changed()
        if self._following is None or self._following.done():
            self._following = asyncio.get_running_loop().create_task(self._follow_names())

    def announce_users_change(self) -> None:
        """Make the other processes on this store read the users again, within `REFRESH_SECONDS`."""
        self._unannounced = True
        if self._announcing is None or self._announcing.done():
            self._announcing = asyncio.get_running_loop().create_task(
                self._guarded(self._announce())
            )

    async def announced(self) -> None:
        """Wait until the requests so far that can change users are announced, or the announcement failed."""
        if self._announcing is not None:
            await asyncio.wait({self._announcing})

    def discard(self, uid: str | None) -> None:
        """Drop this person's account, since it has changed."""
        self.cache.discard(uid)

    def revoked(self) -> None:
        """Handle a revocation: an account was locked, denied, unlinked, deleted or bound to another uid."""
        self.cache.revoked()

    async def close(self) -> None:
        """Store when people were last seen, and close everything but the database. The store has
        `STORE_STOP_SECONDS` for it: if it does not respond in time, these times are lost."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + STORE_STOP_SECONDS
        for task in (self._following, self._announcing):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if self.store_fault is None:
            with contextlib.suppress(*EXTERNAL_ERRORS, TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await self._store_last_seen()
        self._close_liveness()
        await self.api.close()

    async def refresh(self) -> None:
        """Read the changes of other processes from the store, once. Raises `StoreError`."""
        for uid in await self.bindings.refresh():
            self.discard(uid)

    async def reconcile(self) -> None:
        """Compare Navidrome's accounts with the bindings, once. Raises what the API and the store raise."""
        await self.reconciler.run()

    def _policy_in_force(self) -> AccountPolicy:
        return self.policy

    # becoming ready

    async def _attempt_ready(self) -> None:
        generation = self.generation
        if self._suspended:
            self._failed(
                Fault("the audit trail can't be written, and SHIM_AUDIT_FAIL_MODE is closed")
            )
            return
        try:
            await self._initialize()
        except _NoAdminAccess as error:
            self._failed(Fault(error.error, error.remedy, reason=error.reason))
        except Unavailable as error:
            self._failed(Fault(str(error), retry_after=error.retry_after, temporary=True))
        except EXTERNAL_ERRORS as error:
            self._failed(Fault(str(error), reason=reason_of(error)))
        except Exception as error:  # noqa: BLE001 - the background task must not stop
            self._failed(Fault(f"{type(error).__name__}: {error}", reason=reason_of(error)))
        else:
            if generation == self.generation:
                self.fault = self._last_reported = None
                self._reconcile_at = 0.0
                self._record(
                    ProvisioningReady(
                        time=time.time(),
                        account_count=len(self.directory.all()),
                        binding_count=len(self.bindings),
                    )
                )
                self._wake.set()

    async def _initialize(self) -> None:
        await self._open_store()
        self._close_liveness()
        generation = self.generation
        self._liveness = await self._open_liveness(lambda: self._on_disconnect(generation))
        admin_access = await self._ensure_admin_access()
        for name in admin_access.created:
            first = not admin_access.by_admin
            self._record(AdminCreated(time=time.time(), account=name, first=first))
        if admin_access.secured:
            self._record(OwnAccountSecured(time=time.time(), account=self._own_account.user_name))
        self.has_users = admin_access.has_users and generation == self.generation
        if admin_access.users is None:
            raise _NoAdminAccess(admin_access)
        self.directory.forget_libraries()
        await self.reconciler.recover_intents(AuditContext("start"))

    async def _ensure_admin_access(self) -> AdminAccess:
        found: list[AdminAccess] = []

        async def users() -> tuple[User, ...]:
            records = OwnAccountRecords(self.bindings.database)
            found.append(await ensure_admin_access(self.api, self._own_account, records))
            return found[0].users or ()

        await self.directory.read(users)
        return found[0]

    async def _open_store(self) -> None:
        try:
            if not self._opened:
                await self.bindings.database.open_async()
                self._opened = True
            await self.bindings.load()
        except StoreError as error:
            self._open_fault = str(error)
            raise
        self._open_fault = None

    def _on_disconnect(self, generation: int) -> None:
        if generation == self.generation:
            self.invalidate("Navidrome closed the connection that monitors it")

    def _close_liveness(self) -> None:
        liveness, self._liveness = self._liveness, None
        if liveness is not None:
            liveness.close()

    def _failed(self, fault: Fault) -> None:
        self.fault = fault
        self._close_liveness()
        if self._last_reported != fault:
            self._last_reported = fault
            self._record(
                ProvisioningUnavailable(time=time.time(), detail=fault.detail, remedy=fault.remedy)
            )

    # staying ready

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        self._wake.clear()

    async def _maintain(self) -> None:
        loop = asyncio.get_running_loop()
        await self.refresh()
        await self._prove_store(loop.time())
        if self._unannounced:  # the store could not be written to
            self.announce_users_change()
        if loop.time() >= self._reconcile_at and not self._suspended:
            self._reconcile_at = loop.time() + self._reconcile_seconds
            await self._store_last_seen()
            await self.reconcile()

    async def _follow_names(self) -> None:
        """List the users until the list includes every change."""
        loop = asyncio.get_running_loop()
        while self.fault is None and not self.directory.current:
            await asyncio.sleep(self._listed_at + _LIST_SECONDS - loop.time())
            self._listed_at = loop.time()
            await self._guarded(self.reconciler.follow_names())

    async def _announce(self) -> None:
        """Raise the store's counter, once for all requests that arrived while it was raised before."""
        loop = asyncio.get_running_loop()
        while self._unannounced:
            await asyncio.sleep(self._announced_at + _LIST_SECONDS - loop.time())
            self._announced_at = loop.time()
            self._unannounced = False
            try:
                await self.bindings.announce_users_change()
            except BaseException:
                self._unannounced = True
                raise

    async def _guarded(self, work: Awaitable[None]) -> None:
        """Run background work, and record its errors."""
        try:
            await work
        except (NotAuthenticated, PermissionDenied) as error:
            self.invalidate(str(error))
        except Exception as error:  # noqa: BLE001 - the background task must not stop
            detail = (
                str(error)
                if isinstance(error, EXTERNAL_ERRORS)
                else f"{type(error).__name__}: {error}"
            )
            self._record(ProvisioningFailed(time=time.time(), detail=detail))

    async def _prove_store(self, now: float) -> None:
        """Try to write periodically while the last write failed: there may be no other write."""
        if self.bindings.database.write_fault is not None and now >= self._check_writable_at:
            self._check_writable_at = now + CHECK_WRITABLE_SECONDS
            await self.bindings.database.check_writable()

    def _reconcile_now(self) -> None:
        self._reconcile_at = 0.0
        self._wake.set()

    async def _store_last_seen(self) -> None:
        seen = self.cache.drain_last_seen()
        if seen:
            await self.bindings.record_last_seen(seen)


class _NoListener:
    """A listener that does nothing: for commands, which cache no accounts."""

    def clear(self) -> None:
        pass

    def discard(self, uid: str | None) -> None:
        pass

    def revoked(self) -> None:
        pass

    def drain_last_seen(self) -> dict[int, float]:
        return {}

    def is_seen(self, uid: str) -> bool:  # noqa: ARG002
        return False


class _NoAdminAccess(NavidromeError):
    """Navidrome responds, but the shim may not administer its accounts."""

    def __init__(self, admin_access: AdminAccess) -> None:
        super().__init__(admin_access.error)
        self.error = admin_access.error
        self.remedy = admin_access.remedy
        self.reason = (
            Reason.DATABASE_UNCONFIRMED
            if admin_access.lost_database
            else Reason.NAVIDROME_ACCESS_DENIED
        )


def reason_of(error: Exception) -> Reason:
    """Return the reason of a request that this error rejects."""
    match error:
        case StoreError():
            return Reason.STORE_UNAVAILABLE
        case Busy() | AccountRecreated():
            return Reason.ACCOUNT_PENDING
        case NotAuthenticated() | PermissionDenied():
            return Reason.NAVIDROME_ACCESS_DENIED
        case ResponseTooLarge():
            return Reason.ACCOUNT_UNAVAILABLE
        case NavidromeError():
            return Reason.NAVIDROME_UNAVAILABLE
    return Reason.ACCOUNT_UNAVAILABLE
