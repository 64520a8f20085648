"""What tracing costs: fleets in turns, that send every trace, that sample none, that have no tracing."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from typing import Any

import grpc
from rich import box
from rich.table import Table

from bench.arms import arrivals
from bench.results import Document, quantile
from bench.system import Plan, Progress, system
from bench.windows import Window, closed
from paceline.client import GatewayClient
from paceline.local.plan import HOST

OFF, ON, UNSAMPLED = ARMS = ("off", "on", "unsampled")
NOTE = (
    "Tokens per second of all sessions over those of the fleet without tracing, by round: `on` sends every "
    "trace (OpenTelemetry's default), `unsampled` samples none. The sink of the spans runs here, too."
)


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


async def measure(
    plan: Plan, progress: Progress, *, window_s: float, rounds: int, concurrencies: Sequence[int]
) -> Document:
    """Rates of the three fleets, and their ratios, at each concurrency. Raises what `system` raises."""
    rows: list[dict[str, Any]] = []
    done, of = 0, len(concurrencies) * rounds * len(ARMS)
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
            clients = {
                arm: await fleets.enter_async_context(
                    system(replace(plan, logs=plan.logs / arm), progress, variables=variables)
                )
                for arm, variables in sent.items()
            }

            async def window(client: GatewayClient, concurrency: int, number: int) -> Window:
                questions = itertools.cycle(plan.questions[number % len(plan.questions) :])

                def ask() -> AsyncGenerator[tuple[float, int]]:
                    return arrivals(client, plan.generation(next(questions).text, speculation=True))

                return await closed(ask, concurrency, window_s)

            for concurrency in concurrencies:
                windows: dict[str, list[Window]] = {arm: [] for arm in ARMS}
                for number in range(rounds):
                    # All read the same questions; who begins changes from round to round.
                    first = number % len(ARMS)
                    for arm in (*ARMS[first:], *ARMS[:first]):
                        progress(f"{concurrency} sessions: {arm}", done, of)
                        windows[arm].append(await window(clients[arm], concurrency, number))
                        done += 1
                rows.append({"concurrency": concurrency, **_row(windows)})
        sent_bytes = sink.bytes
    return {"rows": rows, "bytes_sent": sent_bytes, "note": NOTE}


def table(document: Mapping[str, Any]) -> Table:
    """A row for each concurrency."""
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for header in ("sessions", *(f"{arm}\ntok/s" for arm in ARMS), "on/off\nmedian", "unsampled/off\nmedian"):
        made.add_column(header, justify="right")
    for row in document["rows"]:
        rates = (f"{row[arm]['tokens_per_second']:.1f}" for arm in ARMS)
        ratios = (f"{row[f'{arm}_over_off']:.3f}x" for arm in (ON, UNSAMPLED))
        made.add_row(str(row["concurrency"]), *rates, *ratios)
    return made


def _row(windows: Mapping[str, Sequence[Window]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for arm in (ON, UNSAMPLED):
        pairs = zip(windows[arm], windows[OFF], strict=True)
        ratios = [one.rate / other.rate for one, other in pairs if other.rate]
        made[f"{arm}_over_off"] = round(statistics.median(ratios), 4) if ratios else 0.0
        made[f"{arm}_over_off_by_round"] = [round(ratio, 3) for ratio in ratios]
    for arm, seen in windows.items():
        made[arm] = {
            "tokens_per_second": round(statistics.mean(window.rate for window in seen), 1),
            "seconds_per_token_median": quantile([gap for window in seen for gap in window.gaps], 0.5),
            "seconds_per_token_p99": quantile([gap for window in seen for gap in window.gaps], 0.99),
        }
    return made
