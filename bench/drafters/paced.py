"""Recorded trees from a drafter that sleeps, over a way of a chosen length: no processor is shared.

One fleet serves all rows; verifier and everything else have a half of the cores each, as in `split`. Each
row is first drafted for by its real drafter, then by players of what it drafted (`bench.drafters.player`),
without drafting ahead and with it. A player's stream goes through a proxy, whose round trip is changed
between blocks of answers, so that the verifier's idea of it has time to follow.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from bench.arms import PLAIN, SPECULATIVE, PacelineArm, Sample
from bench.decode import WARM_UP
from bench.drafters import usage
from bench.drafters.forms import Measured, compared
from bench.drafters.link import Link, delaying_proxy
from bench.drafters.recorded import hit_rate
from bench.drafters.recordings import Recording, Recordings
from bench.drafters.rows import Arrangement, Row, drafter_flags, halves, pinned, verifier_flags
from bench.drafters.serve import acceptance_length
from bench.drafters.usage import Usage
from bench.results import per, ratio
from bench.system import BenchError, Plan, Progress, RunningSystem, system
from drafter_svc.config import DrafterSettings
from paceline.addresses import parse_address
from paceline.local.process import LocalProcess, Service

# Plain answers in each block: of every so many-th question, another one in each block.
_PLAIN_EVERY = 3
_WARM_UP_TOKENS = 24
_FIRST_TOKENS = 8
# Times that a drafter that has just started is asked for, and seconds between them.
_TRIES, _PAUSE_S = 40, 0.25
_GRACE_S = 8.0
_NODES: int = DrafterSettings.model_fields["tree_nodes"].default


@dataclass(frozen=True, slots=True)
class _Drafter:
    """One drafter of a row, and the round trips that it is tried with; None is no proxy at all."""

    name: str
    service: Service
    round_trips: tuple[float | None, ...]
    ahead: bool = False
    # Where the answers that warm up are drafted for.
    warm_up: str = WARM_UP


@dataclass(slots=True)
class _Block:
    """What one drafter did at one round trip."""

    samples: list[Sample] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    # Mean seconds from a request to its answer, by source.
    replies: Mapping[str, float] = field(default_factory=dict)


async def measure(
    plan: Plan,
    rows: Sequence[Row],
    recordings: Recordings,
    answers: Sequence[tuple[int, ...]],
    progress: Progress,
    *,
    round_trips: Sequence[float],
    draft_model: str | None,
) -> dict[str, dict[str, Any]]:
    """Figures by row. `answers`: the plain ones of the plan's questions; `round_trips`: in seconds.

    Raises what `system` raises, and `BenchError` where a drafter ends.
    """
    verifier_half, rest = halves()
    keep_states = next((row.keep_states for row in rows if row.keep_states), "")
    port = usage.free_port()
    bases: list[Service] = []
    flags = verifier_flags(keep_states, Arrangement.SPLIT, port)

    def adjust(service: Service) -> Service | None:
        if service.name.startswith("drafter"):
            bases.append(service)
            return None
        if service.name.startswith("verifier"):
            return replace(service, command=pinned((*service.command, *flags), verifier_half))
        return service

    made: dict[str, dict[str, Any]] = {}
    with _on(rest):
        async with delaying_proxy(0.0) as link, system(plan, progress, adjust=adjust) as running:
            measurement = _Measurement(plan, running, link, port, answers, progress)
            for row in rows:
                recording = recordings.methods[row.methods]
                real = _real(bases[0], row, plan, draft_model)
                players = [
                    _player(
                        bases[0], row, recording, plan, link, ahead=ahead, round_trips=(*extra, *round_trips)
                    )
                    for ahead, extra in ((False, (0.0,)), (True, ()))
                ]
                texts = list(zip(recordings.prompts, answers, strict=False))
                made[row.name] = await measurement.row(row, [real, *players], recording, texts)
    return made


class _Measurement:
    """The fleet, and what all rows' blocks have in common."""

    def __init__(
        self,
        plan: Plan,
        running: RunningSystem,
        link: Link,
        metrics_port: int,
        answers: Sequence[tuple[int, ...]],
        progress: Progress,
    ) -> None:
        self._plan = plan
        self._running = running
        self._link = link
        self._port = metrics_port
        self._answers = answers
        self._progress = progress
        self._arms = {
            name: PacelineArm(running.client, plan, speculation=name == SPECULATIVE)
            for name in (PLAIN, SPECULATIVE)
        }

    async def row(
        self,
        row: Row,
        drafters: Sequence[_Drafter],
        recording: Recording,
        texts: Sequence[tuple[Sequence[int], Sequence[int]]],
    ) -> dict[str, Any]:
        """All blocks of one row, beside its plain answers."""
        plain: list[list[Sample]] = [[] for _ in self._plan.questions]
        blocks: list[tuple[_Drafter, float | None, _Block]] = []
        for drafter in drafters:
            async with _serving(drafter.service, self._plan):
                await self._until_joined(drafter)
                for round_trip in drafter.round_trips:
                    self._link.round_trip = round_trip or 0.0
                    self._progress(f"{row.name}, {drafter.name}, {1e3 * (round_trip or 0):g} ms")
                    block = await self._block(drafter, len(blocks), plain)
                    blocks.append((drafter, round_trip, block))
        return self._figures(blocks, plain, recording, texts)

    async def _until_joined(self, drafter: _Drafter) -> None:
        """Until the gateway has found the drafter that has just started, and its stream is up."""
        self._link.round_trip = 0.0
        for _ in range(_TRIES):
            await self._arms[SPECULATIVE].answer(drafter.warm_up, _FIRST_TOKENS)
            if (await usage.status(self._running)).drafters:
                return
            await asyncio.sleep(_PAUSE_S)
        raise BenchError(f"{drafter.service.name} drafts for nobody")

    async def _block(self, drafter: _Drafter, number: int, plain: list[list[Sample]]) -> _Block:
        plan, block = self._plan, _Block()
        await self._arms[SPECULATIVE].answer(drafter.warm_up, min(_WARM_UP_TOKENS, plan.max_tokens))
        told = await usage.metrics(self._port)
        for index, question in enumerate(plan.questions):
            if (index + number) % _PLAIN_EVERY == 0:
                plain[index].append(await self._arms[PLAIN].answer(question.text, plan.max_tokens))
            before = await usage.read(self._running, self._port)
            block.samples.append(await self._arms[SPECULATIVE].answer(question.text, plan.max_tokens))
            block.usage += await usage.read(self._running, self._port) - before
        block.replies = _replies(told, await usage.metrics(self._port))
        return block

    def _figures(
        self,
        blocks: Sequence[tuple[_Drafter, float | None, _Block]],
        plain: Sequence[Sequence[Sample]],
        recording: Recording,
        texts: Sequence[tuple[Sequence[int], Sequence[int]]],
    ) -> dict[str, Any]:
        asked = [samples for samples in plain if samples]
        plain_rate = _rate(asked)
        made = [self._of(drafter, round_trip, block, plain_rate) for drafter, round_trip, block in blocks]
        split, paced, *_ = made
        hits = hit_rate(recording.trees(), texts, nodes=round(paced["nodes_per_step"]), most=_NODES)
        measured = Measured.of(
            hit_rate=hits,
            plain_seconds=_seconds_per_token([sample for samples in asked for sample in samples]),
            samples=blocks[1][2].samples,
            waited=blocks[1][2].usage.exposed_seconds,
            replies=blocks[1][2].replies,
        )
        for each in made[1:]:
            each |= compared(measured, each, ahead=each["ahead"])
        return {
            "prompts": len(self._plan.questions),
            "max_tokens": self._plan.max_tokens,
            "plain_tokens_per_second": round(plain_rate, 2),
            "plain_identical": all(
                sample.token_ids == self._expected(index)
                for index, samples in enumerate(plain)
                for sample in samples
            ),
            "measured": asdict(measured),
            "split": split,
            "paced": made[1:],
            "paced_over_split": ratio(paced["tokens_per_second"], split["tokens_per_second"]),
        }

    def _of(
        self, drafter: _Drafter, round_trip: float | None, block: _Block, plain_rate: float
    ) -> dict[str, Any]:
        rate = _rate([[sample] for sample in block.samples])
        done = block.usage
        identical = sum(
            sample.token_ids == self._expected(index) for index, sample in enumerate(block.samples)
        )
        return {
            "round_trip_ms": None if round_trip is None else round(1e3 * round_trip, 3),
            "ahead": drafter.ahead,
            "identical": identical,
            "acceptance_length": round(acceptance_length(block.samples), 3),
            "nodes_per_step": ratio(done.drafted, done.steps),
            "verifier_ms_per_token": round(1e3 * per(done.step_seconds, done.tokens), 3),
            "waited_ms_per_token": round(1e3 * per(done.exposed_seconds, done.tokens), 3),
            "bytes_up_per_token": round(per(done.bytes_up, done.tokens), 1),
            "bytes_down_per_token": round(per(done.bytes_down, done.tokens), 1),
            "reply_ms": {source: round(1e3 * seconds, 3) for source, seconds in block.replies.items()},
            "tokens_per_second": round(rate, 2),
            "decode_tokens_per_second": round(per(1, _seconds_per_token(block.samples)), 2),
            "over_plain": ratio(rate, plain_rate),
        }

    def _expected(self, index: int) -> tuple[int, ...]:
        return self._answers[index][: self._plan.max_tokens]


