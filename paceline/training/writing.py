"""The target writes many texts at once: as soon as one ends, the next begins in its place."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field

from paceline.engine.blocks import BlockTask
from paceline.engine.engine import Engine, SessionRows, StepInput
from paceline.engine.model import Decoder
from paceline.engine.rows import Segment
from paceline.training.corpus import Text
from paceline.training.jobs import Job, Wanted


@dataclass(slots=True)
class _Place:
    """Room for one text in the KV, and the job that writes there."""

    table: range
    job: Job
    wanted: Wanted
    text: list[int] = field(default_factory=list)
    # Ids whose keys are computed.
    computed: list[int] = field(default_factory=list)

    def segment(self) -> Segment:
        """The rows that are next; what the place holds already is not computed again."""
        ids = [*self.wanted.prompt, *self.text]
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
        return self.text[-1] in sampling.stop_token_ids or len(self.text) >= sampling.max_tokens


class Scribe:
    """The model, with room for `sessions` texts of `longest` ids."""

    def __init__(self, decoder: Decoder, *, sessions: int, longest: int) -> None:
        blocks = -(-longest // decoder.block_size)
        self._engine = Engine(decoder, sessions * blocks)
        self._tables = [range(number * blocks, (number + 1) * blocks) for number in range(sessions)]

    def write(self, jobs: Iterator[Job], told: Callable[[int], None]) -> Iterator[list[Text]]:
        """The texts of each job as it ends; `told` hears after each step how many ids it wrote."""
        places: list[_Place] = []
        tasks: list[BlockTask] = []
        for table in self._tables:
            tasks += [BlockTask(block) for block in table]
            begun = yield from _begin(jobs)
            if begun is not None:
                places.append(_Place(table, *begun))
        while places:
            rows = [SessionRows(place.segment(), place.wanted.sampling) for place in places]
            decisions = self._engine.step(StepInput(rows, tasks)).decisions
            tasks = []
            told(len(places))
            for place, decision in zip(list(places), decisions, strict=True):
                place.text.append(decision.bonus)
                if not place.ended:
                    continue
                try:
                    place.wanted = place.job.send(place.text)
                    place.text = []
                except StopIteration as end:
                    yield end.value
                    begun = yield from _begin(jobs)
                    if begun is None:
                        places.remove(place)
                    else:
                        (place.job, place.wanted), place.text = begun, []


def _begin(jobs: Iterator[Job]) -> Generator[list[Text], None, tuple[Job, Wanted] | None]:
    """Start the next job that has something to write, handing on the texts of those that have not."""
    for job in jobs:
        try:
            return job, next(job)
        except StopIteration as end:
            yield end.value
    return None
