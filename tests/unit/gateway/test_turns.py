"""One at a time, by priority, whoever gives up meanwhile."""

from __future__ import annotations

import asyncio

from gateway.turns import Turns


async def test_turns_go_by_priority_and_then_by_arrival() -> None:
    turns, served, go = Turns(), list[str](), asyncio.Event()

    async def take(name: str, priority: int) -> None:
        async with turns.held(priority):
            served.append(name)
            await go.wait()

    tasks = []
    for name, priority in [("first", 9), ("late", 5), ("b", 0), ("gone", -3), ("c", 0), ("a", -1)]:
        tasks.append(asyncio.create_task(take(name, priority)))
        await asyncio.sleep(0)
    tasks[3].cancel()
    await asyncio.sleep(0)
    assert served == ["first"]
    go.set()
    await asyncio.wait(tasks)
    assert served == ["first", "a", "b", "c", "late"]


async def test_a_turn_that_comes_to_one_who_gave_up_is_passed_on() -> None:
    turns, served = Turns(), list[str]()
    gate = asyncio.Event()

    async def hold() -> None:
        async with turns.held():
            await gate.wait()
        # Its turn has come, and it has not run yet.
        waiting.cancel()

    async def take(name: str) -> None:
        async with turns.held():
            served.append(name)

    holder = asyncio.create_task(hold())
    await asyncio.sleep(0)
    waiting, behind = asyncio.create_task(take("waiting")), asyncio.create_task(take("behind"))
    await asyncio.sleep(0)
    gate.set()
    await holder
    await asyncio.wait([waiting, behind])
    assert served == ["behind"]
