"""Parts of the target model that a method takes from its weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from torch import Tensor

from drafter_svc.methods.base import UnfitError
from paceline.engine.fingerprint import weights_fingerprint
from paceline.engine.loading import ModelError, one_line
from paceline.heads.store import HeadError, target_embedding


@dataclass(frozen=True, slots=True)
class TargetWeights:
    """The weights of a target, in a folder of this machine."""

    model: str
    folder: Path
    fingerprint: str

    @classmethod
    def of(cls, model: str) -> TargetWeights:
        """Those of a folder or hub id. Raises `UnfitError` where there are none."""
        with _reading(model):
            folder = Path(model).expanduser()
            if not folder.is_dir():
                folder = Path(snapshot_download(model, allow_patterns=["config.json", "*.safetensors"]))
            return cls(model, folder, weights_fingerprint(folder))

    def embedding(self) -> Tensor:
        """The embedding [vocab, d]. Raises `UnfitError` where it cannot be read."""
        with _reading(self.model):
            return target_embedding(self.folder)


@contextmanager
def _reading(model: str) -> Iterator[None]:
    try:
        yield
    except (HfHubHTTPError, HFValidationError, ModelError, HeadError, OSError) as error:
        raise UnfitError(
            f"cannot read the target's weights from --model {model}: {one_line(error)}"
        ) from error
