"""One session's way through its constraint: which tokens may come next, here and along a draft tree."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from paceline.constraints.grammars import reason
from paceline.constraints.vocabulary import Vocabulary

# Of the library's names for why a matcher stops, those that clients bring about.
_WORDS = {
    "NoExtension": "the constraint has no text",
    "NoExtensionBias": "the constraint has no text",
}


class MatcherError(RuntimeError):
    """A text cannot go on under its constraint; the message says why."""


class GrammarMatcher:
    """At the last committed token; see `engine.logits.matcher.Matcher`. On one thread at a time.

    It goes down a path of a tree and back again, so neighbours in a tree cost a token each. Where the text
    may be complete, the ids that end it are allowed; everywhere else they are as any other token. Where one
    continuation is left, it is held to the tokens in which the tokenizer writes it.
    """

    def __init__(
        self, start: LLMatcher, vocabulary: Vocabulary, stop_ids: frozenset[int], *, least: int = 0
    ) -> None:
        """`start`: where the text begins; it is left there. `stop_ids`: each of them ends the text.

        Before `least` tokens it ends only where it cannot go on.
        """
        self._start = start
        self._at = start.deep_copy()
        self._committed: list[int] = []
        self._least = least
        # What `_at` has taken beyond the committed ids.
        self._path: list[int] = []
        self._vocabulary = vocabulary
        self._stop_ids = stop_ids
        self._stops = vocabulary.bits(stop_ids)
        self._ended = False
        self._masks: dict[tuple[int, ...], NDArray[np.uint32]] = {}

    def mask(self, path: Sequence[int]) -> NDArray[np.uint32]:
        """Which tokens may stand behind the committed ids and `path`. Raises `MatcherError` for none.

        Shape [ceil(vocab / 32)]: bit i % 32 of word i // 32 is 1 where token i may stand. Behind a token that
        ends the text that is only the end again.
        """
        key = tuple(path)
        known = self._masks.get(key)
        if known is None:
            known = self._masks[key] = self._mask(key)
        return known

    def legal(self, tokens: Sequence[int], parents: Sequence[int]) -> NDArray[np.bool_]:
        """Which nodes of a draft tree [nodes] may stand where they are: none below one that may not.

        `parents[i] < i`, -1 is the last committed token. Nothing may stand behind the end of a text.
        """
        found = np.zeros(len(tokens), dtype=np.bool_)
        if self._ended:
            return found
        children: dict[int, list[int]] = {}
        for node, parent in enumerate(parents):
            children.setdefault(parent, []).append(node)
        forced: dict[int, list[int]] = {}
        path: list[int] = []
        waiting = [(node, 0) for node in reversed(children.get(-1, ()))]
        while waiting:
            node, depth = waiting.pop()
            del path[depth:]
            token, parent = tokens[node], parents[node]
            if token in self._stop_ids:
                found[node] = self._ends(path, token)
                continue
            if not self._takes(path):
                continue
            if parent not in forced:
                forced[parent] = self._at.compute_ff_tokens()
            only = forced[parent][:1]
            if (not only or only[0] == token) and self._at.try_consume_tokens([token]):
                found[node] = True
                path.append(token)
                self._path.append(token)
                waiting += [(child, depth + 1) for child in reversed(children.get(node, ()))]
        return found

    def continued(
        self, tokens: Sequence[int], parents: Sequence[int], most: int
    ) -> list[tuple[int, list[int]]]:
        """For each place of a tree of legal nodes where one continuation is left: the node, and what follows.

        -1 is the last committed token. Of each, `most` tokens at most; nothing where the tree goes on.
        """
        going_on = set(parents)
        paths: list[list[int]] = [[]]
        for token, parent in zip(tokens, parents, strict=True):
            paths.append([*paths[parent + 1], token])
        ends = (node for node in range(-1, len(tokens)) if node not in going_on)
        found = ((node, self._forced(paths[node + 1], most)) for node in ends)
        return [(node, following) for node, following in found if following]

    def commit(self, ids: Sequence[int]) -> None:
        """The ids are committed. Raises `MatcherError` if they may not stand; the matcher has no use then."""
        if self._ended and ids:
            raise MatcherError("the text had ended")
        end = self._end(ids)
        if not self._takes(ids[:end]):
            raise MatcherError(self._problem() or "the ids do not fit the constraint")
        if end < len(ids) and not self._ends(ids[:end], ids[end]):
            raise MatcherError("the text ends where its constraint does not let it")
        self._path = []
        self._committed += ids
        self._ended = end < len(ids)
        taken = tuple(ids)
        kept = {path: mask for path, mask in self._masks.items() if path[: len(taken)] == taken}
        self._masks = {path[len(taken) :]: mask for path, mask in kept.items()}

    def before(self, count: int) -> GrammarMatcher:
        """Another matcher, as this one was before the last `count` committed ids."""
        earlier = GrammarMatcher(self._start, self._vocabulary, self._stop_ids, least=self._least)
        earlier.commit(self._committed[: len(self._committed) - count])
        return earlier

    def _mask(self, path: tuple[int, ...]) -> NDArray[np.uint32]:
        if self._ended or self._end(path) < len(path):
            return self._stops
        if not self._takes(path):
            raise MatcherError(self._problem() or "no text of the constraint begins like this")
        mask = np.frombuffer(self._at.compute_bitmask(), np.uint32)[: self._vocabulary.words]
        if problem := self._problem():
            raise MatcherError(problem)
        mask = mask & self._vocabulary.within
        if self._at.is_accepting():
            mask |= self._stops
        if len(self._committed) + len(path) < self._least and (longer := mask & ~self._stops).any():
            mask = longer
        if not mask.any():
            raise MatcherError("no token of the vocabulary continues the text under its constraint")
        return mask

    def _forced(self, path: Sequence[int], most: int) -> list[int]:
        if self._ended or self._end(path) < len(path) or not self._takes(path):
            return []
        forced = [int(token) for token in self._at.compute_ff_tokens()[:most]]
        return forced[: self._end(forced)]

    def _ends(self, path: Sequence[int], token: int) -> bool:
        try:
            return self._vocabulary.has(self.mask(path), token)
        except MatcherError:
            # That is for the text itself to find, should it ever get there.
            return False

    def _end(self, ids: Sequence[int]) -> int:
        """Place of the first id that ends the text; the number of ids where none does."""
        return next((place for place, token in enumerate(ids) if token in self._stop_ids), len(ids))

    def _takes(self, path: Sequence[int]) -> bool:
        """Go behind the committed ids and `path`; False where that may not stand."""
        if self._at.is_error():
            self._problem()
        common = len(self._path)
        if self._path != list(path[:common]):
            common = next(
                place for place, (one, other) in enumerate(zip_longest(self._path, path)) if one != other
            )
        if common < len(self._path):
            # After a branch that took too much there is no way back.
            if self._at.rollback(len(self._path) - common):
                del self._path[common:]
            else:
                self._problem()
                common = 0
        rest = list(path[common:])
        if not rest:
            return True
        taken = self._at.try_consume_tokens(rest)
        self._path += rest[:taken]
        return taken == len(rest)

    def _problem(self) -> str | None:
        """Why the library has failed, which it does for good; it is put back behind the committed ids then.

        It may fail in a branch of a tree, by its own limits, of which the text itself knows nothing.
        """
        if not self._at.is_error():
            return None
        told = reason(self._at.get_error())
        self._at, self._path = self._start.deep_copy(), []
        self._at.try_consume_tokens(self._committed[: self._end(self._committed)])
        return _WORDS.get(told, f"the constraint cannot be followed: {told}")
