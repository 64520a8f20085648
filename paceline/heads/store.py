"""Heads as files: safetensors with the shape, the target's fingerprint and the model card in the metadata.

A head is of one target: it reads that model's states. `load` takes it for no other weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from paceline.heads.eagle import EagleConfig, EagleHead

# Heads that come with Paceline, a file for each target.
SHIPPED: Final = Path(__file__).parent / "shipped"
_KIND: Final = "eagle"
_EMBEDDINGS: Final = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "tok_embeddings.weight")


class HeadError(Exception):
    """A file holds no head, or one for another target; the message says which."""


@dataclass(frozen=True, slots=True)
class Labels:
    """What a head's file says beside its weights."""

    config: EagleConfig
    # Of the target: `paceline.engine.fingerprint.weights_fingerprint`.
    weights_fingerprint: str
    # The model card.
    card: Mapping[str, Any]


def save(head: EagleHead, path: Path, *, weights_fingerprint: str, card: Mapping[str, Any]) -> None:
    """Write a head in bfloat16; the file is whole or not there."""
    tensors = {
        name: tensor.detach().to(torch.int32 if name == "tokens" else torch.bfloat16).cpu().contiguous()
        for name, tensor in head.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    save_file(
        tensors,
        part,
        metadata={
            "paceline": _KIND,
            "config": head.config.to_json(),
            "weights_fingerprint": weights_fingerprint,
            "card": json.dumps(card, sort_keys=True),
        },
    )
    part.replace(path)


def labels(path: Path) -> Labels:
    """What a file says of its head, without reading the weights. Raises `HeadError`."""
    try:
        with safe_open(path, "pt") as file:
            return _labels(path, file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise HeadError(f"{path} holds no head: {error}") from error


def _labels(path: Path, metadata: Mapping[str, str]) -> Labels:
    if metadata.get("paceline") != _KIND:
        raise HeadError(f"{path} holds no head of Paceline's")
    try:
        return Labels(
            EagleConfig.of(metadata["config"]), metadata["weights_fingerprint"], json.loads(metadata["card"])
        )
    except (ValueError, KeyError, TypeError) as error:
        raise HeadError(f"{path} holds no head: {error}") from error


def load(
    path: Path,
    *,
    weights_fingerprint: str,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> EagleHead:
    """The head of a file. Raises `HeadError` where it is not one of the target with that fingerprint."""
    found = labels(path)
    if found.weights_fingerprint != weights_fingerprint:
        raise HeadError(
            f"{path} is a head of the weights {found.weights_fingerprint}; "
            f"the target's are {weights_fingerprint}"
        )
    head = EagleHead(found.config)
    try:
        with safe_open(path, "pt") as file:
            head.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, RuntimeError) as error:
        raise HeadError(f"{path} holds no head of the shape it names: {error}") from error
    return head.to(device=device, dtype=dtype).eval().requires_grad_(False)


def find(weights_fingerprint: str, folder: Path = SHIPPED) -> Path | None:
    """The file in `folder` that holds a head for the target; None where there is none."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            if labels(path).weights_fingerprint == weights_fingerprint:
                return path
        except HeadError:
            continue
    return None


def target_embedding(folder: Path) -> Tensor:
    """The target's embedding [vocab, d], in its own dtype, from its safetensors. Raises `HeadError`."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118
                    if name.endswith(_EMBEDDINGS):
                        tensor: Tensor = file.get_tensor(name)
                        return tensor
        except (OSError, SafetensorError) as error:
            raise HeadError(f"cannot read {path}: {error}") from error
    raise HeadError(f"{folder} holds no embedding in safetensors")
