"""Whatever happens in whatever order: never two accounts for one person, never a stranger's account, never a
lost field, never an account that is open."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shim.demo.navidrome import Account, Accounts, Fault, FaultKind
from shim.navidrome import api
from shim.navidrome.models import User
from shim.provisioning import ground
from shim.proxy.gate import Asker, Refusal
from shim.trust.identity import Identity
from shim.trust.names import fold_name
from tests.provisioning.servers import server_of
from tests.provisioning.world import World

NAMES = ("alice", "ALICE", "bob")
UIDS = ("u1", "u2")
VISITS = st.tuples(
    st.builds(
        Identity,
        st.sampled_from(NAMES),
        st.sampled_from(["One", "Two", "Three"]),
        st.none(),
        st.sampled_from([("music",), ("music",), ("music", "admins"), ()]),
        st.sampled_from(UIDS),
    ),
    st.booleans(),
)
FILTER = '{"all":[{"is":{"loved":true}}]}'
KINDS = [kind for kind in FaultKind if kind is not FaultKind.HANG]


class AnyOrder(RuleBasedStateMachine):
    """`owners`: by account, who got it; `filters`: by account, what its owner set by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp())
        self.owners: dict[str, str] = {}
        self.filters: dict[str, str] = {}
        self.world: World
        self.patches = pytest.MonkeyPatch()
        self.patches.setattr(ground, "_FIRST_PAUSE", 0.0)
        self.patches.setattr(api, "_READ_PAUSE", 0.0)

    def teardown(self) -> None:
        self.patches.undo()
        self.runner.run(self.world.close())
        self.runner.close()
        shutil.rmtree(self.folder)

    @initialize(
        link=st.sampled_from(["none", "users", "all"]),
        renames=st.sampled_from(["jwt", "headers", "off"]),
        failure=st.sampled_from(["closed", "open"]),
        hours=st.sampled_from(["0", "48"]),
    )
    def begin(self, link: str, renames: str, failure: str, hours: str) -> None:
        async def begin() -> None:
            server = server_of("stand-in tcp", self.folder)
            await server.start()
            self.world = World(server, self.folder)
            await self.world.start(
                LINK_EXISTING=link,
                FOLLOW_RENAMES=renames,
                PROVISIONING_FAILURE=failure,
                NAME_REST_HOURS=hours,
                ADMIN_GROUPS="admins",
                ALLOWED_GROUPS="music",
                NAVIDROME_TIMEOUT="2",
            )

        self.runner.run(begin())

    @rule(visits=st.lists(VISITS, min_size=1, max_size=4))
    def people_come(self, visits: list[tuple[Identity, bool]]) -> None:
        for identity, verified in visits:
            self._visit(identity, verified=verified)

    @rule(first=st.sampled_from(NAMES), second=st.sampled_from(NAMES))
    def visit_at_once(self, first: str, second: str) -> None:
        people = [
            Identity(name, None, None, ("music",), uid)
            for uid, name in (("u1", first), ("u2", second), ("u1", first))
        ]

        async def all_at_once() -> list[str | Refusal]:
            return list(await asyncio.gather(*(self.world.ask(one) for one in people)))

        for one, answer in zip(people, self.runner.run(all_at_once()), strict=True):
            account = None if isinstance(answer, Refusal) else self._account(answer)
            if account is not None:
                assert self.owners.setdefault(account.id, one.uid or "") == one.uid

    @rule(name=st.sampled_from(NAMES))
    def delete_by_hand(self, name: str) -> None:
        account = self._account(name)
        if account is not None:
            self._accounts.delete(account.id)

    @rule(name=st.sampled_from(NAMES), display=st.sampled_from(["Four", "Five"]))
    def visit_while_it_is_deleted(self, name: str, display: str) -> None:
        account = self._account(name)
        uid = None if account is None else self.owners.get(account.id)
        if account is None or uid is None:
            return
        one_api, account_id = self._ground.api, account.id
        write = one_api.write

        async def raced(user: User, changes: Mapping[str, object], password: Any = None) -> User:
            self._accounts.delete(account_id)
            one_api.write = write  # type: ignore[method-assign]
            return await write(user, changes, password)

        one_api.write = raced  # type: ignore[method-assign]
        one = Identity(account.user_name, display, None, ("music",), uid)
        self._visit(one, verified=False)
        one_api.write = write  # type: ignore[method-assign]

    @rule(name=st.sampled_from(NAMES), new=st.sampled_from(("erin", "Frank")))
    def rename_by_hand(self, name: str, new: str) -> None:
        account = self._account(name)
        if account is not None and self._account(new) is None:
            account.user_name = new

    @rule(name=st.sampled_from(NAMES), admin=st.booleans())
    def set_a_right_by_hand(self, name: str, admin: bool) -> None:
        account = self._account(name)
        if account is not None:
            account.is_admin = admin

    @rule(
        kind=st.sampled_from(KINDS),
        method=st.sampled_from([frozenset[str](), frozenset({"POST"}), frozenset({"PUT"})]),
        times=st.integers(1, 3),
        carried_out=st.booleans(),
    )
    def break_the_api(
        self, kind: FaultKind, method: frozenset[str], times: int, carried_out: bool
    ) -> None:
        fault = Fault(kind, ("/api/user",), method, times=times, carried_out=carried_out)
        self.world.stand_in.breaks(fault)

    @rule()
    def restart_the_shim(self) -> None:
        self.world.stand_in.breaks(None)
        self.runner.run(self.world.restart())

    @rule()
    def reconcile(self) -> None:
        self.world.stand_in.breaks(None)

        async def reconcile() -> None:
            one = self.world.accounts.ground
            one.api._transport.breaker.succeeded()
            async with asyncio.timeout(20):
                while await one.attain() is None:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
                await one.reconcile()

        self.runner.run(reconcile())

    def _visit(self, identity: Identity, *, verified: bool) -> None:
        asker = Asker("192.0.2.1", "r", verified)
        answer = self.runner.run(self.world.ask(identity, asker))
        account = None if isinstance(answer, Refusal) else self._account(answer)
        if account is None:
            return  # refused; or passed as it was known, while Navidrome could not be asked
        assert account.user_name == answer
        owner = self.owners.setdefault(account.id, identity.uid or "")
        assert owner == identity.uid, f"{answer} is {owner}'s, and was given to {identity.uid}"
        assert "music" in (identity.groups or ())
        # Whoever is let in sets a field of their own, which nobody else may touch from now on.
        account.scrobble_filter = self.filters[account.id] = FILTER

    @invariant()
    def nothing_is_wrong(self) -> None:
        accounts = list(self._accounts.by_id.values())
        folded = [fold_name(account.user_name) for account in accounts]
        assert len(folded) == len(set(folded)), folded
        open_ids = {intent.navidrome_id for intent in self._ground.bindings.intents()}
        for account in accounts:
            assert account.user_name
            assert account.password or account.id in open_ids, "an open account"
            if account.id in self.filters:
                assert account.scrobble_filter == self.filters[account.id], "a lost field"
        bindings = self._ground.bindings.all()
        for binding in bindings:
            owner = self.owners.get(binding.navidrome_id, binding.uid)
            assert owner == binding.uid, "a stranger's binding"
        uids = [binding.uid for binding in bindings]
        assert len(uids) == len(set(uids))

    @property
    def _ground(self) -> ground.Ground:
        return self.world.accounts.ground

    @property
    def _accounts(self) -> Accounts:
        return self.world.stand_in.stand_in.accounts

    def _account(self, name: str) -> Account | None:
        return self._accounts.find(name)


AnyOrder.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestAnyOrder = AnyOrder.TestCase
