"""An EAGLE-3-type head: one decoder layer over the target's own states, which drafts a token a pass.

Row p of a text takes the target's states at position p and the token at p + 1, and tells the token at p + 2.
States of three layers are fused into one of width d. One row further, where the target has no states yet, the
row's own output takes their place. The head knows the most frequent tokens alone (`tokens`); the embedding is
the target's.

Rows are laid out by the caller, who keeps keys and values and attends: in training whole texts, in a drafter
the nodes of many trees.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class EagleConfig:
    """Shape of a head."""

    # Layers of the target whose states it takes, ascending: 0 is the embedding's output.
    layers: tuple[int, ...]
    # Of the target's states and embedding.
    width: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    draft_vocab: int
    # Tokens of the target.
    vocab: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5

    def to_json(self) -> str:
        """As `of` reads it."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def of(cls, text: str) -> EagleConfig:
        """Raises `ValueError`, `KeyError` or `TypeError` for what `to_json` did not write."""
        fields: dict[str, Any] = json.loads(text)
        return cls(**{**fields, "layers": tuple(fields["layers"])})


class _Norm(nn.Module):
    """Root mean square norm, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self._eps = eps

    def forward(self, x: Tensor) -> Tensor:
        normed = functional.rms_norm(x.float(), (x.shape[-1],), eps=self._eps)
        return (normed * self.weight).to(x.dtype)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


class EagleHead(nn.Module):
    """The head's weights and the parts of its pass. `...` below is any number of leading dimensions."""

    tokens: Tensor  # [draft vocab] int64, the target's id of each id of the head

    def __init__(self, config: EagleConfig) -> None:
        super().__init__()
        self.config = config
        width, head_dim = config.width, config.head_dim
        self.fuse_states = _linear(len(config.layers) * width, width)
        self.embedding_norm = _Norm(width, config.norm_eps)
        self.state_norm = _Norm(width, config.norm_eps)
        self.q = _linear(2 * width, config.heads * head_dim)
        self.k = _linear(2 * width, config.kv_heads * head_dim)
        self.v = _linear(2 * width, config.kv_heads * head_dim)
        self.o = _linear(config.heads * head_dim, width)
        self.inner_norm = _Norm(width, config.norm_eps)
        self.gate = _linear(width, config.inner)
        self.up = _linear(width, config.inner)
        self.down = _linear(config.inner, width)
        self.norm = _Norm(width, config.norm_eps)
        self.head = _linear(width, config.draft_vocab)
        self.register_buffer("tokens", torch.zeros(config.draft_vocab, dtype=torch.int64))

    def fuse(self, states: Tensor) -> Tensor:
        """States of the target's layers [..., layers, d] as one state [..., d]."""
        fused: Tensor = self.fuse_states(states.flatten(-2))
        return fused

    def project(self, embedded: Tensor, state: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of rows, rotated: [..., heads, head dim], twice [..., kv heads, head dim].

        `embedded` [..., d]: of the token behind the state; `state` [..., d]: fused, or the output of the row
        before; `positions` [...]: the state's.
        """
        both = torch.cat((self.embedding_norm(embedded), self.state_norm(state)), -1)
        dim = self.config.head_dim
        rates = self.config.rope_theta ** (
            torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32) / -dim
        )
        angles = positions[..., None, None].float() * rates
        turn = torch.cos(angles), torch.sin(angles)
        return (
            _rotate(self.q(both).unflatten(-1, (-1, dim)), *turn),
            _rotate(self.k(both).unflatten(-1, (-1, dim)), *turn),
            self.v(both).unflatten(-1, (-1, dim)),
        )

    def finish(self, attended: Tensor, state: Tensor) -> Tensor:
        """Output state [..., d] of rows from what they attended to [..., heads, head dim] and their state."""
        state = state + self.o(attended.flatten(-2))
        inner = self.inner_norm(state)
        out: Tensor = state + self.down(functional.silu(self.gate(inner)) * self.up(inner))
        return out

    def logits(self, state: Tensor) -> Tensor:
        """Logits [..., draft vocab] of output states [..., d]; `tokens` says whose."""
        logits: Tensor = self.head(self.norm(state))
        return logits


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate halves of [..., heads, head dim] by angles [..., 1, head dim / 2]."""
    first, second = x.float().chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)
