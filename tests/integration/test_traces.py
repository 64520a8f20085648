"""One trace a request: real services, an independent collector, and what arrives behind it."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import grpc
import httpx
import pytest

from bench.collector import Collector, Recorded
from paceline.v1 import gateway_pb2, gateway_pb2_grpc
from tests.pods import MODEL, Pods
from tests.rotel import rotel
from tests.waiting import wait_until

PROMPT = "again and again and again"
TOKENS = 400
STAGES = [
    "gateway.receive",
    "gateway.tokenise",
    "gateway.admission",
    "gateway.queue",
    "gateway.route",
    "gateway.first_token",
    "gateway.stream",
    "gateway.finish",
]


@dataclass
class Asked:
    """A request of a client that traces: the ids that it gave, and what it was told."""

    sampled: bool = True
    trace_id: str = field(default_factory=lambda: secrets.token_hex(16))
    span_id: str = field(default_factory=lambda: secrets.token_hex(8))
    traceresponse: str = ""
    tokens: int = 0

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{self.sampled:02x}"

    async def stream(self, pods: Pods) -> Asked:
        """Stream a completion over HTTP to its end."""
        body = {
            **{"model": MODEL, "prompt": PROMPT, "max_tokens": TOKENS, "ignore_eos": True, "temperature": 0},
            **{"stream": True, "stream_options": {"include_usage": True}},
        }
        headers = {"traceparent": self.traceparent}
        async with (
            httpx.AsyncClient(timeout=60) as client,
            client.stream("POST", f"{pods.http}/v1/completions", json=body, headers=headers) as answer,
        ):
            self.traceresponse = answer.headers.get("traceresponse", "")
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    usage = json.loads(line.removeprefix("data: ")).get("usage") or {}
                    self.tokens = usage.get("completion_tokens", self.tokens)
        return self

    async def call(self, pods: Pods) -> Asked:
        """Stream a completion over gRPC to its end."""
        request = gateway_pb2.GenerateRequest(text=PROMPT, max_tokens=TOKENS, ignore_eos=True, temperature=0)
        async with grpc.aio.insecure_channel(pods.grpc) as channel:
            stub = gateway_pb2_grpc.GatewayServiceStub(channel)
            call = stub.Generate(request, metadata=(("traceparent", self.traceparent),), timeout=60)
            async for event in call:
                if event.WhichOneof("event") == "finished":
                    self.tokens = event.finished.receipt.committed_tokens
            self.traceresponse = dict(await call.initial_metadata()).get("traceresponse", "")
        return self


@dataclass
class Seen:
    """All that was seen of some requests."""

    http: Asked
    grpc: Asked
    unsampled: Asked
    # Two at the same time.
    together: tuple[Asked, Asked]
    spans: list[Recorded]
    logs: dict[str, str]
    metrics: dict[str, str]

    def trace(self, asked: Asked) -> list[Recorded]:
        return [span for span in self.spans if span.trace_id == asked.trace_id]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, redis_url: str) -> Seen:
    folder = tmp_path_factory.mktemp("traced")
    with Collector.running() as backend, rotel(folder, backend.address) as collector:
        flags = ("--otlp-endpoint", collector, "--log-format", "json", "--log-level", "debug")
        with Pods(
            folder,
            tiny_model,
            redis_url,
            metrics=True,
            gateway_flags=flags,
            verifier_flags=flags,
            drafter_flags=flags,
        ) as pods:
            pods.start()
            http, called, unsampled, *together = asyncio.run(_ask(pods))
            metrics = {name: _metrics(port) for name, port in pods.metrics_ports.items()}
            # Last of each service's.
            wanted = {
                (asked.trace_id, name)
                for asked in (http, called, *together)
                for name in ("gateway.request", "verifier.session", "drafter.session")
            }

            def has_all() -> bool:
                return wanted <= {(span.trace_id, span.name) for span in backend.spans}

            asyncio.run(wait_until(has_all, "the traces have come through the collector"))
        logs = {name: pod.log.read_text() for name, pod in pods.pods.items()}
        logs["drafter"], metrics["drafter"] = logs[pods.drafter], metrics[pods.drafter]
        logs["verifier"], metrics["verifier"] = logs[pods.verifier], metrics[pods.verifier]
    return Seen(http, called, unsampled, (together[0], together[1]), backend.spans, logs, metrics)


async def _ask(pods: Pods) -> list[Asked]:
    alone = [await Asked().stream(pods), await Asked().call(pods), await Asked(sampled=False).stream(pods)]
    return [*alone, *await asyncio.gather(Asked().stream(pods), Asked().stream(pods))]


def _metrics(port: int) -> str:
    accept = "application/openmetrics-text; version=1.0.0"
    return httpx.get(f"http://127.0.0.1:{port}/metrics", headers={"accept": accept}).text


def _only(spans: Sequence[Recorded], name: str) -> Recorded:
    (found,) = [span for span in spans if span.name == name]
    return found


def _children(spans: Sequence[Recorded], parent: Recorded) -> list[Recorded]:
    return [span for span in spans if span.parent_id == parent.span_id]


def _names(spans: Sequence[Recorded]) -> list[str]:
    return [span.name for span in spans]


both = pytest.mark.parametrize("pick", [lambda seen: seen.http, lambda seen: seen.grpc], ids=["HTTP", "gRPC"])
Pick = Callable[[Seen], Asked]


@both
def test_a_request_is_one_tree_over_all_services(seen: Seen, pick: Pick) -> None:
    asked = pick(seen)
    spans = seen.trace(asked)
    request = _only(spans, "gateway.request")
    assert request.parent_id == asked.span_id
    by_id = {span.span_id: span for span in spans}
    assert all(span is request or span.parent_id in by_id for span in spans)
    assert {span.name.partition(".")[0]: span.service for span in spans} == {
        "gateway": "paceline-gateway",
        "verifier": "paceline-verifier",
        "drafter": "paceline-drafter",
    }
    session = _only(spans, "gateway.session")
    assert session.parent_id == request.span_id
    below = _children(spans, session)
    assert sorted(_names(below)) == sorted([*STAGES[2:], "verifier.session", "drafter.session"])
    verifier = _only(below, "verifier.session")
    assert _names(_children(spans, verifier)) == ["verifier.queue", "verifier.prefill", "verifier.decode"]
    prefill, decode = _only(spans, "verifier.prefill"), _only(spans, "verifier.decode")
    assert set(_names(_children(spans, prefill))) == {"verifier.step"}
    assert set(_names(_children(spans, decode))) == {"verifier.step", "verifier.commit"}
    for step in [span for span in spans if span.name == "verifier.step"]:
        assert "verifier.forward" in _names(_children(spans, step))
    drafting = _only(below, "drafter.session")
    assert set(_names(_children(spans, drafting))) == {"drafter.join", "drafter.draft"}


@both
def test_children_lie_inside_their_parents(seen: Seen, pick: Pick) -> None:
    spans = seen.trace(pick(seen))
    by_id = {span.span_id: span for span in spans}
    for span in spans:
        parent = by_id.get(span.parent_id)
        assert span.began <= span.ended
        assert parent is None or parent.began <= span.began, (span, parent)
        assert parent is None or span.ended <= parent.ended, (span, parent)


def test_the_stages_of_a_request_are_its_time(seen: Seen) -> None:
    """Whoever adds them up has the request's latency, and no two of them overlap."""
    spans = seen.trace(seen.http)
    request = _only(spans, "gateway.request")
    stages = [span for span in spans if span.name in STAGES]
    assert _names(stages) == STAGES
    assert all(one.ended <= other.began for one, other in pairwise(stages))
    assert sum(span.seconds for span in stages) == pytest.approx(request.seconds, rel=0.05)
    verifier = _only(spans, "verifier.session")
    parts = [_only(spans, f"verifier.{name}") for name in ("queue", "prefill", "decode")]
    assert sum(span.seconds for span in parts) == pytest.approx(verifier.seconds, rel=0.05)
    # The verifier's part of it is what the gateway waited for.
    waited = [_only(spans, f"gateway.{name}") for name in ("route", "first_token", "stream")]
    assert verifier.seconds <= sum(span.seconds for span in waited)


