"""What came of each source's nodes in a step, and what sources are called in metrics."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

from paceline.session import OTHER_SOURCES, PREDICTION, SourceTokens
from verifier_svc.merge import Node

# What constraints force, which verifiers draft themselves.
GRAMMAR = "grammar"
# Sources that come with Paceline: no other takes their place among the labels.
SHIPPED = ("text", PREDICTION, "draft", "eagle", GRAMMAR)
# Most different labels. Drafters choose their names, and a label is a series for as long as the process runs.
MOST_LABELS = 16


class SourceLabels:
    """The label of each source in metrics: its name, or "other" once there are too many. For any thread."""

    def __init__(self, shipped: Iterable[str] = SHIPPED) -> None:
        self._labels = {
            "": SourceTokens("").name,
            OTHER_SOURCES: OTHER_SOURCES,
            **{name: name for name in shipped},
        }
        self._lock = threading.Lock()

    def of(self, source: str) -> str:
        """The label of the source of this name."""
        with self._lock:
            if source not in self._labels and len(self._labels) < MOST_LABELS:
                self._labels[source] = source
            return self._labels.get(source, OTHER_SOURCES)


LABELS = SourceLabels()


def counts(nodes: Sequence[Node], path: Sequence[int], names: Sequence[str]) -> tuple[SourceTokens, ...]:
    """Verified and accepted nodes of each source that proposed any; `names`: of sources, by number."""
    drafted: dict[str, int] = {}
    accepted: dict[str, int] = {}
    for node in nodes:
        for proposal in node.proposals:
            name = names[proposal.source]
            drafted[name] = drafted.get(name, 0) + 1
    for index in path:
        for proposal in nodes[index].proposals:
            name = names[proposal.source]
            accepted[name] = accepted.get(name, 0) + 1
    return tuple(SourceTokens(name, count, accepted.get(name, 0)) for name, count in drafted.items())
