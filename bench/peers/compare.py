"""Decoding speed of Paceline and of other servers: the same prompts, weights and threads, in one run.

One is awake at a time. Alone, they answer prompt by prompt in turns; at more sessions each answers all
prompts of that concurrency, so many at a time, before the next one does. No prompt is asked at two
concurrencies, so that no drafter knows a text from before.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.table import Table

from bench.arms import PacelineArm, Sample
from bench.dataset import Question
from bench.decode import WARM_UP
from bench.peers import (
    ARMS,
    PACELINE,
    PACELINE_SPECULATIVE,
    PEERS,
    TRANSFORMERS,
    VLLM,
    VLLM_NGRAM,
    catalog,
    processes,
)
from bench.peers.catalog import Contestant, Field, MissingError
from bench.peers.install import peers
from bench.results import Document, per, ratio
from bench.system import BenchError, Plan, Progress, system
from gateway.chat import Chat, ChatTurn
from gateway.prompt import Prompts
from paceline.client import GatewayClient
from paceline.local.process import ServiceDiedError

NOTE = (
    "Tokens per second of all sessions, from the first request to the last token, prompts included. A server "
    "is stopped (SIGSTOP) while another is measured; `others_cpu_seconds` is the processor time of those who "
    "were not measured meanwhile. `same_text`: answers that equal plain Paceline's. What answers one session "
    "at a time is measured alone only. q4_1 is the packaged file as it is; all others compute with the same "
    "weights dequantised."
)
# The caption is no wider than the table.
_MIN_WIDTH = 72
_WARM_UP_TOKENS = 24
# Longer than the threads of what ran before spin for new work.
_PAUSE_S = 0.3


@dataclass(slots=True)
class Tally:
    """What one arm did at one concurrency, over all its turns."""

    seconds: float = 0.0
    others_cpu_s: float = 0.0
    samples: dict[str, Sample] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Of all answers."""
        return sum(sample.tokens for sample in self.samples.values())


Tallies = dict[tuple[str, int], Tally]


def shares(questions: Sequence[Question], counts: Mapping[int, int]) -> dict[int, Sequence[Question]]:
    """By concurrency: its own questions, as many as `counts` says. Raises `ValueError` for too few."""
    if len(questions) < sum(counts.values()):
        raise ValueError(f"{len(questions)} questions where {sum(counts.values())} are needed")
    rest = iter(questions)
    return {concurrency: [next(rest) for _ in range(count)] for concurrency, count in counts.items()}


