"""Merges several sources into one tree, best first by survival. Confidences are measured while serving."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from drafter_svc import metrics
from drafter_svc.hypothesis import CONTEXT_IDS, Hypothesis, Lesson
from drafter_svc.methods.base import Ask, Proposer, Source, TeachableMethod
from paceline.tree import TokenTree

_LEAST_CONFIDENCE = 1e-6
# Least survival of a node, as a cost: ranking rarer nodes takes more time than they save.
_MOST_COST = -math.log(0.005)
# Most ids measured per verdict. The answer to a Join may be long; this bounds the time it takes.
_MEASURED_IDS = 64
# Ids that are measured at a time.
_SETTLED_IDS = 16


class HitRates:
    """How often a candidate of given grades was the committed token; before that, the sources' prior.

    A cell is one combination of all sources' grades, written as one mixed-radix number.
    """

    # How many trials the prior counts for.
    WEIGHT = 8.0
    # Counts are halved when a cell reaches this many trials, so that old traffic fades.
    TRIALS = 4096.0

    def __init__(self, sources: Sequence[Source], bias: float) -> None:
        self.strides: list[int] = []
        stride = 1
        for source in sources:
            self.strides.append(stride)
            stride *= len(source.log_odds)
        self._log_odds = [source.log_odds for source in sources]
        self._bias = bias
        # Hits and trials, only for cells that occurred: few of all possible ones.
        self._cells: dict[int, tuple[float, float]] = {}
        self.log_prob: dict[int, float] = {}

    def prior(self, cell: int) -> float:
        """Probability assumed for a cell before anything was measured."""
        odds = self._bias
        for log_odds in self._log_odds:
            cell, grade = divmod(cell, len(log_odds))
            odds += log_odds[grade]
        return 1.0 / (1.0 + math.exp(-odds))

    def confidence(self, cell: int) -> float:
        """Log-probability that a candidate of this cell is the next token."""
        known = self.log_prob.get(cell)
        if known is None:
            known = self.log_prob[cell] = math.log(self.prior(cell))
        return known

    def count(self, cell: int, hit: bool) -> None:
        """Record whether a candidate of this cell was the token that was committed."""
        hits, trials = self._cells.get(cell) or (self.prior(cell) * self.WEIGHT, self.WEIGHT)
        hits, trials = hits + hit, trials + 1.0
        if trials > self.TRIALS:
            hits, trials = hits / 2, trials / 2
        self._cells[cell] = hits, trials
        # Repeated halving would end at zero hits, which has no logarithm.
        self.log_prob[cell] = math.log(max(hits / trials, _LEAST_CONFIDENCE))


class _Search:
    """Best-first search for a tree. Survival never grows along a path, so nodes come in its order."""

    def __init__(
        self, session: Hypothesis, proposers: Sequence[Proposer], rates: HitRates, vocab_size: int
    ) -> None:
        self.length = len(session.ids)
        # The candidates after each context that was looked at, with their cells.
        self.proposed: dict[tuple[int, ...], dict[int, int]] = {}
        self._proposers = proposers
        self._rates = rates
        self._vocab_size = vocab_size
        self._tokens: list[int] = []
        self._parents: list[int] = []
        self._log_probs: list[float] = []
        # Cost of the path, number, parent, token, its log-probability, context and depth of the parent.
        self._waiting: list[tuple[float, int, int, int, float, tuple[int, ...], int]] = []
        # Nodes whose children are not looked at yet: cost, node, context, depth.
        self._leaves: list[tuple[float, int, tuple[int, ...], int]] = [
            (0.0, -1, tuple(session.ids[-CONTEXT_IDS:]), 0)
        ]
        self._serial = 0

    def grow(self, budget: int, max_depth: int) -> TokenTree:
        """The tree of the `budget` likeliest nodes, at most `max_depth` deep."""
        tokens, waiting = self._tokens, self._waiting
        leaves, self._leaves = self._leaves, []
        for leaf in leaves:
            self._look(leaf, max_depth)
        while waiting and len(tokens) < budget:
            cost, _, parent, token, log_prob, context, depth = heapq.heappop(waiting)
            node = len(tokens)
            tokens.append(token)
            self._parents.append(parent)
            self._log_probs.append(log_prob)
            context = (*context[1 - CONTEXT_IDS :], token)
            self._look((cost, node, context, depth + 1), max_depth if len(tokens) < budget else 0)
        return TokenTree(tuple(tokens), tuple(self._parents), tuple(self._log_probs)).best(budget)

    def _look(self, leaf: tuple[float, int, tuple[int, ...], int], max_depth: int) -> None:
        """Let a node's children wait, unless it is `max_depth` deep or deeper."""
        cost, node, context, depth = leaf
        if depth >= max_depth:
            self._leaves.append(leaf)
            return
        rates, waiting = self._rates, self._waiting
        known = rates.log_prob
        cells = self.proposed[context] = candidates(self._proposers, rates.strides, context, depth)
        for token, cell in cells.items():
            log_prob = known.get(cell) or rates.confidence(cell)
            if cost - log_prob > _MOST_COST or token >= self._vocab_size:
                continue
            self._serial += 1
            heapq.heappush(waiting, (cost - log_prob, self._serial, node, token, log_prob, context, depth))


