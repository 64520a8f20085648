"""A drafter that plays recorded trees, so that no processor is shared with the verifier.

A text is a function of prompt and seed alone. So a method's trees are recorded once, for every base of every
text; a player then answers with them after the method's own time on hardware of its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from drafter_svc.methods.base import Ask, Method, Needs, Target
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


class Player(Method):
    """See `drafter_svc.methods.base.Method`: a method that takes its time and has no work."""

    name = "recorded"

    def __init__(self, recorded: Recorded, seconds: float) -> None:
        self._recorded = recorded
        self._seconds = seconds

    def draft(self, asks: Sequence[Ask]) -> list[TokenTree]:
        """Recorded trees, after the time that a batch takes."""
        time.sleep(self._seconds)
        return [
            self._recorded.ahead(ask.session.ids[: ask.length], ask.sent, ask.nodes)
            if ask.sent.tokens
            else self._recorded.drafted(ask.session.ids[: ask.length], ask.nodes)
            for ask in asks
        ]

    def forget(self, session_id: str) -> None:
        """Nothing is kept for a session."""


class PlayerFactory:
    """See `MethodFactory`."""

    name = Player.name
    computes = True
    weights: tuple[str, ...] = ()

    def __init__(self, recorded: Recorded, seconds: float) -> None:
        """`seconds`: what a batch takes."""
        self.needs = Needs()
        self._recorded = recorded
        self._seconds = seconds

    def create(self, target: Target) -> Player:
        """Of any target: recorded trees fit their own texts only."""
        return Player(self._recorded, self._seconds)


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
