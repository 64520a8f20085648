"""Recommended numbers of pods as metrics, the same as KEDA gets them."""

from __future__ import annotations

from prometheus_client import Gauge

RECOMMENDED = Gauge(
    "paceline:recommended_replicas", "Pods that a pool should have, by this gateway", ["tier", "pool"]
)
NEEDED = Gauge(
    "paceline:needed_replicas", "Pods that a pool's load needs now, in parts of one", ["tier", "pool"]
)
