"""The drafter's metrics."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

TREES = Counter("paceline:drafter_trees", "Trees sent")
TREE_NODES = Counter("paceline:drafter_tree_nodes", "Nodes of the trees sent")
SESSIONS = Gauge("paceline:drafter_sessions", "Sessions drafted for")
ROUND_SECONDS = Histogram(
    "paceline:drafter_round_seconds",
    "From verdicts in to trees out",
    buckets=(0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1),
)
