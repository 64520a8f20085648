"""What stands before a session's rows: its prompt and its committed ids, counted as they come."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


class History:
    """A session's text, of which each id is counted once, however many steps there are."""

    def __init__(self, token_ids: Sequence[int], prompt_length: int) -> None:
        """`token_ids`: the prompt, then the committed ids; may grow, and is not copied."""
        self._token_ids = token_ids
        self._prompt_length = prompt_length
        # Of each generated id its place below; `_ids` and `_counts` have room for more.
        self._places: dict[int, int] = {}
        self._ids = np.empty(64, np.int64)
        self._counts = np.empty(64, np.int64)
        self._counted = prompt_length

    @cached_property
    def prompt_ids(self) -> NDArray[np.int64]:
        """Each id of the prompt once."""
        return np.unique(np.asarray(self._token_ids[: self._prompt_length], np.int64))

    def generated(self, length: int, path: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Each generated id once, and how often it stands in the text's first `length` ids and `path`.

        Raises `ValueError` for a length before one that was asked for.
        """
        self._count_to(length)
        known = len(self._places)
        ids, counts = self._ids[:known], self._counts[:known]
        if not path:
            return ids, counts
        new = dict.fromkeys((token for token in path if token not in self._places), 0)
        counts = np.concatenate([counts, np.zeros(len(new), np.int64)])
        places = {token: known + place for place, token in enumerate(new)}
        for token in path:
            counts[places[token] if token in places else self._places[token]] += 1
        return np.concatenate([ids, np.fromiter(new, np.int64, len(new))]), counts

    def ends_with(self, length: int, path: Sequence[int], phrase: Sequence[int]) -> bool:
        """Whether the text's first `length` ids, with `path` behind them, end with `phrase`."""
        own = min(len(path), len(phrase))
        rest = len(phrase) - own
        return (
            length >= rest
            and tuple(path[len(path) - own :]) == tuple(phrase[rest:])
            and tuple(self._token_ids[length - rest : length]) == tuple(phrase[:rest])
        )

    def last(self, length: int, path: Sequence[int]) -> int:
        """The last id of the text's first `length` ids with `path` behind them."""
        return path[-1] if path else self._token_ids[length - 1]

    def _count_to(self, length: int) -> None:
        if length < self._counted:
            raise ValueError(f"{self._counted} ids are counted already, {length} were asked for")
        for token in self._token_ids[self._counted : length]:
            place = self._places.get(token)
            if place is None:
                place = self._places[token] = len(self._places)
                if place == len(self._ids):
                    self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
                    self._counts = np.concatenate([self._counts, np.empty_like(self._counts)])
                self._ids[place], self._counts[place] = token, 0
            self._counts[place] += 1
        self._counted = length
