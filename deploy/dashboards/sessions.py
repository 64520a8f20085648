"""Sessions: how many, where their time goes, how they end, and what is at risk."""

from __future__ import annotations

from deploy.dashboards.layout import GATEWAY, VERIFIER, Dashboard, Panel, Query, Row, quantiles, rate


def _mean(metric: str) -> str:
    return f"sum({rate(metric + '_sum', GATEWAY)}) / sum({rate(metric + '_count', GATEWAY)})"


_NOW = Row(
    "Now",
    (
        Panel(
            "Sessions",
            "Sessions that verifiers compute, that wait there for KV, and requests that wait at gateways.",
            "short",
            (
                Query(f"sum(paceline:num_requests_running{{{VERIFIER}}})", "running"),
                Query(f"sum(paceline:num_requests_waiting{{{VERIFIER}}})", "waiting for KV"),
                Query(f"sum(paceline:queued_requests{{{GATEWAY}}})", "waiting at gateways"),
            ),
            stacked=True,
        ),
        Panel(
            "Sessions of each verifier",
            "Sessions that have KV there.",
            "short",
            (Query(f"paceline:num_requests_running{{{VERIFIER}}}", "{{pool}} {{instance}}"),),
        ),
        Panel(
            "Sessions of each gateway",
            "Sessions that it follows.",
            "short",
            (Query(f"paceline:gateway_sessions{{{GATEWAY}}}", "{{instance}}"),),
        ),
    ),
)

_TIME = Row(
    "Where their time goes",
    (
        Panel(
            "Mean time of a request by stage",
            "Queue (limits, tokenising, line for a place), prefill, and from the first token to the last.",
            "s",
            (
                Query(_mean("paceline:request_queue_time_seconds"), "queue"),
                Query(_mean("paceline:request_prefill_time_seconds"), "prefill"),
                Query(_mean("paceline:request_decode_time_seconds"), "decode"),
            ),
            stacked=True,
        ),
        Panel(
            "Whole requests",
            "From a request to its end, of those that came to it.",
            "s",
            quantiles("paceline:e2e_request_latency_seconds", GATEWAY),
        ),
        Panel(
            "Time in the queue",
            "Until a verifier has the session.",
            "s",
            quantiles("paceline:request_queue_time_seconds", GATEWAY),
        ),
    ),
)

_LIFE = Row(
    "How they begin and end",
    (
        Panel(
            "Ends",
            "Sessions that came to their end: a stop token or string, their length, or cancelled.",
            "reqps",
            (
                Query(
                    f"sum by (finished_reason) ({rate('paceline:request_success_total', GATEWAY)})",
                    "{{finished_reason}}",
                ),
            ),
            stacked=True,
        ),
        Panel(
            "Length",
            "Mean tokens of a prompt and of an answer.",
            "short",
            (
                Query(
                    f"sum({rate('paceline:prompt_tokens_total', GATEWAY)})"
                    f" / sum({rate('paceline:request_success_total', GATEWAY)})",
                    "prompt",
                ),
                Query(
                    f"sum({rate('paceline:generation_tokens_total', GATEWAY)})"
                    f" / sum({rate('paceline:request_success_total', GATEWAY)})",
                    "answer",
                ),
            ),
        ),
        Panel(
            "Prefix cache",
            "Share of the positions of sessions that began whose KV was there already.",
            "percentunit",
            (
                Query(
                    f"sum by (pool) ({rate('paceline:prefix_cache_hits_total', VERIFIER)})"
                    f" / sum by (pool) ({rate('paceline:prefix_cache_queries_total', VERIFIER)})",
                    "{{pool}}",
                ),
            ),
            most=1,
        ),
    ),
)

_RISK = Row(
    "What befalls them",
    (
        Panel(
            "Moves",
            "Sessions taken from a verifier that failed them; their clients see a pause.",
            "short",
            (Query(f"sum({rate('paceline:session_moves_total', GATEWAY)})", "moves/s"),),
        ),
        Panel(
            "Preemptions",
            "Sessions that gave up their KV to an older one and are computed anew.",
            "short",
            (Query(f"sum by (pool) ({rate('paceline:num_preemptions_total', VERIFIER)})", "{{pool}}"),),
        ),
        Panel(
            "Durability",
            "Tokens that went out before Redis had them; sessions that it had lost, recorded anew.",
            "short",
            (
                Query(f"sum({rate('paceline:undurable_tokens_total', VERIFIER)})", "not durable, tokens/s"),
                Query(
                    f"sum({rate('paceline:records_restored_total', VERIFIER)})", "recorded anew, sessions/s"
                ),
            ),
        ),
    ),
)

SESSIONS = Dashboard(
    "sessions",
    "Paceline: sessions",
    "How many sessions there are, where their time goes, how they end, and what befalls them.",
    (_NOW, _TIME, _LIFE, _RISK),
)
