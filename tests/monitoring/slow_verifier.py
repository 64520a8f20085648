"""A verifier whose engine hangs as long as the file that $ENGINE_HANGS names is there."""

from __future__ import annotations

import os
import time
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
    while Path(os.environ["ENGINE_HANGS"]).exists():
        time.sleep(0.1)
    return decide(batch, logits, sampling, feedback_top_k)


if __name__ == "__main__":
    with patch.object(engine, "decide", _decide):
        command()
