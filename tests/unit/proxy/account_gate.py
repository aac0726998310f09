"""Gates with accounts and a device in memory, which a test can lock and revoke."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from shim.proxy.device_gate import DeviceMatch, DeviceRefused, OtherCredentials
from shim.proxy.gate import Account, AccountDenied, RequestInfo
from shim.trust.decision import Decision, DeviceIdentity
from shim.trust.identity import Identity
from shim.trust.identity_evaluation import TrustResult
from shim.trust.path_zones import PathZone
from shim.trust.reasons import PathClass, Reason, outcome
from shim.trust.subsonic_parameters import CredentialText
from tests.support.jwt_minting import SECRET, token

ISSUED = 1_700_000_000


def navidrome_token(name: str, *, issued_at: float = ISSUED) -> str:
    """A token as Navidrome issues it to this account."""
    claims = {"iss": "ND", "sub": name, "uid": f"id-{name}", "adm": False, "iat": issued_at}
    return token(claims, key=SECRET, algorithm="HS256", kid=None)


class Accounts:
    """Every account exists, with the id `id-NAME`.

    `valid_from`: tokens of an account that were issued earlier are void; None voids all. `changes`:
    how often users may have changed. `listed`: the users are known; `listings`: requests that wait
    until they are. `writes`: requests in progress that change users, by account id; none is sent
    for an id in `held`.
    """

    def __init__(self) -> None:
        self.revocations = 0
        self.changes = 0
        self.valid_from: dict[str, float | None] = {}
        self.denied: set[str] = set()
        self.listed = True
        self.listings: list[asyncio.Future[AccountDenied | None]] = []
        self.outdated: set[str] = set()
        self.writes: Counter[str] = Counter()
        self.without_response = 0
        self.held: set[str] = set()

    def lock(self, name: str, valid_from: float | None = None) -> None:
        """The identity is denied from now on, and the account's tokens are void."""
        self.denied.add(name)
        self.valid_from[name] = valid_from
        self.revocations += 1

    def known(self, identity: Identity) -> Account | None:
        name = identity.username
        return None if name in self.denied | self.outdated else Account(name.encode(), f"id-{name}")

    def ensure(
        self, identity: Identity, request_info: RequestInfo
    ) -> asyncio.Future[Account | AccountDenied]:
        del request_info
        future: asyncio.Future[Account | AccountDenied] = asyncio.get_running_loop().create_future()
        future.set_result(
            self.known(identity) or AccountDenied(Reason.GROUP_NOT_ALLOWED, "the account is locked")
        )
        return future

    def report_unauthorized(self, identity: Identity) -> None:
        del identity

    def upstream_changed(self) -> None:
        pass

    @property
    def users_listed(self) -> bool:
        return self.listed

    def list_users(self) -> asyncio.Future[AccountDenied | None]:
        future: asyncio.Future[AccountDenied | None] = asyncio.get_running_loop().create_future()
        self.listings.append(future)
        return future

    def navidrome_token_valid(
        self, username: str, user_id: str, issued_at: float, *, listed: bool = False
    ) -> bool:
        if not (listed or self.listed):
            return False
        start = self.valid_from.get(username, 0.0)
        return user_id == f"id-{username}" and start is not None and issued_at > start

    def may_continue(self, user_id: str, uid: str | None, issued_at: float) -> bool:
        name = user_id.removeprefix("id-")
        if uid is not None:
            return name not in self.denied
        return self.navidrome_token_valid(name, user_id, issued_at, listed=True)

    def users_may_have_changed(self) -> None:
        self.changes += 1

    def identity_current(self, identity: Identity) -> bool:
        return identity.username not in self.outdated

    def user_write_started(self, account_ids: tuple[str, ...]) -> bool:
        if self.held.intersection(account_ids):
            return False
        self.writes.update(account_ids)
        return True

    def user_write_ended(self, account_ids: tuple[str, ...], *, response_began: bool) -> None:
        self.writes.subtract(account_ids)
        self.without_response += not response_began


class AdasDevice:
    """Every credentials are those of Ada's device, until it is revoked."""

    def __init__(self) -> None:
        self.revocations = 0
        result = outcome(Reason.DEVICE_PASSWORD, PathClass.PUBLIC)
        trust_result = TrustResult(
            (result,) * len(PathZone), Identity("ada", uid="u1"), b"", "", result
        )
        identity = DeviceIdentity("1", "Phone", trust_result)
        self._match = DeviceMatch(identity, Account(b"ada", "id-ada"))

    def revoke(self) -> None:
        self.revocations += 1

    def identify(
        self,
        credentials: CredentialText,  # noqa: ARG002
        client: bytes | None,  # noqa: ARG002
        *,
        listed: bool = False,
    ) -> DeviceMatch | OtherCredentials:
        return self._match if self.is_current(self._match, listed=listed) else OtherCredentials()

    def is_current(self, match: DeviceMatch, *, listed: bool = False) -> bool:  # noqa: ARG002
        return self.is_active(match)

    def is_active(self, match: DeviceMatch) -> bool:  # noqa: ARG002
        return not self.revocations

    def use_is_due(self, match: DeviceMatch) -> bool:  # noqa: ARG002
        return False

    def record_use(self, match: DeviceMatch, decision: Decision, app: bytes) -> None:
        pass

    def refused(self, decision: Decision, refused: DeviceRefused, request_id: str) -> None:
        pass

    def begin_attempt(
        self, foreign: OtherCredentials, decision: Decision, request_id: Callable[[], str]
    ) -> None:
        pass
