"""Whether texts to train on share a run of words with prompts that are evaluated."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

# Words in a row.
RUN: Final = 13
_WORD: Final = re.compile(r"\w+")


def runs(text: str) -> Iterator[tuple[str, ...]]:
    """All runs of `RUN` words of a text; case, punctuation and spaces do not count."""
    words = _WORD.findall(text.casefold())
    for start in range(len(words) - RUN + 1):
        yield tuple(words[start : start + RUN])


class Prompts:
    """The prompts that are evaluated."""

    def __init__(self, prompts: Iterable[str]) -> None:
        self._runs = {run for prompt in prompts for run in runs(prompt)}

    def share(self, text: str) -> bool:
        """Whether a text has a run of words that one of the prompts has, too."""
        return any(run in self._runs for run in runs(text))
