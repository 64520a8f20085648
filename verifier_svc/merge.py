"""Several trees on one text as one tree whose nodes know which sources proposed them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from verifier_svc.offers import Part


class Proposal(NamedTuple):
    """That a source proposes a node."""

    source: int
    # Log of its confidence in the node given the parent.
    log_prob: float
    # The node's depth in the tree that the source sent.
    depth: int


class Node(NamedTuple):
    """What is known of a node: who proposes it, and which sources propose other tokens in its place."""

    proposals: tuple[Proposal, ...]
    others: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class MergedTree:
    """Candidate continuations as `TokenTree` has them, before anybody has judged how likely they are."""

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    nodes: tuple[Node, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    def down_to(self, depth: int) -> MergedTree:
        """The nodes that are no deeper; children of the root have depth 1."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent < 0 else depths[parent] + 1)
        if max(depths, default=0) <= depth:
            return self
        return self.only([each <= depth for each in depths])

    def only(self, wanted: Sequence[bool]) -> MergedTree:
        """The nodes that are `wanted` [nodes], of each its parent too."""
        kept = [node for node, each in enumerate(wanted) if each]
        if len(kept) == len(self):
            return self
        place = {-1: -1} | {node: index for index, node in enumerate(kept)}
        return MergedTree(
            tuple(self.tokens[node] for node in kept),
            tuple(place[self.parents[node]] for node in kept),
            tuple(self.nodes[node] for node in kept),
        )

    def grown(self, node: int, tokens: Sequence[int], source: int) -> MergedTree:
        """With a chain of `tokens`, of which a source is sure, below a leaf or (-1) an empty tree's root."""
        first = len(self)
        chain = range(first, first + len(tokens))
        return MergedTree(
            (*self.tokens, *tokens),
            (*self.parents, node, *chain[:-1]),
            (*self.nodes, *(Node((Proposal(source, 0.0, 1 + place),)) for place in range(len(tokens)))),
        )


NOTHING = MergedTree()


def merge(parts: Iterable[Part]) -> MergedTree:
    """One tree of all parts: same-token siblings become one node. Of a source's words the last one counts.

    A part's nodes of a source that no longer counts lead to nodes that do; they are proposals like others.
    """
    place: dict[tuple[int, int], int] = {}
    tokens: list[int] = []
    parents: list[int] = []
    proposals: list[dict[int, Proposal]] = []
    for part in parts:
        tree = part.tree
        sources = tree.sources or (0,) * len(tree)
        at = {-1: -1}
        rows = zip(tree.tokens, tree.parents, tree.log_probs, sources, tree.depths(), strict=True)
        for index, (token, parent, log_prob, source, depth) in enumerate(rows):
            key = (at[parent], token)
            node = place.setdefault(key, len(tokens))
            if node == len(tokens):
                tokens.append(token)
                parents.append(at[parent])
                proposals.append({})
            at[index] = node
            proposals[node][source] = Proposal(source, log_prob, depth + part.rise)
    proposing: dict[int, set[int]] = {}
    for parent, by_source in zip(parents, proposals, strict=True):
        proposing.setdefault(parent, set()).update(by_source)
    nodes = [
        Node(tuple(by_source.values()), tuple(sorted(proposing[parent] - by_source.keys())))
        for parent, by_source in zip(parents, proposals, strict=True)
    ]
    return MergedTree(tuple(tokens), tuple(parents), tuple(nodes))
