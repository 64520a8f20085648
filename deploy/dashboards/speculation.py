"""Speculation: what drafts gain, where they come from, and what holds them up."""

from __future__ import annotations

from deploy.dashboards.layout import DRAFTER, VERIFIER, Dashboard, Panel, Query, Row, quantiles, rate

_ACCEPTED = rate("paceline:spec_decode_num_accepted_tokens_total", VERIFIER)
_NODES = rate("paceline:spec_decode_num_draft_tokens_total", VERIFIER)
_TREES = rate("paceline:spec_decode_num_drafts_total", VERIFIER)
_COMMITTED = rate("paceline:committed_tokens_total", VERIFIER)
_STEPS = rate("paceline:session_steps_total", VERIFIER)
_EXPOSED = rate("paceline:exposed_draft_seconds_total", VERIFIER)
_COMPUTING = rate("paceline:step_seconds_sum", VERIFIER)

_GAIN = Row(
    "What drafts gain",
    (
        Panel(
            "Acceptance length",
            "Tokens that a verify step of one session commits, its own included; 1 is plain decoding.",
            "short",
            (Query(f"sum by (pool) ({_COMMITTED}) / sum by (pool) ({_STEPS})", "{{pool}}"),),
            least=1,
        ),
        Panel(
            "Tokens by origin",
            "Tokens committed: nodes of trees that were accepted, and the target's own draws.",
            "short",
            (Query(f"sum by (origin) ({_COMMITTED})", "{{origin}} tokens/s"),),
            stacked=True,
        ),
        Panel(
            "Accepted tokens by source",
            "Which source of the drafting method was surest of the nodes that were accepted.",
            "short",
            (
                Query(
                    f"sum by (source) ({rate('paceline:drafter_accepted_tokens_total', DRAFTER)})",
                    "{{source}} tokens/s",
                ),
            ),
            stacked=True,
        ),
        Panel(
            "Accepted by drafting method",
            "Accepted nodes of a verify step, by who proposed them; what several did counts for each.",
            "short",
            (
                Query(
                    f"sum by (source) ({rate('paceline:source_accepted_tokens_total', VERIFIER)})"
                    f" / scalar(sum({_STEPS}))",
                    "{{source}}",
                ),
            ),
        ),
        Panel(
            "Accepted share of nodes",
            "Of the nodes that were verified, those that were accepted. It may be low where rows are cheap.",
            "percentunit",
            (Query(f"sum by (pool) ({_ACCEPTED}) / sum by (pool) ({_NODES})", "{{pool}}"),),
            most=1,
        ),
        Panel(
            "Accepted by depth",
            "Share of verified trees with an accepted node at each depth, from 0.",
            "percentunit",
            (
                Query(
                    "sum by (position) "
                    f"({rate('paceline:spec_decode_num_accepted_tokens_per_pos_total', VERIFIER)})"
                    f" / scalar(sum({_TREES}))",
                    "depth {{position}}",
                ),
            ),
            most=1,
        ),
        Panel(
            "Nodes of a verified tree",
            "Mean size, and what verifiers ask for (draft budget; 0 while speculation does not pay).",
            "short",
            (
                Query(f"sum by (pool) ({_NODES}) / sum by (pool) ({_TREES})", "verified, {{pool}}"),
                Query(f"avg by (pool) (paceline:draft_budget{{{VERIFIER}}})", "asked for, {{pool}}"),
            ),
        ),
    ),
)

