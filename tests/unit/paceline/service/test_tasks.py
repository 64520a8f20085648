from __future__ import annotations

import asyncio

import pytest

from paceline.service.tasks import cancel_and_wait, let_end


async def _slow_to_end(ended: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0.02)
        ended.append("slow")


async def test_waits_for_their_ends() -> None:
    ended: list[str] = []
    tasks = [asyncio.create_task(_slow_to_end(ended)) for _ in range(2)]
    await asyncio.sleep(0)
    await cancel_and_wait(*tasks)
    assert ended == ["slow", "slow"]
    await cancel_and_wait()


async def test_raises_what_a_task_failed_with() -> None:
    async def fail() -> None:
        raise ValueError("its own")

    task = asyncio.create_task(fail())
    await asyncio.sleep(0)
    with pytest.raises(ValueError, match="its own"):
        await cancel_and_wait(task)


async def test_its_callers_cancellation_is_not_taken_for_the_tasks() -> None:
    ended: list[str] = []
    task = asyncio.create_task(_slow_to_end(ended))
    went_on = False

    async def caller() -> None:
        nonlocal went_on
        await cancel_and_wait(task)
        went_on = True

    calling = asyncio.create_task(caller())
    await asyncio.sleep(0.01)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert not went_on
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["slow"]


async def test_what_is_busy_is_let_end() -> None:
    left = [3]

    def busy() -> bool:
        left[0] -= 1
        return left[0] > 0

    await let_end(busy, 60)
    assert left == [0]


async def test_a_grace_has_an_end() -> None:
    await asyncio.wait_for(let_end(lambda: True, 0.1), 30)
