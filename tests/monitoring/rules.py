"""The chart's files of rules, also as a test wants them: with seconds in the place of minutes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[2] / "deploy" / "chart" / "rules"
FILES = sorted(FOLDER.glob("*.yaml"))
_WINDOW = re.compile(r"\[\d+[smhd]\]")


def rules() -> Iterator[dict[str, Any]]:
    """Every rule of every file."""
    for path in FILES:
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from group["rules"]


def alerts() -> dict[str, dict[str, Any]]:
    """The alerts by name."""
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def shrunk(folder: Path, *, window: str, pending: str) -> list[Path]:
    """Copies of the files that say the same of a shorter time: every `[5m]` is `[window]`, every `for:` is
    `pending`, every group is evaluated each second. Thresholds, labels and all else of an expression stay.
    """
    written = []
    for path in FILES:
        text = yaml.safe_load(path.read_text())
        for group in text["groups"]:
            group["interval"] = "1s"
            for rule in group["rules"]:
                rule["expr"] = _WINDOW.sub(f"[{window}]", rule["expr"])
                if "for" in rule:
                    rule["for"] = pending
        copy = folder / path.name
        copy.write_text(yaml.safe_dump(text))
        written.append(copy)
    return written
