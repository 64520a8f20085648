"""Attention of a ragged batch: each row sees its own session's prefix and its own ancestors.

transformers' modules call `ragged_attention` in every layer, which hands on to the device's backend
(`engine.devices`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paceline.engine.kv import KVForm, KVPool
from paceline.engine.rows import RaggedBatch

NAME = "paceline"
# Arguments that models pass to every attention function and that are ignored here: for training, for other
# backends, or known from the batch.
_IGNORED = frozenset(
    {"dropout", "position_ids", "cache_position", "use_cache", "is_causal", "output_hidden_states"}
)


class AttentionError(ValueError):
    """A model needs a kind of attention that the engine does not compute; the message names it."""


@dataclass(frozen=True, slots=True)
class Reach:
    """How far back a row sees: to the start of its text, `window` positions (its own included), or its chunk.

    A chunk is the positions between two multiples of `chunk`.
    """

    window: int | None = None
    chunk: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """How one layer turns scores into weights."""

    scale: float
    softcap: float | None = None
    reach: Reach = Reach()
    # One score per head that takes part in every row's softmax and has no value. [heads] float32
    sinks: Tensor | None = None
    # Added to a key's scores, by its position: ALiBi. [heads, positions] float32
    bias: Tensor | None = None


class LayerAttention(Protocol):
    """A backend's attention, laid out for one forward."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Write the rows' keys and values to their slots, then attend.

        query [heads, rows, head_dim], key and value [kv_heads, rows, head_dim] -> [rows, heads, head_dim] in
        the query's dtype.
        """


class AttentionBackend(Protocol):
    """One device's attention."""

    def kv_form(self, dtype: torch.dtype, *, head_dim: int, kv_heads: int, block_size: int) -> KVForm:
        """How a pool has to keep keys and values of a model that computes in `dtype`."""

    def begin(self, batch: RaggedBatch, pool: KVPool) -> LayerAttention:
        """Lay out what the layers of one forward share."""


class Attending(Protocol):
    """Attention of the forward that is running: the engine's, or `shape.look`'s watcher."""

    def reach(self, mask: Tensor | None, window: int | None) -> Reach:
        """The reach of the next call, which has this mask and window."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """See `LayerAttention.attend`."""


class Forward:
    """The attention of one forward of a batch: its calls are the pool's layers, in order.

    Not a module's `layer_idx`: some have two calls a layer, each with keys and values of its own.
    """

    def __init__(self, backend: LayerAttention, reaches: Sequence[Reach | None]) -> None:
        """`reaches`: of every call; None where the model's mask does not give it."""
        self._backend, self._reaches = backend, reaches
        self._calls = 0

    def attend(self, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """See `LayerAttention.attend`."""
        layer, self._calls = self._calls, self._calls + 1
        return self._backend.attend(layer, query, key, value, rule)

    def reach(self, mask: Tensor | None, window: int | None) -> Reach:
        """The reach that `shape.look` read from the model's mask, else the call's window.

        Raises `AttentionError` for a mask that the model made beside the one that it was given.
        """
        if mask is not None:
            raise AttentionError("its layers make masks of their own, which the engine does not read")
        seen = self._reaches[self._calls] if self._calls < len(self._reaches) else None
        return seen or Reach(window=window)


_running: ContextVar[Attending | None] = ContextVar("running forward", default=None)


@contextmanager
def attending(forward: Attending) -> Iterator[None]:
    """Within the context, models called on this thread attend by `forward`."""
    token = _running.set(forward)
    try:
        yield
    finally:
        _running.reset(token)


def running() -> Attending | None:
    """The attention of the forward that is running; None outside of one."""
    return _running.get()


def ragged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    key_bias: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The attention function that `transformers.AttentionInterface` calls in every layer.

    query [1, heads, rows, head_dim], key [1, kv_heads, rows, head_dim] and value [1, kv_heads, rows,
    value_dim] -> [1, rows, heads, value_dim]. `s_aux` and `key_bias`: see `Rule`.

    Raises `AttentionError` naming an argument that asks for what is not computed here.
    """
    _refuse(module, others)
    forward = _running.get()
    if forward is None:
        raise AttentionError("a model attends outside of the engine's forward")
    rule = Rule(
        scale=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        softcap=softcap,
        reach=forward.reach(attention_mask, sliding_window),
        sinks=None if s_aux is None else s_aux.detach().float().reshape(-1),
        bias=key_bias,
    )
    width, value_width = query.shape[-1], value.shape[-1]
    if width != value_width:
        filled = max(width, value_width)
        query, key, value = (F.pad(rows, (0, filled - rows.shape[-1])) for rows in (query, key, value))
    result = forward.attend(query[0], key[0], value[0], rule)
    return result[None, ..., :value_width], None


def _refuse(module: nn.Module, others: dict[str, Any]) -> None:
    asking = type(module).__name__
    if others.get("is_causal") is False:
        raise AttentionError(f"{asking} attends to what is behind a row (is_causal=False)")
    for name, asked in others.items():
        if asked is not None and asked is not False and name not in _IGNORED:
            raise AttentionError(f"{asking} attends with {name}, which is not served")
