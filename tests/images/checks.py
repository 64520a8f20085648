"""What the checks of images, chart and compose have in common."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
        folder = Path(name)
        model = make_tiny_model(folder / MODEL)
        for path in (folder, model, *model.iterdir()):
            path.chmod(0o755)
        yield model
