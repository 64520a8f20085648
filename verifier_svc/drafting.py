"""A session's drafter: what it was told and asked for, and the trees that it sent."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from paceline.tree import TokenTree
from verifier_svc import offers
from verifier_svc.asks import Answer, Asks
from verifier_svc.merge import NOTHING, MergedTree
from verifier_svc.offers import Offer

# The mean gain that is assumed of a session's trees before any was verified, in tokens.
HOPED_GAIN = 1.0


@dataclass(frozen=True, slots=True)
class Ready:
    """What of a session's offers continues its text, merged and judged."""

    # The offers, and the length of the text, that this was found for.
    offers: tuple[Offer, ...]
    length: int
    # Those that fit, and the number of those that fit no more and of which no step has taken.
    fitting: tuple[Offer, ...] = ()
    late: int = 0
    # One tree of all of them: who proposes which node, and how likely each is.
    merged: MergedTree = NOTHING
    tree: TokenTree = field(default_factory=TokenTree)

    @property
    def fresh(self) -> bool:
        """Whether a tree fits of which no step has taken."""
        return any(offer.fresh for offer in self.fitting)

    @property
    def in_time(self) -> frozenset[int]:
        """Sources whose trees know all of the text."""
        return frozenset().union(*(offer.sources for offer in self.fitting if offer.base == self.length))


@dataclass(slots=True)
class Drafting:
    """The drafter of one session. Guarded by the lock of the table of sessions."""

    # Id of the drafter stream that has joined, 0 for none; names of its sources, by their numbers in trees.
    stream_id: int = 0
    sources: tuple[str, ...] = ("",)
    # The one whose nodes are wanted; empty wants all.
    method: str = ""
    # Bytes of trees that have come since a step asked.
    tree_bytes: int = 0
    # Length of the text, in tokens, that the drafter has been told.
    told_length: int = 0
    # The trees that have come and may still be of use.
    offers: tuple[Offer, ...] = ()
    ready: Ready = Ready((), 0)
    # Trees that have come since a step took of them.
    trees_offered: int = 0
    # Whether a tree for the next step is expected to pay.
    wanted: bool = False
    asks: Asks = field(default_factory=Asks)
    # Seconds from requests to the last tree that came for each, whichever drafter it was.
    reply_seconds: float = 0.0
    # Running mean of the tokens that trees gained in a step, less those that their rows cost; and the same of
    # what would have been missing without a source.
    tree_gain: float = HOPED_GAIN
    source_gains: dict[int, float] = field(default_factory=dict)

    @property
    def grammar_source(self) -> int:
        """The number of what a session's constraint forces, behind those of its drafter's sources."""
        return len(self.sources)

    def join(self, stream_id: int, length: int, sources: tuple[str, ...] = ("",)) -> None:
        """A stream's drafter is told the whole text, of `length`, and drafts from now on."""
        if self.stream_id != stream_id:
            # They are another drafter's, and this one must not answer for them.
            self.drop_trees()
            self.asks = Asks()
            self.source_gains = {}
        self.stream_id, self.sources = stream_id, sources
        self.told_length = length

    def leave(self) -> None:
        """The session goes on without a drafter."""
        self.stream_id = 0
        self.asks = Asks()
        self.drop_trees()

    def came(self, tree: TokenTree, base: int, *, now: float) -> list[Answer]:
        """A tree on the first `base` ids came. Returns what of it was asked for, by source."""
        self.offers = offers.add(self.offers, base, tree, self.wanted_sources)
        self.trees_offered += 1
        answers = self.asks.answered(base, offers.sources_of(tree), now)
        self.reply_seconds += sum(answer.longer for answer in answers)
        return answers

    @property
    def wanted_sources(self) -> frozenset[int] | None:
        """Numbers of the sources whose nodes are wanted; None wants all."""
        if not self.method:
            return None
        return frozenset(number for number, name in enumerate(self.sources) if name == self.method)

    def take_bytes(self) -> int:
        """Bytes of the trees that have come since the last call."""
        taken, self.tree_bytes = self.tree_bytes, 0
        return taken

    def drop_trees(self) -> None:
        """The waiting trees are of no use any more."""
        self.offers = ()

    def take(self, kept: tuple[Offer, ...]) -> None:
        """A step takes of these offers; the others fit no more. What it leaves may fit the next one."""
        self.offers = tuple(replace(offer, fresh=False) for offer in kept)
        self.trees_offered = 0
