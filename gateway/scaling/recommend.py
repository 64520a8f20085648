"""How many pods a pool should have: pure functions of its signals, its past and the policy.

More pods are recommended as soon as the mean load of the last seconds needs them. Fewer are recommended only
after the load has needed fewer for all of `Policy.in_seconds`, since the last scale-out as well, and never
fewer than its 95th percentile needs. So a pool grows and shrinks at most once in that time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gateway.scaling.history import History
from gateway.scaling.policy import Policy
from gateway.scaling.signals import DrafterSignals, VerifierSignals

# Drafters that work less than this share of their time are not late for want of more drafters.
_IDLE_BUSY = 0.25
# Trees that were missing count as at most as much work as those that came.
_MOST_MISSING = 0.5
# A number of drafters that starved at some rate of wanted trees is not gone back to above this share of it.
_WARY = 0.8
# Sums of floats that ought to be whole are off by less.
_EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class Recommendation:
    """How many pods a pool should have, and why."""

    replicas: int
    reason: str
    # Pods that the load needs, in parts of one.
    needed: float = 0.0


@dataclass(frozen=True, slots=True)
class Need:
    """Pods that the load needs, in parts of one, and what needs them."""

    replicas: float
    why: str


def verifiers_needed(signals: VerifierSignals, policy: Policy) -> Need:
    """The most of what rows, KV and places need; at least one, for the next request cannot wait for a model.

    Those who wait are taken to need as much as each session that runs.
    """
    waiting = signals.queued + signals.without_kv
    rows = signals.rows + waiting * signals.rows_each
    kv = signals.kv + waiting * signals.kv_each
    needs = [Need(1.0, "one is always kept")]
    if signals.full_rows > 0:
        needs.append(
            Need(
                rows / (policy.verifier_load * signals.full_rows),
                f"{rows:.1f} rows at a time, of {signals.full_rows:.0f} that are full",
            )
        )
    needs.append(Need(kv / policy.verifier_kv, f"{kv:.2f} verifiers' worth of KV"))
    if signals.max_sessions > 0:
        places = signals.sessions + signals.queued
        needs.append(
            Need(
                places / (policy.places * signals.max_sessions),
                f"{places:.1f} sessions, of {signals.max_sessions:.0f} places each",
            )
        )
    most = max(needs, key=lambda need: need.replicas)
    return Need(most.replicas, f"{most.why}, {waiting:.1f} waiting")


def drafters_needed(signals: DrafterSignals, policy: Policy, history: History) -> Need:
    """What the work of drafting needs; none where no tree is expected to pay.

    Where all drafters do much, trees that were missing are work that was not done; where one does little,
    they are missing for another reason. Numbers of drafters that starved before are too few for as many
    wanted trees.
    """
    if signals.wanted <= 0:
        return Need(0.0, "no tree would pay" if signals.sessions > 0 else "no session runs")
    wants = f"{signals.wanted:.1f} trees a second wanted, {signals.starvation:.0%} missing"
    done = 1 - min(signals.starvation, _MOST_MISSING) if starving(signals, policy) else 1.0
    needs = [
        Need(1.0, wants),
        Need(signals.busy / done / policy.drafter_busy, f"{signals.busy:.2f} drafters' work, {wants}"),
    ]
    if signals.max_sessions > 0:
        places = signals.drafting / (policy.places * signals.max_sessions)
        needs.append(
            Need(places, f"{signals.drafting:.1f} sessions, of {signals.max_sessions:.0f} places each")
        )
    too_few = [pods for pods, rate in history.starved.items() if signals.wanted >= _WARY * rate]
    if too_few:
        needs.append(Need(max(too_few) + 1.0, f"{max(too_few)} starved at such a load, {wants}"))
    return max(needs, key=lambda need: need.replicas)


def starving(signals: DrafterSignals, policy: Policy) -> bool:
    """Whether drafters are too few: trees are missing although every drafter does much."""
    return signals.starvation > policy.starvation and signals.least_busy >= _IDLE_BUSY


def recommend_verifiers(
    signals: VerifierSignals, current: int, policy: Policy, history: History, now: float
) -> Recommendation:
    """For a pool of verifiers for which `current` were recommended last."""
    return _settled(verifiers_needed(signals, policy), current, policy, history, now)


def recommend_drafters(
    signals: DrafterSignals, current: int, policy: Policy, history: History, now: float
) -> Recommendation:
    """For a pool of drafters for which `current` were recommended last.

    Where drafts have not been worth a drafter for long, one is tried again: without any, nobody could know
    that the texts have changed.
    """
    need = drafters_needed(signals, policy, history)
    untried = now - history.zero_since >= policy.retry_seconds
    if current == 0 and need.replicas == 0 and signals.sessions > 0 and untried:
        return Recommendation(1, "drafts did not pay before; one drafter is tried again", 0.0)
    return _settled(need, current, policy, history, now)


def _settled(need: Need, current: int, policy: Policy, history: History, now: float) -> Recommendation:
    """A need as a whole number of pods, which grows at once and shrinks late."""
    if need.replicas > current * (1 + policy.tolerance) + _EPSILON:
        return Recommendation(_ceil(need.replicas), f"{need.replicas:.2f} needed: {need.why}", need.replicas)
    if not history.covers(now, policy.in_seconds):
        return Recommendation(current, "the load is not known for long enough to scale in", need.replicas)
    if now - history.scaled_out < policy.in_seconds:
        return Recommendation(current, "scaled out not long ago", need.replicas)
    recorded = history.with_need(now, need.replicas, keep_seconds=policy.in_seconds)
    p95 = recorded.p95()
    # Whoever drafted now and then keeps one.
    least = max(_ceil(p95), _ceil(need.replicas), int(recorded.most() > 0))
    if least >= current:
        return Recommendation(current, f"{need.replicas:.2f} needed: {need.why}", need.replicas)
    return Recommendation(
        least,
        f"{p95:.2f} were enough for 95 % of the last {policy.in_seconds:g} seconds: {need.why}",
        need.replicas,
    )


def _ceil(replicas: float) -> int:
    return math.ceil(replicas - _EPSILON)
