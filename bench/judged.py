"""Trees of several methods as a verifier takes them: merged, judged by their record, cut to size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from paceline.tree import TokenTree
from verifier_svc.merge import Node, merge
from verifier_svc.offers import Part
from verifier_svc.survival import DrafterRecord


class Judge:
    """One drafter's record, as a verifier that serves it keeps it."""

    def __init__(self) -> None:
        self._record = DrafterRecord()
        self._chosen = TokenTree()
        self._nodes: tuple[Node, ...] = ()

    def choose(self, trees: Sequence[TokenTree], nodes: int) -> TokenTree:
        """The tree of at most `nodes` nodes that a step verifies of these, one of each source."""
        merged = merge(
            Part(replace(tree, sources=(source,) * len(tree)), 0, fresh=True)
            for source, tree in enumerate(trees)
        )
        judged = self._record.judged(merged)
        best = judged.best_nodes(nodes)
        self._chosen = judged.select(best)
        self._nodes = tuple(merged.nodes[node] for node in best)
        return self._chosen

    def learn(self, path: Sequence[int]) -> None:
        """Learn from what was accepted of the tree that was chosen last."""
        self._record.observe(self._nodes, self._chosen.parents, path)