class Merged(TeachableMethod):
    """Drafts a tree of the likeliest paths that any of its sources proposes."""

    def __init__(self, name: str, sources: Sequence[Source], vocab_size: int, bias: float) -> None:
        self.name = name
        self._sources = tuple(sources)
        self._vocab_size = vocab_size
        self._bias = bias
        # Sampled text follows its sources less closely than greedy text, so it is counted separately.
        self._greedy = HitRates(self._sources, bias)
        self._sampled = HitRates(self._sources, bias)
        # Each session's last draft: a verdict measures what was proposed.
        self._searches: dict[str, _Search] = {}
        # What each committed id is to be measured with; whether it was accepted from a tree.
        self._unmeasured: list[tuple[HitRates, dict[int, int], int, bool]] = []

    def _rates(self, session: Hypothesis) -> HitRates:
        return self._sampled if session.sampling.temperature > 0 else self._greedy

    def draft(self, asks: Sequence[Ask]) -> list[TokenTree]:
        """See `Method.draft`. A larger tree goes on from the one that was sent."""
        return [self._tree(ask) for ask in asks]

    def _tree(self, ask: Ask) -> TokenTree:
        session = ask.session
        session_id = session.key.session_id
        if ask.nodes <= 0 or ask.depth <= 0 or not session.ids:
            return TokenTree()
        search = self._searches.get(session_id)
        if search is None or not ask.sent.tokens or search.length != ask.length:
            proposers = [source.proposer(session) for source in self._sources]
            search = _Search(session, proposers, self._rates(session), self._vocab_size)
            self._searches[session_id] = search
        return search.grow(ask.nodes, ask.depth)

    def observe(self, session: Hypothesis, lesson: Lesson) -> None:
        """Note all committed ids, drafted or not, for `settle`; then let the sources learn."""
        rates = self._rates(session)
        proposers = [source.proposer(session) for source in self._sources]
        search = self._searches.get(session.key.session_id)
        proposed = {} if search is None else search.proposed
        accepted = range(len(lesson.committed) - 1 - lesson.accepted, len(lesson.committed) - 1)
        for offset, token in enumerate(lesson.committed[:_MEASURED_IDS]):
            position = lesson.start + offset
            context = tuple(session.ids[max(0, position - CONTEXT_IDS) : position])
            cells = proposed.get(context)
            if cells is None and context:
                cells = candidates(proposers, rates.strides, context, offset)
            if cells:
                self._unmeasured.append((rates, cells, token, offset in accepted))
        self.learn(session, lesson)

    def settle(self) -> bool:
        """Measure the sources on what was committed."""
        part, self._unmeasured = self._unmeasured[:_SETTLED_IDS], self._unmeasured[_SETTLED_IDS:]
        for rates, cells, token, accepted in part:
            if accepted and token in cells:
                metrics.ACCEPTED_TOKENS.labels(source=self._surest(cells[token])).inc()
            for candidate, cell in cells.items():
                rates.count(cell, candidate == token)
        return bool(self._unmeasured)

    def _surest(self, cell: int) -> str:
        """Name of the source whose grade, as the cell has it, adds most to a candidate's log-odds."""
        gains: list[tuple[float, str]] = []
        for source in self._sources:
            cell, grade = divmod(cell, len(source.log_odds))
            if grade:
                gains.append((source.log_odds[grade] - source.log_odds[0], source.name))
        return max(gains)[1]

    def learn(self, session: Hypothesis, lesson: Lesson) -> None:
        """Let the sources learn."""
        for source in self._sources:
            source.observe(session, lesson)

    def forget(self, session_id: str) -> None:
        """Drop what the sources keep of the session."""
        self._searches.pop(session_id, None)
        for source in self._sources:
            source.forget(session_id)

    def tables(self) -> dict[str, NDArray[np.int32]]:
        """Every source's tables, as `source.table`. Hit rates are not stored: they depend on the traffic."""
        return {
            f"{source.name}.{name}": table
            for source in self._sources
            for name, table in source.tables().items()
        }

    def restore(self, tables: Mapping[str, NDArray[np.int32]]) -> None:
        """Hand every source its own tables; those of sources it does not have are ignored."""
        parts: dict[str, dict[str, NDArray[np.int32]]] = {}
        for key, table in tables.items():
            source_name, _, name = key.partition(".")
            parts.setdefault(source_name, {})[name] = table
        for source in self._sources:
            if source.name in parts:
                source.restore(parts[source.name])

    def fresh(self) -> Merged:
        """See `TeachableMethod.fresh`."""
        sources = [source.fresh() for source in self._sources]
        return Merged(self.name, sources, self._vocab_size, self._bias)


def candidates(
    proposers: Sequence[Proposer], strides: Sequence[int], context: tuple[int, ...], depth: int
) -> dict[int, int]:
    """Every source's candidates after `context`, each with the cell of its grades."""
    cells: dict[int, int] = {}
    for proposer, stride in zip(proposers, strides, strict=True):
        for token, grade in proposer(context, depth).items():
            cells[token] = cells.get(token, 0) + grade * stride
    return cells
