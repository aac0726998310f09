"""The gate that the data plane asks: who is known passes at once, everybody else waits for their account.

`known` is a look-up. `ensure` joins the flight of the same identity or starts one; flights of one person or
one name follow each other. What is known is dropped, all of it, whenever Navidrome may be another one than
before: then nobody is named to it until its users are known again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from shim.audit.events import Event
from shim.audit.provisioning_events import AccountFailed, AccountRefused
from shim.navidrome.errors import NotAuthenticated, PermissionDenied, Unavailable
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


@dataclass(slots=True)
class _Known:
    """An identity whose account is ready. `seen` is set when it is asked for, `binding` its number."""

    identity: Identity
    account: Account
    binding: int
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
        self._flights: dict[tuple[Identity, bool], asyncio.Task[Account | Refusal]] = {}
        self._doubted_at = -_DOUBT_SECONDS
        self._keeper: asyncio.Task[None] | None = None
        self.revocations = 0
        ground.listener = self

    # AccountGate

    def known(self, identity: Identity) -> Account | None:
        known = self._known.get(identity.uid)
        if known is None or (known.identity is not identity and known.identity != identity):
            return None
        known.seen = True
        return known.account

    def ensure(self, identity: Identity, asker: Asker) -> asyncio.Future[Account | Refusal]:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Account | Refusal] = loop.create_future()
        key = (identity, asker.verified)
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = loop.create_task(self._fly(identity, asker))
            flight.add_done_callback(lambda _: self._flights.pop(key, None))
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

    def navidrome_token_valid(self, username: str, user_id: str, issued_at: float) -> bool:  # noqa: ARG002
        return True

    def may_continue(self, user_id: str, uid: str | None, issued_at: float) -> bool:  # noqa: ARG002
        return True

    def users_may_have_changed(self) -> None:
        pass

    # what others tell

    def forget(self, uid: str | None) -> None:
        """This person's account is not what it was: look at it again before the next request."""
        self._known.pop(uid, None)

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

    async def _settle(self, identity: Identity, asker: Asker) -> Account | Refusal:
        ground = self._ground
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
        self._known[identity.uid] = _Known(identity, account, binding.id)
        return account

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
        if binding is None or binding.state is not BindingState.ACTIVE:
            return None
        if not policy.allows(identity) or policy.reserves(binding.user_name):
            return None
        return (
            Account(binding.user_name.encode(), binding.navidrome_id)
            if is_carried(binding.user_name)
            else None
        )


def _answer(waiter: asyncio.Future[Account | Refusal], answer: Account | Refusal) -> None:
    if not waiter.done():
        waiter.set_result(answer)


def _result(flight: asyncio.Task[Account | Refusal]) -> Account | Refusal:
    if flight.cancelled():
        return Refusal(Reason.ACCOUNT_UNAVAILABLE, "the shim stops", _RETRY_SECONDS)
    return flight.result()
