"""What clients see follows what the store has answered for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from prometheus_client import REGISTRY

from paceline.sampling import SamplingParams
from paceline.session import FinishReason, Receipt, SessionKey
from paceline.store import Append, MemoryStore, SessionRecord, StoreError, StoreUnavailableError
from tests.waiting import wait_until
from verifier_svc.commit import Committer
from verifier_svc.events import Broken, Event, Faulty, Finished, Lost, StepOutcome, Tokens, Unrecorded

ONE, TWO = SessionKey("one", 1), SessionKey("two", 1)
PROMPT = (1, 2, 3)


class Store(MemoryStore):
    """Memory that can be away, or answer when told to; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        # Sessions that it cannot write, though it answers.
        self.refused: set[str] = set()
        self.answers = asyncio.Event()
        self.answers.set()
        self.calls: list[int] = []

    def committed(self, session_id: str) -> tuple[int, ...]:
        return self._records[session_id].committed_ids

    def finish_reason(self, session_id: str) -> FinishReason | None:
        return self._records[session_id].finish_reason

    def forget(self, session_id: str) -> None:
        del self._records[session_id]

    async def ping(self) -> None:
        if self.away:
            raise StoreUnavailableError("away")

    async def append(self, appends: Sequence[Append]) -> list[StoreError | None]:
        self.calls.append(len(appends))
        await self.answers.wait()
        if self.away:
            return [StoreUnavailableError("away")] * len(appends)
        errors = await super().append([each for each in appends if each.key.session_id not in self.refused])
        told = iter(errors)
        return [
            StoreUnavailableError("full") if each.key.session_id in self.refused else next(told)
            for each in appends
        ]


def relaxed(store: MemoryStore | None) -> Committer:
    return Committer(store, strict=False, patience_seconds=9)


def record(key: SessionKey) -> SessionRecord:
    return SessionRecord(key, "m", PROMPT, SamplingParams(max_tokens=9))


@pytest.fixture
async def store() -> Store:
    made = Store()
    for key in (ONE, TWO):
        await made.create(record(key))
    return made


async def tokens(events: asyncio.Queue[Event]) -> Tokens:
    event = await events.get()
    assert isinstance(event, Tokens)
    return event


def is_away() -> bool:
    """What the metric says of the store."""
    return REGISTRY.get_sample_value("paceline:store_away") == 1


async def nothing_more(events: asyncio.Queue[Event]) -> bool:
    await asyncio.sleep(0.02)
    return events.empty()


async def test_a_steps_sessions_go_to_the_store_together(store: Store) -> None:
    committer = relaxed(store)
    async with committer.running():
        one, two = (committer.open(record(key)) for key in (ONE, TWO))
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
    committer = relaxed(store)
    async with committer.running():
        one = committer.open(record(ONE))
        store.answers.clear()
        for token in (5, 6, 7):
            committer.push([(ONE, StepOutcome((token,), 0))])
            assert await nothing_more(one)
        store.answers.set()
        assert [(await tokens(one)).token_ids for _ in range(3)] == [(5,), (6,), (7,)]
    # What came meanwhile went with the second call.
    assert store.calls == [1, 1]
    assert store.committed("one") == (5, 6, 7)


async def test_a_fenced_session_emits_nothing_more_and_others_go_on(store: Store) -> None:
    committer = relaxed(store)
    async with committer.running():
        one, two = (committer.open(record(key)) for key in (ONE, TWO))
        await store.claim(SessionKey("one", 2))
        committer.push([(ONE, StepOutcome((5,), 0)), (TWO, StepOutcome((7,), 0))])
        assert isinstance(await one.get(), Lost)
        assert await two.get() == Tokens(3, (7,), 0, True)
        committer.push([(ONE, StepOutcome((6,), 0))])
        assert await nothing_more(one)
    assert store.committed("one") == ()


async def test_away_without_strictness_nobody_waits_and_what_was_missed_is_recorded(store: Store) -> None:
    committer = relaxed(store)
    async with committer.running():
        one, two = (committer.open(record(key)) for key in (ONE, TWO))
        store.away = True
        committer.push([(ONE, StepOutcome((5,), 0)), (TWO, StepOutcome((7,), 0))])
        assert await one.get() == Tokens(3, (5,), 0, False)
        store.answers.clear()  # Whoever asked now would wait.
        committer.push([(ONE, StepOutcome((6,), 0))])
        assert await one.get() == Tokens(4, (6,), 0, False)
        store.away = False
        store.answers.set()
        await wait_until(lambda: store.committed("one") == (5, 6), "it is recorded")
        assert store.committed("two") == (7,)
        committer.push([(TWO, StepOutcome((8,), 0))])
        assert [(await tokens(two)).durable for _ in range(2)] == [False, True]


