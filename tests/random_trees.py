"""Draft trees of any shape, in which part of a text is right."""

from __future__ import annotations

from random import Random

from paceline.tree import TokenTree


def tree_around(random: Random, right: list[int], *, vocab: int) -> tuple[TokenTree, list[int]]:
    """A tree with the path of the `right` tokens inside, and the nodes of that path."""
    tokens: list[int] = []
    parents: list[int] = []
    path: list[int] = []
    for token in right:
        for _ in range(random.randint(0, 3)):
            parent = random.randint(-1, len(tokens) - 1)
            siblings = [tokens[node] for node in range(len(tokens)) if parents[node] == parent]
            # Never a right token: those are the path's alone.
            other = random.randrange(vocab)
            if other not in siblings and other not in right:
                tokens.append(other)
                parents.append(parent)
        parents.append(path[-1] if path else -1)
        path.append(len(tokens))
        tokens.append(token)
    return TokenTree(tuple(tokens), tuple(parents), (-1.0,) * len(tokens)), path
