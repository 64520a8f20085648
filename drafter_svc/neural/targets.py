"""Parts of the target model that a method takes from its weights."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from torch import Tensor

from drafter_svc.methods.base import UnfitError
from paceline.engine.fingerprint import weights_fingerprint
from paceline.engine.loading import ModelError, one_line
from paceline.heads.store import HeadError, target_embedding


def embedding_of(model: str, fingerprint: str) -> Tensor:
    """The embedding [vocab, d] of the target, from a folder or hub id of its weights.

    Raises `UnfitError` where these are other weights than those of the fingerprint.
    """
    try:
        folder = Path(model).expanduser()
        if not folder.is_dir():
            folder = Path(snapshot_download(model, allow_patterns=["config.json", "*.safetensors"]))
        found = weights_fingerprint(folder)
        if found != fingerprint:
            raise UnfitError(f"--model {model} has the weights {found}; the target's are {fingerprint}")
        return target_embedding(folder)
    except (HfHubHTTPError, HFValidationError, ModelError, HeadError, OSError) as error:
        raise UnfitError(
            f"cannot read the target's weights from --model {model}: {one_line(error)}"
        ) from error