async def test_away_with_strictness_tokens_wait(store: Store) -> None:
    committer = Committer(store, strict=True, patience_seconds=9)
    async with committer.running():
        one = committer.open(record(ONE))
        store.away = True
        for token in (5, 6):
            committer.push([(ONE, StepOutcome((token,), 0))])
            assert await nothing_more(one)
        store.away = False
        assert [await one.get() for _ in range(2)] == [Tokens(3, (5,), 0, True), Tokens(4, (6,), 0, True)]
        assert await nothing_more(one)
    assert store.committed("one") == (5, 6)


async def test_strictness_has_an_end(store: Store) -> None:
    committer = Committer(store, strict=True, patience_seconds=0)
    async with committer.running():
        one = committer.open(record(ONE))
        store.away = True
        committer.push([(ONE, StepOutcome((5,), 0))])
        assert isinstance(await one.get(), Unrecorded)


async def test_a_session_that_ends_while_the_store_is_away_is_recorded_after_all(store: Store) -> None:
    committer = relaxed(store)
    async with committer.running():
        one = committer.open(record(ONE))
        store.away = True
        committer.push([(ONE, StepOutcome((5,), 0, FinishReason.STOP, Receipt()))])
        assert [type(await one.get()) for _ in range(2)] == [Tokens, Finished]
        committer.close(ONE)
        store.away = False
        await wait_until(lambda: store.committed("one") == (5,), "it is recorded")
    assert store.finish_reason("one") is FinishReason.STOP


async def test_a_session_that_ends_while_the_store_takes_what_it_had_missed_is_recorded(store: Store) -> None:
    committer = relaxed(store)
    async with committer.running():
        one = committer.open(record(ONE))
        store.away = True
        committer.push([(ONE, StepOutcome((5,), 0))])
        assert await one.get() == Tokens(3, (5,), 0, False)
        store.away = False
        store.answers.clear()
        looks = len(store.calls)
        await wait_until(lambda: len(store.calls) > looks, "it is offered the first token")
        committer.push([(ONE, StepOutcome((6,), 0, FinishReason.STOP, Receipt()))])
        assert [type(await one.get()) for _ in range(2)] == [Tokens, Finished]
        committer.close(ONE)
        store.answers.set()
        await wait_until(lambda: store.committed("one") == (5, 6), "it is recorded")
    assert store.finish_reason("one") is FinishReason.STOP


async def test_relaxed_a_store_that_answers_and_does_not_write_is_away(store: Store) -> None:
    committer = relaxed(store)
    async with committer.running():
        one, two = (committer.open(record(key)) for key in (ONE, TWO))
        store.refused = {"one"}
        committer.push([(ONE, StepOutcome((5,), 0))])
        assert await one.get() == Tokens(3, (5,), 0, False)
        looks = len(store.calls)
        await wait_until(lambda: len(store.calls) > looks + 2, "it has looked")
        assert is_away()
        # What can be written is.
        committer.push([(TWO, StepOutcome((6,), 0))])
        assert await two.get() == Tokens(3, (6,), 0, False)
        await wait_until(lambda: store.committed("two") == (6,), "it is recorded")
        store.refused = set()
        await wait_until(lambda: not is_away(), "it is found")
        assert store.committed("one") == (5,)
        committer.push([(ONE, StepOutcome((7,), 0))])
        assert await one.get() == Tokens(4, (7,), 0, True)


async def test_strict_sessions_that_can_be_recorded_do_not_wait_for_those_that_cannot(store: Store) -> None:
    committer = Committer(store, strict=True, patience_seconds=9)
    async with committer.running():
        one, two = (committer.open(record(key)) for key in (ONE, TWO))
        store.refused = {"one"}
        for token in range(4):
            committer.push([(ONE, StepOutcome((token,), 0)), (TWO, StepOutcome((token,), 0))])
            assert await two.get() == Tokens(3 + token, (token,), 0, True)
        assert one.empty()
        store.refused = set()
        for token in range(4):
            assert await one.get() == Tokens(3 + token, (token,), 0, True)
        assert store.committed("one") == (0, 1, 2, 3)


