"""Recorded texts, replayed to a drafting method: what it drafts is walked as a verifier walks it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from drafter_svc.hypothesis import Hypothesis
from drafter_svc.methods.base import Ask, Method
from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from paceline.tree import TokenTree, check
from paceline.verdict import Verdict


@dataclass(eq=False)
class Replayed:
    """One session: its whole text, of which the first `known` ids are known when it begins."""

    name: str
    text: list[int]
    known: int
    sampling: SamplingParams = field(default_factory=lambda: SamplingParams(max_tokens=1000))
    # Hidden states of all positions [ids, layers, width], for a method that drafts from them.
    states: Tensor | None = None
    # Committed ids and the tree of each step.
    lengths: list[int] = field(default_factory=list)
    trees: list[TokenTree] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.session = Hypothesis(SessionKey(self.name, 1), self.sampling, self.text[: self.known])

    @property
    def over(self) -> bool:
        return self.session.base_length >= len(self.text)

    @property
    def length(self) -> float:
        """Committed ids per step."""
        return sum(self.lengths) / len(self.lengths)

    def ask(self, nodes: int, depth: int, sent: TokenTree | None = None) -> Ask:
        return Ask(self.session, self.session.base_length, nodes, depth, sent or TokenTree())

    def tell_states(self, method: Method, most: int = 50) -> None:
        """Send the states that the method lacks, in chunks of at most so many positions."""
        computed = self.session.base_length - 1
        while self.states is not None:
            position = method.lacks_from(self.session)
            if position is None or position >= computed:
                return
            chunk = self.states[position : min(computed, position + most)].contiguous()
            method.take_states(self.session, position, memoryview(chunk.numpy().tobytes()))

    def commit(self, method: Method, tree: TokenTree, nodes: int) -> None:
        """Walk the tree along the text; the token after it is the target's own."""
        base = self.session.base_length
        rest = self.text[base:]
        node, accepted = -1, 0
        while accepted < len(rest) - 1 and (child := tree.child(node, rest[accepted])) is not None:
            node, accepted = child, accepted + 1
        verdict = Verdict(self.session.key, base, tuple(rest[: accepted + 1]), accepted, len(tree), nodes)
        method.observe(self.session, self.session.learn(verdict))
        self.lengths.append(accepted + 1)
        self.trees.append(tree)


def replay(
    method: Method, sessions: Sequence[Replayed], *, vocab_size: int, nodes: int = 15, depth: int = 5
) -> None:
    """Draft for all of them, in one batch a step, until their texts end; then they are forgotten."""
    for replayed in sessions:
        method.attach(replayed.session)
    while running := [replayed for replayed in sessions if not replayed.over]:
        for replayed in running:
            replayed.tell_states(method)
        trees = method.draft([replayed.ask(nodes, depth) for replayed in running])
        for replayed, tree in zip(running, trees, strict=True):
            check(tree, vocab_size=vocab_size, max_nodes=nodes, max_depth=depth)
            replayed.commit(method, tree, nodes)
        method.settle()
    for replayed in sessions:
        method.forget(replayed.name)
