"""Hidden states of the target that drafters are sent: what is asked for, what is granted, what travels.

Layers are numbered as in transformers' `hidden_states`: 0 is the embedding's output, i the output of decoder
layer i, the last one's before the final norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from paceline.session import SessionKey

# Most requests of one drafter, and most layers of one request.
MAX_REQUESTS, MAX_LAYERS = 8, 8
MIN_WINDOW_BYTES, MAX_WINDOW_BYTES = 64 << 10, 64 << 20
# Most bytes of states in one message.
MAX_CHUNK_BYTES = 1 << 20
# `Join.features_from` of a drafter that wants none of a session's states.
NO_FEATURES = 2**32 - 1
# Bytes of a number of each type that states travel in.
STATE_BYTES: Mapping[str, int] = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True, slots=True)
class FeatureRequest:
    """A drafter's wish for hidden states at every committed position of the model with these weights.

    `window_bytes` may be under way before the drafter has said that it took them in. An empty
    `weights_fingerprint` fits any weights.
    """

    layers: tuple[int, ...]
    window_bytes: int
    weights_fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class FeatureGrant:
    """Hidden states that a verifier sends: of these layers, `width` numbers each, of type `dtype`.

    `dtype` is a key of `STATE_BYTES`.
    """

    layers: tuple[int, ...]
    width: int
    dtype: str

    @property
    def position_bytes(self) -> int:
        """Bytes of the states of one position."""
        return len(self.layers) * self.width * STATE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class FeatureChunk:
    """Hidden states of positions from `position` on: [count, layers, width] numbers, little-endian."""

    key: SessionKey
    position: int
    count: int
    states: bytes
