"""A session's key, why it ended, and what it cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

# Most sources that a receipt tells apart; the rest of them counts as one.
MAX_RECEIPT_SOURCES = 16
OTHER_SOURCES = "other"


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
class Receipt:
    """What a session cost and what speculation gave it, since it was opened."""

    steps: int = 0
    committed_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    drafted_steps: int = 0
    # By source, as `add_up` has them.
    sources: tuple[SourceTokens, ...] = ()

    @property
    def acceptance_length(self) -> float:
        """Committed tokens per verify step, bonus included (the papers' tau)."""
        return self.committed_tokens / self.steps if self.steps else 0.0
