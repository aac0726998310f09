"""Store the bindings, the intents and the held names: all of them in memory, every change in the store first.

Reading costs no I/O. Changes of other processes arrive by `refresh`, which queries two numbers; the unique
columns of the store, and the keys of its intents, prevent two processes from working on one account. An
intent names the process that began it, so that another process can decide whether that one may still be
running: processes of one machine are distinguished by their process ids; one on another machine has a time
limit.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Protocol, TypeVar

from sqlalchemy import ColumnElement, Connection, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from shim.provisioning.models import (
    Binding,
    BindingState,
    Intent,
    IntentKind,
    NameHold,
    TokenRule,
    binding_from_row,
    binding_values,
    intent_from_row,
    intent_values,
)
from shim.store.database import Database
from shim.store.device_rows import end_devices
from shim.store.errors import StoreError, StoreReplaced
from shim.store.schema import (
    BINDINGS,
    CHANGE_COUNTERS,
    DEVICES,
    INTENTS,
    NAME_HOLDS,
    TOKEN_RULES,
)

T = TypeVar("T")

_COUNTER = "bindings"
# Counts requests that can change Navidrome's users. Its row exists after the first one.
_USERS_COUNTER = "navidrome_users"
_STALE_BINDING = "another process or request changed the binding"


class Busy(Exception):
    """Another process works on the same account, or just did."""


class StaleBinding(Busy):
    """The binding was changed since it was read: read it again, then decide again."""


class Watcher(Protocol):
    """A listener for changes of the store."""

    def discard(self, uid: str | None) -> None:
        """Handle a change of this person's account."""

    def revoked(self) -> None:
        """Handle a revocation: an account was locked, denied, unlinked, deleted or bound to another uid."""

    def users_may_have_changed(self) -> None:
        """Handle a request of another process that can change Navidrome's users."""


