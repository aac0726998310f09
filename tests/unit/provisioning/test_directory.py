"""The cached libraries, and locks by key."""

from __future__ import annotations

import asyncio

from shim.navidrome.models import Library
from shim.provisioning.directory import Directory, KeyLocks


async def test_libraries_are_listed_again_only_after_they_were_forgotten() -> None:
    directory, listed = Directory(), [(Library(1, "Music"),), (Library(2, "Kids"),)]
    responses = iter(listed)

    async def libraries() -> tuple[Library, ...]:
        return next(responses)

    assert not directory.libraries
    for _ in range(2):
        assert await directory.read_libraries(libraries) == directory.libraries == listed[0]
    directory.forget_libraries()
    assert not directory.libraries
    assert await directory.read_libraries(libraries) == directory.libraries == listed[1]


async def test_one_key_is_locked_by_one_task_at_a_time_and_others_do_not_wait() -> None:
    locks, order = KeyLocks(), []

    async def hold(name: str, *keys: str) -> None:
        async with locks.held(*keys):
            order.append(f"{name} in")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            order.append(f"{name} out")

    await asyncio.gather(hold("a", "x", "y"), hold("b", "y", "z"), hold("c", "w"))
    assert order.index("a out") < order.index("b in")
    assert order.index("c in") < order.index("a out")


async def test_crossed_keys_do_not_deadlock() -> None:
    locks = KeyLocks()

    async def hold(*keys: str) -> None:
        async with locks.held(*keys):
            await asyncio.sleep(0)

    async with asyncio.timeout(5):
        await asyncio.gather(*(hold("x", "y") if n % 2 else hold("y", "x") for n in range(50)))


async def test_no_memory_is_used_for_keys_that_are_not_locked() -> None:
    locks = KeyLocks()
    async with locks.held("x"):
        waiter = asyncio.create_task(_hold(locks))
        await asyncio.sleep(0)
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
        assert len(locks) == 1
    assert len(locks) == 0


async def _hold(locks: KeyLocks) -> None:
    async with locks.held("x"):
        pass
