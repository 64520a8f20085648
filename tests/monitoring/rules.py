"""The chart's files of rules, also as a test wants them: with seconds in the place of minutes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[2] / "deploy" / "chart" / "rules"
FILES = sorted(FOLDER.glob("*.yaml"))
_WINDOW = re.compile(r"\[(\d+[smhd])\]")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def rules() -> Iterator[dict[str, Any]]:
    """Every rule of every file."""
    for path in FILES:
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from group["rules"]


def alerts() -> dict[str, dict[str, Any]]:
    """The alerts by name."""
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def shrunk(folder: Path, factor: int) -> list[Path]:
    """Copies of the files in which every length of time is divided by `factor`, down to a second.

    That is every window (`[5m]`), every `for:` and every interval. Thresholds, labels and all else of an
    expression stay.
    """
    written = []
    for path in FILES:
        text = yaml.safe_load(path.read_text())
        for group in text["groups"]:
            group["interval"] = "1s"
            for rule in group["rules"]:
                rule["expr"] = _WINDOW.sub(lambda found: f"[{_part(found[1], factor)}]", rule["expr"])
                if "for" in rule:
                    rule["for"] = _part(rule["for"], factor)
        copy = folder / path.name
        copy.write_text(yaml.safe_dump(text))
        written.append(copy)
    return written


def _part(duration: str, factor: int) -> str:
    return f"{max(1, int(duration[:-1]) * _SECONDS[duration[-1]] // factor)}s"
