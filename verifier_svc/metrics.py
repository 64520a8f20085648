"""The verifier's metrics. Names that vLLM has, without its prefix, mean what they mean there."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from paceline.service.metrics import SECONDS_BUCKETS, ReadCounter, begin

_ROWS_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

DRAFTS = Counter("paceline:spec_decode_num_drafts", "Trees verified")
DRAFT_TOKENS = Counter("paceline:spec_decode_num_draft_tokens", "Tree nodes verified")
ACCEPTED_TOKENS = Counter("paceline:spec_decode_num_accepted_tokens", "Tree nodes accepted")
ACCEPTED_PER_POS = Counter(
    "paceline:spec_decode_num_accepted_tokens_per_pos", "Tree nodes accepted at each depth", ["position"]
)
SOURCE_DRAFT_TOKENS = Counter(
    "paceline:source_draft_tokens", "Tree nodes verified, by the sources that proposed them", ["source"]
)
SOURCE_ACCEPTED_TOKENS = Counter(
    "paceline:source_accepted_tokens", "Tree nodes accepted, by the sources that proposed them", ["source"]
)
COMMITTED = Counter(
    "paceline:committed_tokens", "Tokens committed: drafted, or the target's own draws", ["origin"]
)
COMMITTED_DRAFTED, COMMITTED_OWN = (COMMITTED.labels(origin=origin) for origin in ("drafted", "own"))
SESSION_STEPS = Counter("paceline:session_steps", "Verify steps of single sessions")
STEP_SECONDS = Histogram(
    "paceline:step_seconds",
    "Seconds of one forward with acceptance, by its rows (next power of two)",
    ["rows"],
    buckets=SECONDS_BUCKETS,
)
STEP_ROWS = Histogram("paceline:step_rows", "Rows of one forward, padding included", buckets=_ROWS_BUCKETS)
DRAFT_BUDGET = Gauge("paceline:draft_budget", "Tree nodes that each drafting session is asked for")
RUNNING = Gauge("paceline:num_requests_running", "Sessions that have KV here")
WAITING = Gauge("paceline:num_requests_waiting", "Sessions that are open here and wait for KV")
KV_USAGE = Gauge("paceline:kv_cache_usage_perc", "Share of the KV slots that sessions hold, 0 to 1")
KV_TOTAL_TOKENS = Gauge("paceline:kv_total_tokens", "KV slots in all")
PREEMPTIONS = Counter("paceline:num_preemptions", "Times a session gave up its KV to an older one")
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
WANTED_TREES = ReadCounter(
    "paceline:wanted_trees", "Steps of single sessions for which a tree was expected to pay"
)
MISSING_TREES = ReadCounter("paceline:missing_trees", "Of these, steps that had no tree in time")
EXPOSED_DRAFT_SECONDS = ReadCounter(
    "paceline:exposed_draft_seconds", "Seconds in which steps waited for trees instead of computing"
)
EXPOSED_REPLY_SECONDS = ReadCounter(
    "paceline:exposed_reply_seconds", "Seconds in which sessions waited with their step for their trees"
)
REPLY_SECONDS = Counter(
    "paceline:reply_seconds", "Seconds from requests for sessions' trees to the last tree that came for each"
)
SOURCE_REPLY_SECONDS = Histogram(
    "paceline:source_reply_seconds",
    "Seconds from a request for a session's tree to a source's answer: draft time and round trip",
    ["source"],
    buckets=(0.001, 0.002, *SECONDS_BUCKETS),
)
DRAFT_BYTES = Counter("paceline:draft_bytes", "Bytes of messages on drafters' streams", ["direction"])
DRAFT_BYTES_UP, DRAFT_BYTES_DOWN = (DRAFT_BYTES.labels(direction=each) for each in ("up", "down"))
STATE_BYTES = Counter("paceline:state_bytes", "Bytes of hidden states sent to drafters")
STATE_CHUNKS = Counter("paceline:state_chunks", "Chunks of hidden states sent to drafters")
STATE_STREAMS = Gauge("paceline:state_streams", "Drafters' streams that hidden states were granted to")
FALSE_ACKNOWLEDGEMENTS = Counter(
    "paceline:false_acknowledgements", "Times a drafter said it took states in that it cannot have"
)
UNASKED = Counter("paceline:unasked", "What drafters sent and nothing had asked for", ["what"])
begin(UNASKED, ("tree", "join", "leave", "message"))
HARMFUL_TREES = Counter("paceline:harmful_trees", "Trees that made a step fail, and were dropped")
DRAFTERS_PAUSED = Gauge("paceline:drafters_paused", "Drafters' streams that wait for their turn")
DRAFTERS_PUT_ASIDE = Counter("paceline:drafters_put_aside", "Times a drafter was put aside", ["reason"])
UNDURABLE_TOKENS = Counter("paceline:undurable_tokens", "Tokens streamed before they were in the store")
COMMIT_SECONDS = Histogram(
    "paceline:commit_seconds",
    "Seconds in which the store answered for one batch of appends",
    buckets=(0.0005, 0.001, 0.002, *SECONDS_BUCKETS),
)
STORE_AWAY = Gauge("paceline:store_away", "1 while the session store does not answer")
RECORDS_RESTORED = Counter("paceline:records_restored", "Sessions recorded again after the store lost them")
ENGINE_SILENT_SECONDS = Gauge(
    "paceline:engine_silent_seconds", "Seconds since the engine last went round; idle, it does so each second"
)


def rows_label(rows: int) -> str:
    """Label of STEP_SECONDS: the number rounded up to a power of two."""
    return str(1 << max(0, rows - 1).bit_length())
