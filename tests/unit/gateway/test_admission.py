"""The door of a gateway: who goes in, who waits and for how long, what is charged, what the refused hear."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import pytest

from gateway import admission
from gateway.admission import RESERVED_TOKENS, AdmissionControl, Place
from gateway.caller import ANYBODY, Caller
from gateway.errors import RequestError
from gateway.limits import (
    Account,
    Admission,
    Ask,
    LedgerUnavailableError,
    MemoryLedger,
    Outcome,
    Settlement,
    UsageLimits,
)
from paceline.api_keys import Scope
from tests.waiting import wait_until

UNLIMITED = UsageLimits()


class Watched(MemoryLedger):
    """Counts the requests that wait; can be away."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Ask] = []
        self.queued: set[str] = set()
        self.there = True

    async def admit(self, ask: Ask) -> Admission:
        self.check()
        self.asked.append(ask)
        admission = await super().admit(ask)
        (self.queued.add if admission.outcome is Outcome.QUEUED else self.queued.discard)(ask.id)
        return admission

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        self.check()
        await super().settle(settlements)

    async def left(self, account: Account) -> int:
        """Tokens that an account has left."""
        admission = await super().admit(Ask("probe", (account,), 0))
        await super().settle([Settlement(account, ended=("probe",))])
        assert admission.left[0] is not None
        return admission.left[0]

    def check(self) -> None:
        if not self.there:
            raise LedgerUnavailableError("away")


def key(id: str, *limits: int | None) -> Caller:
    return Caller(id, frozenset(Scope), UsageLimits(*limits))


@pytest.fixture
def ledger() -> Watched:
    return Watched()


@asynccontextmanager
async def door(
    ledger: Watched, everybody: UsageLimits = UNLIMITED, queue: float = 20.0
) -> AsyncIterator[AdmissionControl]:
    made = AdmissionControl(ledger, everybody, queue_seconds=queue)
    async with made.running():
        yield made


class Entering:
    """A request on its way in, in the background."""

    def __init__(self, door: AdmissionControl, caller: Caller) -> None:
        self.inside = asyncio.Event()
        self.leaving = asyncio.Event()
        self.task = asyncio.create_task(self._run(door, caller))

    async def _run(self, door: AdmissionControl, caller: Caller) -> None:
        async with asking(door, caller):
            self.inside.set()
            await self.leaving.wait()

    async def leave(self) -> None:
        self.leaving.set()
        await self.task


def asking(
    door: AdmissionControl, caller: Caller, prompt: int = 1, most: int = 1, session_id: str = ""
) -> AbstractAsyncContextManager[Place]:
    session_id = session_id or secrets.token_hex(4)
    return door.admitted(caller, session_id, prompt_tokens=prompt, max_tokens=most)


async def refusal(door: AdmissionControl, caller: Caller, prompt: int = 1) -> RequestError:
    with pytest.raises(RequestError) as caught:
        async with asking(door, caller, prompt):
            pass
    return caught.value


async def test_who_has_no_limits_is_not_counted(ledger: Watched) -> None:
    async with door(ledger) as doors, asking(doors, ANYBODY) as place:
        assert place.allowance is None
    assert not ledger.asked


async def test_a_full_key_without_a_queue_is_refused_and_another_is_not(ledger: Watched) -> None:
    async with door(ledger) as doors, asking(doors, key("a", 1, 0)):
        error = await refusal(doors, key("a", 1, 0))
        assert (error.kind.status, error.kind.code) == (429, "rate_limit_exceeded")
        assert "1 sessions are allowed at once for this API key" in error.message
        async with asking(doors, key("b", 1, 0)):
            pass


async def test_everybody_together_are_limited_too(ledger: Watched) -> None:
    async with door(ledger, UsageLimits(1, 0)) as doors, asking(doors, key("a", 5, 0)):
        for caller in (key("a", 5, 0), key("b", 5, 0), ANYBODY):
            error = await refusal(doors, caller)
            assert (error.kind.status, error.kind.code) == (429, "overloaded")


async def test_a_place_is_free_again_when_its_request_has_ended_or_failed(ledger: Watched) -> None:
    caller = key("a", 1, 5)
    async with door(ledger) as doors:
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                async with asking(doors, caller):
                    raise ZeroDivisionError
            async with asking(doors, caller):
                pass


async def test_the_queue_is_first_come_first_served(ledger: Watched) -> None:
    caller = key("a", 1, 5)
    async with door(ledger) as doors, AsyncExitStack() as stack:
        await stack.enter_async_context(asking(doors, caller))
        entering = []
        for count in range(4):
            entering.append(Entering(doors, caller))
            await wait_until(lambda count=count: len(ledger.queued) == count + 1, "it waits")
        await stack.aclose()
        for each in entering:
            await asyncio.wait_for(each.inside.wait(), 5)
            assert sum(other.inside.is_set() for other in entering) == entering.index(each) + 1
            await each.leave()


