"""The ledger in memory, by a clock of the test's own: what time does to places and tokens."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gateway.limits import (
    Account,
    Admission,
    Ask,
    FallbackLedger,
    LedgerUnavailableError,
    MemoryLedger,
    Outcome,
    Settlement,
    UsageLimits,
)
from gateway.limits.base import LEASE_SECONDS

KEYS = {name: Account(name, UsageLimits(2, 2, 60)) for name in ("a", "b")}
ALL = Account("all", UsageLimits(3, 3, 100))


class Model(RuleBasedStateMachine):
    """A ledger against what its contract says, told from the whole history."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.ledger = MemoryLedger(lambda: self.now)
        # Of each request: its key and when its place in a session or a queue ends.
        self.running: dict[str, tuple[str, float]] = {}
        self.waiting: dict[str, tuple[str, float]] = {}
        # Of each account: when so many tokens were charged.
        self.charges: dict[str, list[tuple[float, int]]] = {"a": [], "b": [], "all": []}
        self.asked = 0

    def live(self, places: dict[str, tuple[str, float]], account: str) -> set[str]:
        return {id for id, (key, end) in places.items() if end > self.now and account in (key, "all")}

    def level(self, account: Account) -> float:
        full = float(account.limits.tokens_per_minute or 0)
        level, at = full, 0.0
        for when, tokens in self.charges[account.name]:
            level, at = min(full, min(full, level + (when - at) * full / 60) - tokens), when
        return min(full, level + (self.now - at) * full / 60)

    @rule(seconds=st.sampled_from([0.1, 1.0, LEASE_SECONDS / 2, LEASE_SECONDS, 60.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(key=st.sampled_from(["a", "b"]), tokens=st.integers(0, 150), behind=st.booleans())
    def come(self, key: str, tokens: int, behind: bool) -> None:
        self.asked += 1
        self.ask(f"r{self.asked}", key, tokens, behind)

    @rule(data=st.data(), tokens=st.integers(0, 30))
    def ask_again(self, data: Any, tokens: int) -> None:
        if waiting := sorted(self.live(self.waiting, "all")):
            id = data.draw(st.sampled_from(waiting))
            self.ask(id, self.waiting[id][0], tokens, False)

    @rule(data=st.data(), behind=st.booleans())
    def resume(self, data: Any, behind: bool) -> None:
        if running := sorted(self.live(self.running, "all")):
            id = data.draw(st.sampled_from(running))
            self.ask(id, self.running[id][0], 0, behind)

    def ask(self, id: str, key: str, tokens: int, behind: bool) -> None:
        accounts = (ALL, KEYS[key])
        expected = self.expected(id, accounts, tokens, behind)
        admission = asyncio.run(self.ledger.admit(Ask(id, accounts, tokens, behind)))
        assert admission.outcome is expected
        self.waiting.pop(id, None)
        if expected is Outcome.QUEUED:
            self.waiting[id] = (key, self.now + LEASE_SECONDS)
        elif expected is Outcome.ADMITTED:
            self.running[id] = (key, self.now + LEASE_SECONDS)
            for account in accounts:
                self.charges[account.name].append((self.now, tokens))
            for account, left in zip(accounts, admission.left, strict=True):
                assert left is not None
                assert math.isclose(left, math.floor(self.level(account)), abs_tol=1)
        elif expected is Outcome.TOKENS:
            # Then, and not much earlier, there are enough.
            now = self.now
            for seconds, enough in ((admission.seconds + 0.001, True), (admission.seconds - 0.1, False)):
                self.now = now + seconds
                assert self.affordable(accounts, tokens) is enough
            # Exactly the time before: some places end just now.
            self.now = now

    def affordable(self, accounts: tuple[Account, ...], tokens: int) -> bool:
        return not tokens or all(
            self.level(account) >= min(tokens, account.limits.tokens_per_minute or 0) - 1e-9
            for account in accounts
        )

    def expected(self, id: str, accounts: tuple[Account, ...], tokens: int, behind: bool) -> Outcome:
        if not self.affordable(accounts, tokens):
            return Outcome.TOKENS
        held = id in self.live(self.running, "all")
        if (held or not behind) and all(
            len(self.live(self.running, each.name) - {id}) < (each.limits.concurrent_sessions or 0)
            for each in accounts
        ):
            return Outcome.ADMITTED
        if all(
            len(self.live(self.waiting, each.name) - {id}) < (each.limits.queued_requests or 0)
            for each in accounts
        ):
            return Outcome.QUEUED
        return Outcome.FULL

    @rule(data=st.data(), tokens=st.integers(-20, 40), ends=st.booleans())
    def settle(self, data: Any, tokens: int, ends: bool) -> None:
        if not self.running:
            return
        # Perhaps one that has run out: it counts again.
        id = data.draw(st.sampled_from(sorted(self.running)))
        key = self.running[id][0]
        for account in (ALL, KEYS[key]):
            running, ended = ((), (id,)) if ends else ((id,), ())
            asyncio.run(self.ledger.settle([Settlement(account, tokens, running, (), ended)]))
            self.charges[account.name].append((self.now, tokens))
        if ends:
            del self.running[id]
        else:
            self.running[id] = (key, self.now + LEASE_SECONDS)

    @invariant()
    def tokens_keep_to_the_rate(self) -> None:
        for account in (ALL, *KEYS.values()):
            assert self.level(account) <= (account.limits.tokens_per_minute or 0)


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


class Away:
    """A shared ledger that can be away."""

    def __init__(self) -> None:
        self.there = True
        self.asked = 0
        self.real = MemoryLedger()

    async def admit(self, ask: Ask) -> Admission:
        self.asked += 1
        self.check()
        return await self.real.admit(ask)

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        self.check()
        await self.real.settle(settlements)

    def check(self) -> None:
        if not self.there:
            raise LedgerUnavailableError("away")

    async def close(self) -> None: ...


async def outcome(ledger: FallbackLedger, id: str) -> Outcome:
    return (await ledger.admit(Ask(id, (Account("k", UsageLimits(2, 0, None)),), 1))).outcome


async def test_counts_of_ones_own_go_on_where_the_shared_ones_went_away() -> None:
    shared = Away()
    ledger = FallbackLedger(shared)
    assert await outcome(ledger, "1") is Outcome.ADMITTED
    shared.there = False
    assert await outcome(ledger, "2") is Outcome.ADMITTED
    assert await outcome(ledger, "3") is Outcome.FULL


async def test_no_request_asks_for_a_ledger_that_is_away() -> None:
    shared = Away()
    ledger = FallbackLedger(shared)
    shared.there = False
    for id in "123":
        await outcome(ledger, id)
    assert shared.asked == 1


async def test_a_ledger_that_is_back_learns_what_was_let_in_without_it() -> None:
    shared = Away()
    ledger = FallbackLedger(shared)
    shared.there = False
    assert await outcome(ledger, "1") is Outcome.ADMITTED
    shared.there = True
    await ledger.settle([Settlement(Account("k", UsageLimits(2, 0, None)), running=("1",))])
    assert await outcome(ledger, "2") is Outcome.ADMITTED
    assert await outcome(ledger, "3") is Outcome.FULL


async def test_a_clock_that_goes_back_takes_no_tokens_and_keeps_no_place() -> None:
    times = [1000.0]
    ledger, account = MemoryLedger(lambda: times[0]), Account("k", UsageLimits(1, 0, 60))
    first = await ledger.admit(Ask("1", (account,), 30))
    assert first.left == (30,)
    times[0] = 100.0
    assert (await ledger.admit(Ask("2", (account,), 30))).outcome is Outcome.FULL
    times[0] += LEASE_SECONDS + 1
    admission = await ledger.admit(Ask("2", (account,), 30))
    assert (admission.outcome, admission.left) == (Outcome.ADMITTED, (16,))


@pytest.mark.parametrize("limits", [UsageLimits(), UsageLimits(queued_requests=3)])
def test_a_queue_alone_is_no_limit(limits: UsageLimits) -> None:
    assert not limits.any