class BindingStore:
    """The known accounts. `owner` names this process; `now` returns seconds since the epoch."""

    def __init__(self, database: Database, owner: str, now: Callable[[], float]) -> None:
        self.database = database
        self.owner = owner
        self._now = now
        self._version = -1
        self._users_version: int | None = None
        self._by_id: dict[int, Binding] = {}
        self._by_uid: dict[str, Binding] = {}
        self._by_name: dict[str, Binding] = {}
        self._by_account: dict[str, Binding] = {}
        self._intents: dict[str, Intent] = {}
        self._holds: dict[str, NameHold] = {}
        self._rules: dict[str, TokenRule] = {}
        self._watcher: Watcher | None = None
        # Rises with each change in memory.
        self.version = 0

    def watch(self, watcher: Watcher) -> None:
        """Notify `watcher` of changes from now on."""
        self._watcher = watcher

    # reading

    def __len__(self) -> int:
        return len(self._by_id)

    def all(self) -> tuple[Binding, ...]:
        """Return every binding."""
        return tuple(self._by_id.values())

    def by_uid(self, uid: str) -> Binding | None:
        """Return the binding of a person."""
        return self._by_uid.get(uid)

    def by_name(self, normalized_name: str) -> Binding | None:
        """Return the binding of the account with this name."""
        return self._by_name.get(normalized_name)

    def by_account(self, navidrome_id: str) -> Binding | None:
        """Return the binding of the account with this id."""
        return self._by_account.get(navidrome_id)

    def rule_of(self, navidrome_id: str) -> TokenRule | None:
        """Return which tokens of the account are void, None if all of them are valid."""
        return self._rules.get(navidrome_id)

    def is_locked(self, navidrome_id: str) -> bool:
        """Return whether the account is locked: every token of it is void."""
        rule = self._rules.get(navidrome_id)
        return rule is not None and rule.locked

    def locked_rule(self, navidrome_id: str) -> TokenRule:
        """Return the account's rule with every token void."""
        return replace(self._rules.get(navidrome_id) or TokenRule(navidrome_id), locked=True)

    def holds(self) -> tuple[NameHold, ...]:
        """Return every name that is held now."""
        now = self._now()
        return tuple(hold for hold in self._holds.values() if hold.until > now)

    def intents(self) -> tuple[Intent, ...]:
        """Return every intent that is open."""
        return tuple(self._intents.values())

    def intent(self, key: str) -> Intent | None:
        """Return the intent with this key, if it is open."""
        return self._intents.get(key)

    def is_abandoned(self, intent: Intent) -> bool:
        """Return whether no other process works on this intent; this process may."""
        own, now = self.owner, self._now()
        return intent.owner == own or not may_be_alive(intent.owner, own, intent.started_at, now)

    def name_hold(self, normalized_name: str) -> NameHold | None:
        """Return the hold that reserves this name now, None if there is none."""
        hold = self._holds.get(normalized_name)
        return hold if hold is not None and hold.until > self._now() else None

    # the store

    async def load(self) -> None:
        """Read everything. Raises `StoreError`."""
        versions, bindings, intents, holds, rules = await self._read(_read_all_tables)
        self._version = versions[0]
        self._note_users_version(versions[1])
        self._by_id = {binding.id: binding for binding in bindings}
        self._intents = {intent.key: intent for intent in intents}
        self._holds = {hold.normalized_name: hold for hold in holds}
        self._rules = {rule.navidrome_id: rule for rule in rules}
        self._index()

    async def refresh(self) -> frozenset[str]:
        """Read the changes of other processes, if there are any. Return the uids whose bindings have
        changed."""
        version, users_version = await self._read(_versions)
        self._note_users_version(users_version)
        if version == self._version:
            return frozenset()
        before, rules = self._by_uid, self._rules
        await self.load()
        changed = {
            uid for uid, previous in before.items() if _has_changed(previous, self._by_uid.get(uid))
        }
        changed_rules = {
            name for name in {*rules, *self._rules} if rules.get(name) != self._rules.get(name)
        }
        changed |= {
            uid for uid, binding in self._by_uid.items() if binding.navidrome_id in changed_rules
        }
        if changed or changed_rules:
            self._revoked()
        return frozenset(changed)

    async def _read(self, work: Callable[[Connection], T]) -> T:
        """Read from the store. If its file was replaced, read from the new file, provided that it has every
        known binding: then it was restored, and is not a different store."""
        try:
            return await self.database.read_async(work)
        except StoreReplaced:
            if not await self._reopen_restored():
                raise
        self._version = -1
        return await self.database.read_async(work)

    async def _reopen_restored(self) -> bool:
        try:
            return await self.database.reopened(self._has_all_bindings)
        except StoreError:
            return False

    def _has_all_bindings(self, connection: Connection) -> bool:
        stored = {row.navidrome_id: row.uid for row in connection.execute(select(BINDINGS))}
        known = self._by_account
        return all(stored.get(key, "") == known[key].uid for key in known)

    async def open_intent(self, intent: Intent, holder: Binding | None = None) -> Intent:
        """Commit an intent before its write. An abandoned intent for the same write is reused, under its own
        id.

        `holder`: the binding of the account to write to, as it was read; None for an account that has none.
        Raises `Busy` if another process works on it, `StaleBinding` if the binding has changed.
        """

        def work(connection: Connection) -> Intent:
            if intent.kind is IntentKind.WRITE:
                _check_holder(connection, intent.navidrome_id, holder)
            row = connection.execute(select(INTENTS).where(INTENTS.c.key == intent.key)).first()
            found = intent
            if row is not None:
                previous = intent_from_row(row)
                if not self.is_abandoned(previous):
                    raise Busy("another process is working on this account")
                if _is_same_write(previous, intent):
                    found = replace(intent, navidrome_id=previous.navidrome_id)
                connection.execute(delete(INTENTS).where(INTENTS.c.key == intent.key))
            connection.execute(insert(INTENTS).values(**intent_values(found)))
            return found

        try:
            opened = await self.database.write_async(work)
        except IntegrityError:
            raise Busy("another process is working on this account") from None
        self._intents[opened.key] = opened
        return opened

    async def close_intent(self, intent: Intent) -> None:
        """Remove an intent: the write was carried out and verified."""
        await self.database.write_async(lambda connection: _end_intent(connection, intent))
        self._intents.pop(intent.key, None)

    async def put(
        self,
        binding: Binding,
        *,
        ends: Intent | None = None,
        hold: NameHold | None = None,
        rule: TokenRule | None = None,
    ) -> Binding:
        """Store a binding, new or changed, and with it the end of an intent, a held name and a token rule.

        Raises `Busy` if another process has bound the person, the name or the account, and `StaleBinding` if
        the binding was changed since it was read.
        """

        def work(connection: Connection) -> tuple[Binding, int]:
            if binding.id:
                self._end_devices(connection, binding, rule)
                stored = _update(connection, binding)
            else:
                values = binding_values(binding)
                key = connection.execute(insert(BINDINGS).values(**values)).inserted_primary_key
                assert key is not None
                stored = replace(binding, id=key[0])
            _end_intent(connection, ends)
            _put_hold(connection, hold)
            put_token_rule(connection, rule)
            return stored, increment_version(connection)

        stored = await self._change(work)
        before = self._by_id.get(stored.id)
        self._index_remove(binding.id)
        self._by_id[stored.id] = stored
        self._index_add(stored)
        self._forget_ended(ends, hold)
        if rule is not None:
            self._rules[rule.navidrome_id] = rule
        if rule is not None or (before is not None and _revokes(before, stored)):
            self._revoked()
        return stored

    async def put_rule(self, rule: TokenRule) -> None:
        """Store which tokens of an account are void."""

        def work(connection: Connection) -> tuple[None, int]:
            put_token_rule(connection, rule)
            return None, increment_version(connection)

        await self._change(work)
        self._rules[rule.navidrome_id] = rule
        self._revoked()

    async def announce_users_change(self) -> None:
        """Record that a request was sent that can change Navidrome's users; other processes see it."""
        version = await self.database.write_async(_increment_users_version)
        # If another process did the same since, `refresh` sees that.
        if self._users_version is None or version == self._users_version + 1:
            self._users_version = version

    async def rename(
        self,
        names: Mapping[Binding, str],
        removed: Iterable[Binding] = (),
        holds: Iterable[NameHold] = (),
    ) -> None:
        """Store the current names of the accounts in their bindings and remove the bindings `removed`,
        in one step: names may be swapped. Raises `StaleBinding` if one of them was changed since it was
        read."""
        ended, new_holds = tuple(removed), tuple(holds)
        renamed = [
            replace(binding, user_name=name, version=binding.version + 1)
            for binding, name in names.items()
        ]

        def work(connection: Connection) -> tuple[None, int]:
            for binding in ended:
                _delete(connection, binding)
                self._end_devices_of(connection, binding.uid, "removed")
            for binding in names:
                # A temporary name that no account has: until all are renamed, no two bindings conflict.
                row = update(BINDINGS).where(*_matches_read_version(binding))
                changed = connection.execute(row.values(normalized_name=f"\x01{binding.id}"))
                if changed.rowcount == 0:
                    raise StaleBinding(_STALE_BINDING)
            for after in renamed:
                row = update(BINDINGS).where(BINDINGS.c.id == after.id)
                connection.execute(row.values(**binding_values(after)))
            for hold in new_holds:
                _put_hold(connection, hold)
            return None, increment_version(connection)

        await self._change(work)
        for binding in (*ended, *names):
            self._index_remove(binding.id)
        for after in renamed:
            self._by_id[after.id] = after
            self._index_add(after)
        for hold in new_holds:
            self._forget_ended(None, hold)
        if self._watcher is not None:
            for binding in (*ended, *renamed):
                self._watcher.discard(binding.uid)
        if removed:
            self._revoked()

    async def remove(self, binding: Binding, hold: NameHold | None = None) -> None:
        """Remove a binding and hold its name. Raises `StaleBinding` if it was changed since it was read."""

        def work(connection: Connection) -> tuple[None, int]:
            _delete(connection, binding)
            self._end_devices_of(connection, binding.uid, "removed")
            _put_hold(connection, hold)
            return None, increment_version(connection)

        await self._change(work)
        self._index_remove(binding.id)
        self._forget_ended(None, hold)
        self._revoked()

    async def hold_names(self, holds: Iterable[NameHold]) -> None:
        """Hold these names, and drop the holds that have expired. A name that another process already holds
        for the person of the same account stays held for that person."""
        new, now = tuple(holds), self._now()

        def work(connection: Connection) -> list[NameHold]:
            connection.execute(delete(NAME_HOLDS).where(NAME_HOLDS.c.until <= now))
            stored = [hold for hold in new if not _is_held(connection, hold)]
            for hold in stored:
                _put_hold(connection, hold)
            return stored

        stored = await self.database.write_async(work)
        self._holds = {name: hold for name, hold in self._holds.items() if hold.until > now}
        self._holds.update({hold.normalized_name: hold for hold in stored})

    async def remove_name_hold(self, normalized_name: str) -> None:
        """Remove the hold of this name; other processes see it."""

        def work(connection: Connection) -> tuple[None, int]:
            connection.execute(
                delete(NAME_HOLDS).where(NAME_HOLDS.c.normalized_name == normalized_name)
            )
            return None, increment_version(connection)

        await self._change(work)
        self._holds.pop(normalized_name, None)

    async def record_last_seen(self, seen: Mapping[int, float]) -> None:
        """Record when these bindings, by their number, were last seen. Other processes read it with
        `read_last_seen` only."""

        def work(connection: Connection) -> None:
            for number, when in seen.items():
                row = update(BINDINGS).where(BINDINGS.c.id == number).values(last_seen=when)
                connection.execute(row)

        await self.database.write_async(work)
        for number, when in seen.items():
            if number in self._by_id:
                self._by_id[number] = replace(self._by_id[number], last_seen=when)
        self._index()

    async def read_last_seen(self) -> None:
        """Read when the bindings were last seen by other processes. Raises `StoreError`."""
        columns = select(BINDINGS.c.id, BINDINGS.c.last_seen)
        rows = await self.database.read_async(lambda connection: connection.execute(columns).all())
        later = False
        for number, when in rows:
            known = self._by_id.get(number)
            if known is not None and known.last_seen < when:
                self._by_id[number] = replace(known, last_seen=when)
                later = True
        if later:
            self._index()

    # devices

    def _end_devices(
        self, connection: Connection, binding: Binding, rule: TokenRule | None
    ) -> None:
        """End the devices of the person who has the account now, if this change locks the account or takes it
        from the person. The caller updates the binding afterwards."""
        uid = connection.execute(select(BINDINGS.c.uid).where(BINDINGS.c.id == binding.id)).scalar()
        if binding.state is BindingState.DENIED:
            self._end_devices_of(connection, uid, "denied")
        elif uid != binding.uid:
            self._end_devices_of(connection, uid, "unlinked")
        elif rule is not None and rule.locked:
            self._end_devices_of(connection, uid, "locked")

    def _end_devices_of(self, connection: Connection, uid: str | None, cause: str) -> None:
        if uid is not None:
            end_devices(connection, DEVICES.c.uid == uid, self._now(), cause)

    # memory

    def _note_users_version(self, version: int) -> None:
        previous, self._users_version = self._users_version, version
        if previous is not None and version != previous and self._watcher is not None:
            self._watcher.users_may_have_changed()

    def _revoked(self) -> None:
        if self._watcher is not None:
            self._watcher.revoked()

    async def _change(self, work: Callable[[Connection], tuple[T, int]]) -> T:
        try:
            stored, version = await self.database.write_async(work)
        except IntegrityError:
            raise Busy("another process has just bound this person or this name") from None
        # Another process changed something in between: keep the old version, so that `refresh` sees it.
        if version == self._version + 1:
            self._version = version
        return stored

    def _index(self) -> None:
        self._by_uid, self._by_name, self._by_account = {}, {}, {}
        self.version += 1
        for binding in self._by_id.values():
            self._index_add(binding)

    def _index_add(self, binding: Binding) -> None:
        self.version += 1
        if binding.uid is not None:
            self._by_uid[binding.uid] = binding
        self._by_name[binding.normalized_name] = binding
        self._by_account[binding.navidrome_id] = binding

    def _index_remove(self, number: int) -> None:
        previous = self._by_id.pop(number, None)
        if previous is not None:
            self.version += 1
            self._by_uid.pop(previous.uid or "", None)
            self._by_name.pop(previous.normalized_name, None)
            self._by_account.pop(previous.navidrome_id, None)

    def _forget_ended(self, ended: Intent | None, hold: NameHold | None) -> None:
        if ended is not None:
            self._intents.pop(ended.key, None)
        if hold is not None:
            self._holds[hold.normalized_name] = hold


