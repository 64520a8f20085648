"""A fleet over TLS that a real Prometheus scrapes, with faults that a test can make in it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from paceline.client import GatewayError, Generation, SyncGatewayClient
from tests.monitoring.rules import shrunk
from tests.monitoring.server import Alert, Prometheus
from tests.monitoring.slow_proxy import SlowProxy
from tests.pace import Pace
from tests.pods import Pod
from tests.redis_servers import RedisServer
from tests.secure_pods import SecurePods

# Lengths of time in rules are divided by so much; ratios are then over so many seconds.
FACTOR, WINDOW = 60, 5
# Seconds within which an alert fires or ends, on whatever machine.
PATIENCE = 120.0
KV_TOKENS = 4096
# As a big model's: beside it the way to a drafter and back is short, also on a machine that has other work.
STEP_SECONDS = 0.1


class Monitored:
    """A fleet with its Redis, and the Prometheus that scrapes it."""

    def __init__(self, folder: Path, model: Path, stack: ExitStack) -> None:
        self._pace, self._fault = Pace(folder / "pace"), folder / "fault"
        variables = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in self._pace.variables.items():
            variables.setenv(name, value)
        stack.enter_context(self._pace.steps_take(STEP_SECONDS))
        variables.setenv("DRAFTER_FAULT", str(self._fault))
        self.redis = stack.enter_context(RedisServer("redis", folder))
        self.network = stack.enter_context(SlowProxy(self.redis.port))
        self.pods = stack.enter_context(
            SecurePods(
                folder,
                model,
                f"redis://127.0.0.1:{self.network.port}",
                metrics=True,
                # Processes of their own, which have imported nothing but what they need.
                environment={},
                # Steps may wait for drafters as long as that can pay.
                verifier_flags=("--kv-tokens", str(KV_TOKENS), "--max-draft-wait-ms", "200"),
            )
        )
        self.pods.verifier_module = "tests.paced_verifier"
        self.pods.drafter_module = "tests.monitoring.faulty_drafter"
        self.pods.start()
        rules = folder / "rules"
        rules.mkdir()
        self.prometheus = stack.enter_context(Prometheus(folder, shrunk(rules, FACTOR)))
        self.scrape()
        until(lambda: self.prometheus.healthy_targets() == 3, "all targets are scraped")

    @property
    def verifier(self) -> Pod:
        """The only one."""
        return self.pods.pods[self.pods.verifier]

    @property
    def drafter(self) -> Pod:
        """The only one."""
        return self.pods.pods[self.pods.drafter]

    def scrape(self) -> None:
        """Scrape the processes that there are now."""
        self.prometheus.scrape(self.pods.metrics_ports)

    def restart_drafter(self) -> None:
        """Start a drafter in the place of the one that has ended."""
        self.pods.launch(self.pods.drafter)
        self.pods.until_all_are_seen()
        self.scrape()

    def hanging_engine(self) -> AbstractContextManager[None]:
        """The verifier's engine hangs until the block is left."""
        return self._pace.steps_take(math.inf)

    @contextmanager
    def faulty_drafter(self, fault: str) -> Iterator[None]:
        """The drafter has a fault of `faulty_drafter.Fault` until the block is left."""
        # It reads the file whenever it drafts: never half of it.
        written = self._fault.with_suffix(".new")
        written.write_text(fault)
        written.rename(self._fault)
        try:
            yield
        finally:
            self._fault.unlink()

    @contextmanager
    def load(self, sessions: int, asked: Generation) -> Iterator[None]:
        """So many clients ask, again and again, until the block is left; errors are none of ours."""
        ended = threading.Event()
        credentials = self.pods.gateway.credentials

        def ask() -> None:
            with SyncGatewayClient(self.pods.grpc, credentials) as client:
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

    def until_firing(self, name: str, beside: Collection[str] = ()) -> Alert:
        """The alert, once it fires; no others may, but those that the fault explains as well."""

        def fires() -> bool:
            firing = self.prometheus.firing()
            assert firing <= {name, *beside}, self.state()
            return name in firing

        until(fires, f"{name} fires", self.state)
        return next(alert for alert in self.prometheus.alerts() if alert.name == name and alert.firing)

    def until_silent(self) -> None:
        """Return once no alert fires."""
        until(lambda: not self.prometheus.firing(), "no alert fires", self.state)

    def state(self) -> str:
        """What the ratios are, for messages."""
        found = self.prometheus.query('{__name__=~"pool:.*"}')
        ratios = {labels["__name__"]: round(value, 3) for labels, value in found}
        return f"{ratios}, firing: {self.prometheus.firing()}, faults: {self.prometheus.faulty_rules()}"


def until(ready: Callable[[], bool], what: str, why: Callable[[], str] = str) -> None:
    """Return once `ready()`."""
    end = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < end, f"not in {PATIENCE:.0f} s: {what} {why()}"
        time.sleep(0.25)
