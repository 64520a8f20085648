"""What tracing costs: fleets in turns, that send every trace, that sample none, that have no tracing.

All do the same work, so that processor time can be compared: of rates alone, a percent is lost in noise.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import grpc
from rich import box
from rich.table import Table

from bench.arms import PLAIN, SPECULATIVE, PacelineArm
from bench.dataset import Question
from bench.results import Document
from bench.system import Plan, Progress, RunningSystem, system
from paceline.local.plan import HOST

OFF, ON, UNSAMPLED = ARMS = ("off", "on", "unsampled")
NOTE = (
    "Processor time per token of all services, and tokens per second, over those of the fleet without "
    "tracing that answers the same questions in the same round: `on` sends every trace (OpenTelemetry's "
    "default), `unsampled` samples none. The sink of the spans runs here, too."
)


# Questions of a round, where there are fewer sessions.
_LEAST_QUESTIONS = 4


@dataclass(frozen=True, slots=True)
class Turn:
    """What one fleet took for a round's questions."""

    tokens: int
    seconds: float
    # Of all its services' processes.
    processor_seconds: float


class _Sink:
    """Takes OTLP over gRPC and reads none of it, so that it takes as little of the machine as possible."""

    def __init__(self) -> None:
        self.bytes = 0
        self.address = ""

    def _take(self, message: bytes, context: Any) -> bytes:
        self.bytes += len(message)
        return b""

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[_Sink]:
        sink = cls()
        server = grpc.server(ThreadPoolExecutor(1))
        service = "opentelemetry.proto.collector.trace.v1.TraceService"
        handlers = {"Export": grpc.unary_unary_rpc_method_handler(sink._take)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        sink.address = f"{HOST}:{server.add_insecure_port(f'{HOST}:0')}"
        server.start()
        try:
            yield sink
        finally:
            server.stop(None)


async def measure(plan: Plan, progress: Progress, *, rounds: int, concurrencies: Sequence[int]) -> Document:
    """What the three fleets took, and ratios, at each concurrency. Raises what `system` raises."""
    rows: list[dict[str, Any]] = []
    modes = (PLAIN, SPECULATIVE)
    done, of = 0, len(concurrencies) * len(modes) * rounds * len(ARMS)
    with _Sink.running() as sink:
        sent = {
            OFF: {"OTEL_SDK_DISABLED": "true"},
            ON: {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{sink.address}"},
            UNSAMPLED: {
                "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{sink.address}",
                "OTEL_TRACES_SAMPLER": "parentbased_always_off",
            },
        }
        async with AsyncExitStack() as fleets:
            systems = {
                arm: await fleets.enter_async_context(
                    system(replace(plan, logs=plan.logs / arm), progress, variables=variables)
                )
                for arm, variables in sent.items()
            }
            for concurrency in concurrencies:
                for mode in modes:
                    turns: dict[str, list[Turn]] = {arm: [] for arm in ARMS}
                    for number in range(rounds):
                        questions = _questions(plan, max(concurrency, _LEAST_QUESTIONS), number)
                        # Who begins changes from round to round.
                        first = number % len(ARMS)
                        for arm in (*ARMS[first:], *ARMS[:first]):
                            progress(f"{concurrency} sessions, {mode}: {arm}", done, of)
                            turns[arm].append(
                                await _turn(
                                    systems[arm],
                                    plan,
                                    questions,
                                    concurrency,
                                    speculation=mode == SPECULATIVE,
                                )
                            )
                            done += 1
                    rows.append({"concurrency": concurrency, "mode": mode, **_row(turns)})
        sent_bytes = sink.bytes
    return {"rows": rows, "bytes_sent": sent_bytes, "note": NOTE}


def table(document: Mapping[str, Any]) -> Table:
    """A row for each concurrency and mode."""
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    headers = ("on/off\nprocessor", "unsampled/off\nprocessor", "on/off\ntok/s", "unsampled/off\ntok/s")
    for header in ("sessions", "", *(f"{arm}\nms/token" for arm in ARMS), *headers):
        made.add_column(header, justify="right")
    for row in document["rows"]:
        times = (f"{row[arm]['processor_ms_per_token']:.3f}" for arm in ARMS)
        ratios = (
            f"{row[f'{arm}_over_off'][what]['median']:.3f}x"
            for what in ("processor", "rate")
            for arm in (ON, UNSAMPLED)
        )
        made.add_row(str(row["concurrency"]), row["mode"], *times, *ratios)
    return made


def _questions(plan: Plan, count: int, number: int) -> list[Question]:
    return [plan.questions[(number * count + index) % len(plan.questions)] for index in range(count)]


async def _turn(
    running: RunningSystem,
    plan: Plan,
    questions: Sequence[Question],
    concurrency: int,
    *,
    speculation: bool,
) -> Turn:
    arm = PacelineArm(running.client, plan, speculation=speculation)
    waiting = iter(questions)
    tokens = 0

    async def session() -> None:
        nonlocal tokens
        for question in waiting:
            # Awaited first: `tokens +=` would read before and forget what others add meanwhile.
            answer = await arm.answer(question.text, plan.max_tokens)
            tokens += answer.tokens

    began, before = time.perf_counter(), sum(running.processor_seconds().values())
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(session())
    after = sum(running.processor_seconds().values())
    return Turn(tokens, time.perf_counter() - began, after - before)


def _row(turns: Mapping[str, Sequence[Turn]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for arm, taken in turns.items():
        tokens = sum(turn.tokens for turn in taken)
        made[arm] = {
            "tokens_per_second": round(tokens / sum(turn.seconds for turn in taken), 1),
            "processor_ms_per_token": round(1e3 * sum(turn.processor_seconds for turn in taken) / tokens, 4),
        }
    for arm in (ON, UNSAMPLED):
        pairs = list(zip(turns[arm], turns[OFF], strict=True))
        made[f"{arm}_over_off"] = {
            "processor": _spread(
                [
                    (one.processor_seconds / one.tokens) / (other.processor_seconds / other.tokens)
                    for one, other in pairs
                ]
            ),
            "rate": _spread(
                [(one.tokens / one.seconds) / (other.tokens / other.seconds) for one, other in pairs]
            ),
        }
    return made


def _spread(ratios: Sequence[float]) -> dict[str, Any]:
    return {
        "median": round(statistics.median(ratios), 4),
        "by_round": [round(ratio, 3) for ratio in ratios],
    }