def _is_same_write(previous: Intent, intent: Intent) -> bool:
    person = (intent.uid, intent.uid_source)
    return previous.kind is intent.kind and (previous.uid, previous.uid_source) == person


def _has_changed(previous: Binding, new: Binding | None) -> bool:
    return new is None or replace(new, last_seen=previous.last_seen) != previous


def _revokes(before: Binding, after: Binding) -> bool:
    """Return whether the change removes somebody's access to the account."""
    if after.uid != before.uid or after.navidrome_id != before.navidrome_id:
        return True
    return after.state is not before.state and after.state is not BindingState.ACTIVE


def _read_all_tables(
    connection: Connection,
) -> tuple[tuple[int, int], list[Binding], list[Intent], list[NameHold], list[TokenRule]]:
    bindings = [binding_from_row(row) for row in connection.execute(select(BINDINGS))]
    intents = [intent_from_row(row) for row in connection.execute(select(INTENTS))]
    holds = [
        NameHold(row.normalized_name, row.navidrome_id, row.uid, row.until, row.uid_source)
        for row in connection.execute(select(NAME_HOLDS))
    ]
    rules = [
        TokenRule(row.navidrome_id, row.locked, row.void_before)
        for row in connection.execute(select(TOKEN_RULES))
    ]
    return _versions(connection), bindings, intents, holds, rules


