"""Cost: what a token costs by the prices that the reader types in, and what speculation does to that."""

from __future__ import annotations

from deploy.dashboards.layout import DRAFTER, GATEWAY, VERIFIER, Dashboard, Panel, Query, Row, rate

_SELECTORS = {"gateway": GATEWAY, "verifier": VERIFIER, "drafter": DRAFTER}


def _per_hour(role: str) -> str:
    """Money for an hour of all processes of a role."""
    running = f'count(paceline:build_info{{{_SELECTORS[role]}, service="{role}"}})'
    return f"({running} * ${role}_price or vector(0))"


_ALL = "(" + " + ".join(_per_hour(role) for role in _SELECTORS) + ")"
_TOKENS = f"sum({rate('paceline:generation_tokens_total', GATEWAY)})"
_COMMITTED = f"sum({rate('paceline:committed_tokens_total', VERIFIER)})"
_STEPS = f"sum({rate('paceline:session_steps_total', VERIFIER)})"
_COMPUTING = f"sum({rate('paceline:step_seconds_sum', VERIFIER)})"
_VERIFIERS = f'count(paceline:build_info{{{VERIFIER}, service="verifier"}})'

_MONEY = Row(
    "Money",
    (
        Panel(
            "A million tokens",
            "The whole fleet's price over the tokens that clients are sent, at the present load.",
            "currencyUSD",
            (Query(f"{_ALL} / (3600 * {_TOKENS}) * 1e6", "per million tokens"),),
            kind="stat",
            width=6,
        ),
        Panel(
            "A million tokens at full load",
            "The same if verifiers computed all the time: what is lost to idling is not in it.",
            "currencyUSD",
            (
                Query(
                    f"{_ALL} / (3600 * {_TOKENS}) * 1e6 * {_COMPUTING} / {_VERIFIERS}",
                    "per million tokens",
                ),
            ),
            kind="stat",
            width=6,
        ),
        Panel(
            "An hour by role",
            "Processes that are scraped, times their prices.",
            "currencyUSD",
            tuple(Query(_per_hour(role), role) for role in _SELECTORS),
            width=12,
            stacked=True,
        ),
        Panel(
            "A million tokens over time",
            "Grows when load falls and replicas do not.",
            "currencyUSD",
            (Query(f"{_ALL} / (3600 * {_TOKENS}) * 1e6", "per million tokens"),),
            width=12,
        ),
        Panel(
            "Money for idling verifiers",
            "The price of the share of their time in which verifiers do not compute, per hour.",
            "currencyUSD",
            (
                Query(
                    f"{_per_hour('verifier')} * (1 - {_COMPUTING} / {_VERIFIERS})",
                    "per hour",
                ),
            ),
            width=12,
        ),
    ),
)

_WORK = Row(
    "Work",
    (
        Panel(
            "Verifier time per token",
            "Seconds that verifiers compute for one committed token.",
            "s",
            (Query(f"{_COMPUTING} / {_COMMITTED}", "seconds"),),
        ),
        Panel(
            "Drafter time per token",
            "Seconds that drafters work for one committed token.",
            "s",
            (
                Query(
                    f"sum({rate('paceline:drafter_busy_seconds_total', DRAFTER)}) / {_COMMITTED}",
                    "seconds",
                ),
            ),
        ),
        Panel(
            "Rows per committed token",
            "Rows that were computed, prompts and padding included, for one committed token.",
            "short",
            (Query(f"sum({rate('paceline:step_rows_sum', VERIFIER)}) / {_COMMITTED}", "rows"),),
        ),
    ),
)

_GAIN = Row(
    "Does speculation pay?",
    (
        Panel(
            "Steps saved",
            "Share of the session steps of plain decoding that drafts make unnecessary.",
            "percentunit",
            (Query(f"1 - {_STEPS} / {_COMMITTED}", "saved"),),
            most=1,
        ),
        Panel(
            "Drafters' share of the price",
            "Of the money for verifiers and drafters.",
            "percentunit",
            (
                Query(
                    f"{_per_hour('drafter')} / ({_per_hour('verifier')} + {_per_hour('drafter')})",
                    "drafters",
                ),
            ),
            most=1,
        ),
        Panel(
            "Tokens for the money, against plain decoding",
            "Acceptance length over the price with drafters by the price without. At most so much: it holds "
            "where a step with trees takes no longer than one without.",
            "short",
            (
                Query(
                    f"{_COMMITTED} / {_STEPS} * {_per_hour('verifier')}"
                    f" / ({_per_hour('verifier')} + {_per_hour('drafter')})",
                    "times as many",
                ),
            ),
        ),
    ),
)

COST = Dashboard(
    "cost",
    "Paceline: cost",
    "What a token costs by the prices that you type in above (per process and hour, in any currency), and "
    "what speculation does to that.",
    (_MONEY, _WORK, _GAIN),
    (
        ("gateway_price", "Gateway, per hour", "0.1"),
        ("verifier_price", "Verifier, per hour", "3"),
        ("drafter_price", "Drafter, per hour", "0.1"),
    ),
)
