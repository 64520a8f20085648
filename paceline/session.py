"""A session's key, why it ended, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


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
class Receipt:
    """What a session cost and what speculation gave it, since it was opened."""

    steps: int = 0
    committed_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    drafted_steps: int = 0

    @property
    def acceptance_length(self) -> float:
        """Committed tokens per verify step, bonus included (the papers' tau)."""
        return self.committed_tokens / self.steps if self.steps else 0.0
