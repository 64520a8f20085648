"""Counts of this process alone, with the same contract as those in Redis."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from gateway.limits.base import LEASE_SECONDS, Account, Admission, Ask, Outcome, Settlement


@dataclass(slots=True)
class _Counts:
    """The counts of one account. Each place has the time at which its lease ends."""

    level: float
    at: float
    running: dict[str, float] = field(default_factory=dict)
    waiting: dict[str, float] = field(default_factory=dict)


class MemoryLedger:
    """See `Ledger`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts: dict[str, _Counts] = {}

    async def admit(self, ask: Ask) -> Admission:
        now = self._clock()
        counts = [self._fresh(account, now) for account in ask.accounts]
        if all(ask.id in each.running for each in counts):
            ask = replace(ask, tokens=0, behind=False)
        admission = _judge(ask, counts)
        for account, each in zip(ask.accounts, counts, strict=True):
            each.waiting.pop(ask.id, None)
            if admission.outcome is Outcome.ADMITTED:
                _hold(account, each, ask, now)
            elif admission.outcome is Outcome.QUEUED:
                each.waiting[ask.id] = now + LEASE_SECONDS
        if admission.outcome is not Outcome.ADMITTED:
            return admission
        left = tuple(
            None if account.limits.tokens_per_minute is None else math.floor(each.level)
            for account, each in zip(ask.accounts, counts, strict=True)
        )
        return Admission(Outcome.ADMITTED, ask.accounts[-1], left)

    def hold(self, ask: Ask) -> None:
        """Count a request that another ledger has admitted."""
        now = self._clock()
        for account in ask.accounts:
            _hold(account, self._fresh(account, now), ask, now)

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        now = self._clock()
        for settlement in settlements:
            account = settlement.account
            counts = self._fresh(account, now)
            if account.limits.tokens_per_minute is not None:
                counts.level = min(account.limits.tokens_per_minute, counts.level - settlement.tokens)
            for id in settlement.running:
                counts.running[id] = now + LEASE_SECONDS
            for id in settlement.waiting:
                if id not in counts.running:
                    counts.waiting[id] = now + LEASE_SECONDS
            for id in settlement.ended:
                counts.running.pop(id, None)
                counts.waiting.pop(id, None)

    async def close(self) -> None:
        """Nothing to close."""

    def _fresh(self, account: Account, now: float) -> _Counts:
        """An account's counts as of now."""
        full = float(account.limits.tokens_per_minute or 0)
        counts = self._counts.setdefault(account.name, _Counts(full, now))
        counts.level = min(full, counts.level + max(0.0, now - counts.at) * full / 60)
        counts.at = now
        # No lease ends later than one lease from now, even if the clock went back.
        last = now + LEASE_SECONDS
        counts.running = {id: min(end, last) for id, end in counts.running.items() if end > now}
        counts.waiting = {id: min(end, last) for id, end in counts.waiting.items() if end > now}
        return counts


def _hold(account: Account, counts: _Counts, ask: Ask, now: float) -> None:
    counts.running[ask.id] = now + LEASE_SECONDS
    counts.waiting.pop(ask.id, None)
    if account.limits.tokens_per_minute is not None:
        counts.level -= ask.tokens


def _judge(ask: Ask, counts: Sequence[_Counts]) -> Admission:
    """The answer to a request; changes nothing."""
    short: list[tuple[float, Account]] = []
    for account, each in zip(ask.accounts, counts, strict=True):
        rate = account.limits.tokens_per_minute
        if rate is not None and ask.tokens and each.level < min(ask.tokens, rate):
            short.append(((min(ask.tokens, rate) - each.level) * 60 / rate, account))
    if short:
        seconds, account = max(short, key=lambda pair: pair[0])
        return Admission(Outcome.TOKENS, account, seconds=seconds)
    full = next(
        (
            account
            for account, each in zip(ask.accounts, counts, strict=True)
            if account.limits.concurrent_sessions is not None
            and len(each.running.keys() - {ask.id}) >= account.limits.concurrent_sessions
        ),
        None,
    )
    if full is None and not ask.behind:
        return Admission(Outcome.ADMITTED, ask.accounts[-1])
    for account, each in zip(ask.accounts, counts, strict=True):
        others = len(each.waiting.keys() - {ask.id})
        if account.limits.queued_requests is not None and others >= account.limits.queued_requests:
            return Admission(Outcome.FULL, account, waiting=others)
    return Admission(Outcome.QUEUED, full or ask.accounts[-1])
