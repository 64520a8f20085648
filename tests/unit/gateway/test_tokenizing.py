"""The threads that tokenise: bounded, in turn, and never all of them for large prompts."""

from __future__ import annotations

import asyncio
import threading

import pytest

from gateway.tokenizing import Tokenizing
from tests.waiting import wait_until

LARGE, SMALL = 1_000_000, 3000
SOON = 1e9


class Held:
    """Work that goes on until it is let go."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.gates: dict[str, threading.Event] = {}

    def ask(self, pool: Tokenizing, holder: str, name: str, characters: int) -> asyncio.Task[str]:
        self.gates[name] = threading.Event()

        def work() -> str:
            self.begun.append(name)
            assert self.gates[name].wait(30)
            return name

        return asyncio.create_task(pool.run(holder, characters, work, until=SOON))

    async def finish(self, *tasks: asyncio.Task[str]) -> None:
        for gate in self.gates.values():
            gate.set()
        await asyncio.gather(*tasks)


async def test_large_prompts_of_one_key_do_not_hold_up_small_ones() -> None:
    pool, held = Tokenizing(2), Held()
    large = [held.ask(pool, "a", f"large {number}", LARGE) for number in range(5)]
    await wait_until(lambda: held.begun == ["large 0"], "one is at work")
    small = held.ask(pool, "b", "small", SMALL)
    held.gates["small"].set()
    assert await small == "small"
    assert held.begun == ["large 0", "small"]
    await held.finish(*large)


async def test_keys_take_turns_and_nobody_overtakes_their_own() -> None:
    pool, held = Tokenizing(2), Held()
    crowd = [held.ask(pool, "a", f"a{number}", LARGE) for number in range(4)]
    await wait_until(lambda: held.begun == ["a0"], "one is at work")
    others = [held.ask(pool, "b", "b0", LARGE), held.ask(pool, "c", "c0", LARGE)]
    await asyncio.sleep(0)
    await held.finish(*crowd, *others)
    assert held.begun[1:4] in (["a1", "b0", "c0"], ["b0", "c0", "a1"], ["b0", "a1", "c0"])
    assert [name for name in held.begun if name.startswith("a")] == ["a0", "a1", "a2", "a3"]


async def test_a_thread_counts_as_taken_until_its_work_has_ended() -> None:
    pool, held = Tokenizing(2), Held()
    first, second = held.ask(pool, "a", "first", LARGE), held.ask(pool, "a", "second", LARGE)
    await wait_until(lambda: held.begun == ["first"], "it is at work")
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert held.begun == ["first"]
    held.gates["first"].set()
    await wait_until(lambda: held.begun == ["first", "second"], "the next one is at work")
    await held.finish(second)


async def test_who_waits_too_long_leaves_the_line() -> None:
    pool, held = Tokenizing(2), Held()
    first = held.ask(pool, "a", "first", LARGE)
    await wait_until(lambda: held.begun == ["first"], "it is at work")
    with pytest.raises(TimeoutError):
        await pool.run("b", LARGE, lambda: "late", until=0.0)
    await held.finish(first)
    assert await pool.run("b", LARGE, lambda: "in time", until=0.0) == "in time"


async def test_what_the_work_raises_is_raised() -> None:
    def fail() -> None:
        raise ValueError("no")

    pool = Tokenizing(2)
    for _ in range(4):
        with pytest.raises(ValueError, match="no"):
            await pool.run("a", LARGE, fail, until=SOON)
