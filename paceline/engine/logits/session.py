"""A session's parameters, made ready for its rows, and the rows themselves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from paceline.engine.logits.history import History
from paceline.engine.logits.matcher import Matcher
from paceline.sampling import SamplingParams


class SessionLogits:
    """What a session asks of its rows' logits. Arrays are made once, and only of what is asked for."""

    def __init__(self, params: SamplingParams, history: History | None = None) -> None:
        """`history` may be left out where no parameter looks back: see `looks_back`."""
        self.params = params
        self._history = history
        self.looks_back = looks_back(params)
        # Whether rows need more than temperature and filters, wherever they stand.
        self.adjusted = self.looks_back or bool(
            params.logit_bias or params.allowed_token_ids or params.bad_words
        )

    @property
    def history(self) -> History:
        """The text. Raises `ValueError` where it was left out."""
        if self._history is None:
            raise ValueError("these parameters need the session's text")
        return self._history

    @cached_property
    def stop_ids(self) -> NDArray[np.int64]:
        """Ids that end the text."""
        return _sorted(self.params.stop_token_ids)

    @cached_property
    def allowed(self) -> NDArray[np.int64]:
        """The only ids that may be drawn; empty: all."""
        return _sorted(self.params.allowed_token_ids)

    @cached_property
    def bias(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Ids, and what is added to their logits."""
        ids = np.array([token for token, _ in self.params.logit_bias], np.int64)
        return ids, np.array([added for _, added in self.params.logit_bias], np.float64)

    @cached_property
    def banned(self) -> NDArray[np.int64]:
        """Ids that are never drawn."""
        return _sorted({words[0] for words in self.params.bad_words if len(words) == 1})

    @cached_property
    def phrases(self) -> dict[int, list[tuple[tuple[int, ...], int]]]:
        """Beginnings of bad words and the id that must not follow them, by the beginning's last id."""
        made: dict[int, list[tuple[tuple[int, ...], int]]] = defaultdict(list)
        for words in self.params.bad_words:
            if len(words) > 1:
                made[words[-2]].append((words[:-1], words[-1]))
        return dict(made)


def looks_back(params: SamplingParams) -> bool:
    """Whether a row's logits depend on the text before it by more than the model."""
    return bool(
        params.presence_penalty
        or params.frequency_penalty
        or params.repetition_penalty != 1
        or any(len(words) > 1 for words in params.bad_words)
    )


def _sorted(ids: Sequence[int] | frozenset[int] | set[int]) -> NDArray[np.int64]:
    return np.array(sorted(ids), np.int64)


@dataclass(frozen=True, slots=True)
class LogitsRow:
    """A row whose token is drawn: its session, and where it stands."""

    session: SessionLogits
    # Where the token will stand.
    position: int
    # Ids of the row's own way through the tree, behind the committed ones.
    path: Sequence[int] = ()
    matcher: Matcher | None = None

    @property
    def params(self) -> SamplingParams:
        """Of the session."""
        return self.session.params

    @property
    def committed(self) -> int:
        """Length of prompt and committed ids before the path."""
        return self.position - len(self.path)

    @property
    def endless(self) -> bool:
        """Whether the text must not end here."""
        # A matcher knows where its text may end, and where it must.
        return self.matcher is None and endless(self.session.params, self.position)

    @property
    def adjusted(self) -> bool:
        """Whether the row needs more than temperature and filters."""
        return self.session.adjusted or self.matcher is not None or self.endless


def endless(params: SamplingParams, position: int) -> bool:
    """Whether the text must not end at this position."""
    return position < params.stop_from and bool(params.stop_token_ids)
