"""What every measurement's JSON holds beside its figures: machine, plan and load."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.system import Plan
from paceline import __version__
from paceline.service.machine import usable_cores

Document = dict[str, Any]


def machine() -> dict[str, object]:
    """Where it ran, and with which libraries. Imports torch: call it when nothing is measured any more."""
    import torch
    import transformers

    from paceline.engine.model import choose_device

    device = choose_device("auto")
    return {
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "device": str(device),
        "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "paceline": __version__,
    }


def load_average() -> float:
    """Processes that wanted to run in the last minute, on average."""
    return round(os.getloadavg()[0], 2)


def config(plan: Plan) -> dict[str, object]:
    """What all measurements of one plan have in common."""
    made: dict[str, object] = {
        "model": plan.model.name,
        "model_source": plan.model.source,
        "dtype": plan.dtype,
        "threads": plan.threads,
    }
    if plan.questions:
        made |= {
            "prompts": len(plan.questions),
            "max_tokens": plan.max_tokens,
            "chat_template": plan.model.can_chat,
            "verifiers": 1,
            "drafters": 1,
        }
    return made


def ratio(one: float, other: float) -> float:
    """`one` over `other` to four places; 0 where `other` is."""
    return round(per(one, other), 4)


def per(one: float, other: float) -> float:
    """`one` over `other`; 0 where `other` is."""
    return one / other if other else 0.0


def quantile(values: Sequence[float], share: float) -> float | None:
    """The value below which `share` of all lie, to four places; None of nothing."""
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 4) if ordered else None


def write(document: Mapping[str, Any], path: Path) -> None:
    """Write the JSON whole or not at all. Raises `OSError`."""
    with replacing(path) as scratch, scratch.open("w", encoding="utf-8") as file:
        json.dump(document, file, indent=1, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write, which becomes `path` when the block is left, and nothing when it fails."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    scratch = Path(name)
    try:
        yield scratch
        scratch.chmod(0o644)  # mkstemp keeps it from everyone else
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def cpu_model() -> str:
    """What the processor calls itself."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
