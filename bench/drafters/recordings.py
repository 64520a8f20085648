"""Recordings of methods: what is asked of the process that makes them (`bench.drafters.recorder`)."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.drafters.recorded import Recorded, Source
from bench.drafters.rows import pinned
from bench.system import BenchError
from paceline.service import tether

_LOG, _MADE = "recorder.log", "recordings.json"


@dataclass(frozen=True, slots=True)
class Text:
    """A question and its plain greedy answer, as ids."""

    task: str
    turn: str
    answer: tuple[int, ...]

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Text:
        """From JSON of its fields."""
        return cls(told["task"], told["turn"], tuple(told["answer"]))


@dataclass(frozen=True, slots=True)
class Job:
    """What to replay to which methods.

    Trees of all methods are kept for the first `kept` texts, of `nodes` nodes. Acceptance lengths are of all
    texts, with trees of each number in `sizes`; drafts are timed with those in `timed`, too.
    """

    model: str
    draft_model: str
    methods: tuple[str, ...]
    texts: tuple[Text, ...]
    chat: bool
    kept: int
    nodes: int
    sizes: tuple[int, ...]
    timed: tuple[int, ...]
    threads: int

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Job:
        """From JSON of its fields."""
        lists = {name: tuple(told[name]) for name in ("methods", "sizes", "timed")}
        return cls(**{**told, **lists, "texts": tuple(Text.of(each) for each in told["texts"])})


@dataclass(frozen=True, slots=True)
class Recording:
    """What came of one method: acceptance lengths by size of the trees, and its sources as they play."""

    replay: Mapping[str, Any]
    sources: tuple[Source, ...]

    def trees(self) -> list[Recorded]:
        """The trees of each source. Raises what `Recorded.read` raises."""
        return [Recorded.read(Path(source.trees)) for source in self.sources]


@dataclass(frozen=True, slots=True)
class Recordings:
    """What came of a job: by method, and on which device they were timed."""

    device: str
    prompts: tuple[tuple[int, ...], ...]
    methods: Mapping[str, Recording]


async def record(job: Job, cores: Sequence[int], folder: Path) -> Recordings:
    """Carry a job out in a process pinned to `cores` (empty: to none). Its files are kept in `folder`.

    Raises `BenchError` where it fails.
    """
    command = _command(job, folder)
    with (folder / _LOG).open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *tether.command(pinned(command, cores)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        status = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if status:
        raise BenchError(f"recording trees failed: {_last_words(folder)}")
    return _read(folder)


def _command(job: Job, folder: Path) -> tuple[str, ...]:
    folder.mkdir(parents=True, exist_ok=True)
    asked = folder / "job.json"
    asked.write_text(json.dumps(asdict(job)), encoding="utf-8")
    return sys.executable, "-m", "bench.drafters.recorder", str(asked), str(folder / _MADE)


def _last_words(folder: Path) -> str:
    log = folder / _LOG
    last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    return f"{' '.join(last)}\nlog: {log}"


def _read(folder: Path) -> Recordings:
    told = json.loads((folder / _MADE).read_text(encoding="utf-8"))
    methods = {
        name: Recording(each["replay"], tuple(Source.of(source) for source in each["sources"]))
        for name, each in told["methods"].items()
    }
    return Recordings(told["device"], tuple(tuple(ids) for ids in told["prompts"]), methods)
