"""The gate that the data plane asks: who is known passes at once, everybody else waits for their account.

`known` is a look-up. `ensure` joins the flight of the same identity or starts one; flights of one person or
one name follow each other. What is known is dropped, all of it, whenever Navidrome may be another one than
before: then nobody is named to it until its users are known again. It is not used any more, but replaced
account by account, whenever a request was sent that can change users. Nothing is published as known if it
changed while it was found out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from shim.audit.events import Event
from shim.audit.provisioning_events import AccountFailed, AccountRefused
from shim.navidrome.errors import NotAuthenticated, PermissionDenied, Unavailable
from shim.provisioning.bindings import Busy, Outdated
from shim.provisioning.ground import FAULTS, Fault, Ground
from shim.provisioning.occasion import Occasion
from shim.provisioning.policy import is_carried
from shim.provisioning.provisioner import Denied, account_keys
from shim.provisioning.records import BindingState
from shim.proxy.gate import Account, Asker, Refusal
from shim.trust.identity import Identity
from shim.trust.reasons import Reason

_RETRY_SECONDS = 5
# A Navidrome that says nothing does not keep the shim from starting.
_START_SECONDS = 5.0
# Who can make Navidrome say 401 shall not make everybody wait all the time.
_DOUBT_SECONDS = 2.0
# How often an account is looked at for one request, where it changes meanwhile.
_TRIES = 3


@dataclass(slots=True)
class _Known:
    """An identity whose account is ready. `seen` is set when it is asked for, `binding` its number.
    `changes`: how many requests that can change users had been sent when it was found out."""

    identity: Identity
    account: Account
    binding: int
    changes: int
    seen: bool = True


class ProvisioningGate:
    """Implements `AccountGate`. `timeout`: seconds that a request waits for its account; `most`: accounts
    that are worked on at one time."""

    def __init__(
        self,
        ground: Ground,
        record: Callable[[Event], None],
        *,
        timeout: float = 10.0,
        most: int = 64,
    ) -> None:
        self._ground = ground
        self._record = record
        self._timeout = timeout
        self._slots = asyncio.Semaphore(most)
        self._known: dict[str | None, _Known] = {}
        self._flights: dict[tuple[Identity, bool, int], asyncio.Task[Account | Refusal]] = {}
        # How many requests that can change users were sent.
        self._changes = 0
        # A number that rises with every change of an account, and what it was at the last one of each uid.
        self._generation = 0
        self._generations: dict[str | None, int] = {}
        self.revocations = 0
        self._doubted_at = -_DOUBT_SECONDS
        self._keeper: asyncio.Task[None] | None = None
        ground.listener = self

    # AccountGate

    def known(self, identity: Identity) -> Account | None:
        known = self._known.get(identity.uid)
        if known is None or known.changes != self._changes:
            return None
        if known.identity is not identity and known.identity != identity:
            return None
        known.seen = True
        return known.account

    def ensure(self, identity: Identity, asker: Asker) -> asyncio.Future[Account | Refusal]:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Account | Refusal] = loop.create_future()
        # Who comes after a change does not join a flight that may have looked before it.
        key = (identity, asker.verified, self._changes)
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = loop.create_task(self._fly(identity, asker))
            flight.add_done_callback(lambda _: self._ended(key))
        late = Refusal(Reason.ACCOUNT_UNAVAILABLE, "the account took too long", _RETRY_SECONDS)
        timer = loop.call_later(self._timeout, _answer, waiter, late)

        def landed(done: asyncio.Task[Account | Refusal]) -> None:
            timer.cancel()
            _answer(waiter, _result(done))

        flight.add_done_callback(landed)
        return waiter

    def doubt(self, identity: Identity) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._doubted_at < _DOUBT_SECONDS:
            self.forget(identity.uid)
            return
        self._doubted_at = now
        self._ground.lose("Navidrome did not know an account that it was told of")

    def upstream_changed(self) -> None:
        self._ground.lose("Navidrome was away")

    def users_may_have_changed(self) -> None:
        self._changes += 1
        self._ground.users_may_have_changed()

    def navidrome_token_valid(self, username: str, user_id: str, issued_at: float) -> bool:
        directory = self._ground.directory
        user = directory.of_id(user_id)
        if user is None or self._ground.fault is not None or not directory.current:
            return False
        if directory.of_name(username) is not user or not self._admits(user_id):
            return False
        rule = self._ground.bindings.rule_of(user_id)
        return rule is None or rule.admits(issued_at)

    def may_continue(self, user_id: str, uid: str | None, issued_at: float) -> bool:
        ground = self._ground
        if not self._admits(user_id):
            return False
        if uid is not None:
            binding = ground.bindings.of_account(user_id)
            return binding is not None and binding.uid == uid
        rule = ground.bindings.rule_of(user_id)
        if rule is not None and not rule.admits(issued_at):
            return False
        # While the users are not known, responses that are under way go on.
        known = ground.fault is None and ground.directory.current
        return not known or ground.directory.of_id(user_id) is not None

    def _admits(self, user_id: str) -> bool:
        """Whether the account is neither locked nor unlinked nor a person's whom the policy denies."""
        bindings = self._ground.bindings
        binding = bindings.of_account(user_id)
        if binding is None:
            return not bindings.is_locked(user_id)
        active = binding.state is BindingState.ACTIVE and self._ground.policy.allows(
            binding.identity
        )
        return active and not bindings.is_locked(user_id)

    # what others tell

    def forget(self, uid: str | None) -> None:
        """This person's account is not what it was: look at it again before the next request."""
        self._known.pop(uid, None)
        self._generation += 1
        if self._flights:
            self._generations[uid] = self._generation

    def revoked(self) -> None:
        """An account was locked, denied, unlinked, deleted or bound to another uid."""
        self.revocations += 1

    def forget_all(self) -> None:
        """Navidrome may be another one: nobody is known."""
        self._known.clear()

    def take_seen(self) -> dict[int, float]:
        """The bindings, by their number, that were asked for since this was called last, and now."""
        now, seen = time.time(), {}
        for known in self._known.values():
            if known.seen:
                known.seen = False
                seen[known.binding] = now
        return seen

    async def start(self) -> None:
        """Try once to have everything ready, and go on trying from now on."""
        loop = asyncio.get_running_loop()
        self._keeper = loop.create_task(self._ground.keep())
        first = loop.create_task(self._ground.attain())
        await asyncio.wait({first}, timeout=_START_SECONDS)

    async def stop(self) -> None:
        """End what is under way; everybody who waits is refused."""
        flights: list[asyncio.Task[Account | Refusal] | asyncio.Task[None]]
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        if self._keeper is not None:
            self._keeper.cancel()
            flights.append(self._keeper)
        await asyncio.gather(*flights, return_exceptions=True)
        await self._ground.close()

    # a flight

    async def _fly(self, identity: Identity, asker: Asker) -> Account | Refusal:
        keys = account_keys(identity.uid, identity.username)
        try:
            async with self._ground.locks.held(*keys), self._slots:
                return await self._settle(identity, asker)
        except Denied as denied:
            self._known.pop(identity.uid, None)
            self._record(
                AccountRefused(
                    time=time.time(),
                    peer=asker.peer,
                    reason=denied.reason,
                    detail=denied.detail,
                    name=identity.username,
                    uid=identity.uid,
                    groups=identity.groups,
                    request_id=asker.request_id,
                )
            )
            return Refusal(denied.reason, denied.detail)
        except Exception as error:  # noqa: BLE001 - whatever it is, the request gets an answer
            return self._failed(identity, asker, error)

    def _ended(self, key: tuple[Identity, bool, int]) -> None:
        self._flights.pop(key, None)
        if not self._flights:
            self._generations.clear()

    async def _settle(self, identity: Identity, asker: Asker) -> Account | Refusal:
        """The identity's account, found out again where something changed meanwhile."""
        for left in range(_TRIES - 1, -1, -1):
            generation, changes = self._generation, self._changes
            try:
                found = await self._look(identity, asker)
            except Outdated:
                if not left:
                    raise
                await self._ground.refresh()
                continue
            if self._generations.get(identity.uid, 0) > generation:
                continue
            if changes == self._changes:
                self._known[identity.uid] = found
            elif left:
                continue
            # After several tries, a name that was read after the request came is good for this one alone.
            return found.account
        raise Busy("the account was changed again and again meanwhile")

    async def _look(self, identity: Identity, asker: Asker) -> _Known:
        ground, changes = self._ground, self._changes
        number = await ground.attain()
        if number is None:
            fault = ground.fault or Fault("Navidrome went away")
            raise Unavailable(fault.detail, retry_after=fault.retry_after)
        occasion = Occasion("request", identity, asker)
        try:
            binding = await ground.provisioner.settle(identity, occasion, verified=asker.verified)
        except (NotAuthenticated, PermissionDenied):
            ground.lose("Navidrome does not take the shim for an admin any more")
            raise
        account = Account(binding.user_name.encode(), binding.navidrome_id)
        if number != ground.number:
            # Navidrome may have become another one while this was done: nobody is named to it.
            raise Unavailable("Navidrome went away meanwhile", retry_after=1)
        return _Known(identity, account, binding.id, changes)

    def _failed(self, identity: Identity, asker: Asker, error: Exception) -> Account | Refusal:
        passes = self._let_pass(identity)
        detail = str(error) if isinstance(error, FAULTS) else f"{type(error).__name__}: {error}"
        self._record(
            AccountFailed(
                time=time.time(),
                peer=asker.peer,
                detail=detail,
                name=identity.username,
                uid=identity.uid,
                groups=identity.groups,
                request_id=asker.request_id,
                passed=passes is not None,
            )
        )
        if passes is not None:
            return passes
        wait = error.retry_after if isinstance(error, Unavailable) else float(_RETRY_SECONDS)
        return Refusal(Reason.ACCOUNT_UNAVAILABLE, detail, max(1, round(wait)))

    def _let_pass(self, identity: Identity) -> Account | None:
        """The account of somebody who is known, as it is, where the settings say so and no visitor could
        become the first admin."""
        ground = self._ground
        policy = ground.policy
        if not policy.lets_pass or not ground.peopled or identity.uid is None:
            return None
        binding = ground.bindings.of_uid(identity.uid)
        if (
            binding is None
            or binding.state is not BindingState.ACTIVE
            or not ground.directory.current
        ):
            return None
        # The name that the account had when the users were listed last, and nobody can have changed since.
        user = ground.directory.of_id(binding.navidrome_id)
        if user is None or not is_carried(user.user_name) or policy.reserves(user.user_name):
            return None
        if not policy.allows(identity) or not self._admits(user.id):
            return None
        return Account(user.user_name.encode(), user.id)


def _answer(waiter: asyncio.Future[Account | Refusal], answer: Account | Refusal) -> None:
    if not waiter.done():
        waiter.set_result(answer)


def _result(flight: asyncio.Task[Account | Refusal]) -> Account | Refusal:
    if flight.cancelled():
        return Refusal(Reason.ACCOUNT_UNAVAILABLE, "the shim stops", _RETRY_SECONDS)
    return flight.result()
