"""The gateway's metrics. Names that vLLM has, without its prefix, mean what they mean there."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from paceline.service.metrics import SECONDS_BUCKETS, begin
from paceline.session import FinishReason

# Whole requests take longer than their parts.
_REQUEST_BUCKETS = (*SECONDS_BUCKETS[3:], 60, 120, 300, 600)

REQUESTS = Counter("paceline:requests", "Requests by face and outcome", ["face", "outcome"])
REQUEST_SUCCESS = Counter(
    "paceline:request_success", "Sessions that came to their end, by why they ended", ["finished_reason"]
)
begin(REQUEST_SUCCESS, FinishReason)
PROMPT_TOKENS = Counter("paceline:prompt_tokens", "Prompt tokens of sessions that began")
GENERATION_TOKENS = Counter("paceline:generation_tokens", "Tokens that clients were sent")
FIRST_TOKEN_SECONDS = Histogram(
    "paceline:time_to_first_token_seconds",
    "Seconds from a request to its first token",
    buckets=SECONDS_BUCKETS,
)
INTER_TOKEN_SECONDS = Histogram(
    "paceline:inter_token_latency_seconds", "Seconds between two tokens of a stream", buckets=SECONDS_BUCKETS
)
E2E_SECONDS = Histogram(
    "paceline:e2e_request_latency_seconds",
    "Seconds from a request to its end, of those that came to it",
    buckets=_REQUEST_BUCKETS,
)
QUEUE_SECONDS = Histogram(
    "paceline:request_queue_time_seconds",
    "Seconds from a request until a verifier has its session: limits, tokenising, the line for a place",
    buckets=_REQUEST_BUCKETS,
)
PREFILL_SECONDS = Histogram(
    "paceline:request_prefill_time_seconds",
    "Seconds from there to the first token",
    buckets=_REQUEST_BUCKETS,
)
DECODE_SECONDS = Histogram(
    "paceline:request_decode_time_seconds",
    "Seconds from the first token to the last",
    buckets=_REQUEST_BUCKETS,
)
REFUSED_REQUESTS = Counter(
    "paceline:refused_requests", "Requests refused for their key or a limit", ["reason"]
)
begin(
    REFUSED_REQUESTS,
    (
        "invalid_api_key",
        "insufficient_permissions",
        "queued_requests",
        "queue_seconds",
        "tokens_per_minute",
        "limits_unavailable",
        "places",
    ),
)
QUEUED_REQUESTS = Gauge(
    "paceline:queued_requests", "Requests that wait at this gateway, by what they wait for", ["queue"]
)
ROUTED_SESSIONS = Counter(
    "paceline:routed_sessions", "Sessions given to a verifier, by why that one", ["reason"]
)
ROUTED_TOKENS = Counter("paceline:routed_tokens", "Tokens of the prompts of routed sessions")
ROUTED_HELD_TOKENS = Counter(
    "paceline:routed_held_tokens", "Those of them that the verifier was believed to hold already"
)
SESSIONS = Gauge("paceline:gateway_sessions", "Sessions that this gateway follows")
MOVES = Counter("paceline:session_moves", "Times that a session was taken from a verifier that failed it")
FLEET_PODS = Gauge(
    "paceline:fleet_pods", "Verifiers and drafters as this gateway sees them", ["role", "state"]
)
