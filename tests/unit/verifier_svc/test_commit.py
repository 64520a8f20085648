"""What clients see follows what the store has answered for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from paceline.session import FinishReason, Receipt, SamplingParams, SessionKey
from paceline.store import Append, MemoryStore, SessionRecord, StoreError, StoreUnavailable
from verifier_svc.commit import Broken, Committer, Event, Finished, Lost, StepOutcome, Tokens

ONE, TWO = SessionKey("one", 1), SessionKey("two", 1)
PROMPT = (1, 2, 3)


class Store(MemoryStore):
    """Memory that can be away, or answer when told to; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.answers = asyncio.Event()
        self.answers.set()
        self.calls: list[int] = []

    async def append(self, appends: Sequence[Append]) -> list[StoreError | None]:
        self.calls.append(len(appends))
        await self.answers.wait()
        if self.away:
            return [StoreUnavailable("away")] * len(appends)
        return await super().append(appends)


@pytest.fixture
async def store() -> Store:
    made = Store()
    for key in (ONE, TWO):
        await made.create(SessionRecord(key, "m", PROMPT, SamplingParams(max_tokens=9)))
    return made


async def nothing_more(events: asyncio.Queue[Event]) -> bool:
    await asyncio.sleep(0.02)
    return events.empty()


async def committed(store: Store, key: SessionKey) -> tuple[int, ...]:
    kept = await store.get(key.session_id)
    assert kept is not None
    return kept.committed_ids


async def test_a_steps_sessions_go_to_the_store_together(store: Store) -> None:
    committer = Committer(store)
    async with committer.running():
        one, two = (committer.open(key, 3) for key in (ONE, TWO))
        committer.push([(ONE, StepOutcome((5, 6), 1, drafted=4)), (TWO, StepOutcome((7,), 0))])
        assert await one.get() == Tokens(3, (5, 6), 1, True, 4)
        assert await two.get() == Tokens(3, (7,), 0, True)
        committer.push([(ONE, StepOutcome((8,), 0, FinishReason.STOP, Receipt()))])
        assert await one.get() == Tokens(5, (8,), 0, True)
        assert await one.get() == Finished(FinishReason.STOP, Receipt())
    assert store.calls == [2, 1]
    ended = await store.get("one")
    assert ended is not None
    assert (ended.committed_ids, ended.finish_reason) == ((5, 6, 8), FinishReason.STOP)


async def test_nothing_is_emitted_before_the_store_has_answered(store: Store) -> None:
    committer = Committer(store)
    async with committer.running():
        one = committer.open(ONE, 3)
        store.answers.clear()
        for token in (5, 6, 7):
            committer.push([(ONE, StepOutcome((token,), 0))])
            assert await nothing_more(one)
        store.answers.set()
        assert [(await one.get()).token_ids for _ in range(3)] == [(5,), (6,), (7,)]  # type: ignore[union-attr]
    # What came meanwhile went with the second call.
    assert store.calls == [1, 1]
    assert await committed(store, ONE) == (5, 6, 7)


async def test_what_the_store_missed_it_gets_with_the_next_tokens(store: Store) -> None:
    committer = Committer(store)
    async with committer.running():
        one = committer.open(ONE, 3)
        store.away = True
        committer.push([(ONE, StepOutcome((5,), 0))])
        assert await one.get() == Tokens(3, (5,), 0, False)
        store.away = False
        committer.push([(ONE, StepOutcome((6,), 0))])
        assert await one.get() == Tokens(4, (6,), 0, True)
    assert await committed(store, ONE) == (5, 6)


async def test_a_fenced_session_emits_nothing_more_and_others_go_on(store: Store) -> None:
    committer = Committer(store)
    async with committer.running():
        one, two = (committer.open(key, 3) for key in (ONE, TWO))
        await store.claim("one", "another")
        committer.push([(ONE, StepOutcome((5,), 0)), (TWO, StepOutcome((7,), 0))])
        assert isinstance(await one.get(), Lost)
        assert await two.get() == Tokens(3, (7,), 0, True)
        committer.push([(ONE, StepOutcome((6,), 0))])
        assert await nothing_more(one)
    assert await committed(store, ONE) == ()


async def test_without_a_store_nothing_is_durable() -> None:
    committer = Committer(None)
    async with committer.running():
        one = committer.open(ONE, 3)
        committer.push([(ONE, StepOutcome((5,), 0)), (TWO, StepOutcome((5,), 0))])
        assert await one.get() == Tokens(3, (5,), 0, False)


async def test_every_session_hears_that_the_verifier_is_broken(store: Store) -> None:
    committer = Committer(store)
    before = committer.open(ONE, 3)
    committer.fail()
    assert await before.get() == Broken()
    assert await committer.open(TWO, 3).get() == Broken()