async def test_a_newcomer_does_not_overtake_who_waits(ledger: Watched) -> None:
    caller = key("a", 1, 5)
    async with door(ledger) as doors:
        first = Entering(doors, caller)
        await first.inside.wait()
        second = Entering(doors, caller)
        await wait_until(lambda: len(ledger.queued) == 1, "the second waits")
        first.leaving.set()
        # Before the place that it leaves is free.
        third = Entering(doors, caller)
        await asyncio.wait_for(second.inside.wait(), 5)
        assert not third.inside.is_set()
        for each in (first, second, third):
            await each.leave()


async def test_the_queue_is_bounded(ledger: Watched) -> None:
    caller = key("a", 1, 2)
    async with door(ledger) as doors:
        first = Entering(doors, caller)
        await first.inside.wait()
        waiting = [Entering(doors, caller) for _ in range(2)]
        await wait_until(lambda: len(ledger.queued) == 2, "two wait")
        error = await refusal(doors, caller)
        assert "2 requests wait already" in error.message
        for each in (first, *waiting):
            await each.leave()


async def test_one_keys_crowd_is_in_nobody_elses_way(ledger: Watched) -> None:
    crowd, other = key("a", 2, 50), key("b", 2, 50)
    async with door(ledger, UsageLimits(2, 100)) as doors:
        crowded = [Entering(doors, crowd) for _ in range(22)]
        await wait_until(lambda: len(ledger.queued) == 20, "the crowd waits")
        single = Entering(doors, other)
        await wait_until(lambda: len(ledger.queued) == 21, "the other waits too")
        for inside in range(3, 7):
            # One place is free at a time, and both keys ask for it.
            leaving = next(each for each in crowded if each.inside.is_set() and not each.leaving.is_set())
            await leaving.leave()
            await wait_until(
                lambda inside=inside: sum(each.inside.is_set() for each in (single, *crowded)) == inside,
                "the next is in",
            )
        assert single.inside.is_set()
        for each in (*crowded, single):
            each.leaving.set()
        await asyncio.gather(single.task, *(each.task for each in crowded))


async def test_who_waits_in_vain_is_told_so(ledger: Watched) -> None:
    caller = key("a", 1, 5)
    async with door(ledger, queue=0.05) as doors, asking(doors, caller):
        error = await refusal(doors, caller)
        assert error.kind.status == 429
        assert "none has ended within 0.05 seconds" in error.message
    assert not ledger.queued - {ledger.asked[-1].id}


async def test_who_gives_up_waiting_leaves_the_queue(ledger: Watched) -> None:
    caller = key("a", 1, 1)
    async with door(ledger) as doors, asking(doors, caller):
        gone = Entering(doors, caller)
        await wait_until(lambda: len(ledger.queued) == 1, "it waits")
        gone.task.cancel()
        await asyncio.wait({gone.task})
        ledger.queued.clear()
        other = Entering(doors, caller)
        # Its place is free as soon as the ledger has been told.
        await wait_until(lambda: len(ledger.queued) == 1 or other.task.done(), "another is at the door")
        if other.task.done():
            assert isinstance(other.task.exception(), RequestError)
            other = Entering(doors, caller)
            await wait_until(lambda: len(ledger.queued) == 1, "another waits")
        other.task.cancel()


async def test_a_request_is_charged_what_it_used(ledger: Watched) -> None:
    caller = key("a", None, None, 6000)
    account = Account("key:a", caller.limits)
    async with door(ledger) as doors:
        async with asking(doors, caller, prompt=100, most=10**6) as place:
            assert place.allowance is not None
            assert place.allowance.limit == 6000
            assert place.allowance.left == 6000 - 100 - RESERVED_TOKENS
            assert place.allowance.full_in_seconds == pytest.approx((100 + RESERVED_TOKENS) / 100)
            place.generated = 50
        assert 6000 - 150 <= await ledger.left(account) < 6000 - 150 + 500


async def test_what_comes_beyond_the_reservation_is_charged_as_it_comes(
    ledger: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "_SETTLE_SECONDS", 0.02)
    caller = key("a", None, None, 6000)
    async with door(ledger) as doors, asking(doors, caller, prompt=100, most=10**6) as place:
        place.generated = 8000
        await wait_until(lambda: place.charged == 8100, "it is charged")
        # 2100 tokens overdrawn and 2 to come, at 100 a second.
        assert (await refusal(doors, caller)).retry_after == pytest.approx(21, abs=5)


async def test_who_has_used_up_its_tokens_is_told_when_there_are_enough(ledger: Watched) -> None:
    caller = key("a", None, None, 60)
    async with door(ledger) as doors:
        async with asking(doors, caller, prompt=60):
            pass
        error = await refusal(doors, caller, prompt=30)
    assert (error.kind.status, error.kind.code) == (429, "rate_limit_exceeded")
    assert error.retry_after == pytest.approx(31, abs=2)