def test_steps_follow_one_another_and_thin_out(seen: Seen) -> None:
    spans = seen.trace(seen.http)
    verifier = _only(spans, "verifier.session")
    steps = [span for span in spans if span.name == "verifier.step"]
    assert all(one.ended <= other.began for one, other in pairwise(steps))
    assert 16 / 5 < len(steps) < 40
    assert len(steps) < verifier.attributes["paceline.steps"]
    numbers = [step.attributes["paceline.step"] for step in steps]
    assert numbers == sorted(set(numbers))
    for step in steps:
        told = step.attributes
        assert told["paceline.batch.sessions"] == 1
        assert told["paceline.batch.rows"] == told["paceline.rows"]
        assert told["paceline.accepted_tokens"] <= told["paceline.drafted_tokens"]
        assert 1 <= told["paceline.committed_tokens"] <= told["paceline.accepted_tokens"] + 1


def test_sessions_say_what_they_came_to(seen: Seen) -> None:
    spans = seen.trace(seen.http)
    for name in ("gateway.session", "verifier.session"):
        told = _only(spans, name).attributes
        assert told["paceline.committed_tokens"] == seen.http.tokens == TOKENS
        assert told["paceline.finish_reason"] == "length"
    verifier = _only(spans, "verifier.session")
    told = verifier.attributes
    assert told["paceline.steps"] * told["paceline.acceptance_length"] == pytest.approx(TOKENS)
    assert 0 < told["paceline.seconds.forward"] < verifier.seconds
    assert 0 <= told["paceline.seconds.wait_for_trees"] < verifier.seconds
    drafting = _only(spans, "drafter.session").attributes
    assert drafting["paceline.trees"] > 0
    assert drafting["paceline.accepted_tokens"] == told["paceline.accepted_tokens"]
    route = _only(spans, "gateway.route").attributes
    assert route["paceline.verifier"] == drafting["paceline.verifier"]


