"""One request's choices: n sessions in, one reply out."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TypeAlias

from gateway.errors import RequestError
from gateway.events import Event, Started
from gateway.generation import Asked, Generation
from paceline.service.tasks import cancel_and_wait

# Most choices of one request, over all of its prompts.
MAX_CHOICES = 128
# JavaScript reads JSON's numbers as doubles: seeds of more bits would come back rounded.
SEED_BITS = 53

# Begins the session of one choice.
Begin: TypeAlias = Callable[[Generation | Asked], AsyncGenerator[Event, None]]


@dataclass(frozen=True, slots=True)
class Told:
    """An event of one of a request's choices."""

    # Place among the request's choices, from 0.
    choice: int
    event: Event


def seed_of(seed: int, number: int) -> int:
    """The seed of a prompt's choice `number`, by the request's: the first one's is the request's own."""
    if not number:
        return seed
    digest = hashlib.sha256(f"{seed} {number}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> (64 - SEED_BITS)


def alternatives(wanted: Generation | Asked, n: int) -> Iterator[Generation | Asked]:
    """`n` choices of one prompt, which is tokenised once. They differ by their seeds alone."""
    if isinstance(wanted, Generation):
        yield from (_seeded(wanted, number) for number in range(n))
        return
    tokenised = _Once(wanted)
    for number in range(n):
        yield replace(wanted, generation=tokenised.of(number)) if n > 1 else wanted


def numbered(choices: Sequence[Generation | Asked]) -> list[Generation | Asked]:
    """The same choices, each with its place in the reply: those of the first prompt come first."""
    return [replace(each, form=replace(each.form, index=place)) for place, each in enumerate(choices)]


async def together(choices: Sequence[Generation | Asked], begin: Begin) -> AsyncGenerator[Told, None]:
    """The events of all choices, each choice's in order, as they come.

    If one fails, the others are stopped and its `RequestError` is raised. One that finds no room waits while
    others of the request have some. Closing the iterator early stops all of them.
    """
    if len(choices) == 1:
        async with aclosing(begin(choices[0])) as events:
            async for event in events:
                yield Told(0, event)
        return
    running = _Together(begin, len(choices))
    try:
        async for told in running.events(choices):
            yield told
    finally:
        await running.stop()


class _Together:
    """Choices that run side by side, each in a task of its own."""

    def __init__(self, begin: Begin, count: int) -> None:
        self._begin = begin
        # Bounded: who reads slowly slows all choices down.
        self._told: asyncio.Queue[Told | Exception | None] = asyncio.Queue(count)
        self._tasks: list[asyncio.Task[None]] = []
        # Choices that run or stand in line, and what is set when one that ran has ended.
        self._trying = 0
        self._ended = asyncio.Event()

    async def events(self, choices: Sequence[Generation | Asked]) -> AsyncGenerator[Told, None]:
        self._tasks = [asyncio.create_task(self._follow(*each)) for each in enumerate(choices)]
        left = len(choices)
        while left:
            told = await self._told.get()
            if isinstance(told, Exception):
                raise told
            if told is None:
                left -= 1
            else:
                yield told

    async def stop(self) -> None:
        await cancel_and_wait(*self._tasks)

    async def _follow(self, place: int, wanted: Generation | Asked) -> None:
        try:
            while not await self._ran(place, wanted):
                await self._ended.wait()
        except Exception as error:
            # For whoever reads the events.
            await self._told.put(error)
        else:
            await self._told.put(None)

    async def _ran(self, place: int, wanted: Generation | Asked) -> bool:
        """Tell a choice's events; False if it found no room and another choice's end may make some."""
        begun = False
        self._trying += 1
        try:
            async with aclosing(self._begin(wanted)) as events:
                async for event in events:
                    if isinstance(event, Started):
                        begun = True
                    await self._told.put(Told(place, event))
        except RequestError as error:
            if begun or not error.for_room or self._trying == 1:
                raise
            return False
        finally:
            self._trying -= 1
            if begun:
                self._ended.set()
                self._ended = asyncio.Event()
        return True


class _Once:
    """The ids of a prompt that several choices wait for, tokenised in the turn of the first."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._tokenising: asyncio.Task[Generation] | None = None

    def of(self, number: int) -> Callable[[str, float], Awaitable[Generation]]:
        async def generation(holder: str, until: float) -> Generation:
            if self._tokenising is None:
                self._tokenising = asyncio.ensure_future(self._asked.generation(holder, until))
            return _seeded(await asyncio.shield(self._tokenising), number)

        return generation


def _seeded(wanted: Generation, number: int) -> Generation:
    sampling = wanted.sampling
    return replace(wanted, sampling=replace(sampling, seed=seed_of(sampling.seed, number)))
