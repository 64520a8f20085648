"""Sessions of one request: side by side, ended together, and seeded from one seed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.choices import alternatives, numbered, seed_of, together
from gateway.errors import INTERNAL, OVERLOADED, RequestError
from gateway.events import Chunk, Event, Finished, Started
from gateway.generation import Asked, Form, Generation
from paceline.sampling import SamplingParams
from paceline.session import FinishReason, Receipt

WANTED = Generation("m", (5, 6), SamplingParams(max_tokens=4, seed=7))
END = Finished(FinishReason.LENGTH, Receipt())


def text(word: str) -> Chunk:
    return Chunk(word, 2, (1,), 0, durable=True)


@given(st.integers(0, 2**63 - 1), st.integers(1, 127))
def test_choices_have_seeds_of_their_own_and_the_first_has_the_requests(seed: int, number: int) -> None:
    assert seed_of(seed, 0) == seed
    assert 0 <= seed_of(seed, number) < 2**53
    assert seed_of(seed, number) == seed_of(seed, number) != seed_of(seed, number - 1)


def test_choices_differ_by_seed_and_place_alone() -> None:
    made = numbered([*alternatives(WANTED, 2), *alternatives(WANTED, 2)])
    assert [each.form.index for each in made] == [0, 1, 2, 3]
    assert isinstance(made[0], Generation)
    assert isinstance(made[1], Generation)
    assert isinstance(made[3], Generation)
    assert made[0] == WANTED
    assert made[1].sampling.seed == made[3].sampling.seed == seed_of(7, 1)
    assert replace(made[3], form=Form(), sampling=WANTED.sampling) == WANTED


async def test_a_long_prompt_of_several_choices_is_tokenised_once() -> None:
    turns: list[str] = []

    async def generation(holder: str, until: float) -> Generation:
        turns.append(holder)
        await asyncio.sleep(0)
        return WANTED

    choices = list(alternatives(Asked(Form(), 2, 4, generation), 3))
    assert all(isinstance(each, Asked) for each in choices)
    made = await asyncio.gather(*(each.generation("key", 9.0) for each in choices if isinstance(each, Asked)))
    assert turns == ["key"]
    assert [each.sampling.seed for each in made] == [seed_of(7, number) for number in range(3)]


class Sessions:
    """Sessions of which `room` may run at once; each says two words when its turn comes."""

    def __init__(self, room: int, *, fails: int = -1) -> None:
        self.room = room
        self.fails = fails
        self.running = self.most = self.refused = self.closed = 0

    async def begin(self, wanted: Generation | Asked) -> AsyncGenerator[Event, None]:
        index = wanted.form.index
        if self.running >= self.room:
            self.refused += 1
            raise RequestError(OVERLOADED, "full", for_room=True)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(0)
            yield Started(f"s{index}", index, 2)
            for word in ("a", "b"):
                await asyncio.sleep(0)
                if index == self.fails:
                    raise RequestError(INTERNAL, "broken")
                yield text(f"{word}{index}")
            yield END
        finally:
            self.running -= 1
            self.closed += 1


def choices(count: int) -> list[Generation | Asked]:
    return numbered(list(alternatives(WANTED, count)))


@pytest.mark.parametrize(("count", "room"), [(1, 1), (3, 3), (5, 2), (4, 1)])
async def test_every_choice_is_told_whole_and_in_order_whatever_room_there_is(count: int, room: int) -> None:
    sessions = Sessions(room)
    heard: dict[int, list[Event]] = {}
    async for told in together(choices(count), sessions.begin):
        heard.setdefault(told.choice, []).append(told.event)
    assert heard == {
        index: [Started(f"s{index}", index, 2), text(f"a{index}"), text(f"b{index}"), END]
        for index in range(count)
    }
    assert (sessions.most, sessions.running) == (min(count, room), 0)


async def test_where_there_is_no_room_at_all_the_request_is_refused() -> None:
    with pytest.raises(RequestError, match="full"):
        [told async for told in together(choices(3), Sessions(0).begin)]


async def test_the_failure_of_one_stops_all_and_is_told() -> None:
    sessions = Sessions(9, fails=1)
    with pytest.raises(RequestError, match="broken"):
        [told async for told in together(choices(3), sessions.begin)]
    assert (sessions.running, sessions.closed) == (0, 3)


async def test_closing_the_reply_stops_all() -> None:
    sessions = Sessions(9)
    events = together(choices(3), sessions.begin)
    await anext(events)
    assert sessions.running == 3
    await events.aclose()
    assert sessions.running == 0
