"""The parity matrix as a table of a document."""

from __future__ import annotations

from collections import Counter

from tests.parity.matrix import DRAFTS, FEATURES, SAMPLING
from tests.parity.play import WAYS, Tally


def table(tally: Tally) -> str:
    """Markdown: of each feature and way, how many requests had the outcome of the reference."""
    differing = Counter((case.feature, way) for case, way, _, _ in tally.differing)
    lines = [f"| feature | {' | '.join(WAYS)} |", f"|---|{'---|' * len(WAYS)}"]
    for feature in FEATURES:
        counts = [
            f"{tally.played[feature, way] - differing[feature, way]} of {tally.played[feature, way]}"
            for way in WAYS
        ]
        lines.append(f"| {feature} | {' | '.join(counts)} |")
    return "\n".join(lines)


def heading(tally: Tally, model: str) -> str:
    """What was played, in a sentence."""
    return (
        f"{sum(tally.played.values())} requests to {model}: each feature {' and '.join(SAMPLING)}, with "
        f"{', '.join(DRAFTS)}. {tally.accepted_tokens} drafted tokens were accepted, and {tally.kills} "
        "verifiers killed under sessions."
    )
