"""Tokens per second of one session by closed forms, from what was measured of its parts.

Three ways to draft, with the same acceptance length: only after the verdict (synchronous), beforehand at the
drafter (cached), beforehand at the verifier (pushed). Where the next tree is not there in time, a pushed
drafter's verifier decodes plainly. (SSD, arXiv 2603.03251, theorem 7, and renewal arguments.)
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Parts:
    """What the forms need; times in seconds."""

    # Committed tokens per step that has a tree.
    acceptance_length: float
    # Of a plain step, and of one that verifies a tree.
    plain_step: float
    tree_step: float
    # Between a verdict's arrival and its tree's departure.
    draft: float
    # How often a step's outcome lies in the tree that was drafted ahead.
    hit_rate: float


def plain(parts: Parts) -> float:
    """Without drafts."""
    return 1 / parts.plain_step


def synchronous(parts: Parts, round_trip: float) -> float:
    """Each tree is drafted after the verdict before it has come."""
    return parts.acceptance_length / (parts.draft + round_trip + parts.tree_step)


def cached(parts: Parts, round_trip: float) -> float:
    """The next tree is drafted while the verifier works; the round trip is never hidden."""
    hit = max(round_trip + parts.tree_step, parts.draft)
    miss = round_trip + parts.tree_step + parts.draft
    return parts.acceptance_length / (parts.hit_rate * hit + (1 - parts.hit_rate) * miss)


def pushed(parts: Parts, round_trip: float) -> float:
    """The next tree is at the verifier before the step ends; after a miss it decodes plainly meanwhile."""
    missing = round_trip + parts.draft
    if parts.hit_rate >= 1:
        return parts.acceptance_length / parts.tree_step
    run = 1 / (1 - parts.hit_rate)
    tokens = parts.acceptance_length * run + missing / parts.plain_step
    return tokens / (parts.tree_step * run + missing)
