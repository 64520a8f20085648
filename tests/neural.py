"""Both kinds of neural drafters for a tiny model.

The draft model is the target, so all that it drafts is right. The head has learned nothing.
"""

from __future__ import annotations

from pathlib import Path

import torch

from paceline.engine.fingerprint import weights_fingerprint
from paceline.heads import store
from paceline.heads.eagle import EagleConfig, EagleHead
from tests.tiny import VOCAB, WIDTH

SOURCES = ("draft", "eagle")
LAYERS = (0, 1)
# For `--keep-states`, and the bytes of a position's states in float32.
KEPT = ",".join(map(str, LAYERS))
POSITION_BYTES = len(LAYERS) * WIDTH * 4


def neural_flags(model: Path, heads: Path) -> tuple[str, ...]:
    """A drafter's flags, with text's methods first; a head is written to the folder `heads`."""
    config = EagleConfig(
        LAYERS, WIDTH, 2 * WIDTH, heads=4, kv_heads=2, head_dim=16, draft_vocab=100, vocab=VOCAB
    )
    head = EagleHead(config)
    head.tokens.copy_(torch.arange(100) + 10)
    fingerprint = weights_fingerprint(model)
    store.save(head, heads / "tiny.safetensors", weights_fingerprint=fingerprint, card={})
    return (
        *("--method", "lookup+recycling+draft+eagle", "--device", "cpu", "--threads", "1"),
        *("--draft-model", str(model), "--heads", str(heads), "--model", str(model)),
    )
