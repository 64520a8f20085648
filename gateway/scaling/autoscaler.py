"""Follows the load of every pool and recommends how many pods it should have."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from opentelemetry.context import Context

from gateway.scaling import metrics
from gateway.scaling.history import History
from gateway.scaling.observation import Fleet, Observation, Tier
from gateway.scaling.policy import Policy
from gateway.scaling.recommend import Recommendation, recommend_drafters, recommend_verifiers, starving
from gateway.scaling.signals import DrafterSignals, VerifierSignals, mean
from paceline.service import spans, telemetry

log = telemetry.logger(__name__)

# How long a start waits for pods that are known of to answer.
_PATIENCE_SECONDS = 10.0
# Pools of a tier that are followed; those that were asked for and have no pods count, too.
_MOST_POOLS = 64

_S = TypeVar("_S", VerifierSignals, DrafterSignals)


class UnknownLoadError(Exception):
    """No recommendation can be made yet; the message says why."""


class TooManyPoolsError(Exception):
    """No further pool can be followed."""


@dataclass(slots=True)
class _Pool:
    """One pool's past and what is recommended for it."""

    history: History
    recommended: Recommendation
    # The signals of the last `Policy.out_seconds`, with their times.
    verifiers: deque[tuple[float, VerifierSignals]] = field(default_factory=deque)
    drafters: deque[tuple[float, DrafterSignals]] = field(default_factory=deque)


class Autoscaler:
    """Recommends; whoever asks scales. On the event loop."""

    def __init__(
        self,
        fleet: Fleet,
        policy: Policy,
        *,
        queued: Callable[[], float],
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`queued`: requests that wait for a place at a verifier. `seconds`: between two looks at pods."""
        self._fleet = fleet
        self._policy = policy
        self._queued = queued
        self._seconds = seconds
        self._clock = clock
        self._started = clock()
        self._observation = Observation(policy.in_seconds)
        self._pools: dict[tuple[Tier, str], _Pool] = {}
        self._settled = False
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Follow the load, until cancelled."""
        while True:
            try:
                self.look()
            except Exception:
                log.exception("no recommendation this time")
            await asyncio.sleep(self._seconds)

    def look(self) -> None:
        """Take the fleet's statuses, and recommend anew for every pool that is known of."""
        now = self._clock()
        self._observation.look(self._fleet, now)
        if not self._settled:
            waited = now - self._started >= _PATIENCE_SECONDS
            self._settled = self._observation.heard > 0 and (waited or not self._observation.unheard)
        if not self._settled:
            return
        for tier in Tier:
            for pool in self._observation.pools(tier):
                with suppress(TooManyPoolsError):
                    self._follow(tier, pool, now)
        changed = False
        for (tier, pool), known in self._pools.items():
            changed |= self._recommend(tier, pool, known, now)
        if changed:
            self._changed.set()
            self._changed = asyncio.Event()

    def recommendation(self, tier: Tier, pool: str) -> Recommendation:
        """For a pool, which is followed from now on. Raises `UnknownLoadError` and `TooManyPoolsError`."""
        if not self._settled:
            raise UnknownLoadError("no verifier and no drafter has answered this gateway yet")
        now = self._clock()
        known = self._follow(tier, pool, now)
        if not known.history.needed:
            self._recommend(tier, pool, known, now)
        return known.recommended

    async def recommendations(self, tier: Tier, pool: str) -> AsyncGenerator[Recommendation, None]:
        """For a pool, now and after each change of any pool's. Raises as `recommendation`."""
        while True:
            changed = self._changed
            yield self.recommendation(tier, pool)
            await changed.wait()

    def _follow(self, tier: Tier, pool: str, now: float) -> _Pool:
        known = self._pools.get((tier, pool))
        if known is None:
            if sum(other is tier for other, _ in self._pools) >= _MOST_POOLS:
                raise TooManyPoolsError(f"{_MOST_POOLS} pools of {tier}s are followed already")
            pods = self._observation.pods(tier, pool)
            found = Recommendation(pods, "pods that there are")
            known = self._pools[tier, pool] = _Pool(History(since=now), found)
        return known

    def _recommend(self, tier: Tier, pool: str, known: _Pool, now: float) -> bool:
        """Whether the number of pods has changed."""
        before, policy = known.recommended, self._policy
        if tier is Tier.VERIFIER:
            verifiers = self._observation.verifiers(pool, self._queued())
            recent = mean(_kept(known.verifiers, verifiers, now, policy.out_seconds))
            made = recommend_verifiers(recent, before.replicas, policy, known.history, now)
        else:
            drafters = self._observation.drafters(pool, starvation_limit=policy.starvation)
            lately = mean(_kept(known.drafters, drafters, now, policy.out_seconds))
            if drafters.pods and lately.pods == drafters.pods:
                known.history = known.history.with_starvation(
                    int(drafters.pods), lately.wanted, starving=starving(lately, policy)
                )
            made = recommend_drafters(lately, before.replicas, policy, known.history, now)
        known.history = known.history.after(
            now, before.replicas, made.replicas, made.needed, keep_seconds=policy.in_seconds
        )
        known.recommended = made
        metrics.RECOMMENDED.labels(tier=tier, pool=pool).set(made.replicas)
        metrics.NEEDED.labels(tier=tier, pool=pool).set(made.needed)
        if made.replicas == before.replicas:
            return False
        _say(tier, pool, before.replicas, made)
        return True


def _kept(recent: deque[tuple[float, _S]], newest: _S, now: float, seconds: float) -> list[_S]:
    """The signals of the last `seconds`, with the newest."""
    recent.append((now, newest))
    while recent[0][0] <= now - seconds and len(recent) > 1:
        recent.popleft()
    return [signals for _, signals in recent]


def _say(tier: Tier, pool: str, before: int, made: Recommendation) -> None:
    with spans.span("gateway.scale", Context()) as span:
        span.set_attribute(spans.TIER, tier)
        span.set_attribute(spans.POOL, pool)
        span.set_attribute(spans.REPLICAS, made.replicas)
        span.set_attribute(spans.REASON, made.reason)
    log.info(
        "another number of pods is recommended",
        tier=str(tier),
        pool=pool,
        replicas=made.replicas,
        before=before,
        reason=made.reason,
    )
