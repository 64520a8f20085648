"""What the checks of images, chart and compose have in common."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paceline.cli.console import cache_folder
from paceline.models.store import SMOLLM2, ModelStore
from tests.tiny import make_tiny_model

MODEL = "tiny"
# Where the services find it in their containers.
MODEL_PATH = f"/models/{MODEL}"


class CheckError(Exception):
    """What was tried did something that it should not."""


def hold(holds: bool, otherwise: str) -> None:
    """Raises `CheckError` unless it holds."""
    if not holds:
        raise CheckError(otherwise)


@contextmanager
def tiny_model() -> Iterator[Path]:
    """The folder of a tiny model, in a folder of its own; every user may read both."""
    with tempfile.TemporaryDirectory() as name:
        yield _readable(make_tiny_model(Path(name) / MODEL))


@contextmanager
def default_model() -> Iterator[Path]:
    """The folder of a copy of the default model, for which there is a head; every user may read it."""
    found = ModelStore(cache_folder()).fetch(SMOLLM2, print)
    with tempfile.TemporaryDirectory() as name:
        yield _readable(Path(shutil.copytree(found.folder, Path(name) / MODEL)))


def _readable(model: Path) -> Path:
    for path in (model.parent, model, *model.iterdir()):
        path.chmod(0o755)
    return model
