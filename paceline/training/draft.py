"""A small draft model: a few layers cut from the target, distilled on the target's own texts."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from paceline.training.corpus import Text
from paceline.training.loop import Figures
from paceline.training.states import Batch, Recorder

# Rows whose logits are in memory at once.
_ROWS: Final = 256
_RATE: Final = 6e-4


def chosen_layers(count: int, wanted: int) -> list[int]:
    """`wanted` of `count` layers, evenly spread, the first and the last among them."""
    if not 1 <= wanted <= count:
        raise ValueError(f"the target has {count} layers, of which {wanted} cannot be kept")
    if wanted == 1:
        return [0]
    return [round(number * (count - 1) / (wanted - 1)) for number in range(wanted)]


def cut(target: Any, layers: int) -> Any:
    """A float32 model like the target with a few of its layers. Raises `ValueError` where it has not so many.

    Embedding and output layer are frozen: they are most of the weights, and good as they are.
    """
    config = copy.deepcopy(target.config)
    kept = chosen_layers(config.num_hidden_layers, layers)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[number] for number in kept]
    model = type(target)._from_config(config, dtype=torch.float32)
    places = {f"layers.{old}.": f"layers.{new}." for new, old in enumerate(kept)}
    weights = {}
    for name, tensor in target.state_dict().items():
        if ".layers." in name:
            place = "layers." + name.split(".layers.")[1].split(".")[0] + "."
            if place not in places:
                continue
            name = name.replace(place, places[place], 1)
        weights[name] = tensor.float()
    model.load_state_dict(weights)
    model.get_input_embeddings().weight.requires_grad_(False)
    model.get_output_embeddings().weight.requires_grad_(False)
    return model.to(target.device)


class DraftLearner:
    """A draft model and the loss between it and the target."""

    def __init__(self, model: Any, target: Any, recorder: Recorder) -> None:
        """`recorder`: of no layers; what the target's output layer takes is enough."""
        self.module: nn.Module = model
        self._recorder = recorder
        self._model = model
        self._output = target.get_output_embeddings().weight.detach()

    def length(self, text: Text) -> int:
        """Ids of a text that are used."""
        return self._recorder.length(text)

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """AdamW over what is not frozen."""
        trained = [weight for weight in self.module.parameters() if weight.requires_grad]
        return [torch.optim.AdamW(trained, lr=_RATE, betas=(0.9, 0.95), weight_decay=0.01)]

    def loss(self, texts: Sequence[Text]) -> Tensor:
        """Kullback-Leibler divergence of the target's distributions from the model's, per id."""
        batch = self._recorder.batch(texts)
        count = batch.ids.shape[1]
        rows = torch.arange(count, device=batch.ids.device) + 1 < batch.lengths[:, None]
        with torch.autocast(batch.ids.device.type, torch.bfloat16):
            final = self._final(batch)
        loss: Tensor = _Divergence.apply(final[rows], batch.final[rows], self._output)  # type: ignore[no-untyped-call]
        return loss

    def _final(self, batch: Batch) -> Tensor:
        final: Tensor = self._model.base_model(batch.ids, use_cache=False).last_hidden_state
        return final

    @torch.no_grad()
    def measure(self, batches: Sequence[Sequence[Text]]) -> Figures:
        """On answers: `first` and `first4`, how often the model's best id is the text's, or one of its best
        four; `chain`, ids a step when chains of four are drafted.
        """
        bases = first = first4 = accepted = 0
        for texts in batches:
            batch = self._recorder.batch(texts)
            with torch.autocast(batch.ids.device.type, torch.bfloat16):
                best = (self._final(batch) @ self._output.T.float()).topk(4).indices
            there = batch.answers[:, 1:]
            right = (best[:, :-1] == batch.ids[:, 1:, None]) & there[..., None]
            bases += int(there.sum())
            first4 += int(right.any(-1).sum())
            going = right[..., 0]
            first += int(going.sum())
            accepted += int(going.sum())
            for _ in range(3):
                going = going[:, :-1] & right[:, -going.shape[1] + 1 :, 0]
                accepted += int(going.sum())
        bases = max(bases, 1)
        return {"first": first / bases, "first4": first4 / bases, "chain": 1 + accepted / bases}


class _Divergence(torch.autograd.Function):
    """Mean divergence of rows, whose logits are never in memory all at once."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, final: Tensor, wanted: Tensor, output: Tensor
    ) -> Tensor:
        total = torch.zeros((), device=final.device)
        gradients = []
        for start in range(0, len(final), _ROWS):
            rows = slice(start, start + _ROWS)
            ours = torch.log_softmax((final[rows].to(output.dtype) @ output.T).float(), -1)
            theirs = torch.log_softmax((wanted[rows].to(output.dtype) @ output.T).float(), -1)
            share = theirs.exp()
            total += (share * (theirs - ours)).sum()
            gradients.append(((ours.exp() - share).to(output.dtype) @ output).to(final.dtype))
        ctx.save_for_backward(torch.cat(gradients) / len(final))
        return total / len(final)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor
    ) -> tuple[Tensor | None, None, None]:
        (direction,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return direction * gradients[0].to(direction.dtype), None, None
