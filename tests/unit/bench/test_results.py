from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.results import quantile, ratio, write


def test_write_is_whole_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    write({"a": "é"}, path)
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "é"}
    with pytest.raises(TypeError):
        write({"a": object()}, path)
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "é"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.json"]


def test_a_ratio_to_nothing_is_nothing() -> None:
    assert ratio(1, 3) == 0.3333
    assert ratio(1, 0) == 0.0


def test_quantiles_are_values_that_were_seen() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([3.0, 1.0, 2.0], 0.99) == 3.0
    assert quantile([], 0.5) is None
