"""A pool's recommendations under a load that a test gives, second by second."""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.scaling.history import History
from gateway.scaling.policy import Policy
from gateway.scaling.recommend import (
    Recommendation,
    recommend_drafters,
    recommend_verifiers,
    starving,
)
from gateway.scaling.signals import DrafterSignals, VerifierSignals

POLICY = Policy(in_seconds=60.0)


@dataclass
class Followed:
    """Asks once a second, as an autoscaler does, and keeps what it was told."""

    count: int
    policy: Policy = POLICY
    now: float = 0.0
    history: History = field(default_factory=lambda: History(since=0.0))
    told: list[Recommendation] = field(default_factory=list)
    # Where the number changed: when, from, to.
    changes: list[tuple[float, int, int]] = field(default_factory=list)

    def verifiers(self, signals: VerifierSignals, seconds: int = 1) -> int:
        for _ in range(seconds):
            self._take(recommend_verifiers(signals, self.count, self.policy, self.history, self.now))
        return self.count

    def drafters(self, signals: DrafterSignals, seconds: int = 1) -> int:
        for _ in range(seconds):
            if signals.pods:
                self.history = self.history.with_starvation(
                    int(signals.pods), signals.wanted, starving=starving(signals, self.policy)
                )
            self._take(recommend_drafters(signals, self.count, self.policy, self.history, self.now))
        return self.count

    def _take(self, made: Recommendation) -> None:
        if made.replicas != self.count:
            self.changes.append((self.now, self.count, made.replicas))
        self.history = self.history.after(
            self.now, self.count, made.replicas, made.needed, keep_seconds=self.policy.in_seconds
        )
        self.told.append(made)
        self.count = made.replicas
        self.now += 1.0
