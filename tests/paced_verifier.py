"""A verifier whose steps take as long as `tests.pace` says, as those of a big model on a GPU.

Meanwhile the CPU is idle: so there is time for what drafts beside it, also on a machine that has other work.
"""

from __future__ import annotations

import time
from unittest.mock import patch

from torch import Tensor

from paceline.engine.kv import KVPool
from paceline.engine.model import Decoder
from paceline.engine.rows import RaggedBatch
from paceline.engine.states import StatePool
from tests.pace import Pace
from verifier_svc.__main__ import command

# What is said while a step runs holds for that step, too.
_SLICE_SECONDS = 0.05

_compute = Decoder.forward
_pace = Pace.of_environment()


def _forward(decoder: Decoder, batch: RaggedBatch, pool: KVPool, states: StatePool | None) -> Tensor:
    began = time.monotonic()
    while (rest := _pace.seconds - (time.monotonic() - began)) > 0:
        time.sleep(min(rest, _SLICE_SECONDS))
    return _compute(decoder, batch, pool, states)


if __name__ == "__main__":
    with patch.object(Decoder, "forward", _forward):
        command()
