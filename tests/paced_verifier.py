"""A verifier whose steps take at least the seconds that the file $STEP_SECONDS names holds; without it, none.

Meanwhile the CPU is idle, as beside a big model on a GPU: so there is time for what drafts beside it.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

from torch import Tensor

from paceline.engine.kv import KVPool
from paceline.engine.model import Decoder
from paceline.engine.rows import RaggedBatch
from paceline.engine.states import StatePool
from verifier_svc.__main__ import command

_compute = Decoder.forward


def _forward(decoder: Decoder, batch: RaggedBatch, pool: KVPool, states: StatePool | None) -> Tensor:
    with suppress(FileNotFoundError):
        time.sleep(float(Path(os.environ["STEP_SECONDS"]).read_text()))
    return _compute(decoder, batch, pool, states)


if __name__ == "__main__":
    with patch.object(Decoder, "forward", _forward):
        command()