def _real(base: Service, row: Row, plan: Plan, draft_model: str | None) -> _Drafter:
    flags = drafter_flags(row, Arrangement.SPLIT, model=plan.model.folder, draft_model=draft_model)
    name = f"{base.name}-{row.name}-split".replace(" ", "-")
    return _Drafter("split", replace(base, name=name, command=(*base.command, *flags)), (None,))


def _player(
    base: Service,
    row: Row,
    recording: Recording,
    plan: Plan,
    link: Link,
    *,
    ahead: bool,
    round_trips: Sequence[float],
) -> _Drafter:
    what = "ahead" if ahead else "paced"
    name = f"{base.name}-{row.name}-{what}".replace(" ", "-").replace("+", "and")
    sources = plan.logs / f"{name}.json"
    sources.write_text(json.dumps([asdict(source) for source in recording.sources]), encoding="utf-8")
    host, port = parse_address(_listening(base))
    command = (sys.executable, "-m", "bench.drafters.player", "--sources", str(sources))
    service = replace(
        base,
        name=name,
        command=(*command, "--host", host, "--port", str(port)),
        variables={
            **base.variables,
            "PACELINE_DRAFTER_USE_HTTP_PROXY": "true",
            "PACELINE_DRAFTER_DRAFT_AHEAD": str(ahead).lower(),
            "grpc_proxy": f"http://{link.address}",
            "no_grpc_proxy": "",
            "no_proxy": "",
        },
    )
    return _Drafter(what, service, tuple(round_trips), ahead, plan.questions[0].text)


