"""The docs' table of sampling parameters is the code's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paceline.sampling import Parameter, SamplingRequest, parameters_of

PAGE = Path(__file__).parents[3] / "docs" / "api.md"
HEAD = "| parameter | values | default | does |\n|---|---|---|---|\n"


def _line(each: Parameter) -> str:
    return f"| `{each.name}` | {each.kind} | {_default(each.default)} | {each.meaning} |\n"


def _default(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, int | float) else ""


def test_the_table_is_the_codes() -> None:
    table = HEAD + "".join(map(_line, parameters_of(SamplingRequest)))
    assert table in PAGE.read_text(), f"docs/api.md should have:\n\n{table}"
