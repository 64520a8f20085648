"""A real Prometheus scrapes a fleet under load: dashboards have data, and each alert fires on its fault."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from paceline.client import Generation
from paceline.net.roles import Role
from tests.certificates import DAY
from tests.metric_table import EVERY_SERVICE, documented
from tests.monitoring.dashboards import FILES, queries
from tests.monitoring.monitored import WINDOW, Monitored, until
from tests.monitoring.server import Prometheus

pytestmark = [
    pytest.mark.serial,
    pytest.mark.long(reason="faults are made one after another, each until Prometheus has seen it"),
    pytest.mark.timeout(900),
]

# Few enough sessions for the KV that the verifier has, and more than that.
FEW, MANY = 4, 24
# The same text again and again: a drafter that is new knows it after some seconds.
SHORT = Generation(text="the quick brown fox " * 8, max_tokens=32, temperature=0, ignore_eos=True)
BRIEF, LONG = replace(SHORT, max_tokens=5), replace(SHORT, max_tokens=1200)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Monitored]:
    with ExitStack() as stack:
        yield Monitored(tmp_path_factory.mktemp("monitored"), tiny_model, stack)


@pytest.fixture(autouse=True)
def _all_is_well_before_and_after(fleet: Monitored) -> Iterator[None]:
    fleet.until_silent()
    yield
    fleet.until_silent()


def _has_data(prometheus: Prometheus, query: str) -> bool:
    return any(math.isfinite(value) for _, value in prometheus.query(query))


def test_a_fleet_under_load_fires_nothing_and_fills_every_panel(fleet: Monitored) -> None:
    empty = [each for path in FILES for each in queries(path, interval=f"{WINDOW}s")]
    fired: set[str] = set()

    def all_filled() -> bool:
        """Ratios have no value while nothing happens: each query has had one some time."""
        empty[:] = [each for each in empty if not _has_data(fleet.prometheus, each[1])]
        fired.update(fleet.prometheus.firing())
        return not empty

    with fleet.load(FEW, SHORT):
        began = time.monotonic()
        until(all_filled, "every panel has had data", lambda: str(empty))
        # The slowest alerts would fire within two windows, once the first is full.
        until(lambda: all_filled() and time.monotonic() > began + 3 * WINDOW, "it has run for a while")
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
    with fleet.load(FEW, SHORT):
        # Each token waits for its commit, so a drafter that answers in time is not known either.
        fleet.until_firing("PacelineCommitLatency")
        fleet.network.delay = 0.0
        fleet.until_silent()


def test_redis_is_killed(fleet: Monitored) -> None:
    with fleet.load(FEW, SHORT):
        fleet.redis.pod.kill()
        fleet.until_firing("PacelineStoreAway", beside={"PacelineCommitLatency"})
        fleet.redis.start()
        fleet.until_silent()


def test_the_engine_hangs(fleet: Monitored) -> None:
    with fleet.load(FEW, SHORT):
        with fleet.hanging_engine():
            # It is the only one, so that its gateway is left without.
            fleet.until_firing("PacelineVerifierStalled", beside={"PacelineGatewayWithoutVerifier"})
            silent = fleet.prometheus.query("paceline:engine_silent_seconds > 10")
            assert len(silent) == 1
        fleet.until_silent()


def test_the_verifier_is_stopped(fleet: Monitored) -> None:
    with fleet.load(FEW, SHORT):
        fleet.verifier.pause()
        fleet.until_firing("PacelineGatewayWithoutVerifier", beside={"PacelineVerifierStalled"})
        fleet.until_firing("PacelineVerifierStalled", beside={"PacelineGatewayWithoutVerifier"})
        fleet.verifier.resume()
        fleet.until_silent()


def test_more_sessions_than_kv(fleet: Monitored) -> None:
    with fleet.load(MANY, LONG):
        fleet.until_firing("PacelineKvPressure")


def test_a_certificate_is_not_renewed(fleet: Monitored) -> None:
    secret = fleet.pods.secrets[Role.VERIFIER]
    # They begin two days ago. In some seconds a fifth of the lifetime is left.
    secret.put(fleet.pods.issue(Role.VERIFIER, ends_in=DAY / 2 + timedelta(seconds=5)))
    fired = fleet.until_firing("PacelineCertificateNearEnd")
    assert (fired.labels["process"], fired.labels["setting"]) == (fleet.pods.verifier, "--tls-cert")
    secret.put(fleet.pods.issue(Role.VERIFIER))
    fleet.until_silent()


def test_the_drafter_is_killed(fleet: Monitored) -> None:
    with fleet.load(FEW, SHORT):
        fleet.drafter.kill()
        fleet.until_firing("PacelineDrafterStarvation")
        fleet.restart_drafter()
        fleet.until_silent()


def test_the_drafter_is_slow(fleet: Monitored) -> None:
    # One session: of several the drafter would take turns, and trees that hang on the next text come anyway.
    with fleet.load(1, SHORT):
        with fleet.faulty_drafter("slow"):
            fleet.until_firing("PacelineExposedDraftTime")
        fleet.until_silent()


def test_the_drafter_is_for_another_model(fleet: Monitored) -> None:
    with fleet.load(FEW, SHORT):
        with fleet.faulty_drafter("wrong"):
            fleet.until_firing("PacelineAcceptanceCollapse")
        fleet.until_silent()


def test_the_drafter_writes_garbage(fleet: Monitored) -> None:
    """The last one: nobody listens to this drafter for a minute."""
    # A session gets no tree after one that is none: it takes some of them until the drafter is put aside.
    with fleet.load(FEW, BRIEF), fleet.faulty_drafter("garbage"):
        fired = fleet.until_firing("PacelineDrafterPutAside", beside={"PacelineDrafterStarvation"})
    assert fired.labels["reason"] == "garbage"
