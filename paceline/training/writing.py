"""The target writes many texts at once: as soon as one ends, the next begins in its place."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeAlias, TypeVar

from paceline.engine.blocks import BlockTask
from paceline.engine.engine import Engine, SessionRows, StepInput
from paceline.engine.model import Decoder
from paceline.engine.rows import Segment
from paceline.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class Wanted:
    """A prompt to go on from."""

    prompt: tuple[int, ...]
    sampling: SamplingParams
    # Likeliest ids that are wanted of each row.
    top_k: int = 0


@dataclass(frozen=True, slots=True)
class Written:
    """What the model wrote, with the likeliest ids of each row."""

    ids: list[int] = field(default_factory=list)
    top_ids: list[tuple[int, ...]] = field(default_factory=list)


T = TypeVar("T")
# Yields what to write next, gets what was written, and returns what came of it.
Job: TypeAlias = Generator[Wanted, Written, T]


@dataclass(slots=True)
class _Place(Generic[T]):
    """Room for one text in the KV, and the job that writes there."""

    table: range
    job: Job[T]
    wanted: Wanted
    written: Written = field(default_factory=Written)
    # Ids whose keys are computed.
    computed: list[int] = field(default_factory=list)

    def segment(self) -> Segment:
        """The rows that are next; what the place holds already is not computed again."""
        ids = [*self.wanted.prompt, *self.written.ids]
        start = 0
        for start, (held, asked) in enumerate(zip(self.computed, ids, strict=False)):  # noqa: B007
            if held != asked:
                break
        else:
            start = min(len(self.computed), len(ids) - 1)
        start = min(start, len(ids) - 1)
        self.computed = ids
        return Segment(ids[start:], start, self.table)

    @property
    def ended(self) -> bool:
        sampling = self.wanted.sampling
        ids = self.written.ids
        return ids[-1] in sampling.stop_token_ids or len(ids) >= sampling.max_tokens


class Scribe:
    """The model, with room for `sessions` texts of `longest` ids."""

    def __init__(self, decoder: Decoder, *, sessions: int, longest: int) -> None:
        blocks = -(-longest // decoder.block_size)
        self._engine = Engine(decoder, sessions * blocks)
        self._tables = [range(number * blocks, (number + 1) * blocks) for number in range(sessions)]

    def write(self, jobs: Iterator[Job[T]], told: Callable[[int], None]) -> Iterator[T]:
        """What comes of each job as it ends; `told` hears after each step how many ids it wrote."""
        places: list[_Place[T]] = []
        tasks: list[BlockTask] = []
        for table in self._tables:
            tasks += [BlockTask(block) for block in table]
            begun = yield from _begin(jobs)
            if begun is not None:
                places.append(_Place(table, *begun))
        while places:
            rows = [
                SessionRows(place.segment(), place.wanted.sampling, place.wanted.top_k) for place in places
            ]
            decisions = self._engine.step(StepInput(rows, tasks)).decisions
            tasks = []
            told(len(places))
            for place, decision in zip(list(places), decisions, strict=True):
                place.written.ids.append(decision.bonus)
                place.written.top_ids.append(decision.top_ids)
                if not place.ended:
                    continue
                try:
                    place.wanted = place.job.send(place.written)
                    place.written = Written()
                except StopIteration as end:
                    yield end.value
                    begun = yield from _begin(jobs)
                    if begun is None:
                        places.remove(place)
                    else:
                        (place.job, place.wanted), place.written = begun, Written()


def _begin(jobs: Iterator[Job[T]]) -> Generator[T, None, tuple[Job[T], Wanted] | None]:
    """Start the next job that has something to write, handing on what comes of those that have not."""
    for job in jobs:
        try:
            return job, next(job)
        except StopIteration as end:
            yield end.value
    return None
