"""The fleet: is it well, what do clients feel, where is it full?"""

from __future__ import annotations

from deploy.dashboards.layout import (
    DRAFTER,
    GATEWAY,
    VERIFIER,
    Dashboard,
    Panel,
    Query,
    Row,
    quantiles,
    rate,
)


def _up(role: str) -> str:
    """Pods of a role that some gateway can use: the most that one of them sees."""
    return f'max(sum by (instance) (paceline:fleet_pods{{{GATEWAY}, role="{role}", state="up"}}))'


_HEALTH = Row(
    "Health",
    (
        Panel(
            "Gateways",
            "Gateways that are scraped.",
            "short",
            (Query(f'count(paceline:build_info{{{GATEWAY}, service="gateway"}})', "gateways"),),
            kind="stat",
            width=4,
            height=4,
        ),
        Panel(
            "Verifiers up",
            "Verifiers that gateways can use: up, of the right model, not draining.",
            "short",
            (Query(_up("verifier"), "verifiers"),),
            kind="stat",
            width=4,
            height=4,
        ),
        Panel(
            "Drafters up",
            "Drafters that gateways can use. Without any, decoding is plain.",
            "short",
            (Query(_up("drafter"), "drafters"),),
            kind="stat",
            width=4,
            height=4,
        ),
        Panel(
            "Verifiers not up",
            "Verifiers that gateways know and cannot use, by why.",
            "short",
            (
                Query(
                    "max by (state) (sum by (instance, state) "
                    f'(paceline:fleet_pods{{{GATEWAY}, role="verifier", state!="up"}}))',
                    "{{state}}",
                ),
            ),
            kind="stat",
            width=8,
            height=4,
        ),
        Panel(
            "Redis is away",
            "Verifiers whose commits Redis does not take; 0 is well.",
            "short",
            (Query(f"sum(paceline:store_away{{{VERIFIER}}})", "verifiers"),),
            kind="stat",
            width=4,
            height=4,
        ),
    ),
)

_CLIENTS = Row(
    "What clients feel",
    (
        Panel(
            "Requests",
            "Requests that ended, by outcome: done, cancelled by the client, or the error's code.",
            "reqps",
            (Query(f"sum by (outcome) ({rate('paceline:requests_total', GATEWAY)})", "{{outcome}}"),),
            stacked=True,
        ),
        Panel(
            "Time to the first token",
            "From a request to its first token: queue, tokenising, prefill.",
            "s",
            quantiles("paceline:time_to_first_token_seconds", GATEWAY),
        ),
        Panel(
            "Time between tokens",
            "Between two tokens of a stream; tokens that come together share their wait.",
            "s",
            quantiles("paceline:inter_token_latency_seconds", GATEWAY),
        ),
        Panel(
            "Tokens",
            "Prompt tokens of sessions that began, and tokens that clients were sent.",
            "short",
            (
                Query(f"sum({rate('paceline:prompt_tokens_total', GATEWAY)})", "prompt tokens/s"),
                Query(f"sum({rate('paceline:generation_tokens_total', GATEWAY)})", "generated tokens/s"),
            ),
        ),
        Panel(
            "Refused",
            "Requests refused for their key or a limit, by reason.",
            "reqps",
            (Query(f"sum by (reason) ({rate('paceline:refused_requests_total', GATEWAY)})", "{{reason}}"),),
            stacked=True,
        ),
        Panel(
            "Waiting before a verifier",
            "Requests that wait at gateways for a limit, or for a place at a verifier.",
            "short",
            (Query(f"sum by (queue) (paceline:queued_requests{{{GATEWAY}}})", "{{queue}}"),),
            stacked=True,
        ),
    ),
)

_VERIFIERS = Row(
    "Verifiers",
    (
        Panel(
            "Busy",
            "Share of its time that each verifier computes. Near 1 it is the bottleneck.",
            "percentunit",
            (
                Query(
                    f"sum by (pool, instance) ({rate('paceline:step_seconds_sum', VERIFIER)})",
                    "{{pool}} {{instance}}",
                ),
            ),
            most=1,
        ),
        Panel(
            "KV in use",
            "Share of the KV slots that sessions hold. Near 1, sessions wait or are preempted.",
            "percentunit",
            (Query(f"paceline:kv_cache_usage_perc{{{VERIFIER}}}", "{{pool}} {{instance}}"),),
            most=1,
        ),
        Panel(
            "Rows of a step",
            "Rows of one forward: prompts, single rows and tree nodes of all sessions.",
            "short",
            quantiles("paceline:step_rows", VERIFIER, "pool"),
        ),
        Panel(
            "Time of a step",
            "One forward with acceptance.",
            "s",
            quantiles("paceline:step_seconds", VERIFIER, "pool"),
        ),
        Panel(
            "Time of a commit",
            "Until Redis has answered for one step's appends. Each token waits for it.",
            "s",
            quantiles("paceline:commit_seconds", VERIFIER, "pool"),
        ),
        Panel(
            "Silence of the engine",
            "Since the engine last went round; an idle one does so each second. Over ten it hangs.",
            "s",
            (Query(f"paceline:engine_silent_seconds{{{VERIFIER}}}", "{{pool}} {{instance}}"),),
        ),
    ),
)

_PROCESSES = Row(
    "Processes",
    (
        Panel(
            "Memory",
            "Resident memory of each process.",
            "bytes",
            (
                Query(
                    "process_resident_memory_bytes * on (instance, job) group_left (service) "
                    f"paceline:build_info{{{VERIFIER}}}",
                    "{{service}} {{instance}}",
                ),
            ),
        ),
        Panel(
            "CPU",
            "Cores that each process uses.",
            "short",
            (
                Query(
                    "rate(process_cpu_seconds_total[$__rate_interval]) * on (instance, job) "
                    f"group_left (service) paceline:build_info{{{VERIFIER}}}",
                    "{{service}} {{instance}}",
                ),
            ),
        ),
        Panel(
            "Drafters' work",
            "Share of its time that each drafter works.",
            "percentunit",
            (Query(rate("paceline:drafter_busy_seconds_total", DRAFTER), "{{pool}} {{instance}}"),),
            most=1,
        ),
        Panel(
            "Versions",
            "Processes by service and version. During an upgrade there are two.",
            "short",
            (
                Query(
                    f"count by (service, version) (paceline:build_info{{{VERIFIER}}})",
                    "{{service}} {{version}}",
                ),
            ),
            kind="bargauge",
            width=12,
        ),
        Panel(
            "Event loops",
            "Tasks of each process's event loop: some for each session, stream and connection.",
            "short",
            (Query(f"paceline:tasks{{{VERIFIER}}}", "{{instance}}"),),
            width=12,
        ),
    ),
)

FLEET = Dashboard(
    "fleet",
    "Paceline: fleet",
    "Is the fleet well, what do clients feel, and where is it full?",
    (_HEALTH, _CLIENTS, _VERIFIERS, _PROCESSES),
)