def _version(connection: Connection) -> int:
    return int(
        connection.execute(
            select(CHANGE_COUNTERS.c.value).where(CHANGE_COUNTERS.c.name == _COUNTER)
        ).scalar_one()
    )


def _versions(connection: Connection) -> tuple[int, int]:
    """Return both counters: of the bindings and what belongs to them, and of Navidrome's users."""
    rows = connection.execute(select(CHANGE_COUNTERS.c.name, CHANGE_COUNTERS.c.value))
    values = {row.name: int(row.value) for row in rows}
    return values[_COUNTER], values.get(_USERS_COUNTER, 0)


def _increment_users_version(connection: Connection) -> int:
    counter = CHANGE_COUNTERS.c.name == _USERS_COUNTER
    row = update(CHANGE_COUNTERS).where(counter).values(value=CHANGE_COUNTERS.c.value + 1)
    if connection.execute(row).rowcount == 0:
        connection.execute(insert(CHANGE_COUNTERS).values(name=_USERS_COUNTER, value=1))
    return int(connection.execute(select(CHANGE_COUNTERS.c.value).where(counter)).scalar_one())


def increment_version(connection: Connection) -> int:
    """Count a change of the bindings or of what belongs to them, so that every shim reads them again. Return
    the new version."""
    row = (
        update(CHANGE_COUNTERS)
        .where(CHANGE_COUNTERS.c.name == _COUNTER)
        .values(value=CHANGE_COUNTERS.c.value + 1)
    )
    connection.execute(row)
    return _version(connection)


