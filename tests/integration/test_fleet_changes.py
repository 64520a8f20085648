"""Verifiers and drafters come and go while a gateway runs; sessions go on, with the same text."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import Path

import pytest
from opentelemetry.trace import INVALID_SPAN

from gateway.admission import AdmissionControl
from gateway.caller import Caller
from gateway.detokenize import Detokenizer
from gateway.discovery import Endpoints
from gateway.events import Chunk, Event
from gateway.fleet import Fleet
from gateway.generation import Generation
from gateway.limits import MemoryLedger, UsageLimits
from gateway.prompt import Prompts
from gateway.session import Policy
from gateway.sessions import Sessions
from paceline.sampling import SamplingParams
from paceline.store import RedisStore
from tests.pods import MODEL, Pods
from tests.waiting import wait_until

TOKENS = 1200
PROMPT = tuple(b"the quick brown fox ")
SAMPLING = SamplingParams(max_tokens=TOKENS, temperature=0.8, seed=7)


@pytest.fixture(scope="module")
def pods(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, redis_url: str) -> Iterator[Pods]:
    folder = tmp_path_factory.mktemp("changes")
    with Pods(folder, tiny_model, redis_url, verifiers=2, drafters=2) as made:
        yield made.start()


class ToldDiscovery:
    """Has found what the test tells it."""

    def __init__(self) -> None:
        self.found: asyncio.Queue[Endpoints] = asyncio.Queue()

    async def endpoints(self) -> AsyncGenerator[Endpoints, None]:
        while True:
            yield await self.found.get()


class Reading:
    """One session, read to its end in the background."""

    def __init__(self, sessions: Sessions, detokenizer: Detokenizer, *, speculation: bool = True) -> None:
        wanted = Generation(MODEL, PROMPT, SAMPLING, speculation=speculation)
        self.ids: list[int] = []
        events = sessions.generate(wanted, Caller(secrets.token_hex(4)), detokenizer, INVALID_SPAN)
        self.task = asyncio.create_task(self._read(events))

    async def _read(self, events: AsyncIterator[Event]) -> list[int]:
        async for event in events:
            if isinstance(event, Chunk):
                self.ids += event.token_ids
        return self.ids

    async def comes_to(self, count: int) -> None:
        await wait_until(lambda: self.task.done() or len(self.ids) >= count, f"{count} tokens have come")
        assert not self.task.done(), "it has ended too early for its test"


async def test_pods_come_and_go_under_running_sessions(pods: Pods, tiny_model: Path, redis_url: str) -> None:
    prompts, discovery = Prompts(str(tiny_model)), ToldDiscovery()
    fleet, store = Fleet(0.1), RedisStore(redis_url, ttl_seconds=60)
    sessions = Sessions(
        fleet,
        store,
        Policy(strict=False, silence_seconds=9.0, check_seconds=0.1),
        AdmissionControl(MemoryLedger(), UsageLimits(), queue_seconds=10),
        model_id=MODEL,
        max_sessions=9,
    )
    first, second = pods.verifiers
    one, other = pods.drafters
    fleet.start(discovery)
    try:
        # Nobody is there yet: what is asked for waits.
        discovery.found.put_nowait(Endpoints())
        plain = Reading(sessions, prompts.detokenizer(), speculation=False)
        await asyncio.sleep(0.3)
        assert fleet.not_ready() == "no verifier is up"
        assert not plain.task.done()
        discovery.found.put_nowait(Endpoints.at((first,)))
        truth = await plain.task
        assert len(truth) == TOKENS

        # A drafter comes to a session that runs without one, and another takes its place.
        moved = Reading(sessions, prompts.detokenizer())
        await moved.comes_to(5)
        discovery.found.put_nowait(Endpoints.at((first,), (one,)))
        await wait_until(lambda: pods.drafter_status(one).sessions == 1, "it is drafted for")
        discovery.found.put_nowait(Endpoints.at((first,), (other,)))
        await wait_until(lambda: pods.drafter_status(other).sessions == 1, "the other drafts for it")
        await wait_until(lambda: pods.drafter_status(one).sessions == 0, "the first has been told")

        # Its verifier is removed: it stays there, and a new session goes to the one that has come.
        discovery.found.put_nowait(Endpoints.at((second,), (other,)))
        await wait_until(lambda: fleet.not_ready() == "" and first not in fleet.verifiers, "it is taken")
        late = Reading(sessions, prompts.detokenizer())
        await late.comes_to(5)
        assert pods.verifier_status(first).sessions == 1
        assert pods.verifier_status(second).sessions == 1
        # What was removed is stopped: its session moves.
        assert not moved.task.done()
        pods.pods[first].kill()
        assert await moved.task == truth
        assert await late.task == truth
        assert sessions.running == 0
    finally:
        await fleet.close()
        await store.close()
