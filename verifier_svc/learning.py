"""Learning from a finished step: the cost of steps, and the tokens that trees bring."""

from __future__ import annotations

from collections.abc import Sequence

from verifier_svc.budget import DraftBudget
from verifier_svc.scheduler import Plan, PlannedRows
from verifier_svc.waiting import TreeWait


def learn(
    planned: Plan,
    accepted: Sequence[tuple[PlannedRows, int]],
    seconds: float,
    *,
    block_size: int,
    budget: DraftBudget,
    wait: TreeWait,
) -> None:
    """Refine `budget` and `wait` by a step of `seconds`; `accepted`: accepted nodes of each row that drew."""
    decoding = [row for row in planned.rows if row.of_decoding]
    prompts = [row.segment for row in planned.rows if not row.of_decoding]
    sessions = len(decoding)
    nodes = sum(len(row.tree) for row in decoding)
    blocks = sum(len(row.segment.blocks) for row in decoding)
    budget.cost.observe(
        sessions + nodes,
        blocks,
        seconds,
        prompt_rows=sum(len(prompt.run) for prompt in prompts),
        row_blocks=sum(len(prompt.run) * (prompt.start // block_size) for prompt in prompts),
    )
    if not prompts:
        wait.stepped(seconds * budget.plain_share(sessions, nodes, blocks=blocks))
    node_tokens = budget.node_tokens(sessions, nodes, blocks=blocks)
    for row, path_length in accepted:
        if row.offered:
            wait.verified(row.session, path_length - len(row.tree) * node_tokens)
