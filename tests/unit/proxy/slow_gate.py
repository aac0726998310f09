"""A gate that answers when the test says so."""

from __future__ import annotations

import asyncio

from shim.proxy.gate import Account, Asker, Refusal
from shim.trust.identity import Identity


class SlowGate:
    """Knows nobody but alice, and her only once `answer` was called."""

    def __init__(self) -> None:
        self.ready: dict[str, Account] = {}
        self.asked: asyncio.Queue[asyncio.Future[Account | Refusal]] = asyncio.Queue()
        self.askers: list[Asker] = []
        self.changes = 0
        self.revocations = 0

    def known(self, identity: Identity) -> Account | None:
        return self.ready.get(identity.username)

    def ensure(self, identity: Identity, asker: Asker) -> asyncio.Future[Account | Refusal]:
        assert identity.username == "alice"
        self.askers.append(asker)
        future: asyncio.Future[Account | Refusal] = asyncio.get_running_loop().create_future()
        self.asked.put_nowait(future)
        return future

    def doubt(self, identity: Identity) -> None:
        raise AssertionError(f"{identity.username} is doubted")

    def upstream_changed(self) -> None:
        self.changes += 1

    def users_may_have_changed(self) -> None:
        pass

    def navidrome_token_valid(self, username: str, user_id: str, issued_at: float) -> bool:  # noqa: ARG002
        return True

    def may_continue(self, user_id: str, uid: str | None, issued_at: float) -> bool:  # noqa: ARG002
        return True

    def answer(self, future: asyncio.Future[Account | Refusal], name: bytes = b"alice") -> None:
        """The account is ready, and known from now on."""
        self.ready["alice"] = Account(name)
        future.set_result(Account(name))

    async def question(self) -> asyncio.Future[Account | Refusal]:
        async with asyncio.timeout(5):
            return await self.asked.get()
