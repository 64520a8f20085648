"""Constraints are tried one at a time, key holders in turn."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.errors import RequestError
from gateway.trials import Trials
from paceline.constraints.constraint import Constraint, ConstraintError
from paceline.constraints.trial import Trial
from tests.waiting import wait_until


class _Slow(Trial):
    """Finishes a trial when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[Constraint] = []
        self.let = asyncio.Semaphore(0)

    async def run(self, constraint: Constraint) -> None:
        if self.knows(constraint):
            return
        self.begun.append(constraint)
        await self.let.acquire()
        if "bad" in constraint.text:
            raise ConstraintError("is bad")
        self._remember(constraint, None)


def _start(trials: Trials, name: str, holder: str) -> asyncio.Task[Any]:
    return asyncio.create_task(trials.run(Constraint.choice([name]), "guided_choice", holder))


async def test_holders_are_served_in_turn() -> None:
    slow = _Slow()
    trials = Trials(slow)
    running = [_start(trials, f"a{each}", "a") for each in range(3)]
    await wait_until(lambda: bool(slow.begun), "the first is tried")
    running.append(_start(trials, "b", "b"))
    for _ in range(4):
        slow.let.release()
    await asyncio.gather(*running)
    assert [each.text for each in slow.begun].index('["b"]') == 2


async def test_a_refusal_names_the_field_and_the_next_is_tried() -> None:
    slow = _Slow()
    trials = Trials(slow)
    bad, good = _start(trials, "bad", "a"), _start(trials, "good", "a")
    slow.let.release()
    slow.let.release()
    with pytest.raises(RequestError, match="guided_choice: is bad") as caught:
        await bad
    assert caught.value.param == "guided_choice"
    await good


async def test_who_gives_up_holds_nobody_up() -> None:
    slow = _Slow()
    trials = Trials(slow)
    first, waiting, last = (_start(trials, name, "a") for name in ("1", "2", "3"))
    await wait_until(lambda: bool(slow.begun), "the first is tried")
    for task in (waiting, first):
        task.cancel()
    slow.let.release()
    await last
    assert [each.text for each in slow.begun] == ['["1"]', '["3"]']
