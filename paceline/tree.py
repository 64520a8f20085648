"""Draft trees as flat arrays: checked, merged, re-rooted, pruned. Knows no proto and no tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class TreeFault(StrEnum):
    """What can be wrong with a tree that came over the wire."""

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

    `parents[i] < i` always, -1 is the root; siblings carry different tokens; `log_probs[i] <= 0`, finite, is
    the drafter's confidence in node i given its parent and only ever ranks nodes.
    """

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    def depths(self) -> list[int]:
        """Depth of each node; children of the root have depth 1."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent < 0 else depths[parent] + 1)
        return depths

    def survivals(self) -> list[float]:
        """Log of the product of confidences along each node's path; never grows along a path."""
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
        """The tree of the given nodes, in the given order; a node's parent stands before it."""
        place = {-1: -1} | {node: index for index, node in enumerate(nodes)}
        return TokenTree(
            tokens=tuple(self.tokens[node] for node in nodes),
            parents=tuple(place[self.parents[node]] for node in nodes),
            log_probs=tuple(self.log_probs[node] for node in nodes),
        )

    def subtree(self, node: int) -> TokenTree:
        """What hangs below `node`, re-rooted there."""
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
        )

    def reroot(self, committed: Sequence[int]) -> TokenTree:
        """What is left of the tree after `committed` was appended to its root; may be empty."""
        node = -1
        for token in committed:
            step = self.child(node, token)
            if step is None:
                return TokenTree()
            node = step
        return self.subtree(node)

    def best(self, budget: int) -> TokenTree:
        """The `budget` nodes of highest survival, with the likeliest path first.

        Survival never grows along a path, so the best nodes are closed under taking parents. Nodes
        come in depth-first order, likeliest child first: the accepted path then mostly lies in
        place already when KV is compacted.
        """
        return self.select(self.best_nodes(budget))

    def best_nodes(self, budget: int) -> list[int]:
        """The nodes of `best`, in its order."""
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


def check(tree: TokenTree, *, vocab_size: int, max_nodes: int, max_depth: int) -> None:
    """Raise `TreeError` unless the tree keeps every rule. O(nodes)."""
    count = len(tree.tokens)
    if len(tree.parents) != count or len(tree.log_probs) != count:
        raise TreeError(
            TreeFault.MALFORMED,
            f"token, parent and log_prob must be equally long, got {count}, {len(tree.parents)} "
            f"and {len(tree.log_probs)}",
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
            raise TreeError(
                TreeFault.TOO_DEEP, f"node {index} lies at depth {depths[-1]}, at most {max_depth}"
            )


def too_many_nodes(count: int, max_nodes: int) -> TreeError:
    """What `check` raises of a tree that is too large; for those who need not look at it any further."""
    return TreeError(TreeFault.TOO_MANY_NODES, f"{count} nodes, at most {max_nodes} are taken")


class TreeBuilder:
    """Grows a tree by paths; equal prefixes merge, and a node keeps its best log-probability."""

    def __init__(self) -> None:
        self._index: dict[tuple[int, int], int] = {}
        self._tokens: list[int] = []
        self._parents: list[int] = []
        self._log_probs: list[float] = []

    def __len__(self) -> int:
        return len(self._tokens)

    def add(self, parent: int, token: int, log_prob: float) -> int:
        """Index of `parent`'s child `token`, made if there is none."""
        index = self._index.get((parent, token))
        if index is None:
            index = len(self._tokens)
            self._index[parent, token] = index
            self._tokens.append(token)
            self._parents.append(parent)
            self._log_probs.append(log_prob)
        elif log_prob > self._log_probs[index]:
            self._log_probs[index] = log_prob
        return index

    def build(self) -> TokenTree:
        """The tree grown so far."""
        return TokenTree(tuple(self._tokens), tuple(self._parents), tuple(self._log_probs))


def merge(trees: Sequence[TokenTree], budget: int) -> TokenTree:
    """One tree of the `budget` likeliest nodes of all: same-token siblings collapse."""
    builder = TreeBuilder()
    for tree in trees:
        place = {-1: -1}
        for index, (token, parent, log_prob) in enumerate(
            zip(tree.tokens, tree.parents, tree.log_probs, strict=True)
        ):
            place[index] = builder.add(place[parent], token, log_prob)
    return builder.build().best(budget)
