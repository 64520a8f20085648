"""What every service's process exports to Prometheus, and the labels that all its series have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Metric,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from paceline import __version__
from paceline.addresses import why_not
from paceline.service import scrapes
from paceline.service.settings import SettingsError

# Bounds of histograms of seconds: a step, or what a client waits for.
SECONDS_BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30)

TASKS = Gauge("paceline:tasks", "Tasks of the event loop: some for each session, stream and connection")
CERTIFICATE_NOT_AFTER = Gauge(
    "paceline:certificate_not_after_seconds", "Unix time at which the certificate in force ends", ["setting"]
)
CERTIFICATE_NOT_BEFORE = Gauge(
    "paceline:certificate_not_before_seconds", "Unix time at which it began", ["setting"]
)
BUILD = Gauge("paceline:build_info", "1; the labels say what runs", ["service", "version"])

_labels: dict[str, str] = {}


def begin(counter: Counter, values: Iterable[str]) -> None:
    """Begin a counter at zero for each value of its label: Prometheus sees no increase in a first sample."""
    for value in values:
        counter.labels(value)


def label(**labels: str) -> None:
    """Give every series of this process these labels from now on; empty values are left out.

    A process has one model and one pool, so this adds no series. Without it each query would have to join
    the series with one that has the labels.
    """
    _labels.update({name: value for name, value in labels.items() if value})


def serve(service: str, host: str, port: int) -> None:
    """Serve this process's metrics on a thread of its own. Raises `SettingsError`."""
    # When a counter began is one more series for each, which nothing reads.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    BUILD.labels(service=service, version=__version__).set(1)
    served = CollectorRegistry()
    served.register(_Labelled())
    try:
        scrapes.serve(host, port, served)
    except OSError as error:
        raise SettingsError(why_not(error, host, port, "--metrics-port")) from error


class ReadCounter(Collector):
    """A counter of what is counted elsewhere, from where each scrape reads it."""

    def __init__(self, name: str, documentation: str) -> None:
        self.read: Callable[[], float] = float
        self._name, self._documentation = name, documentation
        REGISTRY.register(self)

    def describe(self) -> Iterator[Metric]:
        yield CounterMetricFamily(self._name, self._documentation)

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(self._name, self._documentation, value=self.read())


class _Labelled(Collector):
    """All that is registered in this process, with its labels. A series' own labels go before them."""

    def collect(self) -> Iterator[Metric]:
        for family in REGISTRY.collect():
            family.samples = [
                sample._replace(labels={**_labels, **sample.labels}) for sample in family.samples
            ]
            yield family
