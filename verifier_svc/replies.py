"""How long each source of each drafter takes to answer, draft time and round trip together."""

from __future__ import annotations

from collections.abc import Mapping

# What is assumed of a drafter that has not answered yet, of its first source.
_ASSUMED = {0: 0.005}
# Share of a new measurement in the means.
_WEIGHT = 0.2
# Longest answer that counts, in seconds.
_LONGEST_SECONDS = 1.0


class Replies:
    """Mean seconds from a request to its answer, by drafter stream and source. Not locked itself."""

    def __init__(self) -> None:
        self._seconds: dict[int, dict[int, float]] = {}

    def took(self, stream_id: int, source: int, seconds: float) -> None:
        """A source of a stream's drafter answered a request after so long."""
        means = self._seconds.setdefault(stream_id, {})
        seconds = min(seconds, _LONGEST_SECONDS)
        mean = means.get(source, seconds)
        means[source] = mean + _WEIGHT * (seconds - mean)

    def of(self, stream_id: int) -> Mapping[int, float]:
        """The means of the sources that have answered."""
        return self._seconds.get(stream_id, _ASSUMED)

    def forget(self, stream_id: int) -> None:
        """The stream has ended."""
        self._seconds.pop(stream_id, None)
