"""A drafter that plays recorded trees, so that no processor is shared with the verifier.

A text is a function of prompt and seed alone. So a method's trees are recorded once, for every base of every
text; a player then answers with them after the method's own time on hardware of its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from drafter_svc.hypothesis import Hypothesis
from drafter_svc.methods.base import Ask, FeatureWant, Method, MethodFactory, Needs, Target
from paceline.tree import TokenTree


def place(ids: Sequence[int]) -> str:
    """Names a base: a hash of all ids before it."""
    return blake2b(np.asarray(ids, "<i8").tobytes(), digest_size=12).hexdigest()


@dataclass(frozen=True, slots=True)
class Recorded:
    """A tree for every base of some texts, by `place`, and the id that follows there."""

    trees: Mapping[str, TokenTree]
    following: Mapping[str, int]

    def write(self, path: Path) -> None:
        """Raises `OSError`."""
        lines = [
            {
                "place": each,
                "next": self.following.get(each),
                "tokens": tree.tokens,
                "parents": tree.parents,
                "log_probs": tree.log_probs,
                "sources": tree.sources,
            }
            for each, tree in self.trees.items()
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Recorded:
        """Raises `OSError`, and `ValueError` or `KeyError` for a file that holds something else."""
        trees: dict[str, TokenTree] = {}
        following: dict[str, int] = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            told = json.loads(line)
            trees[told["place"]] = TokenTree(
                tuple(told["tokens"]),
                tuple(told["parents"]),
                tuple(told["log_probs"]),
                tuple(told["sources"]),
            )
            if told["next"] is not None:
                following[told["place"]] = told["next"]
        return cls(trees, following)

    def drafted(self, ids: Sequence[int], nodes: int) -> TokenTree:
        """What was drafted behind `ids`, cut to `nodes`; empty where nothing is recorded."""
        tree = self.trees.get(place(ids))
        return tree.best(nodes) if tree is not None else TokenTree()

    def ahead(self, ids: Sequence[int], sent: TokenTree, nodes: int) -> TokenTree:
        """`sent`, drafted behind `ids`, grown below its last node that the text takes, by what is recorded.

        A drafter that goes on grows the likeliest outcomes. Only the text's own can matter: what it
        would grow elsewhere is rejected with the branch. So it is as if it had guessed the outcome wherever
        its tree holds it.
        """
        path, node = list(ids), -1
        while (token := self.following.get(place(path))) is not None:
            child = sent.child(node, token)
            if child is None:
                break
            path.append(token)
            node = child
        if node < 0:
            return sent
        below = self.drafted(path, max(0, nodes - len(sent)))
        taken = {token for token, parent in zip(sent.tokens, sent.parents, strict=True) if parent == node}
        return _grafted(sent, node, below, taken)


@dataclass(frozen=True, slots=True)
class Source:
    """A method that was recorded: what a drafter process knows of it, its times, and its file of trees."""

    name: str
    computes: bool
    # For trees of so many nodes, from few to many: seconds from a verdict to the tree, median and 95th
    # percentile.
    times: tuple[tuple[int, float, float], ...]
    trees: str
    feedback_top_k: int
    # Of the target whose hidden states it drafts from; empty if it does not.
    layers: tuple[int, ...]
    weights_fingerprint: str

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Source:
        """From JSON of its fields."""
        times = tuple((nodes, median, slow) for nodes, median, slow in told["times"])
        return cls(**{**told, "times": times, "layers": tuple(told["layers"])})

    def seconds(self, nodes: int) -> float:
        """Median time of a tree of so many nodes, between those that were timed."""
        counts, medians, _ = zip(*self.times, strict=True)
        return float(np.interp(nodes, counts, medians))


def hit_rate(
    sources: Sequence[Recorded],
    texts: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    nodes: int,
    most: int,
) -> float:
    """Share of steps whose outcome lies in what was drafted ahead of them.

    `texts` are prompts and answers. Steps verify `nodes` nodes of a source's `most`; trees drafted ahead have
    twice as many.
    """
    steps = hits = 0
    for prompt, answer in texts:
        ids = (*prompt, *answer)
        # The first id comes with the prompt.
        base = len(prompt) + 1
        while base + 1 < len(ids):
            before, rest = ids[:base], ids[base:]
            trees = [source.drafted(before, most) for source in sources]
            outcome = 1 + max((_along(tree.best(nodes), rest) for tree in trees), default=0)
            ahead = (
                source.ahead(before, tree, 2 * most) for source, tree in zip(sources, trees, strict=True)
            )
            steps += 1
            hits += any(_along(tree, rest) >= min(outcome, len(rest)) for tree in ahead)
            base += outcome
    return hits / steps if steps else 0.0


def _along(tree: TokenTree, text: Sequence[int]) -> int:
    """How many ids of a text a tree has, from its root on."""
    node, count = -1, 0
    for token in text:
        child = tree.child(node, token)
        if child is None:
            break
        node, count = child, count + 1
    return count


class Player(Method):
    """See `drafter_svc.methods.base.Method`: a method that takes its time and has no work."""

    def __init__(
        self, name: str, recorded: Recorded, seconds: Callable[[int], float], position_bytes: int
    ) -> None:
        """`seconds`: of a tree of so many nodes. `position_bytes`: of the states it is sent; 0 for none."""
        self.name = name
        self._recorded = recorded
        self._seconds = seconds
        self._position_bytes = position_bytes
        # Positions whose states have come, by session.
        self._positions: dict[str, int] = {}

    def lacks_from(self, session: Hypothesis) -> int | None:
        """States travel to it as to the recorded method; it drops them."""
        return self._positions.get(session.key.session_id, 0) if self._position_bytes else None

    def take_states(self, session: Hypothesis, position: int, states: memoryview) -> None:
        """See `Method.take_states`."""
        self._positions[session.key.session_id] = position + len(states) // self._position_bytes

    def draft(self, asks: Sequence[Ask]) -> list[TokenTree]:
        """Recorded trees, after the time that the largest of them takes."""
        time.sleep(max(self._seconds(ask.nodes) for ask in asks))
        return [self._tree(ask) for ask in asks]

    def _tree(self, ask: Ask) -> TokenTree:
        ids = ask.session.ids[: ask.length]
        if not ask.sent.tokens:
            return self._recorded.drafted(ids, ask.nodes)
        tree = self._recorded.ahead(ids, ask.sent, ask.nodes)
        return tree.select([node for node, depth in enumerate(tree.depths()) if depth <= ask.depth])

    def forget(self, session_id: str) -> None:
        """See `Method.forget`."""
        self._positions.pop(session_id, None)


class PlayerFactory(MethodFactory):
    """See `MethodFactory`."""

    weights: tuple[str, ...] = ()

    def __init__(self, source: Source) -> None:
        """Reads the trees: raises what `Recorded.read` raises."""
        self.name = source.name
        # A source of text answers on the event loop and holds it up for as long as it drafts.
        self.computes = source.computes
        want = FeatureWant(source.layers, source.weights_fingerprint)
        self.needs = Needs(source.feedback_top_k, features=(want,) if source.layers else ())
        self._recorded = Recorded.read(Path(source.trees))
        self._source = source

    def create(self, target: Target) -> Player:
        """Of any target: recorded trees fit their own texts only."""
        granted = target.features if self.needs.features else None
        position_bytes = 0 if granted is None else granted.position_bytes
        return Player(self.name, self._recorded, self._source.seconds, position_bytes)


def _grafted(tree: TokenTree, node: int, below: TokenTree, taken: set[int]) -> TokenTree:
    """`tree` with `below` under one of its nodes, without what stands there already, `taken`."""
    left_out: set[int] = set()
    kept: list[int] = []
    for index, (token, parent) in enumerate(zip(below.tokens, below.parents, strict=True)):
        if parent in left_out or (parent < 0 and token in taken):
            left_out.add(index)
        else:
            kept.append(index)
    added = below.select(kept)
    shift = len(tree)
    sources: tuple[int, ...] = ()
    if tree.sources or added.sources:
        sources = (tree.sources or (0,) * len(tree)) + (added.sources or (0,) * len(added))
    return TokenTree(
        tree.tokens + added.tokens,
        tree.parents + tuple(node if parent < 0 else parent + shift for parent in added.parents),
        tree.log_probs + added.log_probs,
        sources,
    )
