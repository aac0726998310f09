"""Actions of users, an administrator, an operator and failures, in any order and concurrently: every
user is in the right account, revoked credentials do not work, and rights match the policy.

`ANY_ORDER=long` runs many more and longer examples, also on the Navidrome that `NAVIDROME_BIN`
names.
"""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from demo.navidrome import Fault, FaultKind
from shim.navidrome import api
from shim.provisioning import operations, service
from shim.provisioning.binding_store import BindingStore
from shim.trust.identity import Identity
from shim.trust.names import normalize_name
from tests.integration.provisioning.scheduler import Scheduler
from tests.integration.provisioning.simulation import (
    LIBRARIES,
    Credential,
    Response,
    Simulation,
    Stream,
)
from tests.support.navidrome_servers import build_server

T = TypeVar("T")

NAMES = ("alice", "ALICE", "bob")
UIDS = ("u1", "u2")
OTHER_NAMES = ("erin", "Frank")
GROUPS = st.sampled_from(
    [
        ("music",),
        ("music",),
        ("music", "admins"),
        ("music", "family"),
        ("music", "none"),
        ("other",),
    ]
)
PEOPLE = st.builds(
    Identity,
    st.sampled_from(NAMES),
    st.sampled_from(["One", "Two", "Three"]),
    st.none(),
    GROUPS,
    st.sampled_from(UIDS),
)
SHIMS = st.integers(0, 1)
LIBRARY_GROUPS = '{"family": ["Family"], "none": ["Missing"]}'
POLICIES = st.fixed_dictionaries(
    {
        "ALLOWED_GROUPS": st.sampled_from(["music", "music", "music,other", "admins,family"]),
        "ADMIN_GROUPS": st.sampled_from(["admins", "admins", "family"]),
        "LIBRARY_GROUPS": st.sampled_from([LIBRARY_GROUPS, LIBRARY_GROUPS, "{}"]),
    }
)
ACTIONS = st.one_of(
    st.tuples(st.just("visit"), PEOPLE, SHIMS),
    st.tuples(st.just("visit"), PEOPLE, SHIMS),
    st.tuples(st.just("unlink"), st.sampled_from(NAMES)),
    st.tuples(st.just("lock"), st.sampled_from(NAMES)),
    st.tuples(st.just("delete"), st.sampled_from(NAMES), SHIMS),
    st.tuples(st.just("rename"), st.sampled_from(NAMES), st.sampled_from(OTHER_NAMES), SHIMS),
    st.tuples(st.just("reload"), POLICIES),
    st.tuples(st.just("reconcile")),
    st.tuples(st.just("refresh")),
)
KINDS = [kind for kind in FaultKind if kind is not FaultKind.HANG]
# Seconds within which the stream of a revoked identity has to be closed.
STREAM_SECONDS = 5.0
MAX_CREDENTIALS = 8


