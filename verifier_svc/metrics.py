"""The verifier's metrics. Names with `spec_decode` are vLLM's, so that its dashboards read ours."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from paceline.service.telemetry import SECONDS_BUCKETS

_ROWS_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

DRAFTS = Counter("paceline:spec_decode_num_drafts", "Trees verified")
DRAFT_TOKENS = Counter("paceline:spec_decode_num_draft_tokens", "Tree nodes verified")
ACCEPTED_TOKENS = Counter("paceline:spec_decode_num_accepted_tokens", "Tree nodes accepted")
ACCEPTED_PER_POS = Counter(
    "paceline:spec_decode_num_accepted_tokens_per_pos", "Tree nodes accepted at each depth", ["position"]
)
COMMITTED = Counter("paceline:committed_tokens", "Tokens committed")
STEP_SECONDS = Histogram(
    "paceline:step_seconds",
    "Seconds of one forward with acceptance, by its rows and the keys of its sessions (next power of two)",
    ["rows", "context"],
    buckets=SECONDS_BUCKETS,
)
STEP_ROWS = Histogram("paceline:step_rows", "Rows of one forward, padding included", buckets=_ROWS_BUCKETS)
DRAFT_BUDGET = Gauge("paceline:draft_budget", "Tree nodes that each drafting session is asked for")
RUNNING_SESSIONS = Gauge("paceline:running_sessions", "Sessions open at this verifier")
KV_USED_TOKENS = Gauge("paceline:kv_used_tokens", "KV slots held by sessions")
KV_TOTAL_TOKENS = Gauge("paceline:kv_total_tokens", "KV slots in all")
PREEMPTIONS = Counter("paceline:preemptions", "Times a session gave up its KV to an older one")
PREFIX_QUERIES = Counter(
    "paceline:prefix_cache_queries", "Positions of sessions that began, or began again after a preemption"
)
PREFIX_HITS = Counter("paceline:prefix_cache_hits", "Positions of the queries whose KV was cached")
DIVERGENCE_CHECKS = Counter(
    "paceline:divergence_checks",
    "Committed tokens of an engine that is not exact, drawn again plainly",
)
DIVERGENCES = Counter("paceline:divergences", "Tokens of the checks that came out differently")
LATE_TREES = Counter("paceline:late_trees", "Trees that no longer fitted when their step came")
TREES_REFUSED = Counter("paceline:trees_refused", "Trees and joins that broke a rule", ["code"])
UNASKED = Counter("paceline:unasked", "What drafters sent and nothing had asked for", ["what"])
HARMFUL_TREES = Counter("paceline:harmful_trees", "Trees that made a step fail, and were dropped")
DRAFTERS_PAUSED = Gauge("paceline:drafters_paused", "Drafters' streams that wait for their turn")
DRAFTERS_PUT_ASIDE = Counter("paceline:drafters_put_aside", "Times a drafter was put aside", ["reason"])
UNDURABLE_TOKENS = Counter("paceline:undurable_tokens", "Tokens streamed before they were in the store")
STORE_AWAY = Gauge("paceline:store_away", "1 while the session store does not answer")
RECORDS_RESTORED = Counter("paceline:records_restored", "Sessions recorded again after the store lost them")


def step_labels(*, rows: int, context: int) -> tuple[str, str]:
    """Labels of STEP_SECONDS: each number rounded up to a power of two."""
    return str(1 << max(0, rows - 1).bit_length()), str(1 << max(0, context - 1).bit_length())
