"""Places at verifiers, counted as sessions come and go, and the line of those who wait for one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from opentelemetry.trace import INVALID_SPAN

from gateway.caller import ANYBODY, Caller
from gateway.errors import OVERLOADED, RATE_LIMITED, RequestError
from gateway.events import Event, Finished
from gateway.generation import Asked, Form, Generation
from gateway.limits import UsageLimits
from gateway.prompt import Prompts
from gateway.sessions import Sessions
from paceline.sampling import SamplingParams
from tests.scripted_verifier import FINISHED, MODEL, PROMPT, ScriptedVerifier, serving, tokens
from tests.waiting import wait_until

# A status that comes once shows that nothing waits for the next one.
NEVER = 60.0
SHORT = [tokens(3, 10), FINISHED]


class Asking:
    """Sessions of keys' holders, each told apart by its seed."""

    def __init__(self, tiny_model: Path) -> None:
        self._prompts = Prompts(str(tiny_model))

    async def __call__(
        self, sessions: Sessions, caller: Caller = ANYBODY, seed: int = 0, asked: Asked | None = None
    ) -> list[Event]:
        wanted = asked or Generation(MODEL, PROMPT, SamplingParams(max_tokens=6, seed=seed))
        events = sessions.generate(wanted, caller, self._prompts.detokenizer(), INVALID_SPAN)
        return [event async for event in events]


@pytest.fixture(scope="module")
def ask(tiny_model: Path) -> Asking:
    return Asking(tiny_model)


def ended(answers: Sequence[Sequence[Event]]) -> bool:
    return all(isinstance(events[-1], Finished) for events in answers)


async def test_short_sessions_do_not_wait_for_a_status(ask: Asking) -> None:
    verifier = ScriptedVerifier(SHORT, max_sessions=4)
    async with serving(verifier, poll_seconds=NEVER, queue_seconds=20) as sessions:
        for _ in range(20):
            assert ended(await asyncio.gather(*(ask(sessions) for _ in range(4))))
    assert len(verifier.opened) == 80


async def test_more_than_there_is_room_for_are_served_in_the_order_of_their_coming(ask: Asking) -> None:
    verifier = ScriptedVerifier([tokens(3, 10), 0.5, FINISHED], SHORT, max_sessions=1)
    async with serving(verifier, poll_seconds=NEVER, queue_seconds=20) as sessions:
        asked = [asyncio.create_task(ask(sessions, Caller("crowd"), seed)) for seed in range(1, 40)]
        asked.append(asyncio.create_task(ask(sessions, Caller("other"), 99)))
        assert ended(await asyncio.gather(*asked))
    seeds = [request.sampling.seed for request in verifier.opened]
    assert [seed for seed in seeds if seed != 99] == list(range(1, 40))
    assert seeds.index(99) <= 2
    assert max(verifier.at_once) == 1


async def test_a_session_that_finds_a_verifier_full_of_others_waits_for_its_turn(ask: Asking) -> None:
    verifier = ScriptedVerifier(SHORT, max_sessions=2)
    async with serving(verifier, queue_seconds=20) as sessions:
        verifier.others = 2
        asked = [asyncio.create_task(ask(sessions, seed=seed)) for seed in (1, 2, 3)]
        await wait_until(
            lambda: bool(verifier.opened) or sessions.fleet.verifier_views()[0].sessions == 2, "it is full"
        )
        verifier.others = 1
        assert ended(await asyncio.gather(*asked))
    served = [request.sampling.seed for request in verifier.opened]
    assert sorted(set(served)) == [1, 2, 3]


async def test_a_gateway_that_is_full_lets_requests_wait(ask: Asking) -> None:
    verifier = ScriptedVerifier(SHORT, max_sessions=9)
    async with serving(verifier, queue_seconds=20, max_sessions=1) as sessions:
        assert ended(await asyncio.gather(*(ask(sessions) for _ in range(12))))
    assert max(verifier.at_once) == 1


async def test_who_has_waited_for_too_long_is_told_when_to_come_again(ask: Asking) -> None:
    verifier = ScriptedVerifier([tokens(3, 10), 30.0])
    async with serving(verifier, queue_seconds=0.2, max_sessions=1) as sessions:
        first = asyncio.create_task(ask(sessions))
        await wait_until(lambda: sessions.running == 1, "it runs")
        with pytest.raises(RequestError, match="all places are taken") as caught:
            await ask(sessions)
        assert caught.value.kind is OVERLOADED
        assert caught.value.retry_after
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


async def test_a_long_prompt_is_tokenised_only_once_its_key_has_a_place(ask: Asking) -> None:
    tokenised: list[str] = []

    async def generation(holder: str, until: float) -> Generation:
        tokenised.append(holder)
        return Generation(MODEL, PROMPT, SamplingParams(max_tokens=6))

    verifier = ScriptedVerifier([tokens(3, 10), 30.0], SHORT)
    limited = Caller("a", limits=UsageLimits(concurrent_sessions=1, queued_requests=0))
    async with serving(verifier) as sessions:
        first = asyncio.create_task(ask(sessions, limited))
        await wait_until(lambda: sessions.running == 1, "it runs")
        asked = Asked(Form(), 500, 6, generation)
        with pytest.raises(RequestError) as caught:
            await ask(sessions, limited, asked=asked)
        assert caught.value.kind is RATE_LIMITED
        assert not tokenised
        assert ended([await ask(sessions, Caller("b"), asked=asked)])
        assert tokenised == ["b"]
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