async def test_a_request_of_more_than_a_minutes_tokens_gets_in_when_none_are_used(ledger: Watched) -> None:
    caller = key("a", None, None, 60)
    async with door(ledger) as doors, asking(doors, caller, prompt=500):
        assert (await refusal(doors, caller)).retry_after == pytest.approx(442, abs=2)


async def test_a_refused_client_waits_longer_where_sessions_last_longer(ledger: Watched) -> None:
    caller = key("a", 1, 0)
    async with door(ledger) as doors:
        async with asking(doors, caller):
            soon = (await refusal(doors, caller)).retry_after
        doors._mean_seconds = 30.0
        async with asking(doors, caller):
            late = (await refusal(doors, caller)).retry_after
    assert soon == 1
    assert late == pytest.approx(30)


async def test_without_a_ledger_nobody_new_gets_in_and_it_is_told_later(ledger: Watched) -> None:
    caller = key("a", 1, 0)
    async with door(ledger) as doors:
        async with asking(doors, caller):
            ledger.there = False
            error = await refusal(doors, caller)
            assert (error.kind.status, error.kind.code) == (503, "unavailable")
        ledger.there = True
        await wait_until(lambda: not doors._ended, "it hears of the end", 10)
        async with asking(doors, caller):
            pass


async def test_what_a_ledger_need_not_hear_any_more_does_not_pile_up_while_it_is_away(
    ledger: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "LEASE_SECONDS", 0.1)
    monkeypatch.setattr(admission, "_SETTLE_SECONDS", 0.05)
    refused, charged = key("a", 1, 0), key("b", None, None, 6000)
    async with door(ledger) as doors:
        async with asking(doors, charged, prompt=600):
            ledger.there = False
        for _ in range(20):
            await refusal(doors, refused)
        await wait_until(lambda: len(doors._ended) == 1, "only the charge is kept", 10)
        ledger.there = True
        await wait_until(lambda: not doors._ended, "it hears of that", 10)
        assert 5400 <= await ledger.left(Account("key:b", charged.limits)) < 5500


async def test_a_session_that_is_resumed_keeps_its_place_and_is_not_charged_again(ledger: Watched) -> None:
    caller = key("a", 1, 0, 6000)
    async with door(ledger) as doors:
        async with asking(doors, caller, prompt=6000, session_id="s"):
            # Its first stream has not been missed yet.
            async with asking(doors, caller, prompt=0, most=0, session_id="s") as place:
                place.generated = 7
            assert (await refusal(doors, caller)).kind.status == 429
        assert await ledger.left(Account("key:a", caller.limits)) < 500


async def test_places_outlive_their_lease(ledger: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.limits.memory.LEASE_SECONDS", 0.2)
    monkeypatch.setattr(admission, "_SETTLE_SECONDS", 0.05)
    caller = key("a", 1, 0)
    async with door(ledger) as doors, asking(doors, caller):
        await asyncio.sleep(0.5)
        assert (await refusal(doors, caller)).kind.status == 429


def test_a_place_is_due_its_reservation_until_it_ends() -> None:
    place = Place(Ask("1", (), 110), prompt_tokens=10, charged=110)
    place.generated = 5
    assert place.due == 110
    place.generated = 200
    assert place.due == 210
    place.generated, place.ended = 5, True
    assert place.due == 15


@pytest.mark.parametrize(("expected", "length"), [(100, 400), (400, 100)])
async def test_a_prompt_is_charged_at_once_what_it_turns_out_to_be(
    ledger: Watched, expected: int, length: int
) -> None:
    limited = Account("key:a", UsageLimits(tokens_per_minute=100_000))
    async with door(ledger) as doors:
        async with asking(doors, key("a", None, None, 100_000), prompt=expected, most=50) as place:
            await doors.tokenised(place, length, 50)
            assert await ledger.left(limited) == pytest.approx(100_000 - length - 50, abs=50)
            assert place.allowance is not None
            assert place.allowance.left == pytest.approx(100_000 - length - 50, abs=50)
            place.generated = 20
        await wait_until(lambda: place.freed, "it is settled")
    assert await ledger.left(limited) == pytest.approx(100_000 - length - 20, abs=50)


async def test_a_prompt_is_charged_with_the_next_settlement_where_the_ledger_is_away(
    ledger: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = Account("key:a", UsageLimits(tokens_per_minute=100_000))
    monkeypatch.setattr(admission, "_SETTLE_SECONDS", 0.01)
    async with (
        door(ledger) as doors,
        asking(doors, key("a", None, None, 100_000), prompt=100, most=50) as place,
    ):
        ledger.there = False
        await doors.tokenised(place, 40_000, 50)
        ledger.there = True
        await wait_until(lambda: place.charged == 40_000, "it is charged")
        assert await ledger.left(limited) == pytest.approx(60_000, abs=100)
