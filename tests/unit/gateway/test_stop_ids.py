"""Which ids end a text: those that the model can draw."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from gateway.prompt import Prompts
from tests.tiny import VOCAB


def test_stop_ids_outside_the_vocabulary_are_left_out(tiny_model: Path, tmp_path: Path) -> None:
    """Verifiers refuse them: every request failed while the gateway said that it was ready."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    own = Prompts(str(tiny_model)).stop_token_ids
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [*own, 7, VOCAB, 10**6]}))
    assert Prompts(str(folder)).stop_token_ids == own | {7}
