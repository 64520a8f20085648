"""What a method drafts with: numbers of its weights, minutes of its training, hashes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from bench.drafters.rows import Row
from paceline.engine.fingerprint import weights_fingerprint
from paceline.heads import store
from paceline.training.card import sha256


def of_row(row: Row, model: Path, draft_model: str | None) -> dict[str, Any]:
    """Parameters, training minutes (None where nothing says so) and files with their hashes."""
    parameters, minutes, weights = 0, None, {}
    methods = row.methods.split("+")
    if "draft" in methods and draft_model is not None:
        files = sorted(Path(draft_model).glob("*.safetensors"))
        parameters += sum(map(_parameters, files))
        minutes = _minutes(Path(draft_model) / "card.json")
        weights.update(_hashes(files))
    head = store.find(weights_fingerprint(model)) if "eagle" in methods else None
    if head is not None:
        parameters += _parameters(head)
        minutes = store.labels(head).card.get("minutes")
        weights.update(_hashes([head]))
    return {"parameters": parameters, "training_minutes": minutes, "weights_sha256": weights}


def of_target(model: Path) -> dict[str, Any]:
    """The target's fingerprint and the hashes of its files."""
    files = sorted(model.glob("*.safetensors"))
    return {"weights_fingerprint": weights_fingerprint(model), "weights_sha256": _hashes(files)}


def _hashes(files: Sequence[Path]) -> dict[str, str]:
    return {file.name: sha256(file) for file in files}


def _parameters(file: Path) -> int:
    """Numbers in a file, without those that are no weights."""
    with safe_open(file, "pt") as weights:
        parts = [weights.get_slice(name) for name in weights.keys()]  # noqa: SIM118
        return sum(math.prod(part.get_shape()) for part in parts if not part.get_dtype().startswith("I"))


def _minutes(card: Path) -> float | None:
    try:
        return float(json.loads(card.read_text(encoding="utf-8"))["minutes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
