"""What the target computed on texts: states of some layers, and the last layer's behind the final norm.

Kept in memory up to a bound, in the order in which texts are asked for; computed again beyond it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paceline.training.corpus import Text


@dataclass(frozen=True, slots=True)
class Recorded:
    """One text's."""

    states: Tensor  # [ids, layers, d]
    # The output layer's input.
    final: Tensor  # [ids, d]


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts side by side, the shorter ones padded with zeros."""

    ids: Tensor  # [texts, longest] int64
    lengths: Tensor  # [texts] int64
    states: Tensor  # [texts, longest, layers, d]
    final: Tensor  # [texts, longest, d]
    answers: Tensor  # [texts, longest] bool, ids of answers


class Recorder:
    """The target, and what it computed."""

    def __init__(self, target: Any, layers: Sequence[int], *, kept_bytes: int, longest: int) -> None:
        """`target`: of transformers, as a causal model; texts are cut behind `longest` ids.

        Raises `ValueError` for layers that it does not have: 0, the embedding's output, to the last but one.
        """
        count = target.config.get_text_config().num_hidden_layers
        if not all(0 <= layer < count for layer in layers):
            raise ValueError(f"states are those of layers 0 to {count - 1}, not of {tuple(layers)}")
        self._target = target
        self._layers = tuple(layers)
        self._longest = longest
        self._left = kept_bytes
        self._kept: dict[Text, Recorded] = {}

    @property
    def device(self) -> torch.device:
        """Where the target computes."""
        device: torch.device = self._target.device
        return device

    def length(self, text: Text) -> int:
        """Ids of a text that are used."""
        return min(len(text.ids), self._longest)

    def batch(self, texts: Sequence[Text]) -> Batch:
        """What training needs of some texts."""
        lacking = [text for text in texts if text not in self._kept]
        fresh = dict(zip(lacking, self._compute(lacking), strict=True)) if lacking else {}
        for text, recorded in fresh.items():
            size = recorded.states.nbytes + recorded.final.nbytes
            if size <= self._left:
                self._left -= size
                self._kept[text] = recorded
        found = [self._kept.get(text) or fresh[text] for text in texts]
        lengths = torch.tensor([self.length(text) for text in texts])
        answers = torch.zeros(len(texts), int(lengths.max()), dtype=torch.bool)
        for row, text in zip(answers, texts, strict=True):
            for start, end in text.answers:
                row[start:end] = True
        return Batch(
            _padded([torch.tensor(text.ids[: self._longest]) for text in texts]).to(self.device),
            lengths.to(self.device),
            _padded([one.states for one in found]).to(self.device),
            _padded([one.final for one in found]).to(self.device),
            answers.to(self.device),
        )

    @torch.inference_mode()
    def _compute(self, texts: Sequence[Text]) -> list[Recorded]:
        ids = _padded([torch.tensor(text.ids[: self._longest]) for text in texts]).to(self.device)
        # Padding is behind the text, where no row of it looks.
        out = self._target.base_model(ids, output_hidden_states=True, use_cache=False)
        final = out.last_hidden_state
        chosen = final.new_empty(*ids.shape, len(self._layers), final.shape[-1])
        for number, layer in enumerate(self._layers):
            chosen[:, :, number] = out.hidden_states[layer]
        return [
            Recorded(states[: self.length(text)].cpu().clone(), final[: self.length(text)].cpu().clone())
            for text, states, final in zip(texts, chosen, final, strict=True)
        ]


def _padded(tensors: Sequence[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(tensors), batch_first=True)
