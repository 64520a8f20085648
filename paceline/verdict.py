"""What one verify step said for one session, and the feedback a drafter asked for."""

from __future__ import annotations

from dataclasses import dataclass

from paceline.session import SessionKey
from paceline.tree import TokenTree


@dataclass(frozen=True, slots=True)
class Feedback:
    """The target's most likely next ids of each verified row, best first.

    Row 0 is the root's, its parent -1; every other row stands behind its parent's. `top_ids` holds
    `top_k` ids per entry of `row_tokens`, rows end to end.
    """

    row_tokens: tuple[int, ...]
    row_parents: tuple[int, ...]
    top_ids: tuple[int, ...]
    top_k: int

    @classmethod
    def of(cls, root: int, tree: TokenTree, top_ids: tuple[int, ...], top_k: int) -> Feedback:
        """Of the last committed token and every node of a verified tree, in its order."""
        return cls((root, *tree.tokens), (-1, *(parent + 1 for parent in tree.parents)), top_ids, top_k)


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
