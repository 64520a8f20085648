"""A real Prometheus scrapes a fleet under load: dashboards have data, and alerts fire on their faults.

Ratios of times decide, which other work on the machine moves: run by `make alerts` only (`--alerts`).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from paceline.client import GatewayError, Generation, SyncGatewayClient
from tests.metric_table import EVERY_SERVICE, documented
from tests.monitoring.dashboards import FILES, queries
from tests.monitoring.rules import shrunk
from tests.monitoring.server import Prometheus
from tests.monitoring.slow_proxy import SlowProxy
from tests.pods import Pods
from tests.redis_servers import RedisServer
from tests.tiny import make_tiny_model

pytestmark = [
    pytest.mark.serial,
    pytest.mark.long(reason="faults are made one after another, each until Prometheus has seen it"),
    pytest.mark.timeout(900),
]

# Lengths of time in rules are divided by so much; ratios are then over so many seconds.
FACTOR, WINDOW = 30, 10
# Seconds within which an alert fires or ends: twice the window, and what the fault itself takes.
PATIENCE = 90.0
# Few enough sessions for the KV that the verifier has, and more than that.
KV_TOKENS = 4096
FEW, MANY = 4, 24
SHORT = Generation(text="the quick brown fox " * 8, max_tokens=200, temperature=0, ignore_eos=True)
LONG = replace(SHORT, max_tokens=1200)


class Monitored:
    """A fleet with its Redis, and the Prometheus that scrapes it."""

    def __init__(self, folder: Path, model: Path, stack: ExitStack) -> None:
        self.redis = stack.enter_context(RedisServer("redis", folder))
        self.network = stack.enter_context(SlowProxy(self.redis.port))
        self.pods = stack.enter_context(
            Pods(
                folder,
                model,
                f"redis://127.0.0.1:{self.network.port}",
                metrics=True,
                # Processes of their own, which have imported nothing but what they need.
                environment={},
                verifier_flags=("--kv-tokens", str(KV_TOKENS)),
            )
        )
        self.pods.verifier_module = "tests.monitoring.hanging_verifier"
        self.pods.start()
        rules = folder / "rules"
        rules.mkdir()
        self.prometheus = stack.enter_context(Prometheus(folder, shrunk(rules, FACTOR)))
        self.scrape()
        _until(lambda: self.prometheus.healthy_targets() == 3, "all targets are scraped")

    def scrape(self) -> None:
        """Scrape the processes that there are now."""
        self.prometheus.scrape(self.pods.metrics_ports)

    def replace_drafter(self, module: str = "drafter_svc") -> None:
        """Put another kind of drafter in the place of the one there is."""
        self.pods.pods[self.pods.drafter].stop()
        self.pods.drafter_module = module
        self.pods.launch(self.pods.drafter)
        self.pods.until_all_are_seen()
        self.scrape()

    @contextmanager
    def load(self, sessions: int = FEW, asked: Generation = SHORT) -> Iterator[None]:
        """So many clients ask, again and again, until the block is left; errors are none of ours."""
        ended = threading.Event()

        def ask() -> None:
            with SyncGatewayClient(self.pods.grpc) as client:
                while not ended.is_set():
                    with suppress(GatewayError):
                        for _ in client.generate(asked):
                            if ended.is_set():
                                break

        clients = [threading.Thread(target=ask) for _ in range(sessions)]
        for client in clients:
            client.start()
        try:
            yield
        finally:
            ended.set()
            for client in clients:
                client.join()

    def until_firing(self, name: str, beside: Collection[str] = ()) -> None:
        """Return once the alert fires; no others may, but those that the fault explains as well."""
        _until(lambda: name in self.prometheus.firing(), f"{name} fires", self.state)
        assert self.prometheus.firing() <= {name, *beside}

    def until_silent(self) -> None:
        """Return once no alert fires."""
        _until(lambda: not self.prometheus.firing(), "no alert fires", self.state)

    def state(self) -> str:
        """What the ratios are, for messages."""
        found = self.prometheus.query('{__name__=~"pool:.*"}')
        ratios = {labels["__name__"]: round(value, 3) for labels, value in found}
        return f"{ratios}, firing: {self.prometheus.firing()}, faults: {self.prometheus.faulty_rules()}"


def _has_data(prometheus: Prometheus, query: str) -> bool:
    return any(math.isfinite(value) for _, value in prometheus.query(query))


def _until(ready: Callable[[], bool], what: str, why: Callable[[], str] = str) -> None:
    end = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < end, f"not in {PATIENCE:.0f} s: {what} {why()}"
        time.sleep(0.25)


@pytest.fixture(scope="module")
def hangs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """While this file is there, the verifier's engine hangs."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("engine") / "hangs"
        patch.setenv("ENGINE_HANGS", str(path))
        yield path


