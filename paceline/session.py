"""A session's key, why it ended, and what it cost."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import zip_longest

# Most sources that a receipt tells apart; the rest of them counts as one.
MAX_RECEIPT_SOURCES = 16
OTHER_SOURCES = "other"
# Depths that a receipt tells apart; deeper nodes count in the last.
MAX_RECEIPT_DEPTHS = 64
# Names of drafting methods.
METHOD_NAME = re.compile(r"[a-z0-9_-]{1,32}")
# The method that drafts from a client's own prediction of its answer, and the most ids that it takes of one.
PREDICTION = "prediction"
MAX_PREDICTION_IDS = 1 << 17


class FinishReason(StrEnum):
    """Why a session produced its last token; values are OpenAI's words where it has one."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class SessionKey:
    """A session and the owner that may extend it: `epoch` grows at every hand-over."""

    session_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class SourceTokens:
    """What came of one drafting method's nodes. A node that several proposed counts for each."""

    # Empty for a drafter that named none.
    source: str
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def name(self) -> str:
        """What the source is called where people read it."""
        return self.source or "unnamed"


def add_up(counts: Iterable[SourceTokens]) -> tuple[SourceTokens, ...]:
    """One count for each source, the most accepted first; at most `MAX_RECEIPT_SOURCES`."""
    totals: dict[str, SourceTokens] = {}
    for each in counts:
        total = totals.get(each.source)
        totals[each.source] = each if total is None else _sum(total, each)
    ranked = sorted(
        totals.values(), key=lambda each: (-each.accepted_tokens, -each.drafted_tokens, each.source)
    )
    if len(ranked) <= MAX_RECEIPT_SOURCES:
        return tuple(ranked)
    told = [each for each in ranked if each.source != OTHER_SOURCES][: MAX_RECEIPT_SOURCES - 1]
    rest = SourceTokens(OTHER_SOURCES)
    for each in ranked:
        if each not in told:
            rest = _sum(rest, each)
    return (*told, rest)


def _sum(one: SourceTokens, other: SourceTokens) -> SourceTokens:
    return replace(
        one,
        drafted_tokens=one.drafted_tokens + other.drafted_tokens,
        accepted_tokens=one.accepted_tokens + other.accepted_tokens,
    )


@dataclass(frozen=True, slots=True)
class SpeculationLimits:
    """What a session's client allows its drafts; never changes the text."""

    # Most nodes of a step's tree, and its greatest depth; 0 leaves either to the verifier.
    max_nodes: int = 0
    max_depth: int = 0
    # Only nodes of this drafting method, and nodes that lead to them; empty allows all.
    method: str = ""


NO_LIMITS = SpeculationLimits()


@dataclass(frozen=True, slots=True)
class DraftCosts:
    """What a session's drafts cost."""

    # Verified nodes of each depth: the first entry is of depth 1.
    by_depth: tuple[int, ...] = ()
    # How long its steps waited for trees.
    wait_seconds: float = 0.0
    # Of the trees that came for it.
    bytes: int = 0

    def and_(self, more: DraftCosts) -> DraftCosts:
        """Both together."""
        return DraftCosts(
            add_depths(self.by_depth, more.by_depth),
            self.wait_seconds + more.wait_seconds,
            self.bytes + more.bytes,
        )


NO_COSTS = DraftCosts()


def add_depths(one: Sequence[int], other: Sequence[int]) -> tuple[int, ...]:
    """Counts by depth, added up; at most `MAX_RECEIPT_DEPTHS` of them."""
    total = [a + b for a, b in zip_longest(one, other, fillvalue=0)]
    kept, deeper = total[:MAX_RECEIPT_DEPTHS], total[MAX_RECEIPT_DEPTHS:]
    if deeper:
        kept[-1] += sum(deeper)
    return tuple(kept)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a session cost and what speculation gave it, since it was opened."""

    steps: int = 0
    committed_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    drafted_steps: int = 0
    # By source, as `add_up` has them.
    sources: tuple[SourceTokens, ...] = ()
    # Accepted nodes of each depth.
    accepted_by_depth: tuple[int, ...] = ()
    drafts: DraftCosts = NO_COSTS
    # Until a verifier opened the session, from then to its first token, and from its first to its last.
    queued_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def acceptance_length(self) -> float:
        """Committed tokens per verify step, bonus included (the papers' tau)."""
        return self.committed_tokens / self.steps if self.steps else 0.0
