"""How many nodes a session may draft, and how long a step may wait for trees: pure functions.

Both are static or measured here in the simplest form that never loses much: the global budget by
survival and measured step cost takes their place behind the same two calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


def nodes_per_session(sessions: int, *, draft_rows: int, max_nodes: int) -> int:
    """Tree nodes each of `sessions` decoding sessions may have when all share `draft_rows` rows.

    A session's root takes one of its rows. 0 once the roots alone fill the rows.
    """
    if sessions <= 0:
        return max_nodes
    return max(0, min(max_nodes, draft_rows // sessions - 1))


@dataclass(frozen=True, slots=True)
class Awaited:
    """A session whose tree is on its way."""

    # Accepted nodes that a tree of this session brings on average.
    gain_tokens: float
    # Seconds until it is expected; negative when it is overdue.
    expected_in: float


def wait_seconds(
    awaited: Sequence[Awaited], *, ready_gain: float, sessions: int, step_seconds: float, limit: float
) -> float:
    """How long the next step may wait for trees; 0 when waiting costs more than the trees bring.

    A step that starts now yields one token per session plus `ready_gain` accepted nodes; every
    second of waiting costs that rate. Trees are taken in order of arrival while the rate with the
    tree, (tokens + gain) / (step + wait), is higher than without it.
    """
    tokens = sessions + ready_gain
    best_rate = tokens / step_seconds
    best_wait = 0.0
    for tree in sorted(awaited, key=lambda tree: tree.expected_in):
        wait = max(tree.expected_in, 0.0)
        if wait > limit:
            break
        tokens += tree.gain_tokens
        rate = tokens / (step_seconds + wait)
        if rate > best_rate:
            best_rate, best_wait = rate, wait
    return best_wait