@pytest.mark.parametrize("drawn", [(5, 6, 7, 8), (9,)], ids=["the same", "others"])
async def test_an_owner_goes_on_whatever_the_last_one_had_added(store: Store, drawn: tuple[int, ...]) -> None:
    """A claim whose answer was lost: its caller never saw the last owner's tokens, and draws its own."""
    key = SessionKey("one", 2)
    await store.append([Append(ONE, 3, (5, 6, 7))])
    await store.claim(key)
    committer = relaxed(store)
    async with committer.running():
        one = committer.open(record(key))
        for position, token in enumerate(drawn, start=3):
            committer.push([(key, StepOutcome((token,), 0))])
            assert await one.get() == Tokens(position, (token,), 0, True)
        assert store.committed("one") == drawn


async def test_a_step_without_tokens_does_not_find_a_store_that_is_away(store: Store) -> None:
    committer = relaxed(store)
    async with committer.running():
        one = committer.open(record(ONE))
        store.away = True
        committer.push([(ONE, StepOutcome((5,), 0))])
        await one.get()
        committer.push([])
        committer.push([(ONE, StepOutcome((6,), 0))])
        assert await one.get() == Tokens(4, (6,), 0, False)


async def test_a_later_owner_at_the_same_verifier_ends_the_earlier_one(store: Store) -> None:
    committer = relaxed(store)
    async with committer.running():
        one = committer.open(record(ONE))
        committer.lose(ONE)
        assert isinstance(await one.get(), Lost)


@pytest.mark.parametrize("lost", ["all of it", "its last ids", "its last owner"])
async def test_what_the_store_has_lost_is_recorded_anew(store: Store, lost: str) -> None:
    key = SessionKey("one", 2)
    await store.claim(key)
    committer = relaxed(store)
    async with committer.running():
        one = committer.open(record(key))
        committer.push([(key, StepOutcome((5, 6), 0))])
        assert await one.get() == Tokens(3, (5, 6), 0, True)
        if lost == "all of it":
            store.forget("one")
        else:
            await store.restore(record(key))
            if lost == "its last owner":
                store.forget("one")
                await store.create(record(ONE))
        committer.push([(key, StepOutcome((7,), 0))])
        assert await one.get() == Tokens(5, (7,), 0, True)
    kept = await store.get("one")
    assert kept is not None
    assert (kept.key, kept.committed_ids) == (key, (5, 6, 7))


async def test_without_a_store_nothing_is_durable() -> None:
    committer = relaxed(None)
    async with committer.running():
        one = committer.open(record(ONE))
        committer.push([(ONE, StepOutcome((5,), 0)), (TWO, StepOutcome((5,), 0))])
        assert await one.get() == Tokens(3, (5,), 0, False)


async def test_every_session_hears_that_the_verifier_is_broken(store: Store) -> None:
    committer = relaxed(store)
    before = committer.open(record(ONE))
    committer.fail()
    assert await before.get() == Broken()
    assert await committer.open(record(TWO)).get() == Broken()


async def test_without_a_store_nothing_is_kept_of_sessions_that_have_ended() -> None:
    """Else they pile up, and a verifier that is to stop waits for a store that there is not."""
    committer = relaxed(None)
    async with committer.running():
        events = committer.open(SessionRecord(ONE, "m", PROMPT, SamplingParams(max_tokens=1)))
        committer.push([(ONE, StepOutcome((4,), 0, FinishReason.LENGTH, Receipt()))])
        assert isinstance(await events.get(), Tokens)
        assert isinstance(await events.get(), Finished)
        committer.close(ONE)
        assert not committer.busy


async def test_a_session_that_cannot_go_on_is_told_what_it_came_to_and_is_over(store: Store) -> None:
    """Nobody resumes it: the next verifier would fail with it, too."""
    await store.create(record(ONE))
    committer = relaxed(store)
    async with committer.running():
        events = committer.open(record(ONE))
        committer.push([(ONE, StepOutcome((5,), 0))])
        committer.push([(ONE, StepOutcome((), 0, FinishReason.CANCELLED, fault=Faulty("no")))])
        assert await events.get() == Tokens(3, (5,), 0, True)
        assert await events.get() == Faulty("no")
    assert store.finish_reason("one") is FinishReason.CANCELLED
