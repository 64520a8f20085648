"""A session's drafter: what it was told and asked for, and the newest tree that it sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from paceline.tree import TokenTree

# The mean gain that is assumed of a session's trees before any was verified, in tokens.
HOPED_GAIN = 1.0
# Requests for trees that are remembered for a session, to measure how long an answer takes.
ASKED_TREES = 4


@dataclass(slots=True)
class Drafting:
    """The drafter of one session. Guarded by the lock of the table of sessions."""

    # Id of the drafter stream that has joined, 0 for none.
    stream_id: int = 0
    # Length of the text, in tokens, that the drafter has been told.
    told_length: int = 0
    # The newest tree that has come, and the length that it hangs on.
    tree: TokenTree | None = None
    tree_base: int = 0
    # Trees that have come since a step took one.
    trees_offered: int = 0
    # Whether a tree for the next step is expected to pay.
    wanted: bool = False
    # When the tree that is awaited now was asked for; 0 when none is.
    awaited_since: float = 0.0
    # When the last trees were asked for, by the length that they are to hang on.
    asked_at: dict[int, float] = field(default_factory=dict)
    # Running mean of the tokens that a tree gained, less those that its rows cost.
    tree_gain: float = HOPED_GAIN

    def join(self, stream_id: int, length: int) -> None:
        """A stream's drafter is told the whole text, of `length`, and drafts from now on."""
        if self.stream_id != stream_id:
            # It is another drafter's, and this one must not answer for it.
            self.tree = None
        self.stream_id = stream_id
        self.told_length = length

    def leave(self) -> None:
        """The session goes on without a drafter."""
        self.stream_id = 0
        self.awaited_since = 0.0
        self.tree = None

    def asked(self, length: int, now: float) -> None:
        """The drafter is asked for a tree on a text of `length`."""
        self.awaited_since = self.asked_at[length] = now
        if len(self.asked_at) > ASKED_TREES:
            del self.asked_at[min(self.asked_at)]

    def came(self, tree: TokenTree, base: int, *, length: int, now: float) -> float | None:
        """A tree on the first `base` of the text's `length` tokens came, and replaces the one before it.

        Returns the seconds since it was asked for; None when it was not, or too long ago.
        """
        self.tree, self.tree_base = tree, base
        self.trees_offered += 1
        if base == length:
            self.awaited_since = 0.0
        asked = self.asked_at.pop(base, None)
        return None if asked is None else now - asked

    def drop_tree(self) -> None:
        """The waiting tree is of no use any more."""
        self.tree = None

    def take(self, token_ids: Sequence[int], *, max_depth: int) -> tuple[TokenTree, bool]:
        """What the next step may verify of the waiting tree, and whether a tree was dropped as late.

        The tree is re-rooted along what was committed since its base; nodes deeper than `max_depth` are left
        out. It is used up either way. Nodes keep the drafter's order.
        """
        tree, self.tree, self.trees_offered = self.tree, None, 0
        if tree is None or not tree.tokens:
            return TokenTree(), False
        fitting = tree.reroot(token_ids[self.tree_base :])
        if not fitting.tokens:
            return TokenTree(), True
        depths = fitting.depths()
        if max(depths) > max_depth:
            fitting = fitting.select([node for node, depth in enumerate(depths) if depth <= max_depth])
        return fitting, False
