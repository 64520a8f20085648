from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from bench.load import table

ARM: dict[str, Any] = {
    "tokens_per_second": 151.2,
    "seconds_per_token_median": 0.0412,
    "seconds_per_token_p99": 0.1404,
    "first_token_seconds_median": None,
    "first_token_seconds_p99": 12.5,
}


@pytest.mark.parametrize(("key", "point"), [("concurrency", 16), ("rate", 0.25)])
def test_table_fits_a_terminal(key: str, point: float) -> None:
    row = {key: point, "on_over_off": 1.234, "plain": ARM, "speculative": ARM}
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table({"rows": [row, row]}))
    shown = console.export_text()
    assert f" {point:g} " in shown
    assert "1.23x" in shown
    assert "140" in shown
    assert "…" not in shown
