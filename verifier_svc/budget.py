"""How many nodes each session may verify and draft.

Goodput: tokens per second of the whole batch. With s_1 >= s_2 >= ... the survivals of all nodes of all
sessions, a step that verifies the best B of them yields `sessions + s_1 + ... + s_B` tokens on average and
takes T(sessions + B rows, blocks). The budget is the B with the highest quotient; 0 is one of the choices,
so no drafted step is expected to cost more than it brings. (TurboSpec, arXiv 2406.14066; the global choice
by survival as in vLLM's adaptive verification and DSpark, arXiv 2607.05147.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from paceline.tree import TokenTree
from verifier_svc.cost import StepCost
from verifier_svc.merge import MergedTree, Node
from verifier_svc.survival import DrafterRecord

# A session that should not draft drafts PROBE_NODES nodes once in PROBE_STEPS steps, so that its acceptance
# stays known.
PROBE_NODES = 8
PROBE_STEPS = 16
# Drafts of few sessions cost next to nothing, so they probe more often: once in so many steps per session.
PROBE_STEPS_PER_SESSION = 2
# The share of speculation's gain over plain decoding that is spent on wider trees than the best. Each
# verified node teaches the drafter (top-k feedback) and the calibration, which else see only what they chose.
LEARNING_SHARE = 0.1
# How many times longer prompt rows may make a step: twice (they get half of the time), or where many sessions
# wait for their first token up to four times (three quarters).
PROMPT_STRETCH, MOST_STRETCH = 2.0, 4.0
LEAST_PROMPT_ROWS = 16
# Log of the least survival of a node that is verified though nothing is to be learned of it.
_LEAST_SURVIVAL = math.log(0.004)
# Share of a new tree in the mean survivals.
_WEIGHT = 0.05
# A drafter is asked for this many times the nodes that will be taken: they compete with other sessions'.
_SPARE = 1.5


class DraftBudget:
    """The draft budget of one verifier. Not locked itself."""

    def __init__(self, cost: StepCost, *, draft_rows: int, max_nodes: int) -> None:
        self.cost = cost
        self._draft_rows = draft_rows
        self._max_nodes = max_nodes
        self._drafters: dict[int, DrafterRecord] = {}
        # Nodes of all sessions in the last step, and the tokens that each session was expected to get.
        self._allotted = 0
        self._expected_tokens = 1.0
        self._row_tokens = 0.0
        # Mean survival of a tree's best node, second best, and so on; optimistic before any tree was seen.
        self._curve = [0.7 * 0.9**rank for rank in range(max_nodes)]

    def judged(self, stream_id: int, merged: MergedTree) -> TokenTree:
        """A drafter's trees as one, each node with its probability by the drafter's record."""
        if not merged.tokens:
            return TokenTree()
        return self._drafters.setdefault(stream_id, DrafterRecord()).judged(merged)

    def observe(
        self, stream_id: int, nodes: Sequence[Node], parents: Sequence[int], path: Sequence[int]
    ) -> None:
        """Learn from verified nodes of a drafter, if it is still there, and the path that was accepted."""
        if (record := self._drafters.get(stream_id)) is not None:
            record.observe(nodes, parents, path)

    def forget(self, stream_id: int) -> None:
        """Drop what is known of a drafter that is gone."""
        self._drafters.pop(stream_id, None)

    def allot(
        self,
        trees: Sequence[TokenTree],
        *,
        blocks: int,
        probing: Sequence[bool] = (),
        remnant: Sequence[bool] = (),
    ) -> list[int]:
        """How many nodes of each judged tree to verify; one tree, maybe empty, per decoding session.

        A node's survival is at most its parent's, so the globally best nodes contain their parents. Nodes
        that are next to impossible take no row, however cheap it is, but in sessions that are `probing`. A
        `remnant` of trees on earlier texts says nothing of the trees that are asked for.
        """
        ranked = sorted(
            (
                (survival, session)
                for session, tree in enumerate(trees)
                for survival in tree.survivals()
                if survival >= _LEAST_SURVIVAL or (probing and probing[session])
            ),
            reverse=True,
        )
        self._learn_curve(
            [tree for session, tree in enumerate(trees) if tree.tokens and not (remnant and remnant[session])]
        )
        counts = [0] * len(trees)
        gains = list(accumulate((math.exp(survival) for survival, _ in ranked), initial=0.0))
        chosen = self._best(len(trees), gains, blocks)
        for _, session in ranked[:chosen]:
            counts[session] += 1
        self._allotted = chosen
        self._expected_tokens = 1.0 + gains[chosen] / max(1, len(trees))
        return counts

    def plain_share(self, sessions: int, nodes: int, *, blocks: int) -> float:
        """The time that a step would have taken without its `nodes`, as a share of the time with them."""
        return self.cost.seconds(sessions, blocks) / self.cost.seconds(sessions + nodes, blocks)

    @property
    def row_tokens(self) -> float:
        """What `node_tokens` was in the last step that had nodes."""
        return self._row_tokens

    def node_tokens(self, sessions: int, nodes: int, *, blocks: int) -> float:
        """Tokens that plain decoding would have produced in the time of one of a step's `nodes`."""
        if not nodes:
            return 0.0
        self._row_tokens = (1 / self.plain_share(sessions, nodes, blocks=blocks) - 1) * sessions / nodes
        return self._row_tokens

    def prompt_rows(self, sessions: int, *, blocks: int, prompts: int, prompt_blocks: int, most: int) -> int:
        """Rows of `prompts` that the next step may compute beside `sessions` that decode; at least a few.

        The sessions are assumed to draft as much as in the last step. With one prompt, a step stays within
        `PROMPT_STRETCH` times its length without it: a long prompt slows the others, and never stops them.
        With more prompts, the sessions decode only as fast as without drafts, and the prompts get what drafts
        gain: sessions that decode faster would only be back sooner in the queue for a first token. Where
        more sessions wait than decode, those that wait get their share of the time, within `MOST_STRETCH`:
        a few that decode would bear a step's fixed cost alone. `prompt_blocks` lie before the first
        prompt's rows.
        """
        if not sessions:
            return most
        others = sessions + self._allotted
        length = self.cost.seconds(others, blocks)
        limit = PROMPT_STRETCH * length
        if prompts > 1:
            as_plain = self._expected_tokens * self.cost.seconds(sessions, blocks)
            stretch = max(PROMPT_STRETCH, 1 + prompts / sessions)
            limit = min(stretch * max(length, as_plain), MOST_STRETCH * length)
        for rows in range(most, LEAST_PROMPT_ROWS, -LEAST_PROMPT_ROWS):
            seconds = self.cost.prompt_seconds(others, blocks, prompt_rows=rows, prompt_blocks=prompt_blocks)
            if seconds <= limit:
                return rows
        return min(most, LEAST_PROMPT_ROWS)

    def ask(self, sessions: int, *, blocks: int) -> int:
        """Nodes that each session's next tree may have, when `sessions` decode over `blocks` in all."""
        if sessions <= 0:
            return self._max_nodes
        # As if every session had the mean tree.
        gains = list(accumulate((survival for survival in self._curve for _ in range(sessions)), initial=0.0))
        chosen = self._best(sessions, gains, blocks) / sessions
        return min(self._max_nodes, math.ceil(chosen * _SPARE)) if chosen >= 1 else 0

    def probe(self, step: int, *, sessions: int) -> int:
        """Nodes that a session which should not draft may have in its own step number `step`."""
        every = min(PROBE_STEPS, PROBE_STEPS_PER_SESSION * max(1, sessions))
        return min(self._max_nodes, PROBE_NODES) if step % every == 0 else 0

    def _best(self, sessions: int, gains: Sequence[float], blocks: int) -> int:
        """The widest B with nearly the best goodput; the best B nodes are worth `gains[B]` tokens."""
        most = min(len(gains) - 1, max(0, self._draft_rows - sessions))
        at_edges = {edge - sessions for edge in self.cost.edges if 0 < edge - sessions < most}
        rates = {
            nodes: (sessions + gains[nodes]) / self.cost.seconds(sessions + nodes, blocks)
            for nodes in {0, most, *at_edges}
        }
        enough = max(rates.values()) - LEARNING_SHARE * (max(rates.values()) - rates[0])
        return max(nodes for nodes, rate in rates.items() if rate >= enough)

    def _learn_curve(self, trees: Sequence[TokenTree]) -> None:
        for tree in trees:
            survivals = sorted((math.exp(survival) for survival in tree.survivals()), reverse=True)
            for rank, survival in enumerate(survivals[: self._max_nodes]):
                self._curve[rank] += _WEIGHT * (survival - self._curve[rank])
