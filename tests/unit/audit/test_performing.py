"""Administrative actions are recorded before the response, whatever their result."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from shim.audit import performing
from shim.audit.admin_actions import STORE_SECONDS, AdminActions, NotStored
from shim.audit.events import AdminAction, Event, Operator
from shim.audit.performing import perform
from shim.audit.store.chain import build_keys
from shim.audit.store.filters import Filters
from shim.audit.store.reader import TrailReader
from shim.audit.store.writer import TrailStore
from shim.store.errors import StoreError

BY = Operator("console:ada", "console", "192.0.2.1")


class Action:
    """Counts; raises `error` if there is one."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.times = 0

    async def __call__(self) -> str:
        self.times += 1
        if self.error is not None:
            raise self.error
        return "result"


def store_in(folder: Path) -> TrailStore:
    return TrailStore(f"sqlite:///{folder}/audit.db", build_keys([]))


def stored_in(folder: Path) -> list[dict[str, object]]:
    reader = TrailReader(f"sqlite:///{folder}/audit.db")
    try:
        return [e.record for e in reader.iterate(Filters(kinds=("admin_action",)))]
    finally:
        reader.close()


async def test_an_action_is_stored_when_it_returns(tmp_path: Path) -> None:
    store, logged = store_in(tmp_path), list[Event]()
    action = Action()
    done = await perform(
        AdminActions(store, logged.append),
        BY,
        "users.lock",
        action,
        target="bob",
        grants_access=True,
        changes=lambda value: (value,),
    )
    (record,) = stored_in(tmp_path)
    await store.close()
    assert (done.value, done.note, action.times) == ("result", None, 1)
    expected = {
        "action": "users.lock",
        "actor": "console:ada",
        "origin": "console",
        "client": "192.0.2.1",
        "target": "bob",
        "result": "done",
        "changes": ["result"],
    }
    assert {name: record[name] for name in expected} == expected
    assert [event.kind for event in logged] == ["admin_action"]


async def test_a_failure_is_recorded_and_raised(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    with pytest.raises(ValueError, match="no such account"):
        await perform(
            AdminActions(store, lambda _: None),
            BY,
            "users.lock",
            Action(ValueError("no such account")),
        )
    (record,) = stored_in(tmp_path)
    await store.close()
    assert (record["result"], record["detail"]) == ("failed", "no such account")


async def test_a_failed_result_is_recorded_as_failed(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    actions = AdminActions(store, lambda _: None)
    await perform(actions, BY, "reload", Action(), failure=lambda value: f"{value} is wrong")
    (record,) = stored_in(tmp_path)
    await store.close()
    assert (record["result"], record["detail"]) == ("failed", "result is wrong")


async def test_an_action_that_grants_a_right_is_refused_while_storing_is_impossible(
    tmp_path: Path,
) -> None:
    store, logged = store_in(tmp_path / "missing"), list[Event]()
    action = Action()
    with pytest.raises(NotStored):
        await perform(
            AdminActions(store, logged.append), BY, "users.sync", action, grants_access=True
        )
    await store.close()
    assert action.times == 0
    (event,) = logged
    assert isinstance(event, AdminAction)
    assert event.result == "refused"


async def test_an_action_that_removes_a_right_is_done_with_a_note_while_storing_is_impossible(
    tmp_path: Path,
) -> None:
    store, logged = store_in(tmp_path / "missing"), list[Event]()
    done = await perform(AdminActions(store, logged.append), BY, "users.lock", Action())
    await store.close()
    assert done.value == "result"
    assert done.note is not None
    assert "only in the log" in done.note
    assert [event.kind for event in logged] == ["admin_action"]


class Unwritable(TrailStore):
    """A store that cannot be written. `waits` has the seconds that each call may take."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"sqlite:///{folder}/audit.db", build_keys([]))
        self.waits: list[float] = []

    async def store(self, event: Event, seconds: float) -> None:
        self.waits.append(seconds)
        raise StoreError(f"locked: {event.kind}")

    async def check_writable(self, seconds: float = 0.0) -> None:
        self.waits.append(seconds)
        raise StoreError("locked")


@pytest.mark.parametrize("grants_access", [True, False])
@pytest.mark.parametrize("error", [None, ValueError("no such account")])
async def test_an_action_waits_once_for_a_store_that_cannot_be_written(
    tmp_path: Path, grants_access: bool, error: Exception | None
) -> None:
    store, logged = Unwritable(tmp_path), list[Event]()
    actions = AdminActions(store, logged.append)
    with suppress(NotStored, ValueError):
        await perform(actions, BY, "device.add", Action(error), grants_access=grants_access)
    await store.close()
    assert len(store.waits) == len(logged) == 1
    assert store.waits[0] <= STORE_SECONDS


async def test_the_wait_after_the_work_is_shorter_the_longer_the_work_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(performing, "monotonic", lambda: now[0])
    store = Unwritable(tmp_path)

    def work_of(seconds: float) -> Callable[[], Awaitable[None]]:
        async def work() -> None:
            now[0] += seconds

        return work

    for seconds in (0.0, 5.0, 60.0):
        await perform(AdminActions(store, lambda _: None), BY, "users.lock", work_of(seconds))
    await store.close()
    assert store.waits == [STORE_SECONDS, 3.0, 2.0]
