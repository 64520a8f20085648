"""What a process may take of its machine, read from folders as kernels lay them out, and of this one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from paceline.service import machine

GIB = 1 << 30
MEMINFO = "MemTotal: 33554432 kB\nMemFree: 1048576 kB\nMemAvailable: 16777216 kB\nCached: 15728640 kB\n"


class Kernel:
    """A `/proc` and cgroup folders of a made-up machine."""

    def __init__(self, folder: Path) -> None:
        self.proc = folder / "proc"
        self.groups = folder / "cgroup"
        self.write(self.proc / "meminfo", MEMINFO)

    def write(self, file: Path, content: str) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)

    def process(self, cgroup: str, *mounts: str) -> None:
        """`mounts`: "kind root folder options", folder below the cgroups' own."""
        self.write(self.proc / "self/cgroup", cgroup)
        lines = []
        for number, mount in enumerate(mounts):
            kind, root, folder, options = mount.split(" ")
            lines.append(
                f"{30 + number} 23 0:28 {root} {self.groups / folder} rw,relatime - {kind} none {options}\n"
            )
        self.write(self.proc / "self/mountinfo", "".join(lines))

    def set(self, folder: str, **files: object) -> None:
        for name, content in files.items():
            self.write(self.groups / folder / name.replace("__", "."), f"{content}\n")


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


def test_page_cache_is_free_where_nothing_else_is_bounded(kernel: Kernel) -> None:
    assert machine.free_memory(kernel.proc) == 16 * GIB
    assert machine.usable_cores(kernel.proc) == len(os.sched_getaffinity(0))


def test_a_containers_limits_hold(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    kernel.process("0::/\n", "cgroup2 / . rw")
    kernel.set(".", memory__max=4 * GIB, memory__current=3 * GIB, cpu__max="250000 100000")
    assert machine.free_memory(kernel.proc) == GIB
    assert machine.usable_cores(kernel.proc) == 2
    # Of the 3 GiB, 2 are files that were read.
    kernel.set(".", memory__stat=f"anon 1\ninactive_file {GIB}\nactive_file {GIB}")
    assert machine.free_memory(kernel.proc) == 3 * GIB


def test_a_limit_of_any_parent_holds(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    kernel.process("0::/pods/pod/container\n", "cgroup2 / . rw")
    kernel.set("pods/pod/container", memory__max="max", memory__current=GIB, cpu__max="max 100000")
    kernel.set("pods/pod", memory__max=2 * GIB, memory__current=GIB, cpu__max="400000 100000")
    kernel.set("pods", memory__max=8 * GIB, memory__current=GIB, cpu__max="800000 100000")
    assert machine.free_memory(kernel.proc) == GIB
    assert machine.usable_cores(kernel.proc) == 4


@pytest.mark.parametrize(
    ("root", "folder"),
    [
        ("/", "memory/docker/abc"),
        # A container sees its own cgroup as the mount's root.
        ("/docker/abc", "memory"),
        # And may be told a path of the host's.
        ("/elsewhere", "memory"),
    ],
)
def test_version_1(kernel: Kernel, monkeypatch: pytest.MonkeyPatch, root: str, folder: str) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    kernel.process(
        "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n1:name=systemd:/docker/abc\n0::/\n",
        f"cgroup {root} memory rw,memory",
        f"cgroup {root} cpu rw,cpu,cpuacct",
        "cgroup2 / unified rw",
    )
    usage = {"memory__limit_in_bytes": 2 * GIB, "memory__usage_in_bytes": 2 * GIB}
    kernel.set(folder, **usage, memory__stat=f"inactive_file 5\ntotal_inactive_file {GIB}")
    kernel.set(folder.replace("memory", "cpu"), cpu__cfs_quota_us=50_000, cpu__cfs_period_us=100_000)
    assert machine.free_memory(kernel.proc) == GIB
    assert machine.usable_cores(kernel.proc) == 1
    kernel.set(folder, memory__limit_in_bytes=9223372036854771712)
    kernel.set(folder.replace("memory", "cpu"), cpu__cfs_quota_us=-1)
    assert machine.free_memory(kernel.proc) == 16 * GIB
    assert machine.usable_cores(kernel.proc) == 16


def test_more_than_the_limit_is_none_left(kernel: Kernel) -> None:
    kernel.process("0::/\n", "cgroup2 / . rw")
    kernel.set(".", memory__max=GIB, memory__current=2 * GIB)
    assert machine.free_memory(kernel.proc) == 0


MEMORY, CPU = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup/cpu")


@pytest.fixture
def group() -> Iterator[str]:
    """A cgroup (version 1) with 300 MiB and one core."""
    name = f"paceline-{os.getpid()}"
    made: list[Path] = []
    try:
        for folder, file, value in (
            (MEMORY, "memory.limit_in_bytes", 300 << 20),
            (CPU, "cpu.cfs_quota_us", 100_000),
        ):
            try:
                (folder / name).mkdir()
                made.append(folder / name)
                (folder / name / file).write_text(str(value))
            except OSError as error:
                pytest.skip(f"no cgroup can be made here: {error}")
        yield name
    finally:
        for path in made:
            path.rmdir()


_TOLD = """
import sys
from pathlib import Path
for folder in sys.argv[2:]:
    Path(folder, "cgroup.procs").write_text("0")
# Page cache of half the limit.
Path(sys.argv[1]).write_bytes(bytes(150 << 20))
from paceline.service import machine
print(machine.free_memory() >> 20, machine.usable_cores())
"""


def test_this_kernels_cgroups_hold(group: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _TOLD, str(tmp_path / "read"), str(MEMORY / group), str(CPU / group)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    assert 200 < int(told[0]) <= 300
    assert told[1] == "1"
