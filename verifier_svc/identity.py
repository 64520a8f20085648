"""The model that this verifier serves, as gateways and drafters are told."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any

from paceline.engine.engine import Engine
from paceline.engine.fingerprint import weights_fingerprint
from paceline.vocabulary import vocab_fingerprint


@dataclass(frozen=True, slots=True)
class ServedModel:
    """Facts that are fixed from the start of the process."""

    verifier_id: str
    model_id: str
    vocab_fingerprint: str
    vocab_size: int
    # Longest prompt + generated length in tokens.
    max_context: int
    block_size: int
    device: str
    # Decoder layers.
    num_layers: int = 0
    # See `engine.fingerprint`; empty where it is not known.
    weights_fingerprint: str = ""


def describe(
    engine: Engine,
    tokenizer: Any,
    *,
    model: str,
    model_name: str,
    port: int,
) -> ServedModel:
    """The facts of what is served. `model` is the folder or hub id that weights and tokenizer came from."""
    return ServedModel(
        verifier_id=f"{socket.gethostname()}:{port}",
        model_id=model_name or model.rstrip("/").rsplit("/", 1)[-1],
        vocab_fingerprint=vocab_fingerprint(tokenizer.get_vocab()),
        vocab_size=engine.shape.vocab_size,
        max_context=min(engine.shape.max_context, engine.kv_tokens),
        block_size=engine.block_size,
        device=f"{engine.device} {str(engine.dtype).removeprefix('torch.')}",
        num_layers=engine.shape.layers,
        weights_fingerprint=weights_fingerprint(model),
    )
