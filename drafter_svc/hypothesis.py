"""What the drafter knows of one session: its committed ids, and what its verdicts teach."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from paceline.verdict import Feedback, Verdict

# Most ids of a row's context. Methods look no further back.
CONTEXT_IDS = 8


class OutOfStepError(ValueError):
    """A verdict does not continue the known ids. A new Join with the right length is needed."""


@dataclass(frozen=True, slots=True)
class Row:
    """One verified row: `context` ends with the row's own id, `top_ids` are the target's best next ids.

    `position` is the absolute position that `top_ids` are for.
    """

    context: tuple[int, ...]
    top_ids: tuple[int, ...]
    position: int


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a verdict taught: `committed` are new ids from position `start` on, `rows` hold the feedback.

    `accepted` ids before the last are nodes of a tree. Where a session ends within a tree's path, the last is
    one, too, and the first of these is not.
    """

    start: int
    committed: tuple[int, ...]
    rows: tuple[Row, ...]
    accepted: int = 0


@dataclass(frozen=True, slots=True)
class Guess:
    """A client's own guess at its answer, which begins at position `start`."""

    ids: tuple[int, ...]
    start: int


class Hypothesis:
    """One session as the drafter knows it. `ids` is prompt + committed; it only grows.

    `tenant` is the owner. One tenant's sessions never teach another's. `guess` is its client's.
    """

    def __init__(
        self,
        key: SessionKey,
        sampling: SamplingParams,
        known_ids: Sequence[int],
        tenant: str = "",
        guess: Guess | None = None,
    ) -> None:
        self.key = key
        self.tenant = tenant
        self.sampling = sampling
        self.guess = guess
        self.ids: list[int] = list(known_ids)

    @property
    def base_length(self) -> int:
        """Known length of prompt + committed: the next tree hangs there."""
        return len(self.ids)

    def learn(self, verdict: Verdict) -> Lesson:
        """Append newly committed ids. Raises `OutOfStepError` if ids before them are missing or differ."""
        known = len(self.ids)
        overlap = known - verdict.base_length
        if overlap < 0:
            raise OutOfStepError(f"verdict starts at {verdict.base_length}, only {known} ids are known")
        seen = verdict.committed[:overlap]
        if tuple(self.ids[verdict.base_length : verdict.base_length + len(seen)]) != seen:
            raise OutOfStepError(f"verdict from {verdict.base_length} contradicts the known ids")
        rows = () if verdict.feedback is None else tuple(self._rows(verdict.base_length, verdict.feedback))
        fresh = verdict.committed[overlap:]
        self.ids.extend(fresh)
        return Lesson(known, fresh, rows, verdict.accepted)

    def _rows(self, base: int, feedback: Feedback) -> Iterator[Row]:
        """Feedback rows with their contexts. None if the rows have no top ids."""
        if not feedback.top_k:
            return
        contexts: list[tuple[int, ...]] = []
        positions: list[int] = []
        for row, (token, parent) in enumerate(zip(feedback.row_tokens, feedback.row_parents, strict=True)):
            if parent < 0:
                contexts.append(tuple(self.ids[max(0, base - CONTEXT_IDS) : base]))
                positions.append(base)
            else:
                contexts.append((*contexts[parent], token)[-CONTEXT_IDS:])
                positions.append(positions[parent] + 1)
            top = feedback.top_ids[row * feedback.top_k : (row + 1) * feedback.top_k]
            yield Row(contexts[row], top, positions[row])
