"""What tests share: a real Redis, a tiny model, a real fleet."""

from __future__ import annotations

import os
import sys

if "torch" not in sys.modules:
    # Read when torch is imported, here and in the processes of tests. Threads of a team spin while they wait
    # for one another: two teams on two cores take ten times as long as two threads.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from paceline.local import plan, redis_server
from paceline.service import spans
from tests.pods import Pod, Pods
from tests.redis_servers import redis_cluster
from tests.tiny import make_tiny_model

# How long an example takes says more of the machine than of the code. All else stays: Hypothesis' own profile
# draws the same examples each time in CI, so that a change is judged by itself, and others elsewhere.
hypothesis.settings.register_profile("paceline", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("paceline")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz-cases", type=int, default=400, help="About how many; `make fuzz` tries more.")
    parser.addoption("--all-clients", action="store_true", help="Those that take long to install, too.")
    parser.addoption("--scale-minutes", type=float, default=0, help="At least so long under a changing load.")
    parser.addoption("--fuzz-seed", type=int, default=0, help="The same seed, the same cases.")


def pytest_configure(config: pytest.Config) -> None:
    """Give each pytest-xdist worker ports of its own to choose from.

    A port is free while a test chooses it, and taken only when the service that it is for has started.
    """
    worker = getattr(config, "workerinput", None)
    if worker is not None:
        number = int(worker["workerid"].removeprefix("gw"))
        plan._FREE_PORTS = plan._FREE_PORTS[number :: worker["workercount"]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Note why each long test is long; raises `UsageError` for one that does not say."""
    for item in items:
        for marker in item.iter_markers("long"):
            if set(marker.kwargs) != {"reason"} or marker.args:
                raise pytest.UsageError(f"{item.nodeid}: write @pytest.mark.long(reason=...)")
            item.user_properties.append(("long", marker.kwargs["reason"]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print why the long tests that ran are long."""
    seconds: dict[tuple[str, str], float] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            # The other entries are warnings and the tests that were deselected.
            if not isinstance(report, pytest.TestReport):
                continue
            for key, reason in report.user_properties:
                if key == "long":
                    file = report.nodeid.partition("::")[0]
                    line = file, str(reason)
                    seconds[line] = seconds.get(line, 0.0) + report.duration
    if seconds:
        terminalreporter.section("why these tests are long")
    for (file, reason), taken in seconds.items():
        terminalreporter.write_line(f"{taken:6.1f} s  {file}: {reason}")


@pytest.fixture
def recorded_spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """The spans that this process ends, all of them sampled unless their parent is not."""
    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracer = provider.get_tracer("paceline")
    monkeypatch.setattr(spans, "tracer", lambda: tracer)
    return kept


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis-compatible server of this test run's own."""
    folder = redis_server.data_folder()
    server = redis_server.private_server(redis_server.find_server(), folder)
    pod = Pod("redis", server.command, tmp_path_factory.mktemp("redis"))
    pod.until(lambda: asyncio.run(redis_server.answers(server.url)))
    yield server.url
    pod.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def redis_cluster_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A cluster of three primaries of this test run's own."""
    with redis_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster.url


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Llama: 512 byte-level tokens, context `tests.tiny.CONTEXT`."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, redis_url: str) -> Iterator[Pods]:
    """Gateway, verifier and drafter as processes, all up."""
    with Pods(tmp_path_factory.mktemp("fleet"), tiny_model, redis_url) as pods:
        yield pods.start()