def test_steps_of_a_shared_batch_lead_to_the_other_trace(seen: Seen) -> None:
    one, other = seen.together
    ids = {asked.trace_id: _only(seen.trace(asked), "verifier.session").span_id for asked in (one, other)}
    for asked, neighbour in ((one, other), (other, one)):
        shared = [
            span
            for span in seen.trace(asked)
            if span.name == "verifier.step" and span.attributes["paceline.batch.sessions"] == 2
        ]
        assert shared
        assert {link for span in shared for link in span.links} == {
            (neighbour.trace_id, ids[neighbour.trace_id])
        }


def test_a_caller_that_does_not_sample_is_not_recorded(seen: Seen) -> None:
    asked = seen.unsampled
    assert not seen.trace(asked)
    assert not any(asked.trace_id in told for told in seen.metrics.values())
    # It is still one trace, by which log lines are found.
    assert asked.traceresponse.startswith(f"00-{asked.trace_id}-")
    assert asked.traceresponse.endswith("-00")
    assert asked.trace_id in seen.logs["gateway"]


@both
def test_callers_are_told_the_span_of_their_request(seen: Seen, pick: Pick) -> None:
    asked = pick(seen)
    request = _only(seen.trace(asked), "gateway.request")
    assert asked.traceresponse == f"00-{asked.trace_id}-{request.span_id}-01"


def test_log_lines_have_their_requests_trace(seen: Seen) -> None:
    lines = [json.loads(line) for line in seen.logs["gateway"].splitlines() if line.startswith("{")]
    named = {line["event"]: line for line in lines if line.get("trace_id") == seen.http.trace_id}
    assert named.keys() >= {"verifier chosen", "drafter chosen", "request"}
    assert named["request"]["path"] == "/v1/completions"


@pytest.mark.parametrize(
    ("service", "metric"),
    [
        ("gateway", "paceline:time_to_first_token_seconds_bucket"),
        ("gateway", "paceline:inter_token_latency_seconds_bucket"),
        ("verifier", "paceline:step_seconds_bucket"),
    ],
)
def test_histograms_lead_to_traces(seen: Seen, service: str, metric: str) -> None:
    told = [line for line in seen.metrics[service].splitlines() if line.startswith(metric) and " # " in line]
    named = {line.partition('trace_id="')[2].partition('"')[0] for line in told}
    assert named
    assert named <= {asked.trace_id for asked in (seen.http, seen.grpc, *seen.together)}