async def measure(
    plan: Plan, progress: Progress, *, arms: Sequence[str], prompts_at: Mapping[int, int]
) -> Document:
    """`prompts_at`: how many questions at each concurrency. Raises `BenchError` and what `system` raises."""
    progress("reading the prompts")
    ids = await _ids(plan)
    most = max(prompts_at)
    context = max(map(len, ids.values())) + plan.max_tokens
    peer_field = Field(plan, peers(), most, -(-context // 128) * 128, ids)
    missing: dict[str, str] = {}
    async with AsyncExitStack() as stack:
        contestants = []
        for name in (name for name in PEERS if name in arms):
            try:
                peer = catalog.enter(name, peer_field, progress)
                contestants.append(await stack.enter_async_context(peer))
            except (MissingError, BenchError, ServiceDiedError) as error:
                missing[name] = str(error)
        running = await stack.enter_async_context(system(plan, progress))
        contestants += [own for own in _own(running.client, plan) if own.name in arms]
        tallies = await compete(contestants, shares(plan.questions, prompts_at), plan.max_tokens, progress)
    return report(tallies, missing)


async def compete(
    contestants: Sequence[Contestant],
    questions: Mapping[int, Sequence[Question]],
    max_tokens: int,
    progress: Progress,
    *,
    pause_s: float = _PAUSE_S,
) -> Tallies:
    """Everybody in turns at every concurrency; who begins moves on from turn to turn."""
    tallies: Tallies = {}
    asleep = frozenset(one.session for one in contestants if one.session is not None)
    done, of = 0, sum(len(contestants) * len(_turns(asked, many)) for many, asked in questions.items())
    for number, (concurrency, asked) in enumerate(questions.items()):
        able = [one for one in contestants if one.most is None or concurrency <= one.most]
        for contestant in able:
            progress(f"warming up: {contestant.name}", done, of)
            warm_up = [WARM_UP] * concurrency
            with processes.awake(contestant.session):
                await _answer(contestant, warm_up, min(_WARM_UP_TOKENS, max_tokens), concurrency)
        for turn, texts in enumerate(_turns(asked, concurrency)):
            first = (turn + number) % len(able)
            for contestant in (*able[first:], *able[:first]):
                progress(f"{concurrency} sessions: {contestant.name}", done)
                tally = tallies.setdefault((contestant.name, concurrency), Tally())
                with processes.awake(contestant.session):
                    await asyncio.sleep(pause_s)
                    before = processes.cpu_seconds_by_session()
                    begin = time.perf_counter()
                    tally.samples |= await _answer(contestant, texts, max_tokens, concurrency)
                    tally.seconds += time.perf_counter() - begin
                    after = processes.cpu_seconds_by_session()
                tally.others_cpu_s += _others(contestant, asleep, before, after)
                done += 1
            done += len(contestants) - len(able)
    progress("done", of)
    return tallies


def report(tallies: Tallies, missing: Mapping[str, str]) -> Document:
    """The JSON document. A ratio is None where one of its two was not measured."""
    rates = {key: per(tally.tokens, tally.seconds) for key, tally in tallies.items()}
    rows = [
        {
            "arm": name,
            "concurrency": concurrency,
            "tokens_per_second": round(rates[name, concurrency], 2),
            "tokens": tally.tokens,
            "seconds": round(tally.seconds, 3),
            "prompts": len(tally.samples),
            "same_text": _same(tally, tallies.get((PACELINE, concurrency))),
            "others_cpu_seconds": round(tally.others_cpu_s, 3),
        }
        for (name, concurrency), tally in tallies.items()
    ]

    def over(one: str, other: str, concurrency: int) -> float | None:
        rate, reference = rates.get((one, concurrency)), rates.get((other, concurrency))
        return None if rate is None or reference is None else ratio(rate, reference)

    def ratios(concurrency: int) -> dict[str, float | None]:
        theirs = {name: rates[name, concurrency] for name in PEERS if (name, concurrency) in rates}
        best = max(theirs, key=theirs.__getitem__, default="")
        return {
            "plain_over_transformers": over(PACELINE, TRANSFORMERS, concurrency),
            "speculative_over_plain": over(PACELINE_SPECULATIVE, PACELINE, concurrency),
            "plain_over_vllm": over(PACELINE, VLLM, concurrency),
            "speculative_over_vllm_ngram": over(PACELINE_SPECULATIVE, VLLM_NGRAM, concurrency),
            "speculative_over_best_peer": over(PACELINE_SPECULATIVE, best, concurrency),
        }

    at = {concurrency: ratios(concurrency) for _, concurrency in tallies}
    alone = ratios(1)
    del alone["speculative_over_best_peer"]
    return {
        **alone,
        "speculative_over_best_peer_at_16": ratios(16)["speculative_over_best_peer"],
        "at_concurrency": {str(concurrency): figures for concurrency, figures in at.items()},
        "rows": rows,
        "missing": dict(missing),
        "note": NOTE,
    }


def table(document: Mapping[str, Any]) -> Table:
    """One row per arm, one column per concurrency; who is missing below."""
    rates = {(row["arm"], row["concurrency"]): row["tokens_per_second"] for row in document["rows"]}
    concurrencies = sorted({concurrency for _, concurrency in rates})
    missing = [f"{name} is missing: {why.splitlines()[0]}" for name, why in document["missing"].items()]
    others = sum(row["others_cpu_seconds"] for row in document["rows"])
    share = 100 * per(others, sum(row["seconds"] for row in document["rows"]))
    caption = [*missing, f"processor time of those not measured: {share:.1f} % of a core"]
    made = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        min_width=_MIN_WIDTH,
        caption="\n".join(caption),
        caption_justify="left",
    )
    made.add_column("tok/s at sessions", no_wrap=True)
    for concurrency in concurrencies:
        made.add_column(str(concurrency), justify="right")
    for name in (name for name in ARMS if any((name, many) in rates for many in concurrencies)):
        cells = (rates.get((name, many)) for many in concurrencies)
        made.add_row(name, *("-" if rate is None else f"{rate:.1f}" for rate in cells))
    return made


async def _ids(plan: Plan) -> dict[str, tuple[int, ...]]:
    """Ids of all prompts as the gateway makes them."""
    prompts = Prompts(str(plan.model.folder))
    return {
        text: prompts.from_chat(Chat([ChatTurn("user", text)])).ids()
        if plan.model.can_chat
        else prompts.from_text(text).ids()
        for text in (WARM_UP, *(question.text for question in plan.questions))
    }


def _own(client: GatewayClient, plan: Plan) -> list[Contestant]:
    return [
        Contestant(name, PacelineArm(client, plan, speculation=speculation))
        for name, speculation in ((PACELINE, False), (PACELINE_SPECULATIVE, True))
    ]


def _turns(questions: Sequence[Question], concurrency: int) -> list[list[str]]:
    texts = [question.text for question in questions]
    return [[text] for text in texts] if concurrency == 1 else [texts]


async def _answer(
    contestant: Contestant, texts: Sequence[str], max_tokens: int, concurrency: int
) -> dict[str, Sample]:
    """All `texts`, so many at a time."""
    samples: dict[str, Sample] = {}
    rest = iter(texts)

    async def session() -> None:
        for text in rest:
            samples[text] = await contestant.arm.answer(text, max_tokens)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(texts))):
            group.create_task(session())
    return samples


def _others(
    contestant: Contestant,
    asleep: frozenset[int],
    before: Mapping[int, float],
    after: Mapping[int, float],
) -> float:
    """Processor time of the sessions that were not asked; Paceline's are all that never sleep."""
    own = after.keys() - asleep if contestant.session is None else {contestant.session}
    return sum(after[session] - before.get(session, 0.0) for session in after.keys() - own)


def _same(tally: Tally, plain: Tally | None) -> int | None:
    if plain is None:
        return None
    return sum(sample.text == plain.samples[text].text for text, sample in tally.samples.items())
