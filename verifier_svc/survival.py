"""How likely a drafted node is to be accepted: its sources' confidences, corrected by what came of them."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from paceline.tree import TokenTree
from verifier_svc.merge import MergedTree, Node, Proposal

_BINS = 16
_HALF_POWERS = -2 / math.log(2)
_DEPTHS = 4
# Observations that what is assumed before any counts as.
_PRIOR = 8.0
# Accepted nodes that are assumed to have been expected: of a source's, few, so that a bad one is found out
# soon; of nodes that the same sources are equally sure of, more, as there are many such combinations.
_SOURCE_PRIOR = 2.0
_COMPANY_PRIOR = 8.0
# Counts above this are halved, so that old observations fade.
_FORGET = 400.0
# The lowest probability, so that logarithms stay finite.
_LEAST = 1e-6
# Bounds between the levels by which nodes that concern several sources are counted.
_LEVELS = (0.05, 0.15, 0.35, 0.65, 0.85)

# Most combinations of sources that are kept of a drafter. Some hundred occur, of three sources.
_MOST_COMPANIES = 4096

# Sources that propose a node, each with the level of its own probability; and those that propose others.
_Company: TypeAlias = tuple[tuple[tuple[int, int], ...], tuple[int, ...]]


def _bin(log_prob: float) -> int:
    """Half powers of two: 1 .. 0.71 is bin 0, .. 0.5 bin 1."""
    return min(_BINS - 1, int(log_prob * _HALF_POWERS))


@dataclass(slots=True)
class _Count:
    """Nodes whose parent was accepted, what was expected of them, and how many were accepted."""

    seen: float = 0.0
    expected: float = 0.0
    accepted: float = 0.0

    def worth(self, prior: float) -> float:
        """How many times likelier such nodes were than was expected of them."""
        return (self.accepted + prior) / (self.expected + prior)

    def add(self, expected: float, *, accepted: bool) -> None:
        self.seen += 1
        self.expected += expected
        self.accepted += accepted
        if self.seen > _FORGET:
            self.seen /= 2
            self.expected /= 2
            self.accepted /= 2


@dataclass(slots=True)
class DrafterRecord:
    """One drafter's P(node accepted | parent accepted).

    Each source has a mean for each [depth 1, 2, 3, deeper][confidence], begun at its confidence times what
    its confidences have been worth altogether: so a source that is always wrong is found out by its first few
    nodes, whatever their bins. A node that several propose has the chance that one of them is right, times
    what that was worth where the same sources proposed a node, were as sure of it, and the same ones proposed
    others in its place: so it is known whether they know the same, and whom to believe where they differ.
    """

    _bins: dict[tuple[int, int, int], _Count] = field(default_factory=dict)
    _sources: dict[int, _Count] = field(default_factory=dict)
    _companies: dict[_Company, _Count] = field(default_factory=dict)

    @property
    def kept(self) -> int:
        """Counts that are kept; bounded, whatever the drafter sends."""
        return len(self._bins) + len(self._sources) + len(self._companies)

    def judged(self, merged: MergedTree) -> TokenTree:
        """The merged tree with probabilities in the place of its sources' confidences."""
        chances = [self._chance(node) for node in merged.nodes]
        sums: dict[int, float] = {}
        for parent, chance in zip(merged.parents, chances, strict=True):
            sums[parent] = sums.get(parent, 0.0) + chance
        log_probs = (
            math.log(max(_LEAST, chance / max(1.0, sums[parent])))
            for parent, chance in zip(merged.parents, chances, strict=True)
        )
        return TokenTree(merged.tokens, merged.parents, tuple(log_probs))

    def observe(self, nodes: Sequence[Node], parents: Sequence[int], path: Sequence[int]) -> None:
        """Learn from verified nodes, their parents among them, and the path of them that was accepted."""
        reached, accepted = {-1, *path}, set(path)
        for index, (node, parent) in enumerate(zip(nodes, parents, strict=True)):
            # Below a rejected node nothing was learned.
            if parent in reached:
                self._learn(node, accepted=index in accepted)

    def _learn(self, node: Node, *, accepted: bool) -> None:
        company, wrong = self._company(node)
        if company not in self._companies and len(self._companies) >= _MOST_COMPANIES:
            self._companies.pop(next(iter(self._companies)))
        self._companies.setdefault(company, _Count()).add(1.0 - wrong, accepted=accepted)
        for proposal in node.proposals:
            confidence = math.exp(proposal.log_prob)
            self._sources.setdefault(proposal.source, _Count()).add(confidence, accepted=accepted)
            self._bins.setdefault(_cell(proposal), _Count()).add(confidence, accepted=accepted)

    def _chance(self, node: Node) -> float:
        company, wrong = self._company(node)
        count = self._companies.get(company)
        return min(1.0, (1.0 - wrong) * (1.0 if count is None else count.worth(_COMPANY_PRIOR)))

    def _alone(self, proposal: Proposal) -> float:
        """The probability of a node by one source's word."""
        source = self._sources.get(proposal.source)
        prior = math.exp(proposal.log_prob) * (1.0 if source is None else source.worth(_SOURCE_PRIOR))
        known = self._bins.get(_cell(proposal))
        if known is not None:
            prior = (_PRIOR * prior + known.accepted) / (_PRIOR + known.seen)
        return min(1.0, prior)

    def _company(self, node: Node) -> tuple[_Company, float]:
        """By what the node is counted, and the chance that all who propose it are wrong."""
        levels: list[tuple[int, int]] = []
        wrong = 1.0
        for proposal in node.proposals:
            chance = self._alone(proposal)
            wrong *= 1.0 - chance
            levels.append((proposal.source, bisect(_LEVELS, chance)))
        levels.sort()
        return (tuple(levels), node.others), wrong


def _cell(proposal: Proposal) -> tuple[int, int, int]:
    return proposal.source, min(proposal.depth, _DEPTHS), _bin(proposal.log_prob)
