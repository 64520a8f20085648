"""A verifier whose process ends the moment that it computes a row of the token $DEADLY_TOKEN."""

from __future__ import annotations

import os
from unittest.mock import patch

from torch import Tensor

from paceline.engine.kv import KVPool
from paceline.engine.model import Decoder
from paceline.engine.rows import RaggedBatch
from paceline.engine.states import StatePool
from verifier_svc.__main__ import command

_forward = Decoder.forward


def _dies(decoder: Decoder, batch: RaggedBatch, pool: KVPool, states: StatePool | None) -> Tensor:
    if int(os.environ["DEADLY_TOKEN"]) in batch.token_ids.tolist():
        os._exit(1)
    return _forward(decoder, batch, pool, states)


if __name__ == "__main__":
    with patch.object(Decoder, "forward", _dies):
        command()