def _listening(service: Service) -> str:
    flags = service.command
    return f"{flags[flags.index('--host') + 1]}:{flags[flags.index('--port') + 1]}"


@asynccontextmanager
async def _serving(service: Service, plan: Plan) -> AsyncIterator[None]:
    """A drafter, running. Raises `ServiceDiedError`, and `BenchError` where it has ended meanwhile."""
    process = await LocalProcess.start(service, plan.logs / f"{service.name}.log")
    try:
        await process.until_ready()
        yield
        if not process.running:
            raise BenchError(process.obituary())
    finally:
        await process.stop(_GRACE_S)


@contextmanager
def _on(cores: Sequence[int]) -> Iterator[None]:
    """This process, and those that it starts, on these cores only; without cores where they are."""
    before = os.sched_getaffinity(0)
    if cores:
        os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _replies(
    before: Mapping[tuple[str, str], float], after: Mapping[tuple[str, str], float]
) -> dict[str, float]:
    """Mean seconds between a request and each source's answer."""
    name = "paceline:source_reply_seconds"
    made: dict[str, float] = {}
    for (sample, source), count in after.items():
        if sample == f"{name}_count" and (new := count - before.get((sample, source), 0.0)):
            key = (f"{name}_sum", source)
            made[source] = (after[key] - before.get(key, 0.0)) / new
    return made


def _rate(samples: Sequence[Sequence[Sample]]) -> float:
    """Tokens per second, prompts included, each question at the mean of its times."""
    seconds = sum(sum(each.seconds for each in same) / len(same) for same in samples)
    return per(sum(same[0].tokens for same in samples), seconds)


def _seconds_per_token(samples: Sequence[Sample]) -> float:
    """Behind the first token, as the client sees it."""
    tokens = sum(sample.tokens - sample.first_tokens for sample in samples)
    return per(sum(sample.seconds - sample.first_s for sample in samples), tokens)
