"""Carry out an administrative action, and record it before it is answered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import monotonic, time
from typing import Generic, TypeVar

from shim.audit.admin_actions import STORE_SECONDS, AdminActions, NotStored
from shim.audit.events import ActionResult, AdminAction, Operator

T = TypeVar("T")

# Time after the beginning of an action in which it should be stored, and the least time that it gets.
_ACTION_SECONDS = 8.0
_MIN_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Performed(Generic[T]):
    """What an action returned, and `note`: a sentence for the response if the action could not be stored."""

    value: T
    note: str | None = None


async def perform(
    actions: AdminActions,
    operator: Operator,
    action: str,
    work: Callable[[], Awaitable[T]],
    *,
    target: str | None = None,
    grants_access: bool = False,
    changes: Callable[[T], tuple[str, ...]] = lambda _: (),
    failure: Callable[[T], str | None] = lambda _: None,
) -> Performed[T]:
    """Carry out `work` and return what it returned, once the action is stored.

    `grants_access`: while nothing can be stored, the action is refused with `NotStored`. For the trail,
    `changes` returns sentences about the result, and `failure` the reason if the result is a failure. If
    `work` raises, the failure is recorded. All waits for the store together end `_ACTION_SECONDS` after the
    start, or `_MIN_SECONDS` after `work`.
    """
    start = monotonic()

    def event(
        result: ActionResult, detail: str | None = None, changed: tuple[str, ...] = ()
    ) -> AdminAction:
        return AdminAction(
            time=time(),
            action=action,
            actor=operator.actor,
            origin=operator.origin,
            client=operator.client,
            result=result,
            target=target,
            detail=detail,
            changes=changed,
        )

    async def record(
        result: ActionResult, detail: str | None = None, changed: tuple[str, ...] = ()
    ) -> str | None:
        remaining = start + _ACTION_SECONDS - monotonic()
        seconds = min(STORE_SECONDS, max(_MIN_SECONDS, remaining))
        return await actions.record(event(result, detail, changed), seconds)

    if grants_access:
        try:
            await actions.require()
        except NotStored as error:
            actions.record_refused(event("refused", str(error)))
            raise
    try:
        value = await work()
    except Exception as error:
        await record("failed", str(error) or type(error).__name__)
        raise
    fault = failure(value)
    if fault is not None:
        return Performed(value, await record("failed", fault))
    return Performed(value, await record("done", changed=changes(value)))
