"""What one verify step said for one session, and the feedback a drafter asked for."""

from __future__ import annotations

from dataclasses import dataclass

from paceline.session import SessionKey


@dataclass(frozen=True, slots=True)
class Feedback:
    """The target's most likely next ids of each verified row, best first.

    `top_ids` holds `top_k` ids per entry of `row_tokens`, rows end to end.
    """

    row_tokens: tuple[int, ...]
    top_ids: tuple[int, ...]
    top_k: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """One session's outcome of a step; `base_length` is the length before it."""

    key: SessionKey
    base_length: int
    committed: tuple[int, ...]
    accepted: int = 0
    drafted: int = 0
    draft_budget: int = 0
    feedback: Feedback | None = None
    finished: bool = False
