"""The drafter's metrics."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from paceline.service.metrics import ReadCounter

TREES = Counter("paceline:drafter_trees", "Trees sent")
TREE_NODES = Counter("paceline:drafter_tree_nodes", "Nodes of the trees sent")
ACCEPTED_TOKENS = Counter(
    "paceline:drafter_accepted_tokens",
    "Nodes that were accepted, by the source that was surest of them",
    ["source"],
)
BUSY_SECONDS = ReadCounter("paceline:drafter_busy_seconds", "Seconds in which this drafter worked")
SESSIONS = Gauge("paceline:drafter_sessions", "Sessions drafted for")
ROUND_SECONDS = Histogram(
    "paceline:drafter_round_seconds",
    "From verdicts in to trees out",
    buckets=(0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1),
)
