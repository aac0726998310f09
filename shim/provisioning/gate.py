"""The gate that the data plane calls: a known identity passes at once, others wait for their account.

`known` is a look-up. `ensure` joins the running task of the same identity or starts one; tasks of one person
or one name run one after the other. All known accounts are dropped whenever Navidrome may be a different
instance: then no request names an account until the users are listed again. After a request that can change
users, a known account is not used until it was read again. An account that changed while it was read is not
added to the known accounts.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shim.audit.events import Event
from shim.audit.events.provisioning import AccountDeniedEvent, ProvisioningFailed
from shim.navidrome.errors import NotAuthenticated, PermissionDenied, Unavailable
from shim.provisioning.binding_store import Busy, StaleBinding
from shim.provisioning.lifecycle import account_keys
from shim.provisioning.models import AuditContext, BindingState, is_person
from shim.provisioning.policy import is_header_safe
from shim.provisioning.service import (
    EXTERNAL_ERRORS,
    HOLD_RETRY_SECONDS,
    Fault,
    ProvisioningService,
    reason_of,
)
from shim.proxy.gate import Account, AccountDenied, RequestInfo
from shim.trust.identity import Identity
from shim.trust.reasons import Reason

_RETRY_SECONDS = 5
# A Navidrome that does not respond must not keep the shim from starting.
_START_SECONDS = 5.0
# A client that can make Navidrome respond 401 must not make all requests wait all the time.
_UNAUTHORIZED_SECONDS = 2.0
# The number of attempts for one request, if the account changes meanwhile.
_TRIES = 3
# How long a request waits while Navidrome is down, before it gets 503.
_HOLD_SECONDS = 2.0
_STOPPING = AccountDenied(Reason.ACCOUNT_UNAVAILABLE, "the shim stops", _RETRY_SECONDS)


@dataclass(slots=True)
class _CachedAccount:
    """An identity whose account is ready. `seen` is set by each look-up; `binding` is the binding's number.
    `changes`: how many requests that can change users had been sent when the account was read."""

    identity: Identity
    account: Account
    binding: int
    changes: int
    seen: bool = True


class _NotReady(Unavailable):
    """Provisioning is not ready, for `reason`."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.detail, retry_after=fault.retry_after)
        self.reason = fault.reason


