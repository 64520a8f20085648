"""Receipts in HTTP replies: Paceline's own block, and vLLM's form of what speculation brought."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest
from typing import Any

from paceline.session import Receipt


def block(receipt: Receipt) -> dict[str, Any]:
    """What a session cost and what speculation gave it."""
    drafts = receipt.drafts
    depths = zip_longest(drafts.by_depth, receipt.accepted_by_depth, fillvalue=0)
    return {
        "steps": receipt.steps,
        "acceptance_length": round(receipt.acceptance_length, 3),
        "drafted_tokens": receipt.drafted_tokens,
        "accepted_tokens": receipt.accepted_tokens,
        "sources": {
            each.name: {"drafted_tokens": each.drafted_tokens, "accepted_tokens": each.accepted_tokens}
            for each in receipt.sources
        },
        "depths": [{"drafted_tokens": drafted, "accepted_tokens": accepted} for drafted, accepted in depths],
        "seconds": {
            "queued": round(receipt.queued_seconds, 6),
            "prefill": round(receipt.prefill_seconds, 6),
            "decode": round(receipt.decode_seconds, 6),
            "waited_for_drafts": round(drafts.wait_seconds, 6),
        },
        "draft_bytes": drafts.bytes,
    }


def metrics(receipts: Iterable[Receipt]) -> dict[str, Any]:
    """vLLM's `metrics`, of all sessions of a reply together."""
    told = list(receipts)
    steps = sum(each.drafted_steps for each in told)
    drafted = sum(each.drafted_tokens for each in told)
    accepted = sum(each.accepted_tokens for each in told)
    deepest = max((len(each.drafts.by_depth) for each in told), default=0)
    histogram = [sum(counts) for counts in zip_longest(*map(_histogram, told), fillvalue=0)]
    return {
        "speculative_decoding": {
            "mean_acceptance_length": 1 + accepted / steps if steps else 1.0,
            "draft_acceptance_rate": accepted / drafted if drafted else 0.0,
            "acceptance_histogram": histogram,
            "num_spec_steps": steps,
            "num_accepted_draft_tokens": accepted,
            "num_draft_tokens": drafted,
            "num_spec_tokens": deepest,
        }
    }


def _histogram(receipt: Receipt) -> list[int]:
    """Drafted steps by the number of tokens that they accepted."""
    levels = max(len(receipt.drafts.by_depth), len(receipt.accepted_by_depth))
    # Steps that accepted at least so many.
    least = [receipt.drafted_steps, *receipt.accepted_by_depth, *(0,) * levels][: levels + 1]
    return [count - more for count, more in zip(least, [*least[1:], 0], strict=True)]
