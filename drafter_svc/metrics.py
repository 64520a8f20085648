"""The drafter's metrics."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from paceline.service.metrics import ReadCounter

TREES = Counter("paceline:drafter_trees", "Trees sent", ["source"])
TREE_NODES = Counter("paceline:drafter_tree_nodes", "Nodes of the trees sent", ["source"])
ACCEPTED_TOKENS = Counter(
    "paceline:drafter_accepted_tokens",
    "Nodes that were accepted, by what had drafted them; of the text's sources the one that was surest",
    ["source"],
)
BATCH_SESSIONS = Histogram(
    "paceline:drafter_batch_sessions",
    "Sessions of each batch that a method computed",
    ["source"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)
BATCH_SECONDS = Histogram(
    "paceline:drafter_batch_seconds",
    "What a batch took",
    ["source"],
    buckets=(0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1),
)


def begin_source(source: str) -> None:
    """Begin the counters of a source of trees at zero: Prometheus sees no increase in a first sample."""
    for counter in (TREES, TREE_NODES):
        counter.labels(source)


STATE_BYTES = Counter("paceline:drafter_state_bytes", "Bytes of hidden states that came")
STATE_STEPS = Histogram(
    "paceline:drafter_state_steps",
    "Steps of a session from its join until all its hidden states were there",
    buckets=(0, 1, 2, 4, 8, 16, 32, 64),
)
BUSY_SECONDS = ReadCounter("paceline:drafter_busy_seconds", "Seconds in which this drafter worked")
SESSIONS = Gauge("paceline:drafter_sessions", "Sessions drafted for")
ROUND_SECONDS = Histogram(
    "paceline:drafter_round_seconds",
    "From verdicts in to trees out",
    buckets=(0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1),
)
