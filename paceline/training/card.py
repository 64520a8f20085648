"""Model cards: how weights came to be, so that somebody else can make them again."""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from paceline import __version__
from paceline.service.machine import usable_cores
from paceline.training.corpus import Text
from paceline.training.loop import Progress


@dataclass(frozen=True, slots=True)
class Checked:
    """What the search for shared runs of words found."""

    dataset: str
    sha256: str
    dropped: int


def sha256(path: Path) -> str:
    """Of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def machine(device: torch.device) -> dict[str, object]:
    """Where it was trained."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {
        "cpu": model,
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "torch": torch.__version__,
        "paceline": __version__,
    }


def card(
    *,
    method: str,
    arguments: Sequence[str],
    target: str,
    weights_fingerprint: str,
    texts_file: Path,
    texts: Sequence[Text],
    checked: Checked | None,
    settings: Mapping[str, object],
    progress: Progress,
    device: torch.device,
) -> dict[str, Any]:
    """All that is known of a training, ready for JSON."""
    return {
        "method": method,
        "command": shlex.join(arguments),
        "target": target,
        "weights_fingerprint": weights_fingerprint,
        "texts": {
            "sha256": sha256(texts_file),
            "count": len(texts),
            "ids": sum(len(text.ids) for text in texts),
            "distinct_tokens": sum(text.written for text in texts),
        },
        "shared_runs_of_13_words": "not checked"
        if checked is None
        else {"dataset": checked.dataset, "sha256": checked.sha256, "texts_dropped": checked.dropped},
        "settings": dict(settings),
        "tokens_seen": progress.seen,
        "minutes": round(progress.seconds / 60, 1),
        "machine": machine(device),
        "curve": progress.curve,
    }


def markdown(card: Mapping[str, Any]) -> str:
    """The card as a page."""
    lines = [f"# {card['method']} of {card['target']}", ""]
    for key, value in card.items():
        if key not in ("method", "curve"):
            shown = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
            lines.append(f"- {key.replace('_', ' ')}: `{shown}`")
    curve = card["curve"]
    if curve:
        checks = [key for key, value in curve[0].items() if isinstance(value, Mapping)]
        columns = ["seen", "minutes", "loss"]
        measured = [(check, figure) for check in checks for figure in curve[0][check]]
        titles = [*columns, *(f"{check} {figure}" for check, figure in measured)]
        lines += ["", "| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
        for point in curve:
            row = [point[key] for key in columns] + [point[check][figure] for check, figure in measured]
            lines.append("| " + " | ".join(str(value) for value in row) + " |")
    return "\n".join(lines) + "\n"
