"""A recorded trace as rows: the tree in order, and not every step of a long answer."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench import plots
from bench.collector import Recorded
from bench.trace import _rows, shown, table

MS = 1_000_000


def _span(name: str, own: str, parent: str, began: int, ended: int) -> Recorded:
    return Recorded(name, "", "t", own, parent, began * MS, ended * MS, {"n": 1}, (), (), False)


def _rows_of_a_trace() -> list[dict[str, Any]]:
    root = _span("gateway.request", "r", "", 10, 110)
    steps = [
        span
        for number in range(9)
        for at in [20 + 9 * number]
        for span in (
            _span("verifier.step", f"s{number}", "d", at, at + 8),
            _span("verifier.forward", f"f{number}", f"s{number}", at + 1, at + 7),
        )
    ]
    return list(_rows([root, _span("verifier.decode", "d", "r", 19, 109), *steps], root))


def test_rows_are_the_tree_from_the_requests_beginning() -> None:
    rows = _rows_of_a_trace()
    assert [(row["name"], row["depth"]) for row in rows[:4]] == [
        ("gateway.request", 0),
        ("verifier.decode", 1),
        ("verifier.step", 2),
        ("verifier.forward", 3),
    ]
    assert (rows[0]["began_ms"], rows[0]["ms"]) == (0.0, 100.0)
    assert (rows[2]["began_ms"], rows[2]["ms"]) == (10.0, 8.0)


def test_of_many_steps_the_first_ones_are_shown() -> None:
    names = [row["name"] for row in shown(_rows_of_a_trace())]
    assert names == ["gateway.request", "verifier.decode", *["verifier.step", "verifier.forward"] * 5]


def test_a_trace_is_printed_and_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    document = {
        "rows": _rows_of_a_trace(),
        "config": {"model": "m", "dtype": "float32", "threads": 2},
        "machine": {"cpu": "a cpu", "gpu": None},
    }
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table(document))
    assert "    verifier.step " in console.export_text()
    plots.trace(document, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