@pytest.fixture(scope="module")
def fleet(
    tmp_path_factory: pytest.TempPathFactory, hangs: Path, pytestconfig: pytest.Config
) -> Iterator[Monitored]:
    if not pytestconfig.getoption("--alerts"):
        pytest.skip("`make alerts` tries it")
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("monitored")
        # Steps of one thread that take long enough for most trees to come in time.
        model = make_tiny_model(folder / "model", layers=36)
        yield Monitored(folder, model, stack)


@pytest.fixture(autouse=True)
def _all_is_well_before_and_after(fleet: Monitored) -> Iterator[None]:
    fleet.until_silent()
    yield
    fleet.until_silent()


def test_a_fleet_under_load_fires_nothing_and_fills_every_panel(fleet: Monitored) -> None:
    empty = [each for path in FILES for each in queries(path, interval=f"{WINDOW}s")]
    fired: set[str] = set()

    def all_filled() -> bool:
        """Ratios have no value while nothing happens: each query has had one some time."""
        empty[:] = [each for each in empty if not _has_data(fleet.prometheus, each[1])]
        fired.update(fleet.prometheus.firing())
        return not empty

    with fleet.load():
        began = time.monotonic()
        _until(all_filled, "every panel has had data", lambda: str(empty))
        # Alerts would fire within the window.
        _until(lambda: all_filled() and time.monotonic() > began + 2 * WINDOW, "it has run for a while")
    assert fired == set(), fleet.state()
    assert fleet.prometheus.faulty_rules() == {}


def test_each_process_exports_what_the_page_says_and_its_pool_and_model(fleet: Monitored) -> None:
    tables = documented()
    pods = fleet.pods
    for section, name, own in (
        ("Gateway", "gateway", {"model_name": "tiny"}),
        ("Verifier", pods.verifier, {"model_name": "tiny", "pool": "default"}),
        ("Drafter", pods.drafter, {"pool": "default"}),
    ):
        page = httpx.get(f"http://127.0.0.1:{pods.metrics_ports[name]}/metrics").text
        lines = page.splitlines()
        told = {line.split()[2]: line.split()[3] for line in lines if line.startswith("# TYPE paceline:")}
        rows = tables[EVERY_SERVICE] | tables[section]
        suffix = {"counter": "_total"}
        assert told == {row.name + suffix.get(row.kind, ""): row.kind for row in rows.values()}
        for line in lines:
            if line.startswith("paceline:"):
                assert all(f'{label}="{value}"' in line for label, value in own.items()), line


def test_slow_commits(fleet: Monitored) -> None:
    fleet.network.delay = 0.1
    with fleet.load():
        # Each token waits for its commit, so a drafter that answers in time is not known either.
        fleet.until_firing("PacelineCommitLatency")
        fleet.network.delay = 0.0
        fleet.until_silent()


def test_redis_is_killed(fleet: Monitored) -> None:
    with fleet.load():
        fleet.redis.pod.kill()
        fleet.until_firing("PacelineStoreAway", beside={"PacelineCommitLatency"})
        fleet.redis.start()
        fleet.until_silent()


def test_the_engine_hangs(fleet: Monitored, hangs: Path) -> None:
    with fleet.load():
        hangs.touch()
        # It is the only one, so that its gateway is left without.
        fleet.until_firing("PacelineVerifierStalled", beside={"PacelineGatewayWithoutVerifier"})
        silent = fleet.prometheus.query("paceline:engine_silent_seconds > 10")
        assert len(silent) == 1
        hangs.unlink()
        fleet.until_silent()


def test_the_verifier_is_stopped(fleet: Monitored) -> None:
    verifier = fleet.pods.pods[fleet.pods.verifier]
    with fleet.load():
        verifier.pause()
        fleet.until_firing("PacelineGatewayWithoutVerifier", beside={"PacelineVerifierStalled"})
        fleet.until_firing("PacelineVerifierStalled", beside={"PacelineGatewayWithoutVerifier"})
        verifier.resume()
        fleet.until_silent()


def test_more_sessions_than_kv(fleet: Monitored) -> None:
    with fleet.load(MANY, LONG):
        fleet.until_firing("PacelineKvPressure")


def test_the_drafter_is_killed(fleet: Monitored) -> None:
    with fleet.load():
        fleet.pods.pods[fleet.pods.drafter].kill()
        fleet.until_firing("PacelineDrafterStarvation")
        fleet.replace_drafter()
        fleet.until_silent()
