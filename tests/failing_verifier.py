"""A verifier whose engine fails as soon as the file that $ENGINE_FAILS names is there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

from torch import Tensor

from paceline.engine import engine
from paceline.engine.rows import RaggedBatch
from paceline.engine.verify import Decision, decide
from paceline.sampling import SamplingParams
from verifier_svc.__main__ import command


def _decide(
    batch: RaggedBatch, logits: Tensor, sampling: Sequence[SamplingParams], feedback_top_k: Sequence[int]
) -> list[Decision]:
    if Path(os.environ["ENGINE_FAILS"]).exists():
        raise RuntimeError("as its test wants it")
    return decide(batch, logits, sampling, feedback_top_k)


if __name__ == "__main__":
    with patch.object(engine, "decide", _decide):
        command()
