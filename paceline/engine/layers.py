"""Where a model's hidden states are met: between its decoder layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from paceline.engine.attention import Reach, Rule, attending
from paceline.engine.loading import ModelError

# A name of the layers that EAGLE-3 reads.
EAGLE = "eagle"


class DecoderLayers:
    """A model's decoder layers, `count` of them.

    States are numbered as in transformers' `hidden_states`: `number` < count is what layer `number` is given,
    `count` what the last one gives, before the model's final norm.
    """

    def __init__(self, modules: Sequence[nn.Module], width: int) -> None:
        self._modules = modules
        self.count = len(modules)
        self.width = width

    @classmethod
    def of(cls, model: Any) -> DecoderLayers:
        """Those of a loaded model, seen in a forward of two rows. Raises `ModelError` where none are found.

        What is met between the modules is held against the `hidden_states` that transformers gives.
        """
        config = model.config.get_text_config(decoder=True)
        kind, count = config.model_type, config.num_hidden_layers
        lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
        modules = next((layers for layers in lists if len(layers) == count), None)
        if modules is None:
            raise ModelError(f"states of {kind} models are not kept: its decoder layers are not found")
        layers = cls(list(modules), 0)
        met: dict[int, Tensor] = {}
        rows = torch.arange(2, device=model.device)[None]
        try:
            with (
                torch.inference_mode(),
                attending(_Nothing()),
                layers.telling(range(count + 1), met.__setitem__),
            ):
                output = model(input_ids=rows, position_ids=rows, use_cache=False, output_hidden_states=True)
            expected = output.hidden_states[:-1]
            same = len(expected) == count and all(
                torch.equal(met[number], states[0]) for number, states in enumerate(expected)
            )
        except Exception as error:
            raise ModelError(
                f"states of {kind} models are not kept: {type(error).__name__}: {error}"
            ) from error
        # Some models hand several states on between layers.
        if not same or any(states.dim() != 2 or states.shape != met[0].shape for states in met.values()):
            raise ModelError(
                f"states of {kind} models are not kept: what its layers are given is not what transformers "
                "calls its hidden states"
            )
        layers.width = met[count].shape[-1]
        return layers

    def checked(self, numbers: Sequence[int]) -> tuple[int, ...]:
        """The numbers once each, ascending. Raises `ModelError` for one that the model lacks."""
        lacking = [number for number in numbers if not 0 <= number <= self.count]
        if lacking:
            raise ModelError(
                f"states of layer {lacking[0]} cannot be kept: this model's are 0 (the embeddings') to "
                f"{self.count} (the last layer's)"
            )
        return tuple(sorted(set(numbers)))

    def named(self, text: str) -> tuple[int, ...]:
        """The layers of a setting: numbers with commas, or `eagle`. Raises `ModelError`."""
        if text == EAGLE:
            return self.eagle()
        parts = [part.strip() for part in text.split(",")]
        if not all(part.isdecimal() for part in parts):
            raise ModelError(f"layers are named by numbers with commas, or {EAGLE}; got {text}")
        return self.checked([int(part) for part in parts])

    def eagle(self) -> tuple[int, ...]:
        """The three that EAGLE-3 (arXiv 2503.01840) reads. Raises `ModelError` where there are too few."""
        low, middle, high = 2, self.count // 2, self.count - 3
        if not low < middle < high:
            raise ModelError(
                f"EAGLE's three layers are 2, L/2 and L - 3 of L, and this model has {self.count}: "
                "give numbers of layers instead"
            )
        return low, middle, high

    @contextmanager
    def telling(self, numbers: Sequence[int], take: Callable[[int, Tensor], None]) -> Iterator[None]:
        """Within the context, forwards of the model give `take` the states [rows, width] of these numbers."""
        hooks = [self._hook(number, take) for number in numbers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hook(self, number: int, take: Callable[[int, Tensor], None]) -> RemovableHandle:
        if number == self.count:

            def behind(module: nn.Module, arguments: Any, output: Any) -> None:
                take(number, (output if isinstance(output, Tensor) else output[0])[0])

            return self._modules[-1].register_forward_hook(behind)

        def before(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            take(number, (arguments[0] if arguments else named["hidden_states"])[0])

        return self._modules[number].register_forward_pre_hook(before, with_kwargs=True)


class _Nothing:
    """Attention that gives zeros."""

    def reach(self, mask: Tensor | None, window: int | None) -> Reach:
        """The next call's reach."""
        return Reach()

    def attend(self, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Zeros."""
        return torch.zeros_like(query).transpose(0, 1)
