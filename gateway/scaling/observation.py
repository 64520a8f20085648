"""The fleet's statuses as signals of its pools."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum
from typing import Any, Protocol

from gateway.scaling.rates import Watched
from gateway.scaling.signals import DrafterSignals, VerifierSignals
from paceline.pools import DEFAULT_POOL


class Tier(StrEnum):
    """A kind of pods that is scaled on its own."""

    VERIFIER = "verifier"
    DRAFTER = "drafter"


class Said(Protocol):
    """A pod, as scaling reads it."""

    # Its last status; None before the first.
    status: Any
    # Why it gets no session of this gateway; empty if it may get some.
    misfit: str

    @property
    def draining(self) -> bool:
        """Whether it is being stopped."""
        ...


class Fleet(Protocol):
    """The fleet, as scaling reads it."""

    @property
    def verifiers(self) -> Mapping[str, Said]:
        """By address."""
        ...

    @property
    def drafters(self) -> Mapping[str, Said]:
        """By address."""
        ...


class Observation:
    """What all pods of a fleet last said.

    A pod that does not answer counts as it last was for `memory_seconds`: that a gateway cannot reach pods
    must not make anybody take them away.
    """

    def __init__(self, memory_seconds: float) -> None:
        self._memory_seconds = memory_seconds
        self._pods: dict[Tier, dict[Said, Watched]] = {tier: {} for tier in Tier}
        self._now = 0.0

    def look(self, fleet: Fleet, at: float) -> None:
        """Take the statuses that the fleet has at the time `at`, on any clock that only goes on."""
        self._now = at
        self._look(Tier.VERIFIER, fleet.verifiers.values(), at)
        self._look(Tier.DRAFTER, fleet.drafters.values(), at)

    def _look(self, tier: Tier, pods: Iterable[Said], at: float) -> None:
        before = self._pods[tier]
        now: dict[Said, Watched] = {}
        for pod in pods:
            watched = now[pod] = before.get(pod) or Watched(at)
            if pod.status is not None and not pod.misfit:
                watched.take(pod.status, at)
                watched.draining = pod.draining
        self._pods[tier] = now

    @property
    def unheard(self) -> int:
        """Pods that are known of and have never answered."""
        return sum(watched.status is None for pods in self._pods.values() for watched in pods.values())

    @property
    def heard(self) -> int:
        """Pods that have answered."""
        return len([*self._all(Tier.VERIFIER), *self._all(Tier.DRAFTER)])

    def pools(self, tier: Tier) -> Collection[str]:
        """The pools whose pods are known."""
        return {_pool(watched) for watched in self._all(tier)}

    def pods(self, tier: Tier, pool: str) -> int:
        """Pods of a pool that take sessions."""
        return len(_open(self._of(tier, pool)))

    def verifiers(self, pool: str, queued: float) -> VerifierSignals:
        """The signals of a pool of verifiers; `queued` requests wait for a verifier of any pool."""
        watched = self._of(Tier.VERIFIER, pool)
        taking, all_taking = len(_open(watched)), len(_open(self._all(Tier.VERIFIER)))
        statuses = [each.status for each in watched]
        without_kv = float(sum(status.waiting for status in statuses))
        sessions = float(sum(status.sessions for status in statuses))
        running = sessions - without_kv
        rows = sum(each.rates.rows for each in watched)
        kv = sum(status.kv_used / status.kv_total for status in statuses if status.kv_total)
        return VerifierSignals(
            rows=rows,
            kv=kv,
            sessions=sessions,
            queued=queued * (taking / all_taking if all_taking else 1.0),
            without_kv=without_kv,
            rows_each=max(1.0, rows / running) if running >= 1 else 1.0,
            kv_each=kv / running if running >= 1 else 0.0,
            full_rows=_mean(status.full_rows for status in statuses),
            max_sessions=_mean(status.max_sessions for status in statuses),
        )

    def drafters(self, pool: str, *, starvation_limit: float) -> DrafterSignals:
        """The signals of a pool of drafters.

        Of the trees that verifiers want, a pool has the part that its drafters have of all sessions that
        are drafted for. One without any pod is wanted where there is no drafter at all, and else, above the
        limit, for the trees that are missing.
        """
        watched = self._of(Tier.DRAFTER, pool)
        verifiers = self._all(Tier.VERIFIER)
        wanted = sum(each.rates.wanted for each in verifiers)
        missing = sum(each.rates.missing for each in verifiers)
        share = self._share_of_drafts(watched, missing / wanted if wanted else 0.0, starvation_limit)
        return DrafterSignals(
            pods=float(len(_open(watched))),
            busy=sum(each.rates.busy for each in watched),
            least_busy=min((each.rates.busy for each in _open(watched)), default=0.0),
            wanted=share * wanted,
            missing=share * missing,
            drafting=share * sum(each.rates.wanting * each.status.sessions for each in verifiers),
            sessions=float(sum(each.status.sessions for each in verifiers)),
            max_sessions=_mean(each.status.max_sessions for each in watched),
        )

    def _share_of_drafts(self, watched: Collection[Watched], starvation: float, limit: float) -> float:
        everywhere = self._all(Tier.DRAFTER)
        if len(watched) == len(everywhere):
            return 1.0
        if not watched:
            return starvation if starvation > limit else 0.0
        sessions = float(sum(each.status.sessions for each in everywhere))
        if not sessions:
            return len(watched) / len(everywhere)
        return float(sum(each.status.sessions for each in watched)) / sessions

    def _of(self, tier: Tier, pool: str) -> list[Watched]:
        return [watched for watched in self._all(tier) if _pool(watched) == pool]

    def _all(self, tier: Tier) -> list[Watched]:
        return [
            watched
            for watched in self._pods[tier].values()
            if watched.status is not None and self._now - watched.heard <= self._memory_seconds
        ]


def _pool(watched: Watched) -> str:
    return watched.status.pool or DEFAULT_POOL


def _open(watched: Collection[Watched]) -> list[Watched]:
    return [each for each in watched if not each.draining]


def _mean(numbers: Iterable[float]) -> float:
    given = list(numbers)
    return sum(given) / len(given) if given else 0.0
