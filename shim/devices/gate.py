"""The devices as the data plane uses them: which device a request has the password of, and how often wrong
credentials may be tried.

Results are cached by a keyed digest of the credentials as they were sent: an app repeats them. A cached
device counts only while it is in use and the names of the accounts are unchanged. Its account is looked up
each time. So a revocation, a lock and a rename count at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

from shim.audit.events import Event
from shim.audit.events.devices import DeviceLoginFailed
from shim.audit.observer import request_fields
from shim.audit.sanitize import clip
from shim.devices.guessing import Guess, GuessLimiter, account_key, client_key
from shim.devices.service import DeviceService, LoadedDevice
from shim.devices.verification import find_device
from shim.health import Check, State
from shim.provisioning.accounts import AccountLookup
from shim.proxy.device_gate import Attempt, DeviceMatch, DeviceRefused, NoMatch, OtherCredentials
from shim.proxy.gate import Account
from shim.store.errors import StoreError
from shim.trust.decision import Decision, DeviceIdentity
from shim.trust.identity import Identity
from shim.trust.identity_evaluation import TrustResult
from shim.trust.reasons import PathClass, Reason, outcome
from shim.trust.subsonic_parameters import (
    ConflictingParameters,
    CredentialText,
    first_parameter,
    read_basic,
    read_parameters,
)

# Changes of another process in the store are seen after at most this many seconds.
REFRESH_SECONDS = 0.5
_STORE_USES_SECONDS = 60.0
# The last use of a device is recorded at most this often.
USE_SECONDS = 60.0
# When people were last seen is read again at most this often, while somebody counts as absent. Other
# processes store it.
_SEEN_SECONDS = 5.0
_CACHE_ENTRIES = 4096
_DIGEST_BYTES = 16
_OTHER_CREDENTIALS, _NOT_LISTED = OtherCredentials(), NoMatch.NOT_LISTED
_ALL_OUTCOMES = tuple(
    outcome(Reason.DEVICE_PASSWORD, path_class)
    for path_class in (
        PathClass.PROTECTED,
        PathClass.PUBLIC,
        PathClass.PUBLIC,
        PathClass.PUBLIC,
        PathClass.INTERNAL,
        PathClass.PROTECTED,
        PathClass.INTERNAL,
    )
)


class SubsonicDevices:
    """Implements `DeviceGate`.

    `service` has the devices; `accounts` looks up whose account a name is. `record` receives events, and
    `suppressed` returns whether one of this peer and kind was only counted, in a flood. `sign_in_days` is
    SHIM_DEVICE_SIGN_IN_DAYS, 0 for no limit. `now` returns seconds since the epoch.
    """

    def __init__(
        self,
        service: DeviceService,
        accounts: AccountLookup,
        record: Callable[[Event], None],
        *,
        sign_in_days: int,
        suppressed: Callable[[str, tuple[str, ...], float], bool] = lambda *_: False,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.service = service
        self._accounts = accounts
        self._record = record
        self._sign_in_seconds = sign_in_days * 86400.0
        self._suppressed = suppressed
        self._now = now
        self._guesses = GuessLimiter()
        self._digest_key = secrets.token_bytes(32)
        # Verified devices, each with the generation of the accounts at that time.
        self._verified: OrderedDict[bytes, tuple[int, LoadedDevice]] = OrderedDict()
        # Credentials that are those of no device, and the state of the devices at that time.
        self._other_credentials: OrderedDict[bytes, tuple[int, OtherCredentials]] = OrderedDict()
        self._task: asyncio.Task[None] | None = None
        self._store_fault: str | None = None
        # Devices that ended by time: they expired, or their owners were not seen for too long.
        self._ended: frozenset[str] = frozenset()
        self._ends = 0  # how often one did
        self._next_end = -math.inf  # when the next one may, in seconds since the epoch
        self._counted_generation = -1  # of the devices, when this was found
        self._first_absence = math.inf  # when the first owner was absent for too long, or will be
        self._seen_read_at = -math.inf

    # DeviceGate

    @property
    def revocations(self) -> int:
        now = self._now()
        if now >= self._next_end or self.service.generation != self._counted_generation:
            self._count_ends(now)
        return self.service.revocations + self._ends

    def identify(
        self, credentials: CredentialText, client: bytes | None, *, listed: bool = False
    ) -> DeviceMatch | DeviceRefused | OtherCredentials | NoMatch:
        key = self._digest(credentials)
        verified = self._verified.get(key)
        if verified is not None:
            generation, device = verified
            if device.alive and generation == self._accounts.generation:
                self._verified.move_to_end(key)
                found = self._match(device, listed=listed)
                if found is not _OTHER_CREDENTIALS:
                    return found
            del self._verified[key]
        else:
            other_credentials = self._other_credentials.get(key)
            if other_credentials is not None and other_credentials[0] == self._generation:
                return other_credentials[1]
        return self._verify(key, credentials, client, listed=listed)

    def is_current(self, match: DeviceMatch, *, listed: bool = False) -> bool:
        if not self.is_active(match):
            return False
        loaded = self.service.by_id(match.identity.id)
        assert loaded is not None
        return self._accounts.of_person(loaded.device.uid, listed=listed) == match.account

    def is_active(self, match: DeviceMatch) -> bool:
        loaded, now = self.service.by_id(match.identity.id), self._now()
        if loaded is None or not loaded.device.is_active(now):
            return False
        return not self._is_sign_in_due(loaded.device.uid, now)

    def use_is_due(self, match: DeviceMatch) -> bool:
        device = self.service.by_id(match.identity.id)
        if device is None:
            return False
        used = device.device.last_used if device.used is None else device.used[0]
        return used is None or self._now() - used >= USE_SECONDS

    def record_use(self, match: DeviceMatch, decision: Decision, app: bytes) -> None:
        device = self.service.by_id(match.identity.id)
        client = _client(decision)
        if device is not None:
            text = "" if client is None else client.decode("ascii", "replace")
            device.used = (self._now(), text, _shown(app))
        name = account_key(match.account.user_name)
        self._guesses.succeeded(name, client_key(client), time.monotonic())

    def begin_attempt(
        self, other_credentials: OtherCredentials, decision: Decision, request_id: Callable[[], str]
    ) -> Attempt | DeviceRefused | None:
        account = other_credentials.account
        if not account:
            return None
        client, now = client_key(_client(decision)), time.monotonic()
        if self._guesses.is_fresh(account, client, now):
            return None
        guess = self._guesses.begin(account, client, now)
        if guess is None:
            return replace(_TOO_MANY, user=other_credentials.user)
        return _Attempt(self, guess, decision, other_credentials.user, request_id)

    # one request

    def _digest(self, credentials: CredentialText) -> bytes:
        return hashlib.blake2b(
            credentials.key, key=self._digest_key, digest_size=_DIGEST_BYTES
        ).digest()

    @property
    def _generation(self) -> int:
        """Return a number that differs whenever credentials may have become those of a device."""
        return self.service.generation + self._accounts.generation

    def _verify(
        self, key: bytes, credentials: CredentialText, client: bytes | None, *, listed: bool
    ) -> DeviceMatch | DeviceRefused | OtherCredentials | NoMatch:
        try:
            if credentials.basic:
                found = read_basic(credentials.basic)
            else:
                found = read_parameters(credentials.query, credentials.body)
        except ConflictingParameters as error:
            return DeviceRefused(Reason.CREDENTIALS_CONFLICT, str(error))
        if found is None:
            return _OTHER_CREDENTIALS
        if found.api_key:
            return self._verify_api_key(key, found.api_key, client, listed=listed)
        if not found.u or not (found.p or found.t):
            return _OTHER_CREDENTIALS
        uid = None if found.too_long else self._accounts.person_of(found.u)
        device = None if uid is None else find_device(found, self.service.active(uid))
        if device is None:
            # Navidrome does not read `Authorization` there.
            other_credentials = (
                _OTHER_CREDENTIALS
                if credentials.basic
                else OtherCredentials(account_key(found.u), found.u[:64])
            )
            self._cache_other_credentials(key, other_credentials)
            return other_credentials
        self._remember(key, device)
        return self._match(device, listed=listed)

    def _verify_api_key(
        self, key: bytes, api_key: bytes, client: bytes | None, *, listed: bool
    ) -> DeviceMatch | DeviceRefused | OtherCredentials | NoMatch:
        device = self.service.by_secret(api_key)
        if device is not None:
            self._remember(key, device)
            matched = self._match(device, listed=listed)
            # Navidrome knows no API keys, so it is not asked about that of a device that has ended.
            return _UNKNOWN_API_KEY if matched is _OTHER_CREDENTIALS else matched
        now, origin = time.monotonic(), client_key(client)
        if not self._guesses.may_try(origin, now):
            return _TOO_MANY
        self._guesses.failed(b"", origin, now)
        return _UNKNOWN_API_KEY

    def _match(
        self, loaded: LoadedDevice, *, listed: bool
    ) -> DeviceMatch | DeviceRefused | OtherCredentials | NoMatch:
        """Return the result for a request that has this device's password: `_OTHER_CREDENTIALS` if the
        device has ended, since the password may also be one that is set in Navidrome."""
        device, now = loaded.device, self._now()
        if device.expires is not None and device.expires <= now:
            return _OTHER_CREDENTIALS
        account = self._accounts.of_person(device.uid, listed=listed)
        if account is None:
            return _OTHER_CREDENTIALS
        if not isinstance(account, Account):
            return _NOT_LISTED
        if self._is_sign_in_due(device.uid, now):
            return _SIGN_IN_DUE
        identity = self._accounts.identity_of(device.uid)
        match = loaded.match
        if (
            isinstance(match, DeviceMatch)
            and match.account == account
            and match.identity.name == device.name
            and match.identity.trust_result.identity is identity
        ):
            return match
        loaded.match = match = _device_match(loaded, account, identity)
        return match

    def _is_sign_in_due(self, uid: str, now: float) -> bool:
        limit = self._sign_in_seconds
        return bool(limit) and not self._accounts.is_seen_since(uid, now - limit)

    def _count_ends(self, now: float) -> None:
        """Find the devices that ended by time, and when the next one may. A sign-in may put that off, but
        never brings it forward."""
        self._counted_generation = self.service.generation
        ended, ends, absences = set(), [], {}
        for uid, devices in self.service.people():
            if self._sign_in_seconds:
                absences[uid] = self._accounts.last_seen(uid, now) + self._sign_in_seconds
            for loaded in devices:
                device = loaded.device
                end = min(
                    math.inf if device.expires is None else device.expires,
                    absences.get(uid, math.inf),
                )
                if end <= now:
                    ended.add(device.id)
                else:
                    ends.append(end)
        if not ended <= self._ended:
            self._ends += 1
        self._ended = frozenset(ended)
        self._next_end = min(ends, default=math.inf)
        self._first_absence = min(absences.values(), default=math.inf)

    def _remember(self, key: bytes, device: LoadedDevice) -> None:
        self._verified[key] = (self._accounts.generation, device)
        if len(self._verified) > _CACHE_ENTRIES:
            self._verified.popitem(last=False)

    def _cache_other_credentials(self, key: bytes, other_credentials: OtherCredentials) -> None:
        self._other_credentials[key] = (self._generation, other_credentials)
        self._other_credentials.move_to_end(key)
        if len(self._other_credentials) > _CACHE_ENTRIES:
            self._other_credentials.popitem(last=False)

    # failures

    def attempt_failed(
        self, guess: Guess, decision: Decision, user: bytes, request_id: str
    ) -> None:
        """Count a response of Navidrome that says that the credentials are wrong."""
        self._guesses.failed(guess.account, guess.client, time.monotonic())
        self._report(decision, user, "wrong_credentials", request_id)

    def attempt_succeeded(self, guess: Guess) -> None:
        """Note a response that needs right credentials."""
        self._guesses.succeeded(guess.account, guess.client, time.monotonic())

    def attempt_ended(self, guess: Guess) -> None:
        """Let the next request of this client through, if there were too many failures."""
        self._guesses.end(guess)

    def refused(self, decision: Decision, refused: DeviceRefused, request_id: str) -> None:
        if refused.reason in (Reason.API_KEY_UNKNOWN, Reason.TOO_MANY_FAILURES):
            self._report(decision, refused.user, str(refused.reason), request_id)

    def _report(self, decision: Decision, user: bytes, reason: str, request_id: str) -> None:
        now, peer = self._now(), decision.source.peer.text
        if self._suppressed(peer, DeviceLoginFailed.build_group_key(reason), now):
            return
        fields = request_fields(decision, request_id, now)
        fields["claimed_user"] = _shown(user) or None
        app = first_parameter(b"c", _query(decision))
        self._record(DeviceLoginFailed(time=now, **fields, reason=reason, app=_shown(app) or None))

    # in the background

    async def start(self) -> None:
        """Read the devices, and keep reading changes in the background."""
        await self.refresh()
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Stop, and store when the devices were last used. The caller closes the database."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(1.0):
                await self.service.store_uses()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        store_at = loop.time() + _STORE_USES_SECONDS
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            await self.refresh()
            if loop.time() >= store_at:
                store_at = loop.time() + _STORE_USES_SECONDS
                with contextlib.suppress(StoreError):
                    await self.service.store_uses()

    async def refresh(self) -> None:
        """Read what other processes changed: the devices, and when an owner who counts as absent was seen."""
        now = self._now()
        try:
            await self.service.refresh()
            if (
                self._first_absence <= now + _SEEN_SECONDS
                and abs(now - self._seen_read_at) >= _SEEN_SECONDS
            ):
                self._seen_read_at = now
                await self._accounts.read_last_seen()
                self._next_end = -math.inf
        except StoreError as error:
            self._store_fault = str(error)
        else:
            self._store_fault = None

    def check(self) -> Check:
        """Return the state for `/readyz`."""
        return devices_check(self.service, self._store_fault)


def devices_check(service: DeviceService, store_fault: str | None = None) -> Check:
    """Return the check of device passwords. They are no reason to stop: everybody else is served."""
    if store_fault is not None or not service.loaded:
        detail = store_fault or "the devices have not been read yet"
        return Check(
            "devices", State.WARNING, f"device passwords: {detail}", "See the check `store`."
        )
    if service.fault is not None:
        return Check("devices", State.WARNING, service.fault, service.remedy)
    if service.lacks_key:
        # Not a fault: nobody may want devices.
        detail = "no device password can be added: with PostgreSQL, SHIM_DEVICE_KEY must be set"
        return Check("devices", State.OK, detail)
    return Check("devices", State.OK, f"{len(service)} device passwords in use")


class _Attempt:
    """Implements `Attempt`."""

    __slots__ = ("_decision", "_ended", "_gate", "_guess", "_request_id", "_user")

    def __init__(
        self,
        gate: SubsonicDevices,
        guess: Guess,
        decision: Decision,
        user: bytes,
        request_id: Callable[[], str],
    ) -> None:
        self._gate = gate
        self._guess = guess
        self._decision = decision
        self._user = user
        self._request_id = request_id
        self._ended = False

    def failed(self) -> None:
        self._gate.attempt_failed(self._guess, self._decision, self._user, self._request_id())

    def succeeded(self) -> None:
        self._gate.attempt_succeeded(self._guess)

    def ended(self) -> None:
        if not self._ended:
            self._ended = True
            self._gate.attempt_ended(self._guess)


def _device_match(loaded: LoadedDevice, account: Account, identity: Identity | None) -> DeviceMatch:
    device = loaded.device
    trust_result = TrustResult(_ALL_OUTCOMES, identity, b"", "", _ALL_OUTCOMES[0])
    return DeviceMatch(DeviceIdentity(device.id, device.name, trust_result), account)


def _client(decision: Decision) -> bytes | None:
    block = decision.block
    return decision.source.address if block is None else block.metadata.client


def _query(decision: Decision) -> bytes:
    line = decision.request_line
    return b"" if line is None else line.target.partition(b"?")[2]


def _shown(text: bytes) -> str:
    # Without control characters: PostgreSQL stores no NUL.
    return clip(text[:64].decode("utf-8", "replace"), 64)


_TOO_MANY = DeviceRefused(Reason.TOO_MANY_FAILURES, "too many sign-ins of this client have failed")
_UNKNOWN_API_KEY = DeviceRefused(Reason.API_KEY_UNKNOWN, "the API key belongs to no device")
_SIGN_IN_DUE = DeviceRefused(
    Reason.DEVICE_SIGN_IN_DUE, "the owner of the device has not signed in for too long"
)
