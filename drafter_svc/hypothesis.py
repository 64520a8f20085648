"""What this drafter believes of one session: the committed ids and the tree it sent on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from paceline.session import SamplingParams, SessionKey
from paceline.tree import TokenTree
from paceline.verdict import Feedback, Verdict

# Ids that a verified row's context is cut to: methods look no further back.
CONTEXT_IDS = 8


class OutOfStep(ValueError):
    """A verdict does not continue what is known: only a new Join with the right length can help."""


@dataclass(frozen=True, slots=True)
class Row:
    """One verified row: the last ids up to and with its own, and the target's best next ids.

    `position` is the absolute one that `top_ids` are for; None when the row's parent is not known.
    """

    context: tuple[int, ...]
    top_ids: tuple[int, ...]
    position: int | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a verdict taught: ids from `start` on are newly committed; rows hold the feedback."""

    start: int
    committed: tuple[int, ...]
    rows: tuple[Row, ...]


class Hypothesis:
    """One session as the drafter knows it. `ids` is prompt + committed and only ever grows."""

    def __init__(self, key: SessionKey, sampling: SamplingParams, known_ids: Sequence[int]) -> None:
        self.key = key
        self.sampling = sampling
        self.ids: list[int] = list(known_ids)
        self._sent = TokenTree()
        self._sent_base = len(self.ids)

    @property
    def base_length(self) -> int:
        """prompt + committed length known here: where the next tree hangs."""
        return len(self.ids)

    def sent(self, tree: TokenTree) -> None:
        """Remember the tree now sent for the present base length."""
        self._sent = tree
        self._sent_base = len(self.ids)

    def learn(self, verdict: Verdict) -> Outcome:
        """Append what was committed; raises `OutOfStep` when ids between are missing or differ."""
        known = len(self.ids)
        overlap = known - verdict.base_length
        if overlap < 0:
            raise OutOfStep(f"verdict starts at {verdict.base_length}, only {known} ids are known")
        seen = verdict.committed[:overlap]
        if tuple(self.ids[verdict.base_length : verdict.base_length + len(seen)]) != seen:
            raise OutOfStep(f"verdict from {verdict.base_length} contradicts the known ids")
        rows = () if verdict.feedback is None else tuple(self._rows(verdict.base_length, verdict.feedback))
        fresh = verdict.committed[overlap:]
        self.ids.extend(fresh)
        return Outcome(start=known, committed=fresh, rows=rows)

    def _rows(self, base: int, feedback: Feedback) -> Iterator[Row]:
        """Feedback rows with their contexts; of a tree that cannot be told, only each row's own id."""
        count = len(feedback.row_tokens)
        tops = [feedback.top_ids[row * feedback.top_k : (row + 1) * feedback.top_k] for row in range(count)]
        if not count or not tops[-1]:
            return
        parents = self._verified_parents(base, feedback.row_tokens[1:])
        root = tuple(self.ids[max(0, base - CONTEXT_IDS) : base])
        yield Row(root, tops[0], base)
        contexts: list[tuple[int, ...]] = []
        positions: list[int | None] = []
        before: tuple[int, ...]
        position: int | None
        for token, top, parent in zip(feedback.row_tokens[1:], tops[1:], parents, strict=True):
            if parent is None:
                before, position = (), None
            elif parent < 0:
                before, position = root, base + 1
            else:
                above = positions[parent]
                before, position = contexts[parent], above and above + 1
            context = (*before, token)[-CONTEXT_IDS:]
            contexts.append(context)
            positions.append(position)
            yield Row(context, top, position)

    def _verified_parents(self, base: int, tokens: tuple[int, ...]) -> Sequence[int | None]:
        """Parents of the verified nodes: the verifier takes the best of what fits its budget."""
        tree = self._sent
        if base >= self._sent_base:
            tree = tree.reroot(self.ids[self._sent_base : base])
        for candidate in (tree, tree.best(len(tokens))):
            if candidate.tokens == tokens:
                return candidate.parents
        return [None] * len(tokens)
