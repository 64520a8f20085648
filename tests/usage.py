"""What the processes of a fleet hold: memory, file descriptors, threads, tasks; and keys in Redis."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from urllib.request import urlopen

import psutil
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from redis import Redis

from tests.pods import Pods


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one process."""

    memory_mb: float
    file_descriptors: int
    threads: int
    tasks: int


def usage(pods: Pods) -> dict[str, Usage]:
    """By the name of the service; `pods` must serve metrics."""
    names = {address: f"verifier {at}" for at, address in enumerate(pods.verifiers, start=1)}
    names |= {address: f"drafter {at}" for at, address in enumerate(pods.drafters, start=1)}
    return {
        names.get(name, name): _of_process(pod.pid, pods.metrics_ports[name])
        for name, pod in pods.pods.items()
    }


def samples(pods: Pods, name: str) -> dict[str, float]:
    """What a pod tells Prometheus: sums over all labels, by the names of its samples."""
    summed: dict[str, float] = {}
    for sample in _samples(pods.metrics_ports[name]):
        summed[sample.name] = summed.get(sample.name, 0.0) + sample.value
    return summed


def redis_keys(url: str) -> int:
    """Keys in Redis, of whatever kind."""
    with Redis.from_url(url) as redis:
        return int(redis.dbsize())


def redis_memory_mb(url: str) -> float:
    """What Redis says that its data takes."""
    with Redis.from_url(url) as redis:
        return float(redis.info("memory")["used_memory"]) / 1e6


def _of_process(pid: int, metrics_port: int) -> Usage:
    process = psutil.Process(pid)
    tasks = next(sample.value for sample in _samples(metrics_port) if sample.name == "paceline:tasks")
    with process.oneshot():
        return Usage(process.memory_info().rss / 1e6, process.num_fds(), process.num_threads(), int(tasks))


def _samples(metrics_port: int) -> Iterator[Sample]:
    with urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    for family in text_string_to_metric_families(text):
        yield from family.samples
