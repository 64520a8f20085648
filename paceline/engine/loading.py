"""Weights from files, whole: nothing missing, nothing left over, nothing of another size."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel

# Tensors of a checkpoint that a causal language model has no use for: what older versions of transformers
# saved beside weights, and other modalities' parts.
_NO_WEIGHTS = re.compile(
    r"(inv_freq|masked_bias|attn\.bias|attention\.bias|position_ids)$"
    r"|(^|\.)(vision|visual|audio|image|multi_modal|multimodal|mm_|mtp|embed_vision|embed_audio)"
)
# The most names that an error lists.
_TOLD = 6


class ModelError(ValueError):
    """The model cannot be served; the message says why and what to do."""


class RefusedError(ModelError):
    """The engine does not compute models of this kind; `reason` names what it lacks."""

    def __init__(self, kind: str, reason: str) -> None:
        """`kind`: of the model, as its configuration names it."""
        super().__init__(f"{kind} models are not served: {reason}")
        self.reason = reason


def load_causal(
    path: str | Path, *, dtype: torch.dtype | None, trust_remote_code: bool, **options: Any
) -> PreTrainedModel:
    """A causal language model with every one of its weights from `path`.

    Raises `ModelError` where a file is damaged or weights and model do not fit each other, with the names;
    whatever transformers raises of the folder itself.
    """
    loaded: Any
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype or "auto",
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            # Reported below, with the names.
            ignore_mismatched_sizes=True,
            **options,
        )
    except SafetensorError as error:
        raise ModelError(
            f"a weight file of {path} is damaged or cut short ({one_line(error)}); fetch the model again"
        ) from error
    except RuntimeError as error:
        raise ModelError(
            f"the weights of {path} are not those of its config.json: {one_line(error)}"
        ) from error
    model: PreTrainedModel
    model, seen = loaded
    faults = {
        "lacks": seen["missing_keys"],
        "has beyond the model": [name for name in seen["unexpected_keys"] if not _NO_WEIGHTS.search(name)],
        "has in another size": [name for name, *_ in seen["mismatched_keys"]],
    }
    told = [f"{fault} {_names(names)}" for fault, names in faults.items() if names]
    if told:
        raise ModelError(
            f"the weights of {path} are not those of its config.json: the checkpoint {', and '.join(told)}; "
            "fetch the model again, or ask its author for the matching files"
        )
    return model


def one_line(error: Exception) -> str:
    """An error's message in one line, with its type where the message alone says too little (KeyError)."""
    said = " ".join(str(error).split())
    return said if isinstance(error, (OSError, ValueError)) and said else f"{type(error).__name__}: {said}"


def _names(names: Iterable[str]) -> str:
    every = sorted(names)
    more = f" and {len(every) - _TOLD} more" if len(every) > _TOLD else ""
    return ", ".join(every[:_TOLD]) + more