class AnyOrder(RuleBasedStateMachine):
    """The model: the owner of each account and the state of each credential, as known from outside.

    owners: the user of an account, by account id; an unlinked user owns nothing.
    identities: the last identity of a user that the shims applied, by uid.
    known_names: every user who had an account of this name, by folded name: its id where it had no
    user.
    settled: users whose last request was accepted, and whom only other users' requests followed.
    linkable: accounts that an administrator created and that were never bound, by id: whether as
    admin.
    generated: accounts whose password the shim generated, so that their owner may set another one.
    calm: no fault was injected since the last reconcile.
    """

    server: ClassVar[str] = "stand-in tcp"

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp())
        self.patches = pytest.MonkeyPatch()
        self.patches.setattr(service, "_MIN_PAUSE", 0.0)
        # Other processes' changes are read when the model decides, not by the clock.
        self.patches.setattr(service, "REFRESH_SECONDS", 3600.0)
        self.patches.setattr(operations, "REFRESH_SECONDS", 0.0)
        self.patches.setattr(api, "_READ_PAUSE", 0.0)
        self.scheduler = Scheduler(0.001 if self.server.startswith("real") else 0.0)
        try:
            self.scheduler.install(self.patches)
        except BaseException:
            # Hypothesis calls no `teardown` then, and the patches would reach the tests that follow.
            self.patches.undo()
            raise
        self.owners: dict[str, str] = {}
        self.identities: dict[str, Identity] = {}
        self.last_owners: dict[str, str] = {}
        self.known_names: dict[str, set[str]] = {}
        self.settled: dict[str, Identity] = {}
        self.linkable: dict[str, bool] = {}
        self.created_by_hand: set[str] = set()
        self.owned_before: set[str] = set()
        self.refused: set[str] = set()
        self.generated: set[str] = set()
        self.credentials: list[Credential] = []
        self.streams: list[Stream] = []
        self.fault_free = True
        server = build_server(
            self.server,
            self.folder,
            libraries=LIBRARIES,
            settings={"ND_JELLYFIN_ENABLED": "true", "ND_AUTHREQUESTLIMIT": "0"},
        )
        self.simulation = Simulation(server, self.folder)

    def teardown(self) -> None:
        try:
            self.runner.run(self.simulation.close())
        finally:
            self.patches.undo()
            self.runner.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    @initialize(
        link=st.sampled_from(["none", "users", "all"]),
        renames=st.sampled_from(["headers", "off"]),
        failure=st.sampled_from(["closed", "open"]),
        hours=st.sampled_from(["0", "48"]),
        public_api=st.booleans(),
        administrator=st.sampled_from([True, True, False]),
    )
    def begin(
        self,
        link: str,
        renames: str,
        failure: str,
        hours: str,
        public_api: bool,
        administrator: bool,
    ) -> None:
        public = {"PUBLIC_PATHS": "/rest/,/share/,/jellyfin/,/api/", "PUBLIC_PATH_PROOF": "secret"}
        self._run(
            self.simulation.start(
                {
                    "LINK_EXISTING": link,
                    "FOLLOW_RENAMES": renames,
                    "PROVISIONING_FAIL_MODE": failure,
                    "NAME_REUSE_DELAY_HOURS": hours,
                    "ADMIN_GROUPS": "admins",
                    "ALLOWED_GROUPS": "music",
                    "LIBRARY_GROUPS": LIBRARY_GROUPS,
                    **(public if public_api else {}),
                },
                administrator=administrator,
            )
        )

    # users

    @rule(people=st.lists(st.tuples(PEOPLE, SHIMS), min_size=1, max_size=3))
    def visit(self, people: list[tuple[Identity, int]]) -> None:
        for identity, shim in people:
            self._run(self._visit(identity, shim))
            self._run(self._others_are_unaffected(identity.uid))

    @rule(identity=PEOPLE, groups=GROUPS, shim=SHIMS)
    def groups_go_and_come_back(
        self, identity: Identity, groups: tuple[str, ...], shim: int
    ) -> None:
        changed = Identity(identity.username, identity.name, None, groups, identity.uid)
        for one in (identity, changed, identity):
            self._run(self._visit(one, shim))

    @rule(uid=st.sampled_from(UIDS), shim=SHIMS)
    def log_in_natively(self, uid: str, shim: int) -> None:
        """Set a password in the web app, and log in with it in every way."""
        self._run(self._log_in_natively(uid, shim))

    @rule(uid=st.sampled_from(UIDS), shim=SHIMS)
    def open_a_stream(self, uid: str, shim: int) -> None:
        self._run(self._open_a_stream(uid, shim))

    @rule(uid=st.sampled_from(UIDS), shim=SHIMS)
    def present_anothers_token(self, uid: str, shim: int) -> None:
        """A request with the user's own identity and another account's token acts as that user, or
        fails.
        """
        self._run(self._present_anothers_token(uid, shim))

    @rule(uid=st.sampled_from(UIDS), shim=SHIMS)
    def choose_a_huge_name(self, uid: str, shim: int) -> None:
        self._run(self._choose_a_huge_name(uid, shim))

    # the administrator

    @rule(name=st.sampled_from(NAMES), admin=st.booleans(), shim=SHIMS)
    def make_by_hand(self, name: str, admin: bool, shim: int) -> None:
        self._run(self._make_by_hand(name, admin=admin, shim=shim))

    @rule(name=st.sampled_from(NAMES), new=st.sampled_from(OTHER_NAMES), shim=SHIMS)
    def rename_by_hand(self, name: str, new: str, shim: int) -> None:
        self._run(self._rename_by_hand(name, new, shim))

    @rule(shim=SHIMS)
    def swap_two_names(self, shim: int) -> None:
        self._run(self._swap_two_names(shim))

    @rule(name=st.sampled_from(NAMES), shim=SHIMS)
    def delete_by_hand(self, name: str, shim: int) -> None:
        self._run(self._delete_by_hand(name, shim))

    @rule(name=st.sampled_from(NAMES), admin=st.booleans(), shim=SHIMS)
    def delete_and_recreate(self, name: str, admin: bool, shim: int) -> None:
        self._run(self._delete_by_hand(name, shim))
        self._run(self._make_by_hand(name, admin=admin, shim=shim))

    # the operator

    @rule(name=st.sampled_from(NAMES))
    def unlink(self, name: str) -> None:
        self._run(self._unlink(name))

    @rule(name=st.sampled_from(NAMES))
    def lock(self, name: str) -> None:
        self._run(self._lock(name))

    @rule(policy=POLICIES)
    def reload(self, policy: dict[str, str]) -> None:
        self.settled.clear()
        self._run(self.simulation.reload(policy))
        for uid, identity in self.identities.items():
            if not self._allows(identity):  # the account is locked by the next reconcile
                for account_id in self._accounts_of(uid):
                    for credential in self._credentials_of(account_id):
                        credential.must_work = False

    @rule()
    def restart(self) -> None:
        self.simulation.break_the_api(None)
        self._run(self.simulation.restart())
        self._run(self._others_are_unaffected(None))

    # failures

    @precondition(lambda self: self.server.startswith("stand-in"))
    @rule(
        kind=st.sampled_from(KINDS),
        method=st.sampled_from([frozenset[str](), frozenset({"POST"}), frozenset({"PUT"})]),
        times=st.integers(1, 3),
        carried_out=st.booleans(),
    )
    def break_the_api(
        self, kind: FaultKind, method: frozenset[str], times: int, carried_out: bool
    ) -> None:
        self.fault_free = False
        self.settled.clear()
        self._lose_track_of_links()
        fault = Fault(kind, ("/api/user",), method, times=times, carried_out=carried_out)
        self.simulation.break_the_api(fault)

    # concurrently

    @rule(
        actions=st.lists(ACTIONS, min_size=2, max_size=4),
        order=st.lists(st.integers(0, 3), max_size=30),
    )
    def at_once(self, actions: list[Any], order: list[int]) -> None:
        self._run(self._at_once(actions, order))

    # invariants

    @rule()
    def reconcile(self) -> None:
        """After one reconcile, rights and libraries match the policy, and no user is locked out."""
        self._run(self._reconcile())

    @precondition(lambda self: any(stream.revoked for stream in self.streams))
    @rule()
    def wait_for_streams(self) -> None:
        self._run(self._revoked_streams_end())

    @invariant()
    def bindings_are_sound(self) -> None:
        self._run(self._bindings_are_sound())

    @invariant()
    def credentials_work_as_they_should(self) -> None:
        self._run(self._check_credentials())

    # steps

    async def _visit(self, identity: Identity, shim: int) -> Response:
        await self.simulation.sync_processes()
        response = await self.simulation.visit(identity, shim)
        await self._take_in(identity, response, shim, strict=True)
        return response

    async def _take_in(
        self, identity: Identity, response: Response, shim: int, *, strict: bool
    ) -> None:
        """Compare a response with the model. `strict`: nothing else happened at the same time."""
        uid = identity.uid or ""
        self.settled.pop(uid, None)
        if response.status == 403 and "group" in response.text:
            self.identities[uid] = identity
            for account_id in self._accounts_of(uid):
                self._revoke(account_id, "its person was refused by group")
                self.generated.discard(account_id)
                self.refused.add(account_id)
            return
        if response.status != 200:
            assert response.status in {403, 503}, (response.status, response.text)
            return
        account_id = response.account_id
        if strict:
            owner = self.owners.setdefault(account_id, uid)
            self.last_owners[account_id] = uid
            assert owner == uid, f"{response.name} is {owner}'s, and {uid} got access to it"
            bindings = self.simulation.shims[shim].harness.accounts.service.bindings
            bound = bindings.by_uid(uid)
            assert bound is not None, f"{uid} got access without a binding"
            assert bound.navidrome_id == account_id, f"{uid} got access to another user's account"
            assert bound.state == "active", f"{uid} has access, and its binding is {bound.state}"
            assert self._allows(identity), "access without an allowed group"
            assert response.admin == self._wants_admin(identity), "the right of an admin is wrong"
        self._note_password(account_id, strict=strict)
        if account_id in self.linkable:
            self._linked(account_id, identity, was_admin=self.linkable.pop(account_id))
        self.identities[uid] = identity
        self.known_names.setdefault(normalize_name(response.name), set()).add(uid)
        if strict and self.fault_free:
            self.settled[uid] = identity

    def _note_password(self, account_id: str, *, strict: bool) -> None:
        """The shim generated the password of an account that it created, or whose person was readmitted."""
        created = account_id not in self.owned_before and account_id not in self.created_by_hand
        if strict and self.fault_free and (created or account_id in self.refused):
            self.generated.add(account_id)
        self.owned_before.add(account_id)
        self.refused.discard(account_id)

    def _linked(self, account_id: str, identity: Identity, *, was_admin: bool) -> None:
        """An account that was never bound keeps its credentials, unless it gains the right of an admin."""
        if self._wants_admin(identity) and not was_admin:
            self._revoke(account_id, "it was linked, and gained the right of an admin")

    async def _log_in_natively(self, uid: str, shim: int) -> None:
        identity = self.settled.get(uid)
        account_id = next(iter(self._accounts_of(uid)), None)
        if identity is None or account_id is None or self._is_full():
            return
        password = await self.simulation.set_password(identity, account_id, shim)
        if account_id in self.generated:
            assert password is not None, f"{uid} can't set a password without the generated one"
            self.generated.discard(account_id)
        account = (await self.simulation.accounts()).get(account_id)
        if password is not None and account is not None:
            for old in self._credentials_of(account_id):
                if old.kind == "password":
                    self.credentials.remove(old)
            self.credentials += await self.simulation.log_in(
                account_id, account["userName"], password
            )

    async def _open_a_stream(self, uid: str, shim: int) -> None:
        identity = self.settled.get(uid)
        account_id = next(iter(self._accounts_of(uid)), None)
        if identity is None or account_id is None or len(self.streams) >= 4:
            return
        stream = await self.simulation.open_stream(identity, account_id, shim)
        if stream is not None:
            self.streams.append(stream)

    async def _present_anothers_token(self, uid: str, shim: int) -> None:
        identity = self.settled.get(uid)
        if identity is None or self._wants_admin(identity):
            return
        for credential in self.credentials:
            if credential.kind == "token" and credential.account_id not in self._accounts_of(uid):
                status = await self.simulation.read_account(
                    identity, credential.secret, credential.account_id, shim
                )
                assert status != 200, f"{uid}'s request acted as the owner of the token in it"

    async def _choose_a_huge_name(self, uid: str, shim: int) -> None:
        identity = self.settled.get(uid)
        account_id = next(iter(self._accounts_of(uid)), None)
        if identity is not None and account_id is not None:
            await self.simulation.use_huge_name(identity, account_id, shim)
            await self._others_are_unaffected(uid)

    async def _make_by_hand(self, name: str, *, admin: bool, shim: int) -> None:
        password = f"by hand {name}"
        self.settled.clear()
        account_id = await self.simulation.create(name, password, admin=admin, shim=shim)
        if account_id is None:
            return
        self.created_by_hand.add(account_id)
        if self.fault_free:
            self.linkable[account_id] = admin
        if not self._is_full():
            issued = await self.simulation.log_in(account_id, name, password)
            for credential in issued:
                credential.must_work = self.fault_free
            self.credentials += issued

    async def _rename_by_hand(self, name: str, new: str, shim: int) -> None:
        account = await self.simulation.find(name)
        if account is not None:
            self.settled.clear()
            await self.simulation.rename(account["id"], new, shim)

    async def _swap_two_names(self, shim: int) -> None:
        accounts = list((await self.simulation.accounts()).values())[:2]
        if len(accounts) < 2:
            return
        first, second = ((account["id"], account["userName"]) for account in accounts)
        for account_id, name in (
            (first[0], "swapping"),
            (second[0], first[1]),
            (first[0], second[1]),
        ):
            self.settled.clear()
            await self.simulation.rename(account_id, name, shim)

    async def _delete_by_hand(self, name: str, shim: int) -> None:
        account = await self.simulation.find(name)
        if account is not None:
            await self.simulation.delete(account["id"], shim)
            self.settled.clear()
            if account["id"] not in await self.simulation.accounts():
                self._revoke(account["id"], "it was deleted")

    async def _unlink(self, name: str) -> None:
        bound = self._bound_account(name)
        if bound is not None and await self.simulation.unlink(name):
            self._unlinked(bound)

    def _unlinked(self, account_id: str) -> None:
        self.settled.clear()
        self.owners.pop(account_id, None)
        self.generated.discard(account_id)
        self.refused.discard(account_id)
        self._revoke(account_id, "it was unlinked")

    async def _lock(self, name: str) -> None:
        account = await self.simulation.find(name)
        if account is not None and await self.simulation.lock(name):
            self._revoke(account["id"], "an administrator locked it")
            self.generated.discard(account["id"])

    async def _at_once(self, actions: list[Any], order: list[int]) -> None:
        self.settled.clear()
        self._lose_track_of_links()
        before = {name: self._bound_account(name) for name in NAMES}
        found = {name: await self.simulation.find(name) for name in NAMES}
        accounts = {name: account["id"] for name, account in found.items() if account is not None}
        results = await self.scheduler.interleave(
            [functools.partial(self._act, action) for action in actions], order
        )
        self.simulation.break_the_api(None)
        await self.simulation.sync_processes()
        for action, result in zip(actions, results, strict=True):
            match action, result:
                case ("visit", identity, shim), Response():
                    await self._take_in(identity, result, shim, strict=False)
                case ("unlink", name), True:
                    bound = before[name]
                    if bound is not None:
                        self._unlinked(bound)
                case ("lock", name), True if name in accounts:
                    self._revoke(accounts[name], "an administrator locked it")
                case _:
                    pass
        remaining = await self.simulation.accounts()
        for account_id in accounts.values():
            if account_id not in remaining:
                self._revoke(account_id, "it was deleted")
        visitors = [action[1] for action in actions if action[0] == "visit"]
        for identity in visitors:
            if any(identity != other for other in visitors if other.uid == identity.uid):
                self.identities.pop(
                    identity.uid, None
                )  # the order in which they were received is unknown
        for identity in visitors:
            await self._visit(identity, 0)
            await self._visit(identity, 1)
        await self._reconcile()

    async def _act(self, action: tuple[Any, ...]) -> Any:
        simulation = self.simulation
        match action:
            case ("visit", identity, shim):
                return await simulation.visit(identity, shim)
            case ("unlink", name):
                return await simulation.unlink(name)
            case ("lock", name):
                return await simulation.lock(name)
            case ("delete", name, shim):
                account = await simulation.find(name)
                if account is not None:
                    await simulation.delete(account["id"], shim)
            case ("rename", name, new, shim):
                account = await simulation.find(name)
                return account is not None and await simulation.rename(account["id"], new, shim)
            case ("reload", policy):
                await simulation.reload(policy)
            case ("reconcile",):
                await simulation.reconcile()
            case ("refresh",):
                await simulation.sync_processes()
        return None

    # checks

    async def _others_are_unaffected(self, uid: str | None) -> None:
        for other, identity in list(self.settled.items()):
            if other != uid:
                response = await self.simulation.visit(identity, 0)
                assert response.status == 200, (other, uid, response.status, response.text)

    async def _reconcile(self) -> None:
        await self.simulation.reconcile()
        self.fault_free = True
        accounts = await self.simulation.accounts()
        for uid, identity in list(self.identities.items()):
            binding = self._bindings().by_uid(uid)
            account = None if binding is None else accounts.get(binding.navidrome_id)
            if account is None:
                continue
            if not self._allows(identity):
                self._revoke(account["id"], "the policy refuses its person")
            assert account["isAdmin"] == self._wants_admin(identity), "rights after a reconcile"
            if not account["isAdmin"] and self._allows(identity):
                self._check_libraries(identity, account)
        await self._check_credentials()
        await self._no_user_is_locked_out(accounts)

    def _check_libraries(self, identity: Identity, account: dict[str, Any]) -> None:
        if self.simulation.settings["LIBRARY_GROUPS"] == "{}":
            return
        granted = {"Music Library"} | ({"Family"} if "family" in (identity.groups or ()) else set())
        names = {library["name"] for library in account.get("libraries", ())}
        assert names <= granted, f"libraries after a reconcile: {names}, groups {identity.groups}"

    async def _no_user_is_locked_out(self, accounts: dict[str, dict[str, Any]]) -> None:
        for uid, identity in list(self.identities.items()):
            if not self._allows(identity):
                continue
            binding = self._bindings().by_uid(uid)
            holders = {
                normalize_name(account["userName"]): account_id
                for account_id, account in accounts.items()
            }
            folded = normalize_name(identity.username)
            holder = holders.get(folded)
            if binding is not None and binding.navidrome_id in accounts:
                free = holder in {None, binding.navidrome_id}
                follows = self.simulation.settings["FOLLOW_RENAMES"] == "headers"
                may_link = normalize_name(binding.provider_username) == folded or (free and follows)
                may_link = may_link and self.known_names.get(folded, {uid}) <= {uid}
            else:
                may_link = holder is None and self.known_names.get(folded, {uid}) <= {uid}
                bound = self._bindings().by_name(folded)
                may_link = may_link and (bound is None or bound.uid in {None, uid})
            response = await self._visit(identity, 0)
            if may_link:
                last = self.simulation.harness.events[-1]
                assert response.status == 200, f"{uid} is locked out: {response.text}, {last}"

    async def _revoked_streams_end(self) -> None:
        revoked = [stream for stream in self.streams if stream.revoked]
        readers = {stream.reader for stream in revoked}
        await asyncio.wait(readers, timeout=STREAM_SECONDS)
        for stream in revoked:
            assert stream.closed, f"an event stream continues after {stream.revoked}"
            self.streams.remove(stream)

    async def _bindings_are_sound(self) -> None:
        accounts = await self.simulation.accounts()
        for account_id, account in accounts.items():
            holder = self.last_owners.get(account_id, account_id)
            self.known_names.setdefault(normalize_name(account["userName"]), set()).add(holder)
        folded = [normalize_name(account["userName"]) for account in accounts.values()]
        assert len(folded) == len(set(folded)), folded
        assert all(folded)
        uids = [binding.uid for binding in self._bindings().all() if binding.uid is not None]
        assert len(uids) == len(set(uids))

    async def _check_credentials(self) -> None:
        accounts = await self.simulation.accounts()
        for number, credential in enumerate(list(self.credentials)):
            account = accounts.get(credential.account_id)
            name = credential.name if account is None else account["userName"]
            accepted_by = await self.simulation.uses(credential, name, number % 2)
            what = f"{credential.kind} of {credential.name}"
            renamed = normalize_name(name) != normalize_name(credential.name)
            if account is None or (credential.kind != "password" and renamed):
                if credential.kind != "password":
                    assert not accepted_by, (
                        f"the {what}, which names no account, works: {accepted_by}"
                    )
            elif credential.revoked and (self.fault_free or credential.kind != "password"):
                assert not accepted_by, (
                    f"the {what} works after {credential.revoked}: {accepted_by}"
                )
            elif credential.must_work:
                assert accepted_by, f"the {what} does not work"

    # state of the model

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        async def run() -> T:
            result = await work
            await self.simulation.sync_processes()
            return result

        return self.runner.run(run())

    def _bindings(self) -> BindingStore:
        return self.simulation.harness.accounts.service.bindings

    def _bound_account(self, name: str) -> str | None:
        """The id of the account that `users unlink NAME` frees."""
        for binding in self._bindings().all():
            if normalize_name(name) in {
                binding.normalized_name,
                normalize_name(binding.provider_username),
            }:
                return None if binding.uid is None else str(binding.navidrome_id)
        return None

    def _accounts_of(self, uid: str) -> list[str]:
        return [account_id for account_id, owner in self.owners.items() if owner == uid]

    def _credentials_of(self, account_id: str) -> list[Credential]:
        return [each for each in self.credentials if each.account_id == account_id]

    def _revoke(self, account_id: str, event: str) -> None:
        for credential in self._credentials_of(account_id):
            credential.revoked = credential.revoked or event
        for stream in self.streams:
            if stream.account_id == account_id:
                stream.revoked = stream.revoked or event

    def _lose_track_of_links(self) -> None:
        """From now on an account may be linked or locked without a response that reports it."""
        self.linkable.clear()
        self.generated.clear()
        self.owned_before.update(self.created_by_hand, self.owners)
        for credential in self.credentials:
            credential.must_work = False

    def _is_full(self) -> bool:
        return len(self.credentials) >= MAX_CREDENTIALS

    def _allows(self, identity: Identity) -> bool:
        allowed = self.simulation.settings["ALLOWED_GROUPS"].split(",")
        return not set(allowed).isdisjoint(identity.groups or ())

    def _wants_admin(self, identity: Identity) -> bool:
        admins = self.simulation.settings["ADMIN_GROUPS"].split(",")
        return self._allows(identity) and not set(admins).isdisjoint(identity.groups or ())


LONG = os.environ.get("ANY_ORDER") == "long"
PROFILE = settings(
    max_examples=500 if LONG else 40,
    stateful_step_count=50 if LONG else 20,
    deadline=None,
    derandomize=not LONG,
    database=None,
    suppress_health_check=list(HealthCheck),
)


class AnyOrderOnNavidrome(AnyOrder):
    server = "real tcp"


AnyOrder.TestCase.settings = PROFILE
AnyOrderOnNavidrome.TestCase.settings = PROFILE
TestAnyOrder = AnyOrder.TestCase
TestAnyOrderOnNavidrome = pytest.mark.skipif(
    not LONG or "NAVIDROME_BIN" not in os.environ,
    reason="runs with ANY_ORDER=long where NAVIDROME_BIN names a binary",
)(AnyOrderOnNavidrome.TestCase)
