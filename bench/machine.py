"""What the numbers were measured on: processor, cores, memory, GPU, versions."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

import paceline

_PACKAGES = ("torch", "transformers", "grpcio", "numpy")


def machine() -> dict[str, object]:
    """The hardware and its system."""
    found: dict[str, object] = {
        "processor": _processor(),
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
    import torch

    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def versions() -> dict[str, str]:
    """Ours, Python's, and those of the packages that decide speed."""
    ours = {"paceline": paceline.__version__, "python": platform.python_version()}
    return ours | {package: version(package) for package in _PACKAGES}


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
