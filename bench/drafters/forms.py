"""The closed forms beside what was measured, from parts measured in the same run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.arms import Sample
from bench.drafters import formula
from bench.results import per, ratio


@dataclass(frozen=True, slots=True)
class Measured:
    """Parts of a row as the client sees them; times in seconds."""

    # Committed tokens per step that has a tree.
    acceptance_length: float
    plain_step: float
    # Waits excluded.
    tree_step: float
    # From a request to the slowest source's answer, without a round trip in the way.
    draft: float
    # See `hit_rate`.
    hit_rate: float

    @classmethod
    def of(
        cls,
        *,
        plain_seconds: float,
        samples: Sequence[Sample],
        waited: float,
        replies: Mapping[str, float],
        hit_rate: float,
    ) -> Measured:
        """From answers that were drafted for without a delay.

        `plain_seconds`: of a plain step; `waited`: seconds in which their steps waited for trees.
        """
        receipts = [sample.receipt for sample in samples if sample.receipt is not None]
        drafted = sum(receipt.drafted_steps for receipt in receipts)
        # The first step of an answer is its prompt's.
        bare = sum(receipt.steps - 1 - receipt.drafted_steps for receipt in receipts)
        seconds = sum(sample.seconds - sample.first_s for sample in samples)
        tokens = sum(sample.tokens - sample.first_tokens for sample in samples)
        return cls(
            per(tokens - bare, drafted),
            plain_seconds,
            per(seconds - waited - bare * plain_seconds, drafted),
            max(replies.values(), default=0.0),
            hit_rate,
        )


def compared(measured: Measured, figures: Mapping[str, Any], *, ahead: bool) -> dict[str, Any]:
    """Tokens per second by all forms at the round trip of `figures`, and theirs over the form that fits."""
    if not measured.tree_step or not measured.plain_step:
        return {"formula": {}, "over_formula": None}
    parts = formula.Parts(**asdict(measured))
    round_trip = figures["round_trip_ms"] / 1e3
    forms = {
        "plain": formula.plain(parts),
        "synchronous": formula.synchronous(parts, round_trip),
        "cached": formula.cached(parts, round_trip),
        "pushed": formula.pushed(parts, round_trip),
    }
    fitting = forms["pushed" if ahead else "synchronous"]
    return {
        "formula": {name: round(rate, 2) for name, rate in forms.items()},
        "over_formula": ratio(figures["decode_tokens_per_second"], fitting),
    }
