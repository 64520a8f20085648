"""The trees that wait for a session's next step: each source's newest, and what of them still fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from paceline.tree import TokenTree

# Most trees that wait for one session, and most nodes of all of them where they are several. A drafter's
# ledger allows more, and each node costs every step some microseconds.
MOST_OFFERS = 8
MOST_NODES = 256


@dataclass(frozen=True, slots=True)
class Offer:
    """A tree on the first `base` ids of a session's text, whose nodes of `sources` still count."""

    base: int
    tree: TokenTree
    sources: frozenset[int]
    # Whether no step has taken of it yet.
    fresh: bool = True


@dataclass(frozen=True, slots=True)
class Part:
    """What of an offer continues the text: its tree re-rooted, `rise` levels below its own root."""

    tree: TokenTree
    rise: int
    fresh: bool


def sources_of(tree: TokenTree) -> frozenset[int]:
    """Numbers of the sources that a tree's nodes come from."""
    if tree.sources:
        return frozenset(tree.sources)
    return frozenset((0,)) if tree.tokens else frozenset()


def add(
    offers: Sequence[Offer], base: int, tree: TokenTree, wanted: frozenset[int] | None = None
) -> tuple[Offer, ...]:
    """The offers with a tree that has come, later ones last. `wanted`: the only sources that count.

    A source's tree gives way to one on a longer text, in whichever order they come, and other sources' nodes
    do not. On the same text both count: a drafter that goes on sends a larger tree, and one that merges its
    sources names only one of those that proposed a node.
    """
    newer = [offer.sources for offer in offers if offer.base > base]
    sources = sources_of(tree).difference(*newer)
    if wanted is not None:
        sources &= wanted
    if not sources:
        return tuple(offers)
    kept = [
        offer if offer.base >= base else replace(offer, sources=offer.sources - sources) for offer in offers
    ]
    kept = [*(offer for offer in kept if offer.sources), Offer(base, tree, sources)]
    while len(kept) > 1 and (len(kept) > MOST_OFFERS or sum(len(offer.tree) for offer in kept) > MOST_NODES):
        kept.pop(0)
    return tuple(kept)


def fitting(offers: Sequence[Offer], token_ids: Sequence[int]) -> tuple[tuple[Offer, ...], list[Part]]:
    """The offers that continue the text, and what of each does so: a part for each offer, in their order."""
    kept: list[Offer] = []
    parts: list[Part] = []
    for offer in offers:
        committed = token_ids[offer.base :]
        tree = _of_sources(offer.tree.reroot(committed), offer.sources)
        if tree.tokens:
            kept.append(offer)
            parts.append(Part(tree, len(committed), offer.fresh))
    return tuple(kept), parts


def _of_sources(tree: TokenTree, sources: frozenset[int]) -> TokenTree:
    """The nodes of `sources`, and the nodes that lead to them."""
    if sources_of(tree) <= sources:
        return tree
    labels = tree.sources or (0,) * len(tree)
    wanted: set[int] = set()
    for node in range(len(tree) - 1, -1, -1):
        if labels[node] in sources or node in wanted:
            wanted |= {node, tree.parents[node]}
    return tree.select(sorted(wanted - {-1}))
