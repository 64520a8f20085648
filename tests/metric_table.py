"""The metrics as docs/metrics.md lists them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
EVERY_SERVICE = "Every service"
COLUMNS = ["metric", "type", "unit", "labels", "vLLM", "meaning"]


@dataclass(frozen=True, slots=True)
class Documented:
    """One row; `labels` without those that every series of a process has."""

    name: str
    kind: str
    unit: str
    labels: tuple[str, ...]
    vllm: str
    meaning: str


def documented() -> dict[str, dict[str, Documented]]:
    """The rows by section and name."""
    sections: dict[str, dict[str, Documented]] = {}
    for section in PAGE.read_text().split("\n## ")[1:]:
        title, _, body = section.partition("\n")
        lines = [line for line in body.splitlines() if line.startswith("|")]
        head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
        assert head == COLUMNS, title
        found = sections[title] = {}
        for cells in rows:
            assert len(cells) == len(COLUMNS), cells
            name, kind, unit, labels, vllm, meaning = cells
            row = Documented(
                name.strip("`"),
                kind,
                unit,
                tuple(sorted(re.findall(r"\w+", labels))),
                vllm.strip("`"),
                meaning,
            )
            assert row.name not in found, row.name
            found[row.name] = row
    return sections
