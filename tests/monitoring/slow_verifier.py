"""A verifier whose steps take as long as those of a big model on a GPU, with the CPU as idle meanwhile.

Its engine hangs as long as the file that $ENGINE_HANGS names is there.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from unittest.mock import patch

from torch import Tensor

from paceline.engine.kv import KVPool
from paceline.engine.model import Decoder
from paceline.engine.rows import RaggedBatch
from paceline.engine.states import StatePool
from verifier_svc.__main__ import command

# Beside it the way to a drafter and back is short, also on a machine that has other work.
STEP_SECONDS = 0.1

_compute = Decoder.forward


def _forward(decoder: Decoder, batch: RaggedBatch, pool: KVPool, states: StatePool | None) -> Tensor:
    time.sleep(STEP_SECONDS)
    while Path(os.environ["ENGINE_HANGS"]).exists():
        time.sleep(0.1)
    return _compute(decoder, batch, pool, states)


if __name__ == "__main__":
    with patch.object(Decoder, "forward", _forward):
        command()
