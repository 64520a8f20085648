"""What a fleet held over time, and whether any of it grew."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import linear_regression, mean

from tests.pods import Pods
from tests.usage import redis_keys, redis_memory_mb, usage

SAMPLE_SECONDS = 5.0
# How much of a run is warming up: caches fill, pools open.
WARM_UP = 0.25
# What may be gained from the warm-up's end to the run's, by the line that fits best. Above what a run
# without a leak shows, and below what one object leaked per request comes to.
MAY_GROW = {
    "memory_mb": 12.0,
    "file_descriptors": 12.0,
    "threads": 4.0,
    "tasks": 24.0,
    "sessions": 8.0,
    # As many as there were requests of late: none may be left, in the end.
    "keys": float("inf"),
}


# By service and measure.
Measures = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Trend:
    """One measure over the run, after the warm-up."""

    least: float
    average: float
    most: float
    # By the fitted line, from the warm-up's end to the run's.
    grown: float
    may_grow: float


@dataclass(frozen=True, slots=True)
class Sample:
    """What was held at one time since the start."""

    seconds: float
    measures: Measures


def measures(pods: Pods) -> Measures:
    """What each service holds now."""
    by_service = {name: asdict(each) for name, each in usage(pods).items()}
    url = pods.redis_url
    by_service["verifier 1"]["sessions"] = pods.verifier_status().sessions
    by_service["drafter 1"]["sessions"] = pods.drafter_status().sessions
    return by_service | {"redis": {"memory_mb": redis_memory_mb(url), "keys": redis_keys(url)}}


async def watch(pods: Pods, seconds: float) -> list[Sample]:
    """Samples of so long a time."""
    start = time.monotonic()
    samples = []
    while (now := time.monotonic() - start) < seconds:
        samples.append(Sample(now, await asyncio.to_thread(measures, pods)))
        await asyncio.sleep(min(SAMPLE_SECONDS, seconds / 20))
    return samples


def trends(samples: Sequence[Sample]) -> dict[str, dict[str, Trend]]:
    """By service and measure."""
    warm = [each for each in samples if each.seconds >= WARM_UP * samples[-1].seconds]
    times = [each.seconds for each in warm]
    made: dict[str, dict[str, Trend]] = {}
    for service, named in warm[0].measures.items():
        for measure in named:
            values = [float(each.measures[service][measure]) for each in warm]
            grown = linear_regression(times, values).slope * (times[-1] - times[0])
            trend = Trend(min(values), mean(values), max(values), grown, MAY_GROW[measure])
            made.setdefault(service, {})[measure] = trend
    return made