def _matches_read_version(binding: Binding) -> tuple[ColumnElement[bool], ...]:
    """Return the condition that selects a binding's row if it was not changed since it was read."""
    return BINDINGS.c.id == binding.id, BINDINGS.c.version == binding.version


def _check_holder(connection: Connection, navidrome_id: str, holder: Binding | None) -> None:
    columns = select(BINDINGS.c.id, BINDINGS.c.version)
    row = connection.execute(columns.where(BINDINGS.c.navidrome_id == navidrome_id)).first()
    found = None if row is None else (row.id, row.version)
    if found != (None if holder is None else (holder.id, holder.version)):
        raise StaleBinding(_STALE_BINDING)


def _update(connection: Connection, binding: Binding) -> Binding:
    after = replace(binding, version=binding.version + 1)
    row = update(BINDINGS).where(*_matches_read_version(binding))
    if connection.execute(row.values(**binding_values(after))).rowcount == 0:
        raise StaleBinding(_STALE_BINDING)
    return after


def _delete(connection: Connection, binding: Binding) -> None:
    if connection.execute(delete(BINDINGS).where(*_matches_read_version(binding))).rowcount == 0:
        raise StaleBinding(_STALE_BINDING)


def _end_intent(connection: Connection, intent: Intent | None) -> None:
    if intent is not None:
        is_own = (INTENTS.c.key == intent.key) & (INTENTS.c.owner == intent.owner)
        connection.execute(delete(INTENTS).where(is_own))


