"""Memory and cores that this process may use, as the kernel and cgroups (v1, v2) allow."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

_PROC = Path("/proc")
# Page cache, which the kernel gives back before it kills anybody.
_CACHE = ("active_file", "inactive_file")


def free_memory(proc: Path = _PROC) -> int:
    """Bytes that this process may still allocate. Page cache counts as free; a cgroup's limit is a bound."""
    return max(0, min([_available(proc), *_left_in_cgroups(proc)]))


def usable_cores(proc: Path = _PROC) -> int:
    """Threads that can run all the time, by affinity mask and cgroup quotas; at least 1.

    A part of a core does not count: a throttled thread would hold up all others that wait for it.
    """
    return max(1, int(min([len(os.sched_getaffinity(0)), *_quotas(proc)])))


def _available(proc: Path) -> int:
    fields = dict(re.findall(r"^(\w+):\s+(\d+) kB", (proc / "meminfo").read_text(), re.MULTILINE))
    # Kernels before 3.14 have no MemAvailable.
    kib = fields.get("MemAvailable") or int(fields["MemFree"]) + int(fields["Cached"])
    return int(kib) << 10


def _left_in_cgroups(proc: Path) -> Iterator[int]:
    for version, folder in _cgroups(proc, "memory"):
        if version == 2:
            limit, used, prefix = _number(folder / "memory.max"), _number(folder / "memory.current"), ""
        else:
            limit, used = (_number(folder / f"memory.{name}_in_bytes") for name in ("limit", "usage"))
            prefix = "total_"
        if limit is not None and used is not None:
            counted = _counts(folder / "memory.stat")
            yield int(limit - used) + sum(counted.get(prefix + name, 0) for name in _CACHE)


def _quotas(proc: Path) -> Iterator[float]:
    for version, folder in _cgroups(proc, "cpu"):
        if version == 2:
            words = _words(folder / "cpu.max")
            quota, period = (_parsed(word) for word in words) if len(words) == 2 else (None, None)
        else:
            quota, period = (_number(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        if quota is not None and period and quota > 0:
            yield quota / period


def _cgroups(proc: Path, controller: str) -> Iterator[tuple[int, Path]]:
    """Version and folder of this process's cgroups that the controller may bound, from the process's up."""
    with suppress(OSError):
        mounts = list(_mounts(proc))
        for line in (proc / "self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            version = 1 if controllers else 2
            if version == 1 and controller not in controllers.split(","):
                continue
            for kind, root, point, options in mounts:
                if (kind, version) == ("cgroup2", 2) or (
                    (kind, version) == ("cgroup", 1) and controller in options
                ):
                    yield from ((version, folder) for folder in _upwards(root, Path(point), path))


def _mounts(proc: Path) -> Iterator[tuple[str, str, str, list[str]]]:
    """Kind, root, mount point and options of each mount; see proc(5)."""
    for line in (proc / "self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        root, point = before.split(" ")[3:5]
        yield kind, root, point, options.split(",")


def _upwards(root: str, point: Path, path: str) -> Iterator[Path]:
    """A cgroup's folder and those of its parents, as far as they are mounted here.

    A container may see a path of the host's that is not mounted: its own cgroup is the mount point then.
    """
    inside = PurePosixPath(path)
    below = inside.relative_to(root) if inside.is_relative_to(root) else PurePosixPath()
    folder = point / below if ".." not in below.parts else point
    while folder.is_relative_to(point):
        yield folder
        folder = folder.parent


def _words(file: Path) -> list[str]:
    with suppress(OSError):
        return file.read_text().split()
    return []


def _parsed(word: str) -> int | None:
    """A count; None for no limit."""
    return None if word == "max" else int(word)


def _number(file: Path) -> int | None:
    words = _words(file)
    return _parsed(words[0]) if words else None


def _counts(file: Path) -> dict[str, int]:
    words = _words(file)
    return {name: int(count) for name, count in zip(words[::2], words[1::2], strict=False)}
