"""Log-probabilities of a session's prompt, gathered chunk by chunk while the prompt is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from paceline.logprobs import TokenLogprobs

# Most rows of a session's chunk while they are scored: each has logits of the whole vocabulary.
SCORED_ROWS = 64


@dataclass(slots=True)
class PromptScores:
    """Of all tokens of the prompt but the first, which nothing stands before."""

    # Likeliest tokens of each position.
    top: int
    # Tokens that have a log-probability.
    wanted: int
    known: list[TokenLogprobs] = field(default_factory=list)
    # They have gone to the client.
    told: bool = False

    @property
    def complete(self) -> bool:
        """Whether no row of the prompt has to be scored any more."""
        return len(self.known) >= self.wanted

    @property
    def adoptable(self) -> int:
        """Positions whose rows need not be computed for their scores."""
        return len(self.known)

    def rows(self, start: int, stop: int) -> range:
        """Of a run of the positions from `start` to `stop`, the rows to score, as indices into the run."""
        return range(max(len(self.known) - start, 0), max(min(self.wanted, stop) - start, 0))

    def take(self, first: int, scores: Sequence[TokenLogprobs]) -> None:
        """Add the scores of the rows at positions from `first` on. A step may be computed again."""
        self.known[first:] = scores
