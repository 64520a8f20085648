"""Learning from a finished step: the cost of steps, and the tokens that trees bring."""

from __future__ import annotations

from collections.abc import Sequence

from verifier_svc.budget import DraftBudget
from verifier_svc.merge import Node
from verifier_svc.scheduler import Plan, PlannedRows
from verifier_svc.waiting import Gained, TreeWait


def learn(
    planned: Plan,
    accepted: Sequence[tuple[PlannedRows, Sequence[int]]],
    seconds: float,
    *,
    block_size: int,
    budget: DraftBudget,
    wait: TreeWait,
) -> None:
    """Refine `budget` and `wait` by a step of `seconds`; `accepted`: what was accepted of rows that drew."""
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
    for row, path in accepted:
        # What is left of trees on earlier texts says little of the trees that are asked for.
        if row.in_time:
            wait.verified(row.session, gained(row, path, node_tokens=node_tokens))


def gained(row: PlannedRows, path: Sequence[int], *, node_tokens: float) -> Gained:
    """What a row's tree brought, of which the nodes of `path` were accepted; a node costs `node_tokens`.

    Without a source the walk would have ended at the first node that it alone proposed.
    """
    by_source: dict[int, float] = {}
    for source in row.in_time:
        own = [_is_own(node, source) for node in row.nodes]
        first = next((place for place, node in enumerate(path) if own[node]), len(path))
        by_source[source] = len(path) - first - sum(own) * node_tokens
    return Gained(len(path) - len(row.tree) * node_tokens, by_source)


def _is_own(node: Node, source: int) -> bool:
    return all(proposal.source == source for proposal in node.proposals)
