"""Hidden states that a verifier sends to drafters, over gRPC, against transformers' own of the whole text."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.hidden_states import Reference
from tests.pods import Pods
from tests.sessions import OpenSession, opened
from tests.state_taker import StateTaker, taking
from tests.usage import samples
from tests.waiting import wait_until

LAYERS = (0, 1, 2)
# Three sessions do not fit, and one does.
KV_TOKENS = 1024
LONG = 14_000


@pytest.fixture(scope="module")
def pods(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, redis_url: str) -> Iterator[Pods]:
    flags = ("--keep-states", "0,1,2")
    folder = tmp_path_factory.mktemp("states")
    with Pods(folder, tiny_model, redis_url, drafters=0, verifier_flags=flags, metrics=True) as made:
        yield made.start()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, redis_url: str) -> Iterator[Pods]:
    """A verifier whose KV is too small for two sessions."""
    flags = ("--keep-states", "0,1,2", "--kv-tokens", str(KV_TOKENS))
    folder = tmp_path_factory.mktemp("small")
    with Pods(folder, tiny_model, redis_url, drafters=0, verifier_flags=flags, metrics=True) as made:
        yield made.start()


@pytest.fixture(scope="module")
def reference(tiny_model: Path) -> Reference:
    return Reference(tiny_model)


def prompt(length: int, seed: int = 0) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(3, 500, length)]


def agree(taker: StateTaker, session: OpenSession, reference: Reference) -> None:
    """All that came of a session is what transformers computes for its text."""
    assert taker.grant is not None
    taken = taker.sessions[session.key.session_id]
    # A client may hear of tokens later than a drafter of their states.
    stop = min(taken.stop, len(session.ids))
    expected = reference.states(session.ids[:stop], taker.grant.layers)[taken.start :]
    assert len(expected) > 0
    np.testing.assert_allclose(taker.states(session.key)[: len(expected)], expected, atol=1e-4, rtol=0)


async def told(pods: Pods) -> dict[str, float]:
    """What the verifier tells Prometheus."""
    return await asyncio.to_thread(samples, pods, pods.verifier)


async def comes_to(taker: StateTaker, session: OpenSession, position: int) -> None:
    """States of so many positions are there, and the client has the text."""
    taken = taker.sessions[session.key.session_id]
    await wait_until(lambda: min(taken.stop, len(session.ids)) >= position, f"{position} positions are there")


async def test_a_prompt_and_what_follows_arrive_as_transformers_has_them(
    pods: Pods, reference: Reference
) -> None:
    session = OpenSession(prompt(700), LONG)
    async with opened(pods, session), taking(pods.verifier, LAYERS) as taker:
        await taker.join(session.key, len(session.prompt))
        await comes_to(taker, session, 900)
    agree(taker, session, reference)
    assert taker.grant is not None
    assert (taker.grant.layers, taker.grant.width, taker.grant.dtype) == (LAYERS, 64, "float32")


async def test_only_the_layers_that_were_asked_for_come(pods: Pods, reference: Reference) -> None:
    session = OpenSession(prompt(40, 1), LONG)
    async with opened(pods, session), taking(pods.verifier, (0, 2)) as taker:
        await taker.join(session.key, len(session.prompt))
        await comes_to(taker, session, 100)
    agree(taker, session, reference)


async def test_positions_that_the_prefix_cache_had_come_too(pods: Pods, reference: Reference) -> None:
    first = OpenSession(prompt(500, 2), 20)
    async with opened(pods, first):
        await wait_until(lambda: first.finished, "the first is done")
    # It parts from the first inside a block.
    second = OpenSession([*first.ids[:450], *prompt(20, 3)], LONG)
    async with opened(pods, second), taking(pods.verifier, LAYERS) as taker:
        await taker.join(second.key, len(second.prompt))
        await comes_to(taker, second, 550)
    agree(taker, second, reference)


async def test_who_asks_for_states_changes_nothing_of_what_the_prefix_cache_finds(pods: Pods) -> None:
    async def found(seed: int, *, taken: bool) -> float:
        """Positions that three sessions, which begin alike, find there."""
        before = (await told(pods))["paceline:prefix_cache_hits_total"]
        beginning = prompt(300, seed)
        async with taking(pods.verifier, LAYERS) as taker:
            for number in range(3):
                session = OpenSession([*beginning[: 300 - 50 * number], *prompt(30, seed + number)], 600)
                async with opened(pods, session):
                    if taken:
                        await taker.join(session.key, len(session.prompt))
                        await comes_to(taker, session, len(session.prompt))
                    await wait_until(lambda session=session: session.finished, "it is done")
        return (await told(pods))["paceline:prefix_cache_hits_total"] - before

    assert await found(20, taken=True) == await found(30, taken=False) > 250


async def test_a_drafter_that_joins_late_gets_all_from_where_it_wants(
    pods: Pods, reference: Reference
) -> None:
    session = OpenSession(prompt(60, 4), LONG)
    async with opened(pods, session):
        await wait_until(lambda: len(session.ids) > 300, "it has come far")
        async with taking(pods.verifier, LAYERS) as taker:
            await taker.join(session.key, len(session.prompt), 137)
            await comes_to(taker, session, 400)
        agree(taker, session, reference)
        assert taker.sessions[session.key.session_id].start == 137


async def test_the_drafter_that_takes_a_session_over_gets_them_and_the_one_before_no_more(
    pods: Pods, reference: Reference
) -> None:
    session = OpenSession(prompt(60, 5), LONG)
    async with opened(pods, session), taking(pods.verifier, LAYERS) as one:
        await one.join(session.key, len(session.prompt))
        await comes_to(one, session, 100)
        async with taking(pods.verifier, LAYERS) as two:
            await two.join(session.key, len(session.prompt))
            await comes_to(two, session, len(session.ids) + 50)
            agree(one, session, reference)
            agree(two, session, reference)
            assert one.sessions[session.key.session_id].stop < two.sessions[session.key.session_id].stop


async def test_a_drafter_that_comes_back_says_what_it_has(pods: Pods, reference: Reference) -> None:
    session = OpenSession(prompt(60, 6), LONG)
    async with opened(pods, session):
        start = 0
        for _ in range(3):
            async with taking(pods.verifier, LAYERS) as taker:
                taken = await taker.join(session.key, len(session.prompt), start)
                await comes_to(taker, session, start + 80)
            agree(taker, session, reference)
            start = taken.stop


async def test_states_come_again_after_a_preemption(small: Pods, reference: Reference) -> None:
    old, young = (OpenSession(prompt(300, seed), 500) for seed in (7, 8))
    async with opened(small, old, young), taking(small.verifier, LAYERS) as taker:
        for session in (old, young):
            await taker.join(session.key, len(session.prompt))
        await wait_until(lambda: old.finished, "the older one ends")
        await comes_to(taker, young, 780)
        for session in (old, young):
            agree(taker, session, reference)
    assert (await told(small))["paceline:num_preemptions_total"] > 0


async def test_many_sessions_share_a_stream(pods: Pods, reference: Reference) -> None:
    sessions = [OpenSession(prompt(length, 9 + length), LONG) for length in (1500, 5, 30, 200)]
    async with opened(pods, *sessions), taking(pods.verifier, LAYERS, window=1 << 20) as taker:
        for session in sessions:
            await taker.join(session.key, len(session.prompt))
        for session in sessions:
            await comes_to(taker, session, len(session.prompt) + 40)
    for session in sessions:
        agree(taker, session, reference)
