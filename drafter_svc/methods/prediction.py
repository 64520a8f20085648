"""The client's own guess at its answer (OpenAI's `prediction`), followed along what is committed.

An answer that is an edited file says most of the file again. The guess is drafted from where the text has
come to in it. Where the text goes its own way, both ways back are drafted: the guess goes on behind what was
replaced, or what came was put in before it. Further jumps are found by the last two ids.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

from drafter_svc.hypothesis import Guess, Hypothesis
from drafter_svc.methods.base import NO_TREE, Ask, Method, MethodFactory, Needs, Target
from paceline.session import PREDICTION
from paceline.tree import TokenTree

# How surely the guess goes on behind a number of ids that it had right; a new one begins with some trust.
_TRUST_AT_FIRST = 3
_MOST_TRUSTED = 30
# Of the two ways back to the guess, the first ids' probabilities, and those of the ids behind them.
_REPLACED, _PUT_IN, _BEHIND = 0.45, 0.3, 0.8
# Where the last two ids are nowhere in the guess, the last one is looked for so far ahead.
_AHEAD = 4


class Follower:
    """Where a session's text has come to in its client's guess."""

    def __init__(self, guess: Guess) -> None:
        self._ids = guess.ids
        self._start = self._known = guess.start
        # Index of the id that is expected next, and how many before it were right.
        self._next = 0
        self._right = _TRUST_AT_FIRST
        # Ascending indices behind each pair of ids.
        self._behind: dict[tuple[int, int], list[int]] = {}
        for index, pair in enumerate(zip(self._ids, self._ids[1:], strict=False), 2):
            self._behind.setdefault(pair, []).append(index)

    def follow(self, text: Sequence[int], length: int) -> None:
        """Take in the text's first `length` ids. O(new ids), but for jumps: O(log guess)."""
        for position in range(self._known, length):
            token = text[position]
            if self._next < len(self._ids) and self._ids[self._next] == token:
                self._next += 1
                self._right += 1
            else:
                self._jump(text[position - 1] if position > self._start else None, token)
        self._known = max(self._known, length)

    def tree(self, nodes: int, depth: int) -> TokenTree:
        """The likeliest continuations; a larger tree contains a smaller one."""
        if self._right:
            trusted = min(self._right, _MOST_TRUSTED)
            return _chains([(self._next, 1 - 1 / (trusted + 2))], self._ids, nodes, depth, behind=None)
        ways = [(self._next + 1, _REPLACED), (self._next, _PUT_IN)]
        return _chains(ways, self._ids, nodes, depth, behind=_BEHIND)

    def _jump(self, before: int | None, token: int) -> None:
        """Find where the text has gone to: ahead if there is a place, else to the last one before."""
        places = () if before is None else self._behind.get((before, token), ())
        if places:
            place = bisect_left(places, self._next)
            self._next, self._right = places[min(place, len(places) - 1)], 2
            return
        near = self._ids[self._next + 1 : self._next + 1 + _AHEAD]
        if token in near:
            self._next, self._right = self._next + near.index(token) + 2, 1
        else:
            self._right = 0


def _chains(
    ways: Sequence[tuple[int, float]], ids: Sequence[int], nodes: int, depth: int, *, behind: float | None
) -> TokenTree:
    """A chain from each index, whose first id has that probability and the others `behind`, or the same."""
    tokens: list[int] = []
    parents: list[int] = []
    log_probs: list[float] = []
    firsts: set[int] = set()
    for start, first in ways:
        chain = ids[start : start + depth]
        if not chain or chain[0] in firsts:
            continue
        firsts.add(chain[0])
        for place, token in enumerate(chain):
            parents.append(len(tokens) - 1 if place else -1)
            tokens.append(token)
            log_probs.append(math.log(first if behind is None or not place else behind))
    return TokenTree(tuple(tokens), tuple(parents), tuple(log_probs)).best(nodes)


class Prediction(Method):
    """Drafts for sessions whose clients have predicted their answers, and nothing for others."""

    name = PREDICTION

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._followers: dict[str, Follower] = {}

    def attach(self, session: Hypothesis) -> None:
        """See `Method.attach`. Ids that the target does not have end a guess."""
        if session.guess is None:
            return
        ids = session.guess.ids
        foreign = next((index for index, token in enumerate(ids) if token >= self._vocab_size), len(ids))
        self._followers[session.key.session_id] = Follower(Guess(ids[:foreign], session.guess.start))

    def draft(self, asks: Sequence[Ask]) -> list[TokenTree]:
        """See `Method.draft`."""
        return [self._tree(ask) for ask in asks]

    def _tree(self, ask: Ask) -> TokenTree:
        follower = self._followers.get(ask.session.key.session_id)
        if follower is None or ask.nodes <= 0 or ask.depth <= 0:
            return NO_TREE
        follower.follow(ask.session.ids, ask.length)
        return follower.tree(ask.nodes, ask.depth)

    def forget(self, session_id: str) -> None:
        """See `Method.forget`."""
        self._followers.pop(session_id, None)


class PredictionFactory(MethodFactory):
    """Part of every drafter that drafts from the text: it costs nothing where no client predicts."""

    name = PREDICTION
    needs = Needs()
    computes = False
    weights = ()

    def create(self, target: Target) -> Method:
        """See `MethodFactory.create`."""
        return Prediction(target.vocab_size)
