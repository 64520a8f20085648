"""A loaded model's shape, watched in one forward: attention calls, their heads, how far back rows see."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from paceline.engine.attention import AttentionError, Reach, Rule, attending, running

# No mask is tried further than this.
_FAR = 1 << 18
# Kinds of layers that transformers' configurations name and the engine has the state of: keys and values.
_ATTENDING = {"full_attention", "sliding_attention", "chunked_attention", "attention"}
# Names that configurations use for the longest text.
_CONTEXTS = ("max_position_embeddings", "max_seq_len", "seq_length", "max_sequence_length")
# The context of models that name none (ALiBi).
_ENDLESS = 2048
# Kinds of rotary embedding that change with the longest text of a batch.
_BY_LENGTH = ("dynamic", "longrope")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a model that the engine needs beside its weights; heads are this process's share."""

    # Attention calls in a forward, each with its own keys and values.
    layers: int
    heads: int
    kv_heads: int
    # Of the widest keys or values.
    head_dim: int
    vocab_size: int
    max_context: int
    # Processes over which the weights are divided.
    ranks: int = 1
    # How far back the rows of each layer see; None where the model made no mask and the calls carry a window.
    reaches: tuple[Reach | None, ...] = ()


def context_of(config: Any) -> int:
    """The longest text in positions.

    Where the rotary embedding changes with the text's length, the limit is the length up to which it does
    not: beyond it, keys of a shorter text would have to be computed anew.
    """
    said = [getattr(config, name, None) for name in _CONTEXTS]
    longest = next((length for length in said if isinstance(length, int) and length > 0), _ENDLESS)
    for rope in _ropes(config):
        if rope.get("rope_type") in _BY_LENGTH:
            longest = min(longest, rope.get("original_max_position_embeddings") or longest)
    return longest


def _ropes(config: Any) -> list[dict[str, Any]]:
    """The configuration's rotary embedding parameters, one for each kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    return [part for part in (rope, *rope.values()) if isinstance(part, dict)]


def check_layer_kinds(config: Any) -> None:
    """Raises `AttentionError` where some layers keep other states than keys and values."""
    kinds = set(getattr(config, "layer_types", None) or ()) - _ATTENDING
    if kinds:
        raise AttentionError(
            f"it has layers of kind {', '.join(sorted(kinds))}, whose states the engine does not keep"
        )


def is_told_positions(model: PreTrainedModel) -> bool:
    """Whether a model's forward takes its rows' positions as an argument (it may count them itself)."""
    return "position_ids" in inspect.signature(type(model).forward).parameters


def hold_rotation(model: PreTrainedModel) -> None:
    """Fix rotary embeddings that change with the batch's longest text to those of short texts."""
    for module in model.modules():
        kind: Any = getattr(module, "rope_type", None)
        if isinstance(kind, dict):
            kind.update({layer: "default" for layer, name in kind.items() if name in _BY_LENGTH})
        elif kind in _BY_LENGTH:
            module.rope_type = "default"  # type: ignore[assignment]


class _Watcher:
    """Stands in for attention in one forward and records every call's heads and reach."""

    def __init__(self, context: int) -> None:
        self._context = context
        self.queries: list[tuple[int, int, int]] = []
        self.reaches: list[Reach | None] = []

    def reach(self, mask: Tensor | None, window: int | None) -> Reach:
        """The next call's reach, read from the mask that `watched_mask` made."""
        sees = getattr(mask, "paceline_sees", None)
        self.reaches.append(None if sees is None else reach_of(sees, self._context))
        return Reach()

    def attend(self, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Record the heads; the result is zeros."""
        self.queries.append((query.shape[0], key.shape[0], query.shape[-1]))
        return torch.zeros_like(query).transpose(0, 1)


def look(model: PreTrainedModel, config: Any, *, ranks: int) -> ModelShape:
    """The shape of a loaded model, from a forward of two rows.

    Raises `AttentionError` where it computes what the engine does not.
    """
    context = context_of(config)
    watcher = _Watcher(context)
    rows = torch.arange(2, device=model.device)[None]
    with torch.inference_mode(), attending(watcher):
        model(input_ids=rows, position_ids=rows, use_cache=False)
    if not watcher.queries:
        raise AttentionError("its layers do not attend through transformers' AttentionInterface")
    groups = {(heads, kv_heads) for heads, kv_heads, _ in watcher.queries}
    if len(groups) > 1:
        raise AttentionError(f"its layers have unlike numbers of heads and key heads: {sorted(groups)}")
    ((heads, kv_heads),) = groups
    return ModelShape(
        layers=len(watcher.queries),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=max(width for *_, width in watcher.queries),
        vocab_size=config.vocab_size,
        max_context=context,
        ranks=ranks,
        reaches=tuple(watcher.reaches),
    )


def watched_mask(
    *, q_length: int, kv_length: int, mask_function: Callable[..., Any], device: Any, **_: object
) -> Tensor | None:
    """The mask function given to transformers: a mask while `look` watches the model, else None.

    The engine's batches carry their own visibility.
    """
    if not isinstance(running(), _Watcher):
        return None
    mask = torch.ones(1, 1, q_length, kv_length, dtype=torch.bool, device=device)
    mask.paceline_sees = mask_function  # type: ignore[attr-defined]
    return mask


def reach_of(sees: Callable[..., Any], context: int) -> Reach:
    """The reach of a mask function `sees(batch, head, row, key)`.

    Raises `AttentionError` where `Reach` cannot express it.
    """

    def first_seen(row: int) -> int:
        keys = torch.arange(row + 2)
        none = torch.tensor(0)
        seen = sees(none, none, torch.tensor(row), keys).expand(row + 2)
        first = int(seen.to(torch.int8).argmax())
        if not torch.equal(seen, (keys >= first) & (keys <= row)):
            raise AttentionError("its rows see other keys than all, a window or a chunk of those before them")
        return first

    last = min(context, _FAR) - 1
    first = first_seen(last)
    if first == 0:
        reach, size = Reach(), last
    elif first_seen(last - 1) == first - 1:
        size = last - first + 1
        reach = Reach(window=size)
    else:
        size = first - first_seen(first - 1)
        reach = Reach(chunk=size)
    for row in {0, size - 1, size, 2 * size - 1, 2 * size, last // 2, last} & set(range(last + 1)):
        expected = 0
        if reach.window:
            expected = max(0, row - reach.window + 1)
        elif reach.chunk:
            expected = row // reach.chunk * reach.chunk
        if first_seen(row) != expected:
            raise AttentionError("its rows see as far back as neither a window nor a chunk says")
    return reach