class ProvisioningGate:
    """Implements `AccountGate`. `timeout`: seconds that a request waits for its account; `max_concurrent`:
    the number of accounts that are worked on at the same time."""

    def __init__(
        self,
        service: ProvisioningService,
        record: Callable[[Event], None],
        *,
        timeout: float = 10.0,
        max_concurrent: int = 64,
    ) -> None:
        self._service = service
        self._record = record
        self._timeout = timeout
        self._slots = asyncio.Semaphore(max_concurrent)
        self._cached: dict[str | None, _CachedAccount] = {}
        self._in_flight: dict[
            tuple[Identity, bool, int], asyncio.Task[Account | AccountDenied]
        ] = {}
        # It counts the requests that can change users.
        self._directory = service.directory
        self._writes = service.user_writes
        # Tasks that wait for the users to be listed, by the number of changes to include.
        self._listings: dict[int, asyncio.Task[AccountDenied | None]] = {}
        # A number that rises with every change of an account, and its value at the last change of each uid.
        self._generation = 0
        self._generations: dict[str | None, int] = {}
        self.revocations = 0
        self._last_unauthorized_at = -_UNAUTHORIZED_SECONDS
        self._run_task: asyncio.Task[None] | None = None
        service.cache = self

    # AccountGate

    def known(self, identity: Identity) -> Account | None:
        known = self._cached.get(identity.uid)
        if (
            known is None
            or known.changes != self._directory.changes
            or self._writes.any_in_progress
        ):
            return None
        if known.identity is not identity and known.identity != identity:
            return None
        known.seen = True
        return known.account

    def ensure(
        self, identity: Identity, request_info: RequestInfo
    ) -> asyncio.Future[Account | AccountDenied]:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Account | AccountDenied] = loop.create_future()
        # A request after a change does not join a task that may have read before the change.
        key = (identity, request_info.verified, self._directory.changes)
        task = self._in_flight.get(key)
        if task is None:
            task = self._in_flight[key] = loop.create_task(self._provision(identity, request_info))
            task.add_done_callback(lambda _: self._ended(key))
        timeout_result = AccountDenied(
            Reason.ACCOUNT_PENDING, "preparing the account took too long", _RETRY_SECONDS
        )
        timer = loop.call_later(self._timeout, _resolve, waiter, timeout_result)

        def finished(done: asyncio.Task[Account | AccountDenied]) -> None:
            timer.cancel()
            _resolve(waiter, _result(done))

        task.add_done_callback(finished)
        return waiter

    def report_unauthorized(self, identity: Identity) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._last_unauthorized_at < _UNAUTHORIZED_SECONDS:
            self.discard(identity.uid)
            return
        self._last_unauthorized_at = now
        self._service.invalidate("Navidrome responded 401 to the name of an account")

    def upstream_changed(self) -> None:
        self._service.invalidate("Navidrome was away")

    def users_may_have_changed(self) -> None:
        self._service.users_may_have_changed()
        self._service.announce_users_change()

    def identity_current(self, identity: Identity) -> bool:
        binding = self._service.bindings.by_uid(identity.uid or "")
        return binding is None or binding.identity == identity

    def user_write_started(self, account_ids: tuple[str, ...]) -> bool:
        return all(map(self._is_allowed, account_ids)) and self._service.user_writes.begin(
            account_ids
        )

    def user_write_ended(self, account_ids: tuple[str, ...], *, response_began: bool) -> None:
        self._service.user_writes.end(account_ids, response_began=response_began)

    @property
    def users_listed(self) -> bool:
        return self._directory.current and self._service.fault is None

    def list_users(self) -> asyncio.Future[AccountDenied | None]:
        loop, changes = asyncio.get_running_loop(), self._directory.changes
        waiter: asyncio.Future[AccountDenied | None] = loop.create_future()
        task = self._listings.get(changes)
        if task is None:
            task = self._listings[changes] = loop.create_task(self._list_users(changes))
            task.add_done_callback(lambda _: self._listings.pop(changes, None))

        def finished(done: asyncio.Task[AccountDenied | None]) -> None:
            if not waiter.done():
                waiter.set_result(_STOPPING if done.cancelled() else done.result())

        task.add_done_callback(finished)
        return waiter

    def navidrome_token_valid(
        self, username: str, user_id: str, issued_at: float, *, listed: bool = False
    ) -> bool:
        directory = self._directory
        user = directory.by_id(user_id)
        if user is None or self._service.fault is not None or not (listed or directory.current):
            return False
        if directory.by_name(username) is not user or not self._is_allowed(user_id):
            return False
        rule = self._service.bindings.rule_of(user_id)
        return rule is None or rule.admits(issued_at)

    def may_continue(self, user_id: str, uid: str | None, issued_at: float) -> bool:
        service = self._service
        if not self._is_allowed(user_id):
            return False
        if uid is not None:
            binding = service.bindings.by_account(user_id)
            return binding is not None and binding.uid == uid
        rule = service.bindings.rule_of(user_id)
        if rule is not None and not rule.admits(issued_at):
            return False
        # While the users are not known, responses in progress continue.
        known = service.fault is None and service.directory.current
        return not known or service.directory.by_id(user_id) is not None

    def _is_allowed(self, user_id: str) -> bool:
        """Return whether the account is not locked, not unlinked, and does not belong to a person whom the
        policy denies."""
        bindings = self._service.bindings
        binding = bindings.by_account(user_id)
        if binding is None:
            return not bindings.is_locked(user_id)
        active = binding.state is BindingState.ACTIVE and self._service.policy.allows(
            binding.identity
        )
        return active and not bindings.is_locked(user_id)

    # notifications

    def discard(self, uid: str | None) -> None:
        """Drop this person's account: it has changed, and is read again before the next request."""
        self._cached.pop(uid, None)
        self._generation += 1
        if self._in_flight:
            self._generations[uid] = self._generation

    def revoked(self) -> None:
        """Handle a revocation: an account was locked, denied, unlinked, deleted or bound to another uid."""
        self.revocations += 1
        # At once, and not after the lock: until then these accounts would stay in use.
        for uid, known in list(self._cached.items()):
            if known.account.id is not None and not self._is_allowed(known.account.id):
                del self._cached[uid]

    def clear(self) -> None:
        """Drop all known accounts, since Navidrome may be a different instance."""
        self._cached.clear()

    def drain_last_seen(self) -> dict[int, float]:
        """Return the bindings, by their number, that were looked up since the last call, with the current
        time."""
        now, seen = time.time(), {}
        for known in self._cached.values():
            if known.seen:
                known.seen = False
                seen[known.binding] = now
        return seen

    def is_seen(self, uid: str) -> bool:
        """Return whether this person was looked up since the last time was stored."""
        known = self._cached.get(uid)
        return known is not None and known.seen

    async def start(self) -> None:
        """Try once to become ready, and keep trying in the background."""
        loop = asyncio.get_running_loop()
        self._run_task = loop.create_task(self._service.run())
        first = loop.create_task(self._service.ensure_ready())
        await asyncio.wait({first}, timeout=_START_SECONDS)

    async def stop(self) -> None:
        """Cancel the tasks in progress; every waiting request is rejected."""
        tasks: list[asyncio.Task[Any]] = [*self._in_flight.values(), *self._listings.values()]
        for task in tasks:
            task.cancel()
        if self._run_task is not None:
            self._run_task.cancel()
            tasks.append(self._run_task)
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._service.close()

    # one identity

    async def _provision(
        self, identity: Identity, request_info: RequestInfo
    ) -> Account | AccountDenied:
        try:
            hold_until = asyncio.get_running_loop().time() + _HOLD_SECONDS
            return await self._provision_until(identity, request_info, hold_until)
        except AccountDenied as denied:
            self._cached.pop(identity.uid, None)
            self._record(
                AccountDeniedEvent(
                    time=time.time(),
                    peer=request_info.peer,
                    reason=denied.reason,
                    detail=denied.detail,
                    user=identity.username,
                    uid=identity.uid,
                    groups=identity.groups,
                    client=request_info.client,
                    request_id=request_info.request_id,
                )
            )
            return denied.with_traceback(None)
        except Exception as error:  # noqa: BLE001 - every error gives a response
            return self._failed(identity, request_info, error)

    async def _list_users(self, changes: int) -> AccountDenied | None:
        """Wait until the users were listed after that many changes. The service lists them; the result is the
        reason if it could not."""
        service, directory, loop = self._service, self._directory, asyncio.get_running_loop()
        start = loop.time()
        hold_until, deadline = start + _HOLD_SECONDS, start + self._timeout
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while True:
                    ready = await service.ensure_ready() is not None
                    if ready and directory.includes(changes):
                        return None
                    fault = service.fault
                    if fault is not None and not fault.temporary:
                        break
                    if loop.time() >= hold_until and (fault is not None or directory.unread):
                        break
                    await directory.next_attempt(HOLD_RETRY_SECONDS)
        fault = service.fault or Fault("Navidrome's users could not be listed after a change")
        return AccountDenied(fault.reason, fault.detail, max(1, round(fault.retry_after)))

    def _ended(self, key: tuple[Identity, bool, int]) -> None:
        self._in_flight.pop(key, None)
        if not self._in_flight:
            self._generations.clear()

    async def _provision_until(
        self, identity: Identity, request_info: RequestInfo, until: float
    ) -> Account | AccountDenied:
        """Call `_provision_once` again until the event loop's time `until` while Navidrome is down: a restart
        usually takes less time."""
        service, loop = self._service, asyncio.get_running_loop()
        keys = account_keys(identity.uid, identity.username)
        while True:
            generation = service.generation
            try:
                # Not under the locks: becoming ready needs them, to recover an interrupted write of this
                # account.
                if await service.ensure_ready() is None:
                    raise _not_ready(service)
                async with service.locks.held(*keys), self._slots:
                    return await self._provision_once(identity, request_info)
            except Unavailable:
                if loop.time() >= until:
                    raise
                unavailable = _is_unavailable(service)
                # The end of the liveness connection may be reported shortly after a call failed.
                await asyncio.sleep(HOLD_RETRY_SECONDS)
                if (
                    not unavailable
                    and not _is_unavailable(service)
                    and service.generation == generation
                ):
                    raise

    async def _provision_once(
        self, identity: Identity, request_info: RequestInfo
    ) -> Account | AccountDenied:
        """Return the identity's account, provisioned again if something changed meanwhile."""
        for tries_left in range(_TRIES - 1, -1, -1):
            generation, changes = self._generation, self._directory.changes
            try:
                found = await self._look_up(identity, request_info)
            except StaleBinding:
                if not tries_left:
                    raise
                await self._service.refresh()
                continue
            if self._generations.get(identity.uid, 0) > generation:
                continue
            if changes == self._directory.changes:
                self._cached[identity.uid] = found
            elif tries_left:
                continue
            # After several attempts, a name that was read after the request arrived is valid for this request
            # alone.
            return found.account
        raise Busy("the account changed too often during the request")

    async def _look_up(self, identity: Identity, request_info: RequestInfo) -> _CachedAccount:
        service, changes = self._service, self._directory.changes
        generation = service.generation
        if service.fault is not None:
            raise _not_ready(service)
        audit_context = AuditContext("request", identity, request_info)
        try:
            binding = await service.provisioner.provision(
                identity, audit_context, verified=request_info.verified
            )
        except (NotAuthenticated, PermissionDenied):
            service.invalidate("the shim is not an admin in Navidrome any more")
            raise
        account = Account(binding.user_name.encode(), binding.navidrome_id)
        if generation != service.generation:
            # Navidrome may have become a different instance meanwhile: no account is named to it.
            raise Unavailable("Navidrome stopped during the request", retry_after=1)
        return _CachedAccount(identity, account, binding.id, changes)

    def _failed(
        self, identity: Identity, request_info: RequestInfo, error: Exception
    ) -> Account | AccountDenied:
        stale_account = self._allow_stale(identity)
        detail = (
            str(error) if isinstance(error, EXTERNAL_ERRORS) else f"{type(error).__name__}: {error}"
        )
        self._record(
            ProvisioningFailed(
                time=time.time(),
                peer=request_info.peer,
                detail=detail,
                user=identity.username,
                uid=identity.uid,
                groups=identity.groups,
                client=request_info.client,
                request_id=request_info.request_id,
                allowed_stale=stale_account is not None,
            )
        )
        if stale_account is not None:
            return stale_account
        wait = error.retry_after if isinstance(error, Unavailable) else float(_RETRY_SECONDS)
        reason = error.reason if isinstance(error, _NotReady) else reason_of(error)
        return AccountDenied(reason, detail, max(1, round(wait)))

    def _allow_stale(self, identity: Identity) -> Account | None:
        """Return the stored account of a known person, without an update, if the settings allow it and no
        visitor could become the first admin."""
        service = self._service
        policy = service.policy
        if not policy.fail_open or not service.has_users or identity.uid is None:
            return None
        binding = service.bindings.by_uid(identity.uid)
        if (
            binding is None
            or not is_person(binding.uid, binding.uid_source, identity)
            or binding.state is not BindingState.ACTIVE
            or not service.directory.current
        ):
            return None
        # The account's name as of the last list of users, which no request can have changed since.
        user = service.directory.by_id(binding.navidrome_id)
        if user is None or not is_header_safe(user.user_name) or policy.reserves(user.user_name):
            return None
        if not policy.allows(identity) or not self._is_allowed(user.id):
            return None
        return Account(user.user_name.encode(), user.id)


def _not_ready(service: ProvisioningService) -> _NotReady:
    return _NotReady(service.fault or Fault("Navidrome went away"))


def _is_unavailable(service: ProvisioningService) -> bool:
    return service.fault is not None and service.fault.temporary


def _resolve(
    waiter: asyncio.Future[Account | AccountDenied], result: Account | AccountDenied
) -> None:
    if not waiter.done():
        waiter.set_result(result)


def _result(task: asyncio.Task[Account | AccountDenied]) -> Account | AccountDenied:
    if task.cancelled():
        return _STOPPING
    return task.result()