_TIME = Row(
    "Do trees come in time?",
    (
        Panel(
            "Starvation",
            "Share of the session steps for which a tree would pay and none was there.",
            "percentunit",
            (
                Query(
                    f"sum by (pool) ({rate('paceline:missing_trees_total', VERIFIER)})"
                    f" / sum by (pool) ({rate('paceline:wanted_trees_total', VERIFIER)})",
                    "{{pool}}",
                ),
            ),
            most=1,
        ),
        Panel(
            "Exposed draft time",
            "Share of the verifiers' working time in which they wait for trees instead of computing.",
            "percentunit",
            (
                Query(
                    f"sum by (pool) ({_EXPOSED})"
                    f" / (sum by (pool) ({_EXPOSED}) + sum by (pool) ({_COMPUTING}))",
                    "{{pool}}",
                ),
            ),
            most=1,
        ),
        Panel(
            "Exposed share of replies",
            "Share of draft time and round trip in which sessions waited; the rest is hidden behind steps.",
            "percentunit",
            (
                Query(
                    f"sum by (pool) ({rate('paceline:exposed_reply_seconds_total', VERIFIER)})"
                    f" / sum by (pool) ({rate('paceline:reply_seconds_total', VERIFIER)})",
                    "{{pool}}",
                ),
            ),
            most=1,
        ),
        Panel(
            "Late trees",
            "Trees that no longer fitted when their step came, of those that drafters sent.",
            "short",
            (
                Query(f"sum by (pool) ({rate('paceline:late_trees_total', VERIFIER)})", "late, {{pool}}"),
                Query(f"sum by (pool) ({rate('paceline:drafter_trees_total', DRAFTER)})", "sent, {{pool}}"),
            ),
        ),
        Panel(
            "Time of a draft",
            "In a drafter, from verdicts in to trees out.",
            "s",
            quantiles("paceline:drafter_round_seconds", DRAFTER, "pool"),
        ),
        Panel(
            "Drafters' work",
            "Share of its time that a drafter works; near 1 it is too slow for its sessions.",
            "percentunit",
            (
                Query(
                    f"avg by (pool) ({rate('paceline:drafter_busy_seconds_total', DRAFTER)})",
                    "{{pool}}",
                ),
            ),
            most=1,
        ),
        Panel(
            "Sessions with a drafter",
            "Sessions that drafters draft for.",
            "short",
            (Query(f"sum by (pool) (paceline:drafter_sessions{{{DRAFTER}}})", "{{pool}}"),),
        ),
    ),
)

_WIRE = Row(
    "What drafting costs on the wire",
    (
        Panel(
            "Bytes for each token",
            "Bytes on drafters' streams for each committed token: to drafters, and from them.",
            "bytes",
            (
                Query(
                    f"sum by (direction) ({rate('paceline:draft_bytes_total', VERIFIER)})"
                    f" / scalar(sum({_COMMITTED}))",
                    "{{direction}}",
                ),
            ),
        ),
        Panel(
            "Hidden states",
            "Bytes of hidden states that drafters are sent in a second.",
            "bytes",
            (Query(f"sum by (pool) ({rate('paceline:state_bytes_total', VERIFIER)})", "{{pool}}"),),
        ),
        Panel(
            "Streams with hidden states",
            "Drafters' streams that hidden states were granted to, and false words of what was taken in.",
            "short",
            (
                Query(f"sum by (pool) (paceline:state_streams{{{VERIFIER}}})", "{{pool}}"),
                Query(
                    f"sum by (pool) ({rate('paceline:false_acknowledgements_total', VERIFIER)})",
                    "false, {{pool}}",
                ),
            ),
        ),
    ),
)

_FAULTS = Row(
    "Drafters that do harm",
    (
        Panel(
            "Put aside",
            "Times in the last hour that a drafter was put aside, by reason.",
            "short",
            (
                Query(
                    f"sum by (reason) (increase(paceline:drafters_put_aside_total{{{VERIFIER}}}[1h]))",
                    "{{reason}}",
                ),
            ),
            kind="bargauge",
        ),
        Panel(
            "Refused and unasked",
            "Trees and joins that broke a rule, by rule; and what nothing had asked for.",
            "short",
            (
                Query(f"sum by (code) ({rate('paceline:trees_refused_total', VERIFIER)})", "{{code}}"),
                Query(f"sum by (what) ({rate('paceline:unasked_total', VERIFIER)})", "unasked: {{what}}"),
            ),
        ),
        Panel(
            "Divergences",
            "Share of checked tokens that plain decoding would draw otherwise; exact engines check none.",
            "percentunit",
            (
                Query(
                    f"sum({rate('paceline:divergences_total', VERIFIER)})"
                    f" / (sum({rate('paceline:divergence_checks_total', VERIFIER)}) > 0) or vector(0)",
                    "divergences",
                ),
            ),
        ),
    ),
)

SPECULATION = Dashboard(
    "speculation",
    "Paceline: speculation",
    "What drafts gain, where they come from, and what holds them up.",
    (_GAIN, _TIME, _WIRE, _FAULTS),
)
