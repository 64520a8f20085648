"""The gateway's metrics."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from paceline.service.telemetry import SECONDS_BUCKETS

REQUESTS = Counter("paceline:requests", "Requests by face and outcome", ["face", "outcome"])
FIRST_TOKEN_SECONDS = Histogram(
    "paceline:time_to_first_token_seconds",
    "Seconds from a request to its first token",
    buckets=SECONDS_BUCKETS,
)
INTER_TOKEN_SECONDS = Histogram(
    "paceline:inter_token_seconds", "Seconds between two tokens of a stream", buckets=SECONDS_BUCKETS
)
REFUSED_REQUESTS = Counter(
    "paceline:refused_requests", "Requests refused for their key or a limit", ["reason"]
)
QUEUED_REQUESTS = Gauge("paceline:queued_requests", "Requests that wait at this gateway for a limit's place")
ROUTED_SESSIONS = Counter(
    "paceline:routed_sessions", "Sessions given to a verifier, by why that one", ["reason"]
)
ROUTED_TOKENS = Counter("paceline:routed_tokens", "Tokens of the prompts of routed sessions")
ROUTED_HELD_TOKENS = Counter(
    "paceline:routed_held_tokens", "Those of them that the verifier was believed to hold already"
)
SESSIONS = Gauge("paceline:gateway_sessions", "Sessions that this gateway follows")
