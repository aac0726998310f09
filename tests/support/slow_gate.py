"""An account gate that responds when the test lets it."""

from __future__ import annotations

import asyncio

from shim.proxy.gate import Account, AccountDenied, RequestInfo
from shim.trust.identity import Identity


class SlowGate:
    """Has no account but alice's, and that only once `respond` was called."""

    def __init__(self) -> None:
        self.ready: dict[str, Account] = {}
        self.requests: asyncio.Queue[asyncio.Future[Account | AccountDenied]] = asyncio.Queue()
        self.request_infos: list[RequestInfo] = []
        self.changes = 0
        self.revocations = 0

    def known(self, identity: Identity) -> Account | None:
        return self.ready.get(identity.username)

    def ensure(
        self, identity: Identity, request_info: RequestInfo
    ) -> asyncio.Future[Account | AccountDenied]:
        assert identity.username == "alice"
        self.request_infos.append(request_info)
        future: asyncio.Future[Account | AccountDenied] = asyncio.get_running_loop().create_future()
        self.requests.put_nowait(future)
        return future

    def report_unauthorized(self, identity: Identity) -> None:
        raise AssertionError(f"{identity.username} is being checked again")

    def upstream_changed(self) -> None:
        self.changes += 1

    def users_may_have_changed(self) -> None:
        pass

    def identity_current(self, identity: Identity) -> bool:  # noqa: ARG002
        return True

    def user_write_started(self, account_ids: tuple[str, ...]) -> bool:  # noqa: ARG002
        return True

    def user_write_ended(self, account_ids: tuple[str, ...], *, response_began: bool) -> None:
        pass

    @property
    def users_listed(self) -> bool:
        return True

    def list_users(self) -> asyncio.Future[AccountDenied | None]:
        raise AssertionError("the users are listed")

    def navidrome_token_valid(
        self,
        username: str,  # noqa: ARG002
        user_id: str,  # noqa: ARG002
        issued_at: float,  # noqa: ARG002
        *,
        listed: bool = False,  # noqa: ARG002
    ) -> bool:
        return True

    def may_continue(self, user_id: str, uid: str | None, issued_at: float) -> bool:  # noqa: ARG002
        return True

    def respond(
        self, future: asyncio.Future[Account | AccountDenied], name: bytes = b"alice"
    ) -> None:
        """The account is ready, and known from now on."""
        self.ready["alice"] = Account(name)
        future.set_result(Account(name))

    async def next_request(self) -> asyncio.Future[Account | AccountDenied]:
        async with asyncio.timeout(5):
            return await self.requests.get()
