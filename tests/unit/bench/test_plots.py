from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench import plots
from bench.steps import ROWS_OF_MANY, shapes
from bench.system import BenchError

ABOUT = {
    "config": {"model": "m", "dtype": "float32", "threads": 2},
    "machine": {"cpu": "a cpu", "gpu": None},
}


def test_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    with pytest.raises(BenchError, match=r"pip install 'paceline\[bench\]'"):
        plots.require()


@pytest.mark.parametrize("key", ["concurrency", "rate"])
def test_draws_speed_up(tmp_path: Path, key: str) -> None:
    pytest.importorskip("matplotlib")
    rows = [
        {key: point, "on_over_off": 1.5, "on_over_off_by_round": [1.4, 1.6]} for point in (1, 2, 4, 8, 16, 32)
    ]
    plots.speed_up({"rows": rows, **ABOUT}, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_draws_step_cost(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows: list[dict[str, Any]] = [
        {"sessions": sessions, "rows_per_session": rows, "milliseconds": 30.0 + rows}
        for sessions, rows in shapes()
    ]
    document = {"rows": rows, "most_rows_of_many": max(ROWS_OF_MANY), **ABOUT}
    plots.step_cost(document, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
