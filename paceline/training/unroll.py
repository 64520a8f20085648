"""A head's pass over whole texts, unrolled as in drafting (training-time test of EAGLE-3).

Pass 0 takes the target's states at every row. Pass j takes at row q the output of pass j - 1 at row q - 1, as
a drafter does that is j tokens ahead of the target: it sees pass 0's keys up to row q - j, and of the rows in
between the keys of passes 1 to j. Each pass drops its first row, so that tensors of all passes line up.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from paceline.heads.eagle import EagleHead


def unrolled(head: EagleHead, embedded: Tensor, states: Tensor, passes: int) -> Iterator[Tensor]:
    """Output states of each pass: pass j's are of rows j on, [texts, rows - j, d].

    `embedded` [texts, rows, d]: of the token behind each row; `states` [texts, rows, layers, d].
    """
    rows = embedded.shape[1]
    positions = torch.arange(rows, device=embedded.device)
    state = head.fuse(states)
    keys: list[Tensor] = []
    values: list[Tensor] = []
    for number in range(min(passes, rows)):
        left = rows - number
        query, key, value = head.project(embedded[:, number:], state, positions[number:])
        keys = [*(kept[:, :left] for kept in keys), key]
        values = [*(kept[:, :left] for kept in values), value]
        state = head.finish(_attend(query, keys, values), state)
        yield state
        state = state[:, :-1]


def _attend(query: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """What rows [texts, rows, heads, dim] attend to: pass 0's keys causally, later ones at their own row."""
    texts, rows, heads, dim = query.shape
    kv_heads = keys[0].shape[2]
    # [texts, kv heads, heads of one kv head, rows, dim]
    grouped = query.view(texts, rows, kv_heads, heads // kv_heads, dim).permute(0, 2, 3, 1, 4) * dim**-0.5
    first_key, *own_keys = (key.transpose(1, 2).unsqueeze(2) for key in keys)
    first_value, *own_values = (value.transpose(1, 2).unsqueeze(2) for value in values)
    later = torch.ones(rows, rows, dtype=torch.bool, device=query.device).triu(1)
    scores = (grouped @ first_key.transpose(-1, -2)).masked_fill(later, float("-inf"))
    own = [(grouped * key).sum(-1, keepdim=True) for key in own_keys]
    weights = torch.cat((scores, *own), -1).softmax(-1, dtype=torch.float32).to(first_value.dtype)
    attended = weights[..., :rows] @ first_value
    for number, value in enumerate(own_values):
        attended = attended + weights[..., rows + number, None] * value
    return attended.permute(0, 3, 1, 2, 4).reshape(texts, rows, heads, dim)


class _SoftCrossEntropy(torch.autograd.Function):
    """Cross entropy of each row against a distribution. Of the logits' size it keeps its gradient alone."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, logits: Tensor, wanted: Tensor) -> Tensor:
        logs = torch.log_softmax(logits, -1, dtype=torch.float32)
        loss = -(wanted * logs).sum(-1)
        ctx.save_for_backward(logs.exp_().sub_(wanted).to(logits.dtype))
        return loss

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, None]:
        (difference,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return difference * gradients[0].unsqueeze(-1).to(difference.dtype), None


def soft_cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    """Cross entropy [rows] of logits [rows, tokens] against distributions [rows, tokens] that sum to 1."""
    loss: Tensor = _SoftCrossEntropy.apply(logits, wanted)  # type: ignore[no-untyped-call]
    return loss
