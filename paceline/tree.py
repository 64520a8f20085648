"""Draft trees as flat arrays: checked, re-rooted, pruned. No proto and no tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class TreeFault(StrEnum):
    """The rules that a tree from the wire can break."""

    MALFORMED = "malformed"
    BAD_PARENT = "bad_parent"
    DUPLICATE_SIBLING = "duplicate_sibling"
    TOKEN_OUT_OF_RANGE = "token_out_of_range"
    TOO_MANY_NODES = "too_many_nodes"
    TOO_DEEP = "too_deep"


class TreeError(ValueError):
    """A tree breaks a rule; `fault` says which, the message says where."""

    def __init__(self, fault: TreeFault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


@dataclass(frozen=True, slots=True)
class TokenTree:
    """Candidate continuations after a root that is not in the arrays.

    `parents[i] < i`; -1 is the root. Siblings carry different tokens. `log_probs[i]` is the drafter's
    confidence in node i given its parent: finite, at most 0, and used for ranking only. `sources[i]` is
    the number of the drafting method that node i comes from; empty where all come from number 0.
    """

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    sources: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    def depths(self) -> list[int]:
        """Depth of each node; children of the root have depth 1."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent < 0 else depths[parent] + 1)
        return depths

    def survivals(self) -> list[float]:
        """Log of the product of confidences along each node's path. It never grows along a path."""
        survivals: list[float] = []
        for parent, log_prob in zip(self.parents, self.log_probs, strict=True):
            survivals.append(log_prob if parent < 0 else survivals[parent] + log_prob)
        return survivals

    def child(self, node: int, token: int) -> int | None:
        """Index of `node`'s child (-1 is the root) that carries `token`."""
        for index in range(node + 1, len(self.tokens)):
            if self.parents[index] == node and self.tokens[index] == token:
                return index
        return None

    def select(self, nodes: Sequence[int]) -> TokenTree:
        """The tree of the given nodes, in the given order. Each node's parent must come before it."""
        place = {-1: -1} | {node: index for index, node in enumerate(nodes)}
        return TokenTree(
            tokens=tuple(self.tokens[node] for node in nodes),
            parents=tuple(place[self.parents[node]] for node in nodes),
            log_probs=tuple(self.log_probs[node] for node in nodes),
            sources=tuple(self.sources[node] for node in nodes) if self.sources else (),
        )

    def subtree(self, node: int) -> TokenTree:
        """The nodes below `node`, as a tree whose root is `node`."""
        if node < 0:
            return self
        place = {node: -1}
        kept: list[int] = []
        for index in range(node + 1, len(self.tokens)):
            if self.parents[index] in place:
                place[index] = len(kept)
                kept.append(index)
        return TokenTree(
            tokens=tuple(self.tokens[index] for index in kept),
            parents=tuple(place[self.parents[index]] for index in kept),
            log_probs=tuple(self.log_probs[index] for index in kept),
            sources=tuple(self.sources[index] for index in kept) if self.sources else (),
        )

    def reroot(self, committed: Sequence[int]) -> TokenTree:
        """The tree below the path `committed`; empty when the tree does not contain that path."""
        node = -1
        for token in committed:
            step = self.child(node, token)
            if step is None:
                return TokenTree()
            node = step
        return self.subtree(node)

    def best(self, budget: int) -> TokenTree:
        """The `budget` nodes of highest survival, in depth-first order, likeliest child first.

        Survival never grows along a path, so a chosen node's parent is always chosen too. In this order the
        accepted path's KV is mostly in place already when KV is compacted.
        """
        return self.select(self.best_nodes(budget))

    def best_nodes(self, budget: int) -> list[int]:
        """Indices of the nodes of `best`, in its order."""
        if budget <= 0 or not self.tokens:
            return []
        survivals = self.survivals()
        kept = set(range(len(self.tokens)))
        if len(kept) > budget:
            ranked = sorted(kept, key=lambda node: (-survivals[node], node))
            kept = set(ranked[:budget])
        children: dict[int, list[int]] = {}
        for node in sorted(kept):
            children.setdefault(self.parents[node], []).append(node)
        order: list[int] = []
        stack = [-1]
        while stack:
            node = stack.pop()
            if node >= 0:
                order.append(node)
            ranked_children = sorted(children.get(node, ()), key=lambda child: (survivals[child], -child))
            stack.extend(ranked_children)
        return order


def check(tree: TokenTree, *, vocab_size: int, max_nodes: int, max_depth: int, num_sources: int = 1) -> None:
    """Raise `TreeError` if the tree breaks a rule. O(nodes)."""
    count = len(tree.tokens)
    if len(tree.parents) != count or len(tree.log_probs) != count:
        raise TreeError(
            TreeFault.MALFORMED,
            f"token, parent and log_prob must be equally long, got {count}, {len(tree.parents)} "
            f"and {len(tree.log_probs)}",
        )
    if tree.sources and len(tree.sources) != count:
        raise TreeError(
            TreeFault.MALFORMED,
            f"source must be empty or as long as token, got {len(tree.sources)} of {count}",
        )
    if tree.sources and not 0 <= min(tree.sources) <= max(tree.sources) < max(1, num_sources):
        raise TreeError(
            TreeFault.MALFORMED, f"source {max(tree.sources)} is not one of the {num_sources} that were named"
        )
    if count > max_nodes:
        raise too_many_nodes(count, max_nodes)
    siblings: set[tuple[int, int]] = set()
    depths: list[int] = []
    for index, (token, parent, log_prob) in enumerate(
        zip(tree.tokens, tree.parents, tree.log_probs, strict=True)
    ):
        if not -1 <= parent < index:
            raise TreeError(
                TreeFault.BAD_PARENT,
                f"node {index} has parent {parent}; it must be -1 or an earlier node",
            )
        if not 0 <= token < vocab_size:
            raise TreeError(
                TreeFault.TOKEN_OUT_OF_RANGE,
                f"node {index} has token {token}; the vocabulary has {vocab_size}",
            )
        if not (math.isfinite(log_prob) and log_prob <= 0):
            raise TreeError(
                TreeFault.MALFORMED, f"node {index} has log_prob {log_prob}; it must be finite and <= 0"
            )
        if (parent, token) in siblings:
            raise TreeError(
                TreeFault.DUPLICATE_SIBLING,
                f"node {index} repeats token {token} under parent {parent}",
            )
        siblings.add((parent, token))
        depths.append(1 if parent < 0 else depths[parent] + 1)
        if depths[-1] > max_depth:
            raise TreeError(TreeFault.TOO_DEEP, f"node {index} is at depth {depths[-1]}, at most {max_depth}")


def too_many_nodes(count: int, max_nodes: int) -> TreeError:
    """The error for a tree of `count` nodes, for callers that refuse it by its size alone."""
    return TreeError(TreeFault.TOO_MANY_NODES, f"{count} nodes, at most {max_nodes} are taken")