def _is_held(connection: Connection, hold: NameHold) -> bool:
    """Return whether a person already holds the name that this hold without a person would take."""
    if hold.uid is not None:
        return False
    query = select(NAME_HOLDS.c.uid).where(
        NAME_HOLDS.c.normalized_name == hold.normalized_name,
        NAME_HOLDS.c.navidrome_id == hold.navidrome_id,
        NAME_HOLDS.c.uid.is_not(None),
    )
    return connection.execute(query).first() is not None


def _put_hold(connection: Connection, hold: NameHold | None) -> None:
    if hold is not None:
        connection.execute(
            delete(NAME_HOLDS).where(NAME_HOLDS.c.normalized_name == hold.normalized_name)
        )
        connection.execute(
            insert(NAME_HOLDS).values(
                normalized_name=hold.normalized_name,
                navidrome_id=hold.navidrome_id,
                uid=hold.uid,
                uid_source=hold.uid_source,
                until=hold.until,
            )
        )


def put_token_rule(connection: Connection, rule: TokenRule | None) -> None:
    """Store a token rule in place of the account's previous one."""
    if rule is not None:
        key = TOKEN_RULES.c.navidrome_id == rule.navidrome_id
        connection.execute(delete(TOKEN_RULES).where(key))
        connection.execute(
            insert(TOKEN_RULES).values(
                navidrome_id=rule.navidrome_id, locked=rule.locked, void_before=rule.void_before
            )
        )


# Longer than any step takes between its intent and its end.
LEASE_SECONDS = 120.0


def new_owner() -> str:
    """Return a unique name for this process."""
    return f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(8)}"


def may_be_alive(owner: str, own: str, started_at: float, now: float) -> bool:
    """Return whether `owner`, who began at `started_at`, may still be running. `own` is the name of this
    process. Times are in seconds since the epoch."""
    if owner == own:
        return True
    if now - started_at > LEASE_SECONDS or started_at > now + LEASE_SECONDS:
        return False
    host, _, remainder = owner.partition("/")
    process = remainder.partition("/")[0]
    own_host, _, own_remainder = own.partition("/")
    if host != own_host or not process.isdigit():
        return True
    if process == own_remainder.partition("/")[0]:
        return False  # this process has the process id now
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
