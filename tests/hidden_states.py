"""Hidden states as transformers has them, to hold what drafters are sent against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM


class Reference:
    """Transformers' forward of a whole text at once."""

    def __init__(self, model: Path) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()

    @torch.no_grad()
    def states(self, ids: Sequence[int], layers: Sequence[int]) -> NDArray[np.float32]:
        """[positions, layers, width]; the last layer's before the final norm."""
        ends: list[torch.Tensor] = []
        norm = self._model.model.norm
        watching = norm.register_forward_pre_hook(lambda _, given: ends.append(given[0]))
        try:
            output = self._model(input_ids=torch.tensor([ids]), output_hidden_states=True)
        finally:
            watching.remove()
        hidden = [*output.hidden_states[:-1], ends[0]]
        return np.stack([hidden[layer][0].numpy() for layer in layers], axis=1)
